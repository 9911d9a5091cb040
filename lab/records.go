package lab

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"io"
	"net"

	"github.com/go-tcpls/tcpls/internal/record"
)

// overRecords is what TCPLS would be without acknowledgements, flow control,
// streams and paths: its records on one TCP connection, sealed in batches as
// TCPLS does it. There is no handshake: clients send the secret in the clear,
// which is good for nothing but measuring.
var overRecords = transport{"TCPLS's records alone", listenRecords, dialRecords}

func listenRecords(ctx context.Context, address string, e endpoint) (net.Listener, error) {
	l, err := e.listenTCP(ctx, address, false)
	if err != nil {
		return nil, err
	}
	return recordListener{l}, nil
}

type recordListener struct{ net.Listener }

func (l recordListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	var secret [recordSecret]byte
	if _, err := io.ReadFull(conn, secret[:]); err != nil {
		conn.Close()
		return nil, err
	}
	return newRecordConn(conn.(*net.TCPConn), secret[:], false)
}

func dialRecords(ctx context.Context, address string, e endpoint) (session, error) {
	conn, err := e.dialTCP(ctx, address, false)
	if err != nil {
		return nil, err
	}
	var secret [recordSecret]byte
	_, _ = rand.Read(secret[:]) // never fails
	if _, err := conn.Write(secret[:]); err != nil {
		conn.Close()
		return nil, err
	}
	s, err := newRecordConn(conn.(*net.TCPConn), secret[:], true)
	if err != nil {
		return nil, err
	}
	return &single{stream: s}, nil
}

const recordSecret = 32

// A recordConn is a TCP connection of records. One goroutine may read, and one
// may write.
type recordConn struct {
	*net.TCPConn
	seal, open *record.Context
	in         *bufio.Reader
	sealed     []byte // a batch
	left       []byte // opened, and not read yet
	opened     [record.MaxPlaintext + 1]byte
}

func newRecordConn(conn *net.TCPConn, secret []byte, client bool) (*recordConn, error) {
	keys, err := record.SuiteByID(tls.TLS_AES_128_GCM_SHA256).Keys(secret)
	if err != nil {
		return nil, err
	}
	c := &recordConn{
		TCPConn: conn, in: bufio.NewReaderSize(conn, record.LargeChunk), sealed: make([]byte, record.LargeChunk),
		seal: record.NewContext(keys, 1), open: record.NewContext(keys, 2),
	}
	if !client {
		c.seal, c.open = record.NewContext(keys, 2), record.NewContext(keys, 1)
	}
	return c, nil
}

func (c *recordConn) Write(p []byte) (written int, err error) {
	for written < len(p) {
		n, taken := 0, 0
		for range record.BatchRecords {
			content := p[written+taken:]
			if len(content) == 0 {
				break
			}
			content = content[:min(len(content), record.MaxPlaintext)]
			rec, err := c.seal.SealTo(c.sealed[n:], content, record.ApplicationData)
			if err != nil {
				return written, err
			}
			n, taken = n+len(rec), taken+len(content)
		}
		if _, err := c.TCPConn.Write(c.sealed[:n]); err != nil {
			return written, err
		}
		written += taken
	}
	return written, nil
}

func (c *recordConn) Read(p []byte) (int, error) {
	for len(c.left) == 0 {
		head, err := c.in.Peek(record.HeaderLen)
		if err != nil {
			return 0, err
		}
		rec, err := c.in.Peek(record.HeaderLen + record.ParseHeader(head).Len)
		if err != nil {
			return 0, err
		}
		dst := c.opened[:0]
		if len(p) > len(c.opened) {
			dst = p[:0] // without a copy
		}
		content, _, err := c.open.Open(dst, rec)
		if err != nil {
			return 0, err
		}
		if _, err := c.in.Discard(len(rec)); err != nil {
			return 0, err
		}
		if len(p) > len(c.opened) {
			return len(content), nil
		}
		c.left = content
	}
	n := copy(p, c.left)
	c.left = c.left[n:]
	return n, nil
}

// ReadFrom and WriteTo of the TCP connection would go past the records.
func (c *recordConn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(onlyWriter{c}, r) }
func (c *recordConn) WriteTo(w io.Writer) (int64, error)  { return io.Copy(w, onlyReader{c}) }

// onlyReader hides io.WriterTo.
type onlyReader struct{ io.Reader }
