package tls13

import (
	"bytes"
	"fmt"

	"golang.org/x/crypto/cryptobyte"

	"github.com/go-tcpls/tcpls/internal/record"
)

// A Hello is what a listener may want to know of a ClientHello before it
// chooses who answers. Nothing in it is verified.
type Hello struct {
	// ServerName is the host name of server_name, "" if there is none.
	ServerName string
	// ALPN are the protocols offered, in the client's order.
	ALPN []string
	// Versions are those of supported_versions, or else the one of the
	// ClientHello itself.
	Versions []uint16

	extensions []extension
}

// Extension returns the body of the extension with a codepoint, and whether
// it is there.
func (h *Hello) Extension(id uint16) (body []byte, ok bool) {
	return findExtension(h.extensions, id)
}

// Extensions lists the codepoints in the order sent.
func (h *Hello) Extensions() []uint16 {
	ids := make([]uint16, len(h.extensions))
	for i, e := range h.extensions {
		ids[i] = e.id
	}
	return ids
}

// SniffHello looks at all that a client has sent so far. While the
// ClientHello isn't complete, h and err are nil, and n is how many bytes of p
// there must be at least before it is worth asking again: however the client
// cuts the ClientHello into records, asking then, and only then, takes time
// proportional to its size. Otherwise n is how many bytes its records take.
//
// It accepts every ClientHello of TLS 1.0 to 1.3 of at most 64 KiB and judges
// its framing only, so that whoever answers it sends the alert that is due.
// An error says what else the bytes look like.
func SniffHello(p []byte) (h *Hello, n int, err error) {
	var hello []byte
	need := messageHeadLen
	for len(hello) < need {
		if len(p) < n+record.HeaderLen {
			if n == 0 { // a whole header may tell that this isn't TLS
				return nil, record.HeaderLen, foreignBytes(p)
			}
			// The rest can't come in fewer bytes than one more record takes.
			return nil, n + record.HeaderLen + need - len(hello), nil
		}
		head := record.ParseHeader(p[n:])
		if n == 0 {
			if err := foreignBytes(p); err != nil {
				return nil, 0, err
			}
		}
		if head.Len > record.MaxPlaintext {
			return nil, 0, broken(AlertRecordOverflow, "client begins with a record of %d bytes", head.Len)
		}
		if head.Type != record.Handshake || head.Len == 0 {
			return nil, 0, broken(AlertUnexpectedMessage, "client doesn't begin with a handshake record")
		}
		end := n + record.HeaderLen + head.Len
		hello = append(hello, p[n+record.HeaderLen:min(end, len(p))]...)
		if len(hello) >= messageHeadLen {
			size := int(hello[1])<<16 | int(hello[2])<<8 | int(hello[3])
			if messageType(hello[0]) != typeClientHello {
				return nil, 0, broken(AlertUnexpectedMessage, "client doesn't begin with a ClientHello")
			}
			if size > maxMessage {
				return nil, 0, broken(AlertIllegalParameter, "client announces a ClientHello of %d bytes, more than %d", size, maxMessage)
			}
			need = messageHeadLen + size
		}
		if len(p) < end {
			if rest := need - len(hello) - (end - len(p)); rest > 0 {
				end += record.HeaderLen + rest
			}
			return nil, end, nil
		}
		n = end
	}
	h, ok := sniff(hello[messageHeadLen:need])
	if !ok {
		return nil, n, malformed(typeClientHello)
	}
	return h, n, nil
}

// sniff reads a ClientHello without judging what it says.
func sniff(body []byte) (*Hello, bool) {
	s, h := cryptobyte.String(body), new(Hello)
	var version uint16
	var sessionID, suites, compressions, block []byte
	if !s.ReadUint16(&version) || !s.Skip(randomLen) || !readBytes8(&s, &sessionID) ||
		!readBytes16(&s, &suites) || !readBytes8(&s, &compressions) {
		return nil, false
	}
	h.Versions = []uint16{version}
	if s.Empty() {
		return h, true
	}
	if !readBytes16(&s, &block) || !s.Empty() {
		return nil, false
	}
	for rest := cryptobyte.String(block); !rest.Empty(); {
		var e extension
		if !rest.ReadUint16(&e.id) || !readBytes16(&rest, &e.body) {
			return nil, false
		}
		h.extensions = append(h.extensions, e)
	}
	if body, ok := h.Extension(extServerName); ok {
		h.ServerName, _ = parseServerName(body)
	}
	if body, ok := h.Extension(extALPN); ok {
		h.ALPN, _ = parseALPN(body)
	}
	if body, ok := h.Extension(extSupportedVersions); ok {
		if versions, ok := parseVersionList(body); ok {
			h.Versions = versions
		}
	}
	return h, true
}

// foreignProtocols are first bytes that people meet when a port is not what
// they thought.
var foreignProtocols = []struct{ prefix, what string }{
	{"HTTP/", "an HTTP response"},
	{"GET ", "an HTTP request"},
	{"POST ", "an HTTP request"},
	{"PUT ", "an HTTP request"},
	{"HEAD ", "an HTTP request"},
	{"DELETE ", "an HTTP request"},
	{"OPTIONS ", "an HTTP request"},
	{"PATCH ", "an HTTP request"},
	{"CONNECT ", "an HTTP proxy request"},
	{"PRI * HTTP/2", "HTTP/2 without TLS"},
	{"SSH-", "SSH"},
	{"220 ", "an SMTP or FTP greeting"},
	{"220-", "an SMTP or FTP greeting"},
	{"+OK", "a POP3 greeting"},
	{"* OK", "an IMAP greeting"},
	{"PROXY ", "a PROXY protocol header"},
	{"\r\n\r\n\x00\r\nQUIT\n", "a PROXY protocol header"},
	{"\x04\x01", "SOCKS 4"},
	{"\x05", "SOCKS 5"},
	{"\x13BitTorrent", "BitTorrent"},
}

// foreignBytes describes first bytes that are no TLS record. It needs no
// more than a record header, or less where the bytes are already wrong.
func foreignBytes(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if t := record.Type(p[0]); t >= record.ChangeCipherSpec && t <= record.ApplicationData {
		return nil
	}
	if len(p) < record.HeaderLen {
		return nil // enough to tell will come, or the end
	}
	what := fmt.Sprintf("%q", p[:min(len(p), 8)])
	for _, f := range foreignProtocols {
		if bytes.HasPrefix(p, []byte(f.prefix)[:min(len(f.prefix), len(p))]) {
			what = f.what
			break
		}
	}
	if p[0]&0x80 != 0 && p[2] == 1 {
		return because(AlertProtocolVersion, ErrVersion, "peer's first bytes are an SSL 2.0 hello, not TLS")
	}
	return because(AlertUnexpectedMessage, ErrNotTLS, "peer's first bytes are %s, not TLS", what)
}
