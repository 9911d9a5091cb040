package bogo

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/tls13"
)

// A link is one engine over a TCP connection, driven by one goroutine, so that
// a test sees the same order of records each time.
type link struct {
	conn   net.Conn
	engine *tls13.Conn
	raw    []byte // received, not consumed
	data   []byte // opened, not read
	err    error  // what Read returns behind data
	// unsent is what flush keeps back while held.
	unsent []byte
	held   bool
}

// handshake runs the handshake to its end, or up to early data that a server
// is to read.
func (l *link) handshake() error {
	return l.run(func() bool { return l.engine.HandshakeComplete() || l.engine.EarlyData() })
}

// run runs the handshake, record by record, until there is nothing more to do.
func (l *link) run(done func() bool) error {
	for !done() {
		n, err := l.step()
		if err == nil && n == 0 {
			err = l.fill()
		}
		if err != nil {
			return err
		}
	}
	return l.flush()
}

// step gives the handshake one record and sends what it answers.
func (l *link) step() (n int, err error) {
	n, err = l.engine.Feed(firstRecord(l.raw))
	l.raw = l.raw[n:]
	if err == nil && l.engine.HandshakeComplete() {
		_, _, err = l.engine.Read(nil, nil) // a server's tickets go out at once
	}
	if werr := l.flush(); err == nil {
		err = werr
	}
	return n, err
}

func firstRecord(p []byte) []byte {
	if len(p) < record.HeaderLen {
		return p
	}
	return p[:min(len(p), record.HeaderLen+record.ParseHeader(p).Len)]
}

// fill reads once from the transport.
func (l *link) fill() error {
	buf := make([]byte, 32<<10)
	n, err := l.conn.Read(buf)
	l.raw = append(l.raw, buf[:n]...)
	switch {
	case n > 0:
		return nil
	case err == io.EOF || errors.Is(err, syscall.ECONNRESET):
		if end := l.engine.End(); end != nil {
			return end
		}
		return io.EOF
	}
	return err
}

// flush sends what the engine has to say.
func (l *link) flush() error { return l.send(l.engine.Output()) }

func (l *link) send(out []byte) error {
	if l.held {
		l.unsent = append(l.unsent, out...)
		return nil
	}
	if len(out) == 0 {
		return nil
	}
	_, err := l.conn.Write(out)
	return err
}

// hold lets only n more bytes through until release.
func (l *link) hold(out []byte, n int) error {
	err := l.send(out[:n])
	l.held, l.unsent = true, out[n:]
	return err
}

func (l *link) release() error {
	out := l.unsent
	l.held, l.unsent = false, nil
	return l.send(out)
}

// Read reads data that the peer sent, a server's early data among it; io.EOF
// stands for the peer's close_notify.
func (l *link) Read(p []byte) (int, error) {
	for len(l.data) == 0 && l.err == nil {
		n, err := l.open()
		if err == nil && n == 0 && len(l.data) == 0 {
			err = l.fill()
		}
		l.err = err
	}
	if len(l.data) == 0 {
		return 0, l.err
	}
	n := copy(p, l.data)
	l.data = l.data[n:]
	return n, nil
}

// open takes records that have arrived. Answers to them go out with the next
// Write, as many KeyUpdates want one answer only, and an alert at once.
func (l *link) open() (n int, err error) {
	switch {
	case l.engine.EarlyData():
		l.data, n, err = l.engine.ReadEarly(nil, l.raw)
	case !l.engine.HandshakeComplete():
		return l.step()
	default:
		l.data, n, err = l.engine.Read(nil, l.raw)
	}
	l.raw = l.raw[n:]
	if err != nil {
		_ = l.flush()
	}
	return n, err
}

// Write sends data.
func (l *link) Write(p []byte) (int, error) {
	out, err := l.engine.Write(nil, p)
	if werr := l.send(out); err == nil {
		err = werr
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// awaitClose reads until the peer's close_notify, and nothing else may come.
func (l *link) awaitClose() error {
	n, err := l.Read(make([]byte, 1))
	switch {
	case n > 0:
		return errors.New("data instead of close_notify")
	case err != io.EOF:
		return fmt.Errorf("instead of close_notify: %w", err)
	}
	return nil
}

// lingerTime bounds what close waits for.
const lingerTime = 5 * time.Second

// close ends our side and reads what still comes, so that no reset overtakes
// our last word.
func (l *link) close() {
	if t, ok := l.conn.(*net.TCPConn); ok && t.CloseWrite() == nil {
		_ = t.SetReadDeadline(time.Now().Add(lingerTime))
		_, _ = io.Copy(io.Discard, t)
	}
	_ = l.conn.Close()
}
