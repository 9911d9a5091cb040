// Package record protects and frames TLS 1.3 records (RFC 8446, section 5).
//
// It knows suites, keys, nonces and sizes, and nothing of handshakes, streams
// or sessions. What TCPLS adds to TLS is one number: a [Context] belongs to a
// 32-bit id, which enters the nonce, so that many contexts share one key and
// never a nonce (docs/protocol.md, section 3). The context with id 0 is the
// one that TLS 1.3 itself defines.
//
// Keys may be used by many goroutines at once, but for Next, which one calls; a
// Context by one at a time.
package record
