// Package tls13 is a TLS 1.3 engine (RFC 8446), client and server, without
// input and output: bytes go in, bytes and facts come out. It opens no
// sockets, starts no goroutines and waits for nothing.
//
//	            ┌────────────────── Conn ──────────────────┐
//	transport ─►│ Feed ─► records ─► messages ─► next step │
//	transport ◄─│ Output ◄─ records ◄─ flight ◄─────┘      │
//	            └──────────────────────────────────────────┘
//
// A client and a server, each a Conn, with the steps that take the messages:
//
//	NewClient                                              NewServer
//	  ClientHello ───────────────────────────► firstHello
//	  (early data) ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄►   EarlyData
//	  helloRetryRequest ◄─────────────────────   (HelloRetryRequest)
//	  (ClientHello) ─────────────────────────► secondHello
//	  serverHello ◄───────────────────────────   ServerHello
//	  encryptedExtensions ◄═══════════════════   EncryptedExtensions
//	  certificateOrRequest ◄══════════════════   (CertificateRequest)
//	  certificate ◄═══════════════════════════   Certificate
//	  certificateVerify ◄═════════════════════   CertificateVerify
//	  finished ◄══════════════════════════════   Finished
//	  (EndOfEarlyData) ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄► endOfEarlyData
//	  (Certificate) ═════════════════════════► clientCertificate
//	  (CertificateVerify) ═══════════════════► certificateVerify
//	  Finished ══════════════════════════════► clientFinished
//
//	  ── in the clear    ┄┄ under the early keys    ══ under the handshake keys
//
// With a PSK there are no certificates: finished follows encryptedExtensions.
//
// The state of a handshake is its next step, and a message that the step
// doesn't name never reaches a handler. Secrets have a type for each stage of
// the key schedule. What must have been verified is a value that only the
// verifying function makes: without a verifiedPeer and a verifiedFinished no
// handshake is complete, and without an aligned no key changes.
//
// # After the handshake
//
// Either the Conn carries data itself, by Read and Write, or its user takes
// the application keys by TakeKeys and only hands post-handshake messages
// back. Until then the engine seals nothing under the application keys.
//
// # Resumption and early data
//
// A client keeps tickets in tls.Config's ClientSessionCache, and offers each
// once. A server seals them with the keys of its tls.Config, which crypto/tls
// rotates, and keeps nothing. Sessions of crypto/tls in the same cache, or
// sealed by the same keys, are ignored, and ours by crypto/tls. Config.PSK and
// LookupPSK are for keys that the user agrees on otherwise.
//
// Early data (section 2.3) is never accepted unless the server's Config asks
// for it, and a ticket's only with a strike register besides.
//
// # Errors
//
// What the engine finds wrong is an *Error with the alert that it sends; what
// the peer sent is an *AlertError. One function, abort, sends alerts, once.
// ErrVersion matches both kinds where the peer doesn't speak TLS 1.3.
//
// # Limits
//
// Everything that a peer can make a Conn keep is bounded: 64 KiB a message,
// 256 KiB and 32 certificates for Certificate, 1 MiB of records in all for a
// handshake, 32 records or messages in a row without progress, 16 KiB of early
// data that is skipped (or what Config.MaxEarlyData or its PSK allow), 4 PSK
// identities looked at, 16 KiB a ticket, 4 tickets kept for a server. Time is
// the caller's business: a deadline over the whole handshake belongs to the
// transport.
//
// # What is not there
//
// No version but TLS 1.3, no Encrypted Client Hello, no post-handshake client
// authentication, and no PSK without a key exchange (psk_ke).
package tls13
