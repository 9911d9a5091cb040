package tcpls

import (
	"fmt"
	"testing"

	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// What finding the context of a record costs: 1 KiB records that take turns
// among n streams, announced by NEXT or found by trial alone (protocol 4.4).
// ns/op is for one record, its sealing by the test's peer included.
func BenchmarkFindContext(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000} {
		for _, announced := range []bool{true, false} {
			if n > 100 && !announced {
				continue // costs the peer its session (protocol 6.3)
			}
			name := fmt.Sprintf("%d/announced", n)
			if !announced {
				name = fmt.Sprintf("%d/trial", n)
			}
			b.Run(name, func(b *testing.B) {
				b.SetBytes(recordSize)
				b.StopTimer()
				for left := b.N; left > 0; left -= maxUnread { // nobody reads: a new session now and then
					findContext(b, n, announced, min(left, maxUnread))
				}
			})
		}
	}
}

const (
	recordSize = 1 << 10
	maxUnread  = 64 << 10 // records, 64 MiB
)

// findContext times the records of one session.
func findContext(b *testing.B, streams int, announced bool, records int) {
	p := newTestPeer(b, true, func(server *Config) {
		server.MaxStreams = streams
		server.StreamRecvWindow, server.StreamRecvMax = 1<<30, 1<<30
		server.SessionRecvWindow, server.SessionRecvMax = 1<<30, 1<<30
	})
	ids := make([]uint32, streams)
	for i := range ids {
		ids[i] = nth(uint32(i), true)
		p.attach(ids[i])
	}
	data := make([]byte, recordSize)
	sent := 0
	round := func(records int) {
		var out []byte
		for range records {
			id := ids[sent%streams]
			if announced && streams > 1 {
				out = append(out, p.sealed(p.own, framed(nil, wire.AppendNext(nil, id)), wire.TypeFrames)...)
			}
			out = append(out, p.sealed(p.streams[id], data, record.ApplicationData)...)
			sent++
		}
		p.writeRaw(out)
		p.writeFrames(wire.AppendPing(nil, [8]byte{byte(sent >> 8), byte(sent)}))
		p.wantFrame("the answer to the ping behind the records", wire.Pong)
	}
	round(streams)
	b.StartTimer()
	for left := records; left > 0; left -= 100 {
		round(min(left, 100))
	}
	b.StopTimer()
	if got := p.sess.Stats().BytesReceived; got != uint64(sent*len(data)) {
		b.Fatalf("%d of %d bytes arrived", got, sent*len(data))
	}
	for range ids {
		_ = p.accept().Close() // gives the unread bytes up
	}
}
