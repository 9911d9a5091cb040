package tls13

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/go-tcpls/tcpls/internal/record"
)

// TestErrorTexts are what people read.
func TestErrorTexts(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{
		{broken(AlertDecodeError, "peer's %v is malformed", typeFinished), "tls13: peer's Finished is malformed (decode_error)"},
		{because(AlertBadCertificate, io.EOF, "reading"), "tls13: reading: EOF (bad_certificate)"},
		{because(AlertProtocolVersion, ErrVersion, "server answers with TLS 1.2"), "tls13: server answers with TLS 1.2 (protocol_version)"},
		{&Error{Alert: AlertInternalError, cause: io.EOF}, "tls13: EOF (internal_error)"},
		{&AlertError{AlertHandshakeFailure}, "remote error: tls: handshake_failure"},
		{&AlertError{99}, "remote error: tls: alert(99)"},
	} {
		if got := test.err.Error(); got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
	for a, name := range alertNames {
		if a.String() != name || strings.ToLower(name) != name {
			t.Errorf("alert %d is %q", a, a)
		}
	}
	if got := messageType(99).String(); got != "handshake message of type 99" {
		t.Error(got)
	}
}

// TestErrorKinds keeps our errors and the peer's apart.
func TestErrorKinds(t *testing.T) {
	ours, theirs := error(broken(AlertDecodeError, "x")), error(&AlertError{AlertDecodeError})
	if _, ok := errors.AsType[*AlertError](ours); ok {
		t.Error("our error is a peer's alert")
	}
	if _, ok := errors.AsType[*Error](theirs); ok {
		t.Error("a peer's alert is our error")
	}
	if _, send := alertFor(fmt.Errorf("wrapped: %w", theirs)); send {
		t.Error("a peer's alert is answered")
	}
	for err, want := range map[error]Alert{
		record.ErrOverflow: AlertRecordOverflow, record.ErrAuth: AlertBadRecordMAC, record.ErrShort: AlertBadRecordMAC,
		record.ErrNoType: AlertUnexpectedMessage, record.ErrKeyLimit: AlertInternalError,
	} {
		if got := recordError(err); got.Alert != want || !errors.Is(got, err) {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
}

// TestRandFails gives the blame for a broken source of randomness to nobody
// but it.
func TestRandFails(t *testing.T) {
	client := clientTLS()
	client.Rand = failingReader{}
	if _, err := NewClient(&Config{TLS: client}); !errors.Is(err, errTest) {
		t.Errorf("client: %v", err)
	}
	server := serverTLS()
	server.Rand = failingReader{}
	c, s := newTestPair(t, &Config{TLS: clientTLS()}, &Config{TLS: server})
	_, err := shake(c, s)
	if a, _ := alertOf(err); a != AlertInternalError || !errors.Is(err, errTest) {
		t.Errorf("server: %v", err)
	}
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errTest }
