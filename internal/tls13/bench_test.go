package tls13

import (
	"crypto/tls"
	"net"
	"runtime"
	"testing"

	"github.com/go-tcpls/tcpls/internal/record"
)

// BenchmarkHandshake counts both ends of a full handshake, with the default
// group and a P-256 certificate.
func BenchmarkHandshake(b *testing.B) {
	for _, hybrid := range []bool{true, false} {
		client, server := clientTLS(), serverTLS()
		name := "X25519MLKEM768"
		if !hybrid {
			client.CurvePreferences, name = []tls.CurveID{tls.X25519}, "X25519"
		}
		b.Run(name+"/ours", func(b *testing.B) {
			b.ReportAllocs()
			clientConfig, serverConfig := &Config{TLS: client}, &Config{TLS: server}
			for b.Loop() {
				c, s := newTestPair(b, clientConfig, serverConfig)
				mustShake(b, c, s)
			}
		})
		b.Run(name+"/crypto-tls", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				x, y := net.Pipe()
				c, s := tls.Client(x, client), tls.Server(y, server)
				done := make(chan error, 1)
				go func() { done <- s.Handshake() }()
				if err := c.Handshake(); err != nil {
					b.Fatal(err)
				}
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkData seals and opens full records.
func BenchmarkData(b *testing.B) {
	client, server := clientTLS(), serverTLS()
	client.DynamicRecordSizingDisabled = true
	c, s := newTestPair(b, &Config{TLS: client}, &Config{TLS: server})
	mustShake(b, c, s)
	data := make([]byte, 4*record.MaxPlaintext)
	var wire, got []byte
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if wire, err = c.Write(wire[:0], data); err != nil {
			b.Fatal(err)
		}
		if got, _, err = s.Read(got[:0], wire); err != nil || len(got) != len(data) {
			b.Fatal(len(got), err)
		}
	}
}

// maxIdleBytes bounds what an idle end keeps: keys and the facts of
// ConnectionState, and for a client the server's parsed certificate.
const maxIdleBytes = 16 << 10

func TestIdleMemory(t *testing.T) {
	const pairs = 64
	clientConfig, serverConfig := &Config{TLS: clientTLS()}, &Config{TLS: serverTLS()}
	keep := make([]*Conn, 0, 2*pairs)
	before := heapInUse()
	for range pairs {
		c, s := newTestPair(t, clientConfig, serverConfig)
		mustShake(t, c, s)
		exchange(t, c, s, make([]byte, 1000))
		keep = append(keep, c, s)
	}
	each := int(heapInUse()-before) / len(keep)
	runtime.KeepAlive(keep)
	t.Logf("%d bytes an idle end", each)
	if each > maxIdleBytes {
		t.Errorf("an idle end keeps %d bytes, more than %d", each, maxIdleBytes)
	}
	for _, c := range keep[:2] {
		if c.hand != nil || c.flight != nil || c.out != nil || c.next.run != nil {
			t.Errorf("an idle end keeps handshake state: %d, %d, %d bytes", cap(c.hand), cap(c.flight), cap(c.out))
		}
	}
}

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
