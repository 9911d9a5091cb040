package tls13

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"testing"
	"time"
)

// A mirror is a transport of a server whose other end, a client of ours, runs
// within the server's own calls. It keeps account of what the client costs.
type mirror struct {
	net.Conn
	client  *Conn
	in, out []byte
	cost    cost
	counts  bool // allocations, which takes long
}

type cost struct {
	time   time.Duration
	allocs uint64
}

func (m *mirror) run(f func() error) error {
	var before uint64
	if m.counts {
		before = allocations()
	}
	began := time.Now()
	err := f()
	m.out = append(m.out, m.client.Output()...)
	m.cost.time += time.Since(began)
	if m.counts {
		m.cost.allocs += allocations() - before
	}
	return err
}

func (m *mirror) Write(p []byte) (int, error) {
	return len(p), m.run(func() error {
		m.in = append(m.in, p...)
		n, err := m.client.Feed(m.in)
		m.in = m.in[n:]
		if err == nil && m.client.HandshakeComplete() {
			_, n, err = m.client.Read(nil, m.in)
			m.in = m.in[n:]
		}
		return err
	})
}

func (m *mirror) Read(p []byte) (int, error) {
	if len(m.out) == 0 {
		return 0, io.EOF
	}
	n := copy(p, m.out)
	m.out = m.out[n:]
	return n, nil
}

func (m *mirror) Close() error { return nil }

func allocations() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Mallocs
}

// serve runs a server's handshake and sends a ticket, as crypto/tls does.
type serve func(m *mirror) error

func serveOurs(cfg *Config) serve {
	return func(m *mirror) error {
		s, err := NewServer(cfg)
		if err != nil {
			return err
		}
		d := &driver{Conn: s, net: m}
		if err := d.handshake(); err != nil {
			return err
		}
		if _, _, err := s.Read(nil, nil); err != nil {
			return err
		}
		_, err = m.Write(s.Output())
		return err
	}
}

func serveGo(cfg *tls.Config) serve {
	return func(m *mirror) error { return tls.Server(m, cfg).Handshake() }
}

// meetOnce returns what the server's part of one handshake costs.
func (s serve) meetOnce(t testing.TB, client *Config, counts bool) cost {
	m := &mirror{counts: counts}
	err := m.run(func() (err error) {
		m.client, err = NewClient(client)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	m.cost = cost{}
	var before uint64
	if counts {
		before = allocations()
	}
	began := time.Now()
	if err := s(m); err != nil {
		t.Fatal(err)
	}
	total := time.Since(began)
	resumes := client.TLS.ClientSessionCache != nil
	if c := m.client; !c.HandshakeComplete() || c.ConnectionState().DidResume && !resumes {
		t.Fatal("not the handshake that was meant")
	}
	m.cost.time = total - m.cost.time
	if counts {
		m.cost.allocs = allocations() - before - m.cost.allocs
	}
	return m.cost
}

// BenchmarkServer compares what a server's part of a handshake costs, with
// X25519MLKEM768 and, in a full one, a P-256 certificate. Ours and crypto/tls's
// take turns, so that they share the machine's moods, and of their times the
// medians are compared. ns/op is that of both with their clients, and means
// nothing.
func BenchmarkServer(b *testing.B) {
	for _, resumed := range []bool{false, true} {
		b.Run(fmt.Sprintf("resumed=%v", resumed), func(b *testing.B) {
			var times [2][]time.Duration
			var allocs [2]uint64
			ends := [2]serve{serveOurs(&Config{TLS: serverTLS(), TicketCount: 1}), serveGo(serverTLS())}
			var clients [2]*Config
			for i := range clients {
				clients[i] = &Config{TLS: clientTLS()}
				if resumed {
					clients[i].TLS.ClientSessionCache = tls.NewLRUClientSessionCache(1)
					ends[i].meetOnce(b, clients[i], false)
				}
			}
			for b.Loop() {
				for i, s := range ends {
					times[i] = append(times[i], s.meetOnce(b, clients[i], false).time)
				}
			}
			for i, s := range ends {
				const rounds = 50
				for range rounds {
					allocs[i] += s.meetOnce(b, clients[i], true).allocs
				}
				allocs[i] /= rounds
				slices.Sort(times[i])
			}
			ours, theirs := times[0][len(times[0])/2], times[1][len(times[1])/2]
			b.ReportMetric(float64(ours.Nanoseconds()), "ours-ns/op")
			b.ReportMetric(float64(theirs.Nanoseconds()), "crypto/tls-ns/op")
			b.ReportMetric(float64(theirs)/float64(ours), "speed-ratio")
			b.ReportMetric(float64(allocs[0]), "ours-allocs/op")
			b.ReportMetric(float64(allocs[1]), "crypto/tls-allocs/op")
		})
	}
}
