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
//	  helloRetryRequest ◄─────────────────────   (HelloRetryRequest)
//	  (ClientHello) ─────────────────────────► secondHello
//	  serverHello ◄───────────────────────────   ServerHello
//	  encryptedExtensions ◄═══════════════════   EncryptedExtensions
//	  certificateOrRequest ◄══════════════════   (CertificateRequest)
//	  certificate ◄═══════════════════════════   Certificate
//	  certificateVerify ◄═════════════════════   CertificateVerify
//	  finished ◄══════════════════════════════   Finished
//	  (Certificate) ═════════════════════════► clientCertificate
//	  (CertificateVerify) ═══════════════════► certificateVerify
//	  Finished ══════════════════════════════► clientFinished
//
//	  ── in the clear    ══ under the handshake keys
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
// data that is skipped. Time is the caller's business: a deadline over the
// whole handshake belongs to the transport.
//
// # What is not there
//
// No version but TLS 1.3, no Encrypted Client Hello, no post-handshake client
// authentication, and full handshakes only: the engine neither issues nor uses
// tickets. A client says so by sending no psk_key_exchange_modes, without which
// a server sends none either (RFC 8446, section 4.2.9).
package tls13
