// Package memnet is TCP in memory: connections with the contract of a
// [net.TCPConn] over links that have a rate, a delay and a bounded queue, and
// that can fail while they are in use.
//
// Time comes from package time alone and every wait is a condition or a
// channel, so that under testing/synctest a link's time is virtual and a
// blocked call is durably blocked.
//
// Everything here is safe for concurrent use.
package memnet
