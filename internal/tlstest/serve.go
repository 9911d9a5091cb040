package tlstest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"sync"
	"time"

	"github.com/go-tcpls/tcpls/internal/tls13"
)

// The modes of a server. ModeAuto answers a first line that begins with "GET "
// as ModeGet, and echoes otherwise.
const (
	ModeAuto    = "auto"
	ModeEcho    = "echo"
	ModeDiscard = "discard"
	ModeSource  = "source"
)

// A TestServer serves each connection on a goroutine of its own, and says on
// Log how each went.
type TestServer struct {
	Config  *tls13.Config
	Timeout time.Duration // for the whole handshake
	Log     *log.Logger
	Behaviour
}

// Serve takes connections until ctx ends or the listener fails; then it ends
// those that are open by close_notify and returns.
func (s *TestServer) Serve(ctx context.Context, l net.Listener) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	running, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	for {
		transport, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		all.Go(func() {
			facts, err := s.serve(running, transport)
			if err != nil {
				s.Log.Printf("%v: %s: failed: %v", transport.RemoteAddr(), facts, err)
				return
			}
			s.Log.Printf("%v: %s: closed", transport.RemoteAddr(), facts)
		})
	}
}

func (s *TestServer) serve(ctx context.Context, transport net.Conn) (facts string, err error) {
	defer transport.Close()
	c, err := Server(transport, s.Config)
	if err != nil {
		return "no handshake", err
	}
	defer context.AfterFunc(ctx, func() { _ = transport.SetReadDeadline(time.Unix(1, 0)) })()
	if err := c.Handshake(s.Timeout); err != nil {
		return "handshake", err
	}
	facts = Facts(c)
	if s.KeyUpdate {
		if err := c.UpdateKeys(true); err != nil {
			return facts, err
		}
	}
	if ctx.Err() != nil { // the handshake has lifted the deadline
		return facts, c.Close()
	}
	err = s.talk(c)
	if ctx.Err() != nil {
		err = nil // we were the one who left
	}
	return facts, errors.Join(err, c.Close())
}

// talk returns nil after the peer's close_notify, or when all is said.
func (s *TestServer) talk(c *Conn) error {
	switch s.Mode {
	case ModeDiscard:
		_, err := io.Copy(io.Discard, c)
		return err
	case ModeSource:
		return Source(c, s.Size)
	}
	r := bufio.NewReader(c)
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if first && s.Mode == ModeAuto && bytes.HasPrefix(line, []byte("GET ")) {
			return answerGet(c, r)
		}
		if len(line) > 0 {
			if _, werr := c.Write(line); werr != nil {
				return werr
			}
		}
		if err == io.EOF {
			return nil
		} else if err != nil && err != bufio.ErrBufferFull {
			return err
		}
	}
}

// maxHeader bounds the header of a GET request.
const maxHeader = 64 << 10

// answerGet reads the rest of the request's header and answers with a page that
// tells the handshake's facts.
func answerGet(c *Conn, r *bufio.Reader) error {
	for left := maxHeader; ; {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("request header: %w", err)
		}
		if len(bytes.TrimRight(line, "\r\n")) == 0 {
			break
		}
		if left -= len(line); left < 0 {
			return fmt.Errorf("request header has more than %d bytes", maxHeader)
		}
	}
	page := fmt.Sprintf("<!DOCTYPE html>\n<title>tlstest</title>\n<p>%s\n", Facts(c))
	_, err := fmt.Fprintf(c, "HTTP/1.0 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(page), page)
	return err
}

// Source sends size zero bytes, or, if size is 0, zero bytes until the peer
// ends its side; then it sends close_notify and reads to the peer's.
func Source(c *Conn, size int64) error {
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, c)
		ended <- err
	}()
	chunk := make([]byte, 64<<10)
	for sent := int64(0); size == 0 || sent < size; {
		select {
		case err := <-ended:
			return err
		default:
		}
		if size > 0 {
			chunk = chunk[:min(int64(len(chunk)), size-sent)]
		}
		n, err := c.Write(chunk)
		if err != nil {
			return err
		}
		sent += int64(n)
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	return <-ended
}
