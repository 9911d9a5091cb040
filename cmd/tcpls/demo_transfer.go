package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/go-tcpls/tcpls"
)

// A transfer is a download whose both ends are here.
type transfer struct {
	name    string
	content *content
	from    io.Writer // the server's end
	to      io.Reader // the client's

	mu       sync.Mutex
	began    time.Time
	received int64
	bins     []int64       // bytes that arrived in each sampleInterval
	last     time.Duration // when something arrived last
	gap      time.Duration // the longest time without a byte
	finished time.Duration // 0: it goes on
	err      error         // why it ended before its time
	sent     digest        // of the content, as the server read it
	arrived  digest
	whole    bool // the content arrived to its end
}

func newTransfer(name string, c *content, from io.Writer, to io.Reader) *transfer {
	return &transfer{name: name, content: c, from: from, to: to}
}

// start moves the content, on goroutines that end with the connection.
func (t *transfer) start(began time.Time) {
	t.began = began
	sent := make(chan error, 1)
	go func() { sent <- t.send() }()
	go func() {
		err := t.receive()
		if err == nil {
			err = <-sent
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		t.err, t.finished = err, time.Since(began)
		t.whole = err == nil && t.received == t.content.size
	}()
}

// send is the server's part.
func (t *transfer) send() error {
	src, err := t.content.open()
	if err != nil {
		return err
	}
	defer src.Close()
	h := sha256.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{t.from}, io.TeeReader(src, h), make([]byte, 64<<10)); err != nil {
		return err
	}
	t.mu.Lock()
	t.sent = digest(h.Sum(nil))
	t.mu.Unlock()
	if half, ok := t.from.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// errCutShort is what crypto/tls leaves to find out: it takes a FIN between two
// records for a proper end.
var errCutShort = errors.New("cut short, and Read told only io.EOF")

// receive is the client's.
func (t *transfer) receive() error {
	h := sha256.New()
	buf := make([]byte, 64<<10)
	for {
		n, err := t.to.Read(buf)
		h.Write(buf[:n])
		t.count(n)
		if errors.Is(err, io.EOF) {
			t.mu.Lock()
			defer t.mu.Unlock()
			if t.received < t.content.size {
				return errCutShort
			}
			t.arrived = digest(h.Sum(nil))
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// count notes that n bytes have arrived now.
func (t *transfer) count(n int) {
	now := time.Since(t.began)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.received > 0 {
		t.gap = max(t.gap, now-t.last)
	}
	if n == 0 {
		return
	}
	t.last = now
	t.received += int64(n)
	i := int(now / sampleInterval)
	for len(t.bins) <= i {
		t.bins = append(t.bins, 0)
	}
	t.bins[i] += int64(n)
}

func (t *transfer) ended() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.finished > 0
}

// silence is how long nothing has arrived.
func (t *transfer) silence(now time.Duration) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return now - t.last
}

// A transferState is a transfer at a moment.
type transferState struct {
	name     string
	received int64
	share    float64 // 0 to 1
	rate     float64 // of the last second, in bytes per second
	silence  time.Duration
	ended    bool
	err      error
}

func (t *transfer) state(now time.Duration) transferState {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := transferState{
		name: t.name, received: t.received, share: float64(t.received) / float64(t.content.size),
		ended: t.finished > 0, err: t.err,
	}
	if !s.ended {
		s.silence = now - t.last
		s.rate = recent(t.bins, now)
	}
	return s
}

// recent returns the rate of the last full second, in bytes per second.
func recent(bins []int64, now time.Duration) float64 {
	const second = int(time.Second / sampleInterval)
	end := int(now / sampleInterval)
	begin := max(0, end-second)
	var sum int64
	for i := begin; i < min(end, len(bins)); i++ {
		sum += bins[i]
	}
	return float64(sum) / (time.Duration(max(1, end-begin)) * sampleInterval).Seconds()
}

// words tells how the transfer goes.
func (s transferState) words() string {
	switch {
	case s.ended && s.err != nil:
		return "BROKEN: " + cause(s.err)
	case s.ended:
		return "done"
	case s.silence > stallAfter:
		return fmt.Sprintf("STALLED for %.1f s", s.silence.Seconds())
	}
	return bitrate(s.rate)
}

// stallAfter is the silence that is called a stall.
const stallAfter = 500 * time.Millisecond

// cause strips paths and addresses from an error: the demo's own say nothing.
func cause(err error) string {
	if path := (*tcpls.PathError)(nil); errors.As(err, &path) {
		err = path.Err
	}
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		err = op.Err
	}
	return strings.TrimPrefix(err.Error(), "tcpls: ")
}

// bitrate formats bytes per second as networks count, as 28.7 Mbit/s.
func bitrate(bytesPerSecond float64) string {
	bits := bytesPerSecond * 8
	switch {
	case bits >= 999.5e6:
		return threeDigits(bits/1e9) + " Gbit/s"
	case bits >= 999.5e3:
		return threeDigits(bits/1e6) + " Mbit/s"
	}
	return fmt.Sprintf("%.0f kbit/s", bits/1e3)
}
