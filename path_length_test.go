package tcpls

import (
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
	"github.com/go-tcpls/tcpls/internal/record"
)

func TestRecordLength(t *testing.T) {
	const segment, full = 1448, record.MaxPlaintext
	for _, test := range []struct {
		name          string
		window, burst int
		unsent        int
		segment, most int
		want          int
	}{
		{"first of a connection", 10 * segment, 0, 0, segment, full, segment - record.Overhead},
		{"behind an announcement", 10 * segment, 0, 60, segment, full, segment - 60 - record.Overhead},
		{"behind most of a segment", 10 * segment, 0, 1000, segment, full, 2*segment - 1000 - record.Overhead},
		{"behind whole segments", 10 * segment, 9 * segment, 9 * segment, segment, full, segment - record.Overhead},
		{"after two windows", 10 * segment, 20 * segment, 0, segment, full, 2*segment - record.Overhead},
		{"bulk", 10 * segment, 8 * full, 100, segment, full, full},
		{"a wide window", 40 * segment, 0, 0, segment, full, 5*segment - record.Overhead},
		{"a very wide window", 100 * segment, 0, 0, segment, full, full},
		{"the window isn't known", 0, 0, 0, segment, full, segment - record.Overhead},
		{"loopback", 10 * 65483, 0, 0, 65483, full, full},
		{"nothing is known", 0, 0, 0, 0, full, full},
		{"the peer wants short ones", 100 * segment, 0, 0, segment, 4096, 4096},
		{"small segments", 10 * 300, 0, 0, 300, full, 300 - record.Overhead},
		{"tiny segments", 10 * 48, 0, 0, 48, full, 6*48 - record.Overhead},
		{"behind most of a tiny segment", 10 * 48, 0, 47, 48, full, 7*48 - 47 - record.Overhead},
	} {
		z := sizing{maxContent: test.most}
		z.begin(test.segment, test.window)
		z.burst = test.burst
		if got := z.next(test.unsent); got != test.want {
			t.Errorf("%s: the record has %d bytes, want %d", test.name, got, test.want)
		}
	}
}

// A record never makes its receiver wait for much more than what has come before
// it in its burst, and after 160 KiB all are full.
func TestRecordLengthGrows(t *testing.T) {
	const segment = 1448
	z := sizing{maxContent: record.MaxPlaintext}
	z.begin(segment, 10*segment)
	for sent := 0; sent < 1<<20; {
		n := z.next(sent)
		if sent > 160<<10 && n < record.MaxPlaintext {
			t.Fatalf("after %d bytes a record has %d", sent, n)
		}
		if most := max(3*segment/2, sent/lengthShare+segment/2); n > most {
			t.Fatalf("after %d bytes a record has %d, more than %d", sent, n, most)
		}
		z.burst += n
		sent += n + record.Overhead
	}
}

// arrivals writes size bytes at a time over a slow link, and returns when the
// first bytes of each came and when the last.
func arrivals(t *testing.T, link memnet.Link, fixed bool, size int, pauses ...time.Duration) (first, last []time.Duration) {
	p := newMemPair(t, link, func(client, _ *Config) { client.TLS.DynamicRecordSizingDisabled = fixed })
	out, in := p.open(t)
	synctest.Wait()
	data, buf := testBytes(1, size), make([]byte, size)
	for _, pause := range append(pauses, 0) {
		began := time.Now()
		go func() { mustWrite(t, out, data) }()
		n, err := in.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		first = append(first, time.Since(began))
		if _, err := io.ReadFull(in, buf[n:]); err != nil || !slices.Equal(buf, data) {
			t.Fatalf("other bytes were read than written, or %v", err)
		}
		last = append(last, time.Since(began))
		time.Sleep(pause)
	}
	return first, last
}

// On a slow link the first bytes can be used when the first segment has come,
// and the last ones hardly later.
func TestFirstBytesOfABurst(t *testing.T) {
	for _, test := range []struct {
		name  string
		rate  int64 // bit/s; a full record takes 131 ms at 1 Mbit/s
		size  int
		pause time.Duration
		short [2]bool // records, at the beginning and after the pause
	}{
		{"slow link", 1e6, 64 << 10, time.Second, [2]bool{true, true}},
		{"slow link, little", 1e6, 8 << 10, time.Second, [2]bool{true, true}},
		{"no pause", 100e6, 256 << 10, 0, [2]bool{true, false}},
		{"short pause", 100e6, 256 << 10, 100 * time.Millisecond, [2]bool{true, false}},
		{"long pause", 100e6, 256 << 10, time.Second, [2]bool{true, true}},
		{"one segment", 1e6, 1 << 10, time.Second, [2]bool{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			const delay = 20 * time.Millisecond
			link := memnet.Link{Rate: test.rate / 8, Delay: delay, Queue: 1 << 20}
			var first, last [2][]time.Duration // by full records and by ours
			for i, fixed := range []bool{true, false} {
				synctest.Test(t, func(t *testing.T) { first[i], last[i] = arrivals(t, link, fixed, test.size, test.pause) })
			}
			for i, when := range []string{"at the beginning", "after the pause"} {
				full, ours := first[0][i], first[1][i]
				t.Logf("%s: first bytes after %v, with full records after %v; all after %v and %v", when, ours, full, last[1][i], last[0][i])
				if short := ours-delay < (full-delay)/2; short != test.short[i] {
					t.Errorf("%s: first bytes after %v, with full records after %v", when, ours, full)
				}
				if last[1][i] > last[0][i]*102/100 {
					t.Errorf("%s: the last bytes come after %v, with full records after %v", when, last[1][i], last[0][i])
				}
			}
		})
	}
}
