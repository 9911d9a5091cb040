package tls13

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/go-tcpls/tcpls/internal/record"
)

// helloOfGo records what a crypto/tls client sends first.
func helloOfGo(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	a, b := loopback(t)
	go tls.Client(a, cfg).Handshake()
	head := make([]byte, record.HeaderLen)
	if _, err := io.ReadFull(b, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, record.ParseHeader(head).Len)
	if _, err := io.ReadFull(b, body); err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}

func TestSniffHello(t *testing.T) {
	own := mustClient(t, withExtension(&Config{TLS: clientTLS()}, true)).Output()
	alpn := []string{"h2", "http/1.1"}
	versions := func(low, high uint16) *tls.Config {
		return &tls.Config{ServerName: testName, NextProtos: alpn, MinVersion: low, MaxVersion: high}
	}
	for _, test := range []struct {
		name     string
		wire     []byte
		alpn     []string
		versions []uint16
		own      bool
	}{
		{"ours", own, nil, []uint16{tls.VersionTLS13}, true},
		{"Go, TLS 1.3", helloOfGo(t, versions(tls.VersionTLS13, 0)), alpn, []uint16{tls.VersionTLS13}, false},
		{"Go, TLS 1.2 and 1.3", helloOfGo(t, versions(0, 0)), alpn, []uint16{tls.VersionTLS13, tls.VersionTLS12}, false},
		{"Go, TLS 1.0", helloOfGo(t, versions(tls.VersionTLS10, tls.VersionTLS10)), alpn, []uint16{tls.VersionTLS10}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			rest := []byte("what follows")
			h, n, err := SniffHello(append(slices.Clone(test.wire), rest...))
			if err != nil || h == nil || n != len(test.wire) {
				t.Fatalf("%v, %d of %d bytes, %v", h, n, len(test.wire), err)
			}
			got := slices.DeleteFunc(h.Versions, func(v uint16) bool { return v&0x0f0f == 0x0a0a })
			if h.ServerName != testName || !slices.Equal(h.ALPN, test.alpn) || !slices.Equal(got, test.versions) {
				t.Errorf("%+v", h)
			}
			if body, ok := h.Extension(testExtension); ok != test.own || ok && string(body) != "offer" {
				t.Errorf("extension: %q, %v", body, ok)
			}
			if !slices.Contains(h.Extensions(), extServerName) {
				t.Errorf("extensions %v", h.Extensions())
			}
			sniffEveryPrefix(t, test.wire)
			fragmented := []byte{}
			for piece := range slices.Chunk(test.wire[record.HeaderLen:], 7) {
				fragmented = record.AppendPlain(fragmented, record.Handshake, tls.VersionTLS10, piece)
			}
			sniffEveryPrefix(t, fragmented)
		})
	}
}

// sniffEveryPrefix expects an incomplete ClientHello to be called that, with a
// demand that is neither met nor beyond the end.
func sniffEveryPrefix(t *testing.T, wire []byte) {
	t.Helper()
	for i := range wire {
		h, n, err := SniffHello(wire[:i])
		if h != nil || err != nil || n <= i || n > len(wire) {
			t.Fatalf("%d of %d bytes: %v, at least %d, %v", i, len(wire), h, n, err)
		}
	}
	if h, n, err := SniffHello(wire); h == nil || err != nil || n != len(wire) {
		t.Fatalf("whole hello: %v, %d, %v", h, n, err)
	}
}

// TestSniffInPieces: a client that sends its ClientHello in records of one byte
// doesn't make the listener look at it again for each of them.
func TestSniffInPieces(t *testing.T) {
	m := &clientHello{
		version: tls.VersionTLS12, random: make([]byte, randomLen), suites: []uint16{1}, compressions: []byte{0},
		extensions: []extension{{extPadding, make([]byte, 60<<10)}},
	}
	var wire []byte
	for _, b := range must(encode(m)) {
		wire = record.AppendPlain(wire, record.Handshake, tls.VersionTLS10, []byte{b})
	}
	asked := 0
	for have := 0; ; asked++ {
		h, n, err := SniffHello(wire[:have])
		if err != nil || n > len(wire) || h == nil && n <= have {
			t.Fatalf("%d of %d bytes: at least %d, %v", have, len(wire), n, err)
		}
		if h != nil {
			break
		}
		have = n
	}
	if asked > 100 {
		t.Errorf("asked %d times about a ClientHello of %d records", asked, len(wire)/6)
	}
}

func TestSniffRefuses(t *testing.T) {
	for _, test := range []struct{ wire, want string }{
		{"GET / HTTP/1.1\r\n", "an HTTP request"},
		{"SSH-2.0-OpenSSH_9.6\r\n", "SSH"},
		{"PROXY TCP4 1.2.3.4", "a PROXY protocol header"},
		{"\x05\x01\x00\x00\x00", "SOCKS 5"},
		{"\x80\x2e\x01\x00\x02", "SSL 2.0"},
		{"\x00\x00\x00\x00\x00", "not TLS"},
		{"\x17\x03\x03\x00\x01x", "handshake record"},
		{"\x16\x03\x01\x00\x00", "handshake record"},
		{"\x16\x03\x01\xff\xff", "a record of 65535 bytes"},
		{"\x16\x03\x01\x00\x04\x02\x00\x00\x00", "ClientHello"},
		{"\x16\x03\x01\x00\x04\x01\x01\x00\x01", "announces"},
		{"\x16\x03\x01\x00\x04\x01\x00\x00\x00", "malformed"},
	} {
		h, _, err := SniffHello([]byte(test.wire))
		if h != nil || err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: %v, %v, want an error about %s", test.wire, h, err, test.want)
		}
		want := AlertUnexpectedMessage
		switch test.want {
		case "SSL 2.0":
			want = AlertProtocolVersion
		case "a record of 65535 bytes":
			want = AlertRecordOverflow
		case "announces":
			want = AlertIllegalParameter
		case "malformed":
			want = AlertDecodeError
		}
		if a, ok := alertOf(err); !ok || a != want {
			t.Errorf("%q: alert of %v, want %v", test.wire, err, want)
		}
	}
	if h, n, err := SniffHello(nil); h != nil || n != record.HeaderLen || err != nil {
		t.Errorf("nothing: %v, %d, %v", h, n, err)
	}
}

// TestNotTLS names what a client meets that isn't a TLS server.
func TestNotTLS(t *testing.T) {
	for wire, want := range map[string]string{
		"HTTP/1.1 400 Bad Request\r\n": "an HTTP response, not TLS",
		"220 mail.example ESMTP\r\n":   "an SMTP or FTP greeting, not TLS",
		"hello":                        `"hello", not TLS`,
	} {
		c := mustClient(t, &Config{TLS: clientTLS()})
		if _, err := c.Feed([]byte(wire)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", wire, err, want)
		}
	}
}

// TestOldServer meets a crypto/tls server of TLS 1.2, which refuses our hello.
func TestOldServer(t *testing.T) {
	server := serverTLS()
	server.MaxVersion = tls.VersionTLS12
	c := mustClient(t, &Config{TLS: clientTLS()})
	_, err := overGo(t, c, func(n net.Conn) *tls.Conn { return tls.Server(n, server) })
	if !errors.Is(err, ErrVersion) {
		t.Errorf("%v doesn't match ErrVersion", err)
	}
}
