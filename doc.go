// Package tcpls is a secure transport that integrates TCP and TLS 1.3: TCPLS.
//
// On the wire a session is a TCP connection with ordinary TLS 1.3 records.
// Inside the encryption it carries many streams, each with a cryptographic
// context of its own, with flow control, acknowledgements, priorities and a
// secure end. To a peer without TCPLS it is plain TLS.
//
// # Words
//
// A [Session] is one association with a peer. A path is one TCP connection of
// it. A [Stream] is an ordered bidirectional byte stream; it is a net.Conn. A
// record is a TLS record.
//
// # Use
//
// A server calls [Listen] and takes sessions by [Listener.Accept] and streams
// by [Session.AcceptStream], or all streams of all sessions as a net.Listener
// by [Listener.Streams]. A client calls [Dial] and [Session.OpenStream], or
// gets a stream as a net.Conn from [Dialer.DialStream]. [Client] and [Server]
// run a session over any connection.
//
// # Concurrency and cancellation
//
// All methods may be called from many goroutines at once. A context bounds
// only the call that it is given to; a session or stream lives until it is
// closed. Stream deadlines wake those who wait and break nothing: an
// interrupted stream can go on. Everything that a session starts ends with it.
//
// # Errors
//
// Conditions are sentinels for errors.Is, coded ends are struct types for
// errors.As: [SessionError], [StreamError], [PathError]. io.EOF from a stream
// means that the peer has ended it by an authenticated message; a connection
// that just ends is [ErrTruncated].
//
// # Security
//
// The handshake is TLS 1.3 (RFC 8446) by an engine of this module over the
// standard library's primitives; certificates are verified by crypto/x509 as
// Config.TLS says. Whatever a peer can make an endpoint keep or do is bounded
// by [Config].
//
// # Compatibility
//
// The wire format is docs/protocol.md. Until version 1.0 it and the API may
// change between minor versions.
package tcpls
