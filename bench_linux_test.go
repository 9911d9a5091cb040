package tcpls_test

import (
	"context"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls"
	"github.com/go-tcpls/tcpls/lab"
)

// dialerOf dials, on the network's client, a server that answers each request
// with size bytes until the benchmark ends.
func dialerOf(b *testing.B, n *lab.Network, client, server *tcpls.Config, size int) *tcpls.Dialer {
	b.Helper()
	inner, err := n.Host("server").Listen(b.Context(), "tcp", "10.0.0.2:443")
	if err != nil {
		b.Fatal(err)
	}
	l, err := tcpls.NewListener(inner, server)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go answerAll(l, make([]byte, size))
	return &tcpls.Dialer{Config: client, DialContext: n.Host("client").Dial}
}

// BenchmarkFirstBytes is how long a client waits for the first bytes of an answer
// of 64 KiB over an emulated link with the kernel's own TCP: in milliseconds, the
// median of new connections. A round trip is the least.
func BenchmarkFirstBytes(b *testing.B) {
	for _, link := range []lab.Shape{
		{Rate: 1 * lab.Mbit, Delay: 20 * time.Millisecond},
		{Rate: 10 * lab.Mbit, Delay: 20 * time.Millisecond},
		{Rate: 100 * lab.Mbit, Delay: 50 * time.Millisecond},
	} {
		n := lab.Start(b, lab.TwoHosts(link))
		for _, full := range []bool{true, false} {
			b.Run(fmt.Sprintf("%v/%v/full=%v", link.Rate, 2*link.Delay, full), func(b *testing.B) {
				client, server := exampleConfigs()
				client.TLS.ServerName, server.TLS.DynamicRecordSizingDisabled = "localhost", full
				client.Congestion, server.Congestion = "cubic", "cubic"
				d := dialerOf(b, n, client, server, 64<<10)
				var first, last []float64
				for b.Loop() {
					f, l := answerTimes(b, d)
					first, last = append(first, f), append(last, l)
				}
				slices.Sort(first)
				slices.Sort(last)
				b.ReportMetric(first[len(first)/2], "first-ms")
				b.ReportMetric(last[len(last)/2], "last-ms")
			})
		}
	}
}

// BenchmarkCredit is how fast 96 MiB come over a long link, by how many unread bytes
// a stream may hold: a fixed number, what the round trips ask for, or the most of it
// at once.
func BenchmarkCredit(b *testing.B) {
	const size = 96 << 20
	n := lab.Start(b, lab.TwoHosts(lab.Shape{Rate: 200 * lab.Mbit, Delay: 100 * time.Millisecond, Queue: 6 << 20}))
	for _, credit := range []struct {
		name        string
		window, max int
	}{{"2 MiB", 2 << 20, 2 << 20}, {"growing", 0, 0}, {"8 MiB", 8 << 20, 8 << 20}} {
		b.Run(credit.name, func(b *testing.B) {
			client, server := exampleConfigs()
			client.TLS.ServerName = "localhost"
			client.StreamRecvWindow, client.StreamRecvMax = credit.window, credit.max
			client.Congestion, server.Congestion = "cubic", "cubic"
			d := dialerOf(b, n, client, server, size)
			var times []float64
			for b.Loop() {
				_, last := answerTimes(b, d)
				times = append(times, last)
			}
			slices.Sort(times)
			b.ReportMetric(size*8/times[len(times)/2]/1e3, "Mbit/s")
		})
	}
}

// answerAll answers each stream's first byte.
func answerAll(l *tcpls.Listener, answer []byte) {
	streams := l.Streams()
	for {
		c, err := streams.Accept()
		if err != nil {
			return
		}
		go func() {
			if _, err := io.ReadFull(c, make([]byte, 1)); err == nil {
				_, _ = c.Write(answer) // the client misses what fails
			}
			_ = c.Close() // likewise
		}()
	}
}

// answerTimes is when the first and the last bytes of an answer came, in
// milliseconds.
func answerTimes(b *testing.B, d *tcpls.Dialer) (first, last float64) {
	s, err := d.Dial(b.Context(), "tcp", "10.0.0.2:443")
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	st, err := s.OpenStream(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	if _, err := st.Write([]byte{0}); err != nil {
		b.Fatal(err)
	}
	if _, err := st.Read(make([]byte, 1)); err != nil {
		b.Fatal(err)
	}
	first = float64(time.Since(began).Microseconds()) / 1000
	if _, err := io.Copy(io.Discard, st); err != nil {
		b.Fatal(err)
	}
	return first, float64(time.Since(began).Microseconds()) / 1000
}
