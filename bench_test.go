package tcpls

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
)

// The benchmarks compare tcpls with crypto/tls in rounds that alternate in one
// process, over loopback, with the same congestion control on both sides, so
// that whatever else the machine does hits both. Only the ratios mean
// anything; -rounds says how many rounds their medians are taken of.
//
//	go test -run '^$' -bench Against -benchtime 1x .
var (
	rounds     = flag.Int("rounds", 7, "rounds of a paired benchmark")
	figure     = flag.String("figure", "", "write the bars of BenchmarkBulkAgainstTLS with 1 MiB writes to this SVG file")
	congestion = flag.String("congestion", defaultCongestion(), "congestion control of both sides of the benchmarks; empty for the system's")
)

// Only Linux lets a program choose.
func defaultCongestion() string {
	if runtime.GOOS == "linux" {
		return "cubic"
	}
	return ""
}

// sameSuite sees to it that both sides of a comparison encrypt alike.
func sameSuite(b *testing.B, state tls.ConnectionState) {
	if state.CipherSuite != tls.TLS_AES_128_GCM_SHA256 {
		b.Skipf("the comparison is of AES-128-GCM, and this machine's choice is %s", tls.CipherSuiteName(state.CipherSuite))
	}
}

// A pair is a connection and its peer.
type pair struct{ client, server net.Conn }

func newTCPLSPair(b *testing.B) pair {
	cc, sc := newTestConfigs()
	return newStreams(b, cc, sc, 1)[0]
}

// newStreams returns n streams of one session.
func newStreams(b *testing.B, cc, sc *Config, n int) []pair {
	cc.Congestion, sc.Congestion = *congestion, *congestion
	c, s := newTCPPair(b, cc, sc)
	sameSuite(b, c.ConnectionState().TLS)
	pairs := make([]pair, n)
	for i := range pairs {
		client, err := c.OpenStream(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		if _, err := client.Write([]byte{0}); err != nil {
			b.Fatal(err)
		}
		server, err := s.AcceptStream(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(server, make([]byte, 1)); err != nil {
			b.Fatal(err)
		}
		pairs[i] = pair{client, server}
	}
	return pairs
}

func newTLSPair(b *testing.B) pair {
	cc, sc := newTestConfigs()
	cfg := &Config{Congestion: *congestion}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	accepted := make(chan net.Conn, 1)
	go func() {
		defer close(accepted)
		if conn, err := l.Accept(); err == nil {
			accepted <- conn
		}
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	peer, ok := <-accepted
	if !ok {
		b.Fatal("no connection")
	}
	for _, conn := range []net.Conn{raw, peer} {
		if err := prepareSocket(conn, cfg); err != nil {
			b.Fatal(err)
		}
	}
	client, server := tls.Client(raw, cc.TLS), tls.Server(peer, sc.TLS)
	failed := make(chan error, 1)
	go func() { failed <- server.Handshake() }()
	if err := client.Handshake(); err != nil {
		b.Fatal(err)
	}
	if err := <-failed; err != nil {
		b.Fatal(err)
	}
	sameSuite(b, client.ConnectionState())
	b.Cleanup(func() {
		client.Close()
		server.Close()
		l.Close()
	})
	return pair{client, server}
}

// transfer sends total bytes in writes of size from one end to the other.
func (p pair) transfer(b *testing.B, total, size int) {
	done := make(chan error, 1)
	go func() {
		in := make([]byte, 1<<20)
		for left := total; left > 0; {
			n, err := p.server.Read(in[:min(len(in), left)])
			if err != nil {
				done <- err
				return
			}
			left -= n
		}
		done <- nil
	}()
	out := make([]byte, size)
	for left := total; left > 0; {
		n, err := p.client.Write(out[:min(size, left)])
		if err != nil {
			b.Error(err)
			return
		}
		left -= n
	}
	if err := <-done; err != nil {
		b.Error(err)
	}
}

// A cost is what a piece of work took.
type cost struct{ wall, cpu time.Duration }

func measure(work func()) cost {
	cpu, start := cpuTime(), time.Now()
	work()
	return cost{time.Since(start), cpuTime() - cpu}
}

// compare runs two pieces of work in alternating rounds and reports how the
// second compares with the first: medians of the rounds' ratios, with their
// least and greatest.
func compare(b *testing.B, base, ours func()) (wall, cpu []float64) {
	base() // warms up
	ours()
	b.ResetTimer()
	for range b.N {
		wall, cpu = nil, nil
		for range *rounds {
			x, y := measure(base), measure(ours)
			wall = append(wall, float64(y.wall)/float64(x.wall))
			cpu = append(cpu, float64(y.cpu)/float64(x.cpu))
		}
		report(b, "time", wall)
		report(b, "cpu", cpu)
	}
	return wall, cpu
}

func report(b *testing.B, name string, ratios []float64) {
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], name+"-ratio")
	b.ReportMetric(ratios[0], name+"-min")
	b.ReportMetric(ratios[len(ratios)-1], name+"-max")
	b.ReportMetric(0, "ns/op")
}

// Bulk transfer on one stream, acknowledgements on, AES-128-GCM, against
// crypto/tls with the write size that suits it best.
func BenchmarkBulkAgainstTLS(b *testing.B) {
	best := bestWrite(b)
	for _, size := range writeSizes {
		b.Run(sizeName(size), func(b *testing.B) {
			base, ours := newTLSPair(b), newTCPLSPair(b)
			wall, cpu := compare(b,
				func() { base.transfer(b, 512<<20, best) },
				func() { ours.transfer(b, 512<<20, size) })
			if *figure != "" && size == 1<<20 {
				if err := os.WriteFile(*figure, bars(wall, cpu), 0o644); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

var writeSizes = []int{16 << 10, 64 << 10, 1 << 20}

// bestWrite returns the write size with which crypto/tls is fastest here.
func bestWrite(b *testing.B) (best int) {
	base := newTLSPair(b)
	base.transfer(b, 512<<20, writeSizes[0]) // warms up
	var fastest time.Duration
	for _, size := range writeSizes {
		var walls []time.Duration
		for range 3 {
			walls = append(walls, measure(func() { base.transfer(b, 512<<20, size) }).wall)
		}
		slices.Sort(walls)
		if median := walls[1]; best == 0 || median < fastest {
			best, fastest = size, median
		}
	}
	b.Logf("crypto/tls is fastest with writes of %s", sizeName(best))
	return best
}

// bars draws sorted ratios as an SVG: the median as a bar, least and greatest
// as a whisker, crypto/tls as the full length.
func bars(wall, cpu []float64) []byte {
	const left, full, height = 150, 400.0, 26
	var svg bytes.Buffer
	fmt.Fprintf(&svg, `<svg xmlns="http://www.w3.org/2000/svg" width="640" height="190" font-family="sans-serif" font-size="14">
<rect width="640" height="190" fill="#ffffff"/>
<text x="20" y="28" font-weight="bold">Bulk transfer, tcpls against crypto/tls (less is better)</text>
`)
	y := 50
	for _, row := range []struct {
		name   string
		ratios []float64
	}{{"time", wall}, {"CPU time", cpu}} {
		median := row.ratios[len(row.ratios)/2]
		least, most := left+full*row.ratios[0], left+full*min(row.ratios[len(row.ratios)-1], 1.15)
		middle := y + height/2
		fmt.Fprintf(&svg, `<text x="20" y="%d">%s</text>
<rect x="%d" y="%d" width="%.0f" height="%d" fill="#2b6cb0"/>
<path d="M%.0f %d H%.0f" stroke="#1a202c" stroke-width="2"/>
<text x="%.0f" y="%d" fill="#ffffff">%.2f (%.2f to %.2f)</text>
`, middle+5, row.name, left, y, full*median, height, least, middle, most, left+10.0, middle+5, median,
			row.ratios[0], row.ratios[len(row.ratios)-1])
		fmt.Fprintf(&svg, `<rect x="%d" y="%d" width="%.0f" height="8" fill="#cbd5e0"/>
<text x="%.0f" y="%d" fill="#4a5568" font-size="12">crypto/tls</text>
`, left, y+height+2, full, left+full+6, y+height+11)
		y += 58
	}
	fmt.Fprintf(&svg, `<text x="20" y="178" fill="#4a5568" font-size="12">medians of %d alternating rounds with least and greatest, %s/%s, %s</text>
</svg>
`, len(wall), runtime.GOOS, runtime.GOARCH, cmp.Or(*congestion, "system's congestion control"))
	return svg.Bytes()
}

func sizeName(n int) string {
	if n >= 1<<20 {
		return strconv.Itoa(n>>20) + "MiB"
	}
	return strconv.Itoa(n>>10) + "KiB"
}

// pingPong sends n requests of 100 bytes and waits for each answer.
func (p pair) pingPong(b *testing.B, n int) (times []time.Duration) {
	buf := make([]byte, 100)
	times = make([]time.Duration, 0, n)
	for range n {
		start := time.Now()
		if _, err := p.client.Write(buf); err != nil {
			b.Error(err)
			return times
		}
		if _, err := io.ReadFull(p.client, buf); err != nil {
			b.Error(err)
			return times
		}
		times = append(times, time.Since(start))
	}
	return times
}

func (p pair) echo() {
	buf := make([]byte, 100)
	for {
		if _, err := io.ReadFull(p.server, buf); err != nil {
			return
		}
		if _, err := p.server.Write(buf); err != nil {
			return
		}
	}
}

// Request and response of 100 bytes: the ratio of the medians.
func BenchmarkPingPongAgainstTLS(b *testing.B) {
	base, ours := newTLSPair(b), newTCPLSPair(b)
	go base.echo()
	go ours.echo()
	const n = 10000
	base.pingPong(b, n)
	ours.pingPong(b, n)
	b.ResetTimer()
	for range b.N {
		var p50, p99, cpu []float64
		for range *rounds {
			var x, y []time.Duration
			cx := measure(func() { x = base.pingPong(b, n) })
			cy := measure(func() { y = ours.pingPong(b, n) })
			slices.Sort(x)
			slices.Sort(y)
			p50 = append(p50, float64(y[n/2])/float64(x[n/2]))
			p99 = append(p99, float64(y[n*99/100])/float64(x[n*99/100]))
			cpu = append(cpu, float64(cy.cpu)/float64(cx.cpu))
		}
		report(b, "p50", p50)
		report(b, "p99", p99)
		report(b, "cpu", cpu)
	}
}

// interleave sends total bytes in writes of size, one stream after another.
func interleave(b *testing.B, pairs []pair, total, size int) {
	var readers sync.WaitGroup
	each := total / size / len(pairs) * size
	for _, p := range pairs {
		readers.Go(func() {
			if _, err := io.CopyN(io.Discard, p.server, int64(each)); err != nil {
				b.Error(err)
			}
		})
	}
	out := make([]byte, size)
	for left := each; left > 0; left -= size {
		for _, p := range pairs {
			if _, err := p.client.Write(out); err != nil {
				b.Error(err)
				return
			}
		}
	}
	readers.Wait()
}

// Many streams that take turns with small writes, against one stream with the
// same bytes in the same writes.
func BenchmarkStreamsAgainstOne(b *testing.B) {
	for _, n := range []int{100, 1000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			const total, size = 64 << 20, 1 << 10
			cc, sc := newTestConfigs()
			sc.MaxStreams = n
			one, many := newTCPLSPair(b), newStreams(b, cc, sc, n)
			compare(b,
				func() { interleave(b, []pair{one}, total, size) },
				func() { interleave(b, many, total, size) })
		})
	}
}

// Memory of an idle connection, one end, heap and stacks: a TCPLS session with
// one stream against a crypto/tls connection, each with a Read waiting.
func BenchmarkIdleMemory(b *testing.B) {
	const n = 200
	wait := func(p pair) {
		go p.client.Read(make([]byte, 1))
		go p.server.Read(make([]byte, 1))
	}
	for range b.N {
		before := memoryInUse()
		for range n {
			wait(newTLSPair(b))
		}
		plain := memoryInUse()
		for range n {
			wait(newTCPLSPair(b))
		}
		ours := memoryInUse()
		b.ReportMetric(float64(plain-before)/(2*n), "tls-B/conn")
		b.ReportMetric(float64(ours-plain)/(2*n), "tcpls-B/conn")
		b.ReportMetric(0, "ns/op")
	}
}

// memoryInUse is what heap and stacks hold once everything is at rest.
func memoryInUse() uint64 {
	time.Sleep(200 * time.Millisecond) // delayed acknowledgements
	for range 3 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// BenchmarkBurst is what short records cost: 128 KiB at the beginning of a burst
// over a link of Ethernet's segments, both ends together, against full records.
func BenchmarkBurst(b *testing.B) {
	for _, fixed := range []bool{false, true} {
		b.Run(fmt.Sprintf("full=%v", fixed), func(b *testing.B) {
			p := newMemPair(b, memnet.Link{}, func(client, server *Config) {
				client.TLS.DynamicRecordSizingDisabled = fixed
				server.StreamRecvWindow, server.SessionRecvWindow = 1<<20, 1<<20
				server.StreamRecvMax, server.SessionRecvMax = 1<<20, 1<<20
			})
			out, in := p.open(b)
			path := p.client.path()
			data, buf := testBytes(1, 128<<10), make([]byte, 128<<10)
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			before := path.Stats().RecordsSent
			for b.Loop() {
				path.outMu.Lock()
				path.sizing.burst = 0
				path.outMu.Unlock()
				mustWrite(b, out, data)
				if _, err := io.ReadFull(in, buf); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(path.Stats().RecordsSent-before)/float64(b.N), "records/op")
		})
	}
}
