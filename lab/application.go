package lab

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
)

// The application of the experiments: a client asks on a stream for so many
// bytes, or sends that many, or has its bytes echoed.

// What a request asks for.
const (
	opDownload = 'd' // content, then the end of the stream
	opBulk     = 'b' // the same with bytes that cost nothing to make, and so can't be verified
	opUpload   = 'u' // the client sends content; the server answers with its SHA-256
	opEcho     = 'e'
)

const requestSize = 17

func request(op byte, size int64) []byte { return requestFrom(op, size, 0) }

// requestFrom asks for a part of the content.
func requestFrom(op byte, size, from int64) []byte {
	b := binary.BigEndian.AppendUint64([]byte{op}, uint64(size))
	return binary.BigEndian.AppendUint64(b, uint64(from))
}

// content returns size bytes that no one can compress or foretell from their
// neighbours, the same at each call.
func content(size int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte([]byte("the content of the lab's transfers"))), size)
}

// contentSum returns the SHA-256 of content.
func contentSum(size int64) [sha256.Size]byte {
	d := newDigest()
	_, _ = io.Copy(d, content(size)) // neither can fail
	return d.sum()
}

// A digest sums up what is written to it.
type digest struct {
	hash.Hash
	n int64
}

func newDigest() *digest { return &digest{Hash: sha256.New()} }

func (d *digest) Write(p []byte) (int, error) {
	d.n += int64(len(p))
	return d.Hash.Write(p)
}

func (d *digest) sum() [sha256.Size]byte { return [sha256.Size]byte(d.Hash.Sum(nil)) }

// serve answers requests on the streams of l until it is closed.
func serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			_ = answer(conn.(stream)) // the client tells what is missing
		}()
	}
}

func answer(s stream) error {
	var req [requestSize]byte
	if _, err := io.ReadFull(s, req[:]); err != nil {
		return err
	}
	size, from := int64(binary.BigEndian.Uint64(req[1:])), int64(binary.BigEndian.Uint64(req[9:]))
	switch req[0] {
	case opDownload:
		all := content(from + size)
		if _, err := io.CopyN(io.Discard, all, from); err != nil {
			return err
		}
		if _, err := io.CopyBuffer(onlyWriter{s}, all, make([]byte, 256<<10)); err != nil {
			return err
		}
	case opBulk:
		block := make([]byte, 1<<20)
		for left := size; left > 0; {
			n, err := s.Write(block[:min(left, int64(len(block)))])
			if err != nil {
				return err
			}
			left -= int64(n)
		}
	case opUpload:
		d := newDigest()
		if _, err := io.CopyN(d, s, size); err != nil {
			return err
		}
		if _, err := s.Write(d.Sum(nil)); err != nil {
			return err
		}
	case opEcho:
		if _, err := io.Copy(onlyWriter{s}, s); err != nil {
			return err
		}
	default:
		return fmt.Errorf("a request begins with %q", req[0])
	}
	if err := s.CloseWrite(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, s) // until the client has seen the end
	return err
}

// onlyWriter hides io.ReaderFrom, so that all transports get the same writes.
type onlyWriter struct{ io.Writer }

// errDamaged: what arrived isn't what was sent.
var errDamaged = errors.New("what arrived isn't what was sent")

// download asks s for content, and verifies it. Each read is told to arrived,
// which may be nil.
func download(s stream, size int64, arrived func(n int)) error {
	if _, err := s.Write(request(opDownload, size)); err != nil {
		return err
	}
	d := newDigest()
	if err := receive(s, size, d, arrived); err != nil {
		return err
	}
	if d.sum() != contentSum(size) {
		return errDamaged
	}
	return nil
}

// bulk is download without verification.
func bulk(s stream, size int64) error {
	if _, err := s.Write(request(opBulk, size)); err != nil {
		return err
	}
	return receive(s, size, io.Discard, nil)
}

// receive reads size bytes and the end of the stream.
func receive(s stream, size int64, w io.Writer, arrived func(n int)) error {
	buf := make([]byte, 1<<20)
	var got int64
	for {
		n, err := s.Read(buf)
		got += int64(n)
		if n > 0 && arrived != nil {
			arrived(n)
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", got, size, err)
		}
	}
	if got != size {
		return fmt.Errorf("the stream ended after %d of %d bytes: %w", got, size, io.ErrUnexpectedEOF)
	}
	return s.CloseWrite()
}

// echo sends text and reads it back.
func echo(s stream, text string) error {
	if _, err := s.Write(append(request(opEcho, 0), text...)); err != nil {
		return err
	}
	return hear(s, text)
}

// again goes on with an echo.
func again(s stream, text string) error {
	if _, err := io.WriteString(s, text); err != nil {
		return err
	}
	return hear(s, text)
}

func hear(s stream, text string) error {
	back := make([]byte, len(text))
	if _, err := io.ReadFull(s, back); err != nil {
		return err
	}
	if string(back) != text {
		return errDamaged
	}
	return nil
}
