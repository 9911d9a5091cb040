package tcpls

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/tls13"
)

// newPlainRogue connects a client to a server without TCPLS that keeps the
// rules up to the end of the handshake.
func newPlainRogue(t *testing.T) (*rogue, *Stream) {
	t.Helper()
	var sess *Session
	clientConfig, serverConfig := newTestConfigs()
	near, far := memnet.Pipe(memnet.Link{Queue: 1 << 20})
	r := &rogue{t: t, conn: near, log: &keyLog{}}
	r.result = begunResult(func() (err error) {
		sess, err = Client(context.Background(), far, clientConfig)
		return err
	})
	var err error
	if r.engine, err = tls13.NewServer(&tls13.Config{TLS: serverConfig.TLS}); err != nil {
		t.Fatal(err)
	}
	for !r.engine.HandshakeComplete() {
		if err := r.fill(); err != nil {
			t.Fatal(err)
		}
		n, err := r.engine.Feed(r.raw)
		if err != nil {
			t.Fatal(err)
		}
		r.raw = r.raw[n:]
		r.send(r.engine.Output()...)
	}
	if err := r.result(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = near.Close()
		_ = sess.Close() // the test has judged its end
	})
	st, err := sess.OpenStream(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return r, st
}

// wantEnd reads until the victim ends its side, which it does by itself.
func (r *rogue) wantEnd() {
	r.t.Helper()
	for {
		switch err := r.fill(); {
		case errors.Is(err, os.ErrDeadlineExceeded):
			r.t.Fatal("the connection stays open")
		case err != nil:
			return
		}
	}
}

// A server without TCPLS that breaks the rules of TLS in its data is told so,
// once, and the connection ends.
func TestPlainViolations(t *testing.T) {
	for _, test := range []struct {
		name  string
		alert tls13.Alert
		do    func(r *rogue)
	}{
		{"a damaged record", tls13.AlertBadRecordMAC, func(r *rogue) { r.send(append([]byte{23, 3, 3, 0, 30}, make([]byte, 30)...)...) }},
		{"a record longer than TLS allows", tls13.AlertRecordOverflow, func(r *rogue) { r.send(23, 3, 3, 0x41, 1) }},
		{"a record in the clear", tls13.AlertUnexpectedMessage, func(r *rogue) { r.send(22, 3, 3, 0, 1, 0) }},
		{"an alert in the clear", tls13.AlertUnexpectedMessage, func(r *rogue) { r.send(21, 3, 3, 0, 2, 2, 40) }},
		{"close_notify in the clear", tls13.AlertUnexpectedMessage, func(r *rogue) { r.send(21, 3, 3, 0, 2, 1, 0) }},
		{"ChangeCipherSpec", tls13.AlertUnexpectedMessage, func(r *rogue) { r.send(20, 3, 3, 0, 1, 1) }},
		{"a frame of TCPLS", tls13.AlertUnexpectedMessage, func(r *rogue) { r.sealed(60, framed(nil)...) }},
		{"an empty Handshake record", tls13.AlertUnexpectedMessage, func(r *rogue) { r.sealed(record.Handshake) }},
		{"an alert of a bad level", tls13.AlertIllegalParameter, func(r *rogue) { r.sealed(record.Alert, 3, 40) }},
		{"two alerts in a record", tls13.AlertDecodeError, func(r *rogue) { r.sealed(record.Alert, 1, 90, 1, 90) }},
		{"KeyUpdate over 1", tls13.AlertIllegalParameter, func(r *rogue) { r.sealed(record.Handshake, message(24, 2)...) }},
		{"CertificateRequest", tls13.AlertUnexpectedMessage, func(r *rogue) { r.sealed(record.Handshake, message(13, 0, 0, 0)...) }},
		{"data within a message", tls13.AlertUnexpectedMessage, func(r *rogue) {
			r.sealed(record.Handshake, 4, 0)
			r.sealed(record.ApplicationData, 'x')
		}},
		{"a message of 16 MiB announced", tls13.AlertIllegalParameter, func(r *rogue) { r.sealed(record.Handshake, 4, 0xff, 0xff, 0xff) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, st := newPlainRogue(t)
				send, receive := r.engine.TakeKeys()
				r.write = record.NewContext(send, 0)
				r.sealed(record.ApplicationData, []byte("before")...)
				test.do(r)
				got, err := io.ReadAll(st)
				var broken *tls13.Error
				if string(got) != "before" || !errors.As(err, &broken) || broken.Alert != test.alert {
					t.Errorf("read %q and %v, want what came before and an error of the alert %v", got, err, test.alert)
				}
				if _, err := st.Write([]byte("x")); err == nil {
					t.Error("Write behind it has succeeded")
				}
				r.wantEnd()
				alerts := r.records()
				if len(alerts) != 1 {
					t.Fatalf("%d records behind the handshake, want one alert", len(alerts))
				}
				content, typ, err := record.NewContext(receive, 0).Open(make([]byte, len(alerts[0])), alerts[0])
				if err != nil || typ != record.Alert || !bytes.Equal(content, []byte{levelFatal, byte(test.alert)}) {
					t.Errorf("record of type %d, %v, %v; want the alert %v", typ, content, err, test.alert)
				}
			})
		})
	}
}

// A fatal alert of the server ends both directions and isn't answered.
func TestPlainPeerAlert(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, st := newPlainRogue(t)
		send, _ := r.engine.TakeKeys()
		r.write = record.NewContext(send, 0)
		r.sealed(record.Alert, levelFatal, byte(tls13.AlertInternalError))
		var theirs *tls13.AlertError
		if _, err := io.ReadAll(st); !errors.As(err, &theirs) || theirs.Alert != tls13.AlertInternalError {
			t.Errorf("Read: %v, want the server's alert", err)
		}
		if _, err := st.Write([]byte("x")); !errors.As(err, &theirs) {
			t.Errorf("Write: %v, want the server's alert", err)
		}
		r.wantEnd()
		if len(r.raw) > 0 {
			t.Errorf("the alert is answered by %x", r.raw)
		}
	})
}

// A ClientHello takes the room that it fills, not what it announces.
func TestHelloMemory(t *testing.T) {
	near, far := memnet.Pipe(memnet.Link{})
	announced := []byte{22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff}
	if _, err := near.Write(announced); err != nil {
		t.Fatal(err)
	}
	if err := near.Close(); err != nil {
		t.Fatal(err)
	}
	_, read, err := readHello(t.Context(), far, time.Minute)
	if !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.Equal(read, announced) {
		t.Errorf("read %x, %v", read, err)
	}
	if n := cap(read); n > 4<<10 {
		t.Errorf("%d bytes are taken for the %d that came of 64 KiB announced", n, len(read))
	}
}
