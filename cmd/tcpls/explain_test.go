package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls"
)

// Every error has a status that scripts rely on, and words that people do.
func TestExplain(t *testing.T) {
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	for _, test := range []struct {
		name   string
		err    error
		status int
		text   string
		hint   string
	}{
		{"usage", &usageError{"no", "do"}, exitUsage, "no", "do"},
		{"usage of one of several", &pathedError{"f", &usageError{"no", "do"}}, exitUsage, "f: no", "do"},
		{"a file that the text names already", &pathedError{"/f", &localError{&fs.PathError{Op: "open", Path: "/f", Err: fs.ErrNotExist}}}, exitUsage, "open /f: file does not exist", ""},
		{"another file than the one that is named", &pathedError{"/f", &localError{&fs.PathError{Op: "open", Path: "f.part", Err: fs.ErrNotExist}}}, exitUsage, "/f: open f.part: file does not exist", ""},
		{"local file", &localError{errors.New("disk full")}, exitUsage, "disk full", ""},
		{"local file of a library", &fs.PathError{Op: "open", Path: "x", Err: fs.ErrNotExist}, exitUsage, "open x: file does not exist", ""},
		{"closed port", &url.Error{Op: "Get", URL: "https://h/", Err: refused}, exitUnreachable, "dial tcp: connect: connection refused", "nothing listens there"},
		{"taken port", &net.OpError{Op: "listen", Net: "tcp", Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}, exitUnreachable, "listen tcp: bind: address already in use", "choose another one, or port 0"},
		{"no such name", &net.DNSError{Err: "no such host", Name: "h", IsNotFound: true}, exitUnreachable, "lookup h: no such host", "is the name right"},
		{"handshake that hangs", tcpls.ErrHandshakeTimeout, exitUnreachable, "handshake timed out", "doesn't speak TLS"},
		{"cut", tcpls.ErrTruncated, exitUnreachable, "connection ended without a secure close", "go on where they stopped"},
		{"a peer that vanished", &tcpls.PathError{Op: "keepalive", Err: tcpls.ErrKeepAliveTimeout}, exitUnreachable, "path 0: keepalive: tcpls: peer doesn't answer keepalive pings", "go on where they stopped"},
		{"cut by a reset", &tcpls.PathError{Op: "read", Err: syscall.ECONNRESET}, exitUnreachable, "path 0: read: connection reset by peer", "go on where they stopped"},
		{"plain HTTP, as crypto/tls says it", tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, exitUnreachable, "tls: first record does not look like a TLS handshake", "doesn't speak TLS"},
		{"silence", &silenceError{time.Second}, exitUnreachable, "the server sent nothing for 1s", "--timeout"},
		{"alert", tls.AlertError(40), exitUnreachable, "tls: handshake failure", "tcpls check"},
		{"not TCPLS", fmt.Errorf("%w: server doesn't answer", tcpls.ErrNotTCPLS), exitNotTCPLS, "peer doesn't speak TCPLS: server doesn't answer", "--require-tcpls"},
		{"pin", fmt.Errorf("x: %w", &pinError{}), exitUnverified, (&pinError{}).Error(), "ask for the present URL"},
		{"authority", &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, exitUnverified, "the server's certificate isn't signed by a trusted authority", "--cacert"},
		{"expired", x509.CertificateInvalidError{Reason: x509.Expired, Detail: "then"}, exitUnverified, "the server's certificate has expired or isn't valid yet: then", "clock"},
		{"constraint", x509.CertificateInvalidError{Reason: x509.NotAuthorizedToSign}, exitUnverified, "the server's certificate isn't valid: x509: certificate is not authorized to sign other certificates", ""},
		{"digest", &digestError{"the file", "aa", "bb"}, exitUnverified, "the file has the SHA-256 bb, not the announced aa", "nothing was kept"},
		{"refused by the server", &statusError{409, nameTaken}, exitUnreachable, `the server answered 409 Conflict: "` + nameTaken + `"`, "--allow-overwrite"},
		{"refused for another reason", &statusError{409, "no"}, exitUnreachable, `the server answered 409 Conflict: "no"`, ""},
		{"digest refused by the server", &statusError{422, "no"}, exitUnverified, `the server answered 422 Unprocessable Entity: "no"`, ""},
	} {
		f := explain(t.Context(), test.err)
		if f.status != test.status || f.text != test.text || !strings.Contains(f.hint, test.hint) || test.hint == "" && f.hint != "" {
			t.Errorf("%s:\n got %d %q, hint %q\nwant %d %q, hint %q", test.name, f.status, f.text, f.hint, test.status, test.text, test.hint)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if f := explain(ended, refused); f.status != exitInterrupted {
		t.Errorf("after an interrupt: %+v", f)
	}
}

// What a peer says can't steer the terminal, nor fill it.
func TestForeignText(t *testing.T) {
	const evil = "\x1b[2Jcleared\nsecond line"
	if got := (&statusError{500, oneLine(evil, 200)}).Error(); strings.ContainsAny(got, "\x1b\n") {
		t.Errorf("status text: %q", got)
	}
	if got := oneLine(strings.Repeat("x", 1000), 200); len(got) > 210 {
		t.Errorf("%d bytes", len(got))
	}
	if got := printable(evil + "\u009b"); strings.ContainsAny(got, "\x1b\n\u009b") {
		t.Errorf("printable: %q", got)
	}
	l := &listing{Entries: []entry{{Name: evil}}}
	var out bytes.Buffer
	if err := l.show(&out, target{address: "h:1", path: "/"}); err != nil || strings.Contains(out.String(), "\x1b") || strings.Count(out.String(), "\n") != 1 {
		t.Errorf("listing: %q, %v", out.String(), err)
	}
}

// A line said while a progress bar is drawn replaces the bar, which comes back.
func TestUIKeepsTheBarLast(t *testing.T) {
	var out bytes.Buffer
	u := &ui{err: &out, width: func() int { return 40 }}
	u.draw("[==  ]")
	u.say("one file is done")
	u.draw("[=== ]")
	u.draw("")
	const clear = "\r\x1b[J"
	if want := "[==  ]" + clear + "one file is done\n[==  ]" + clear + "[=== ]" + clear; out.String() != want {
		t.Errorf("\n got %q\nwant %q", out.String(), want)
	}
	out.Reset()
	u.fail(&failure{exitUsage, "no", "do"})
	if want := "error: no\nhint: do\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}
