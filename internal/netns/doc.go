// Package netns runs tests in network namespaces of their own, where they may
// change addresses, links and system settings without harm. It is for tests
// on Linux only.
package netns
