package tcpls

import (
	"container/heap"
	"io"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/go-tcpls/tcpls/internal/memnet"
	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/wire"
)

const fullRecord = record.MaxPlaintext + record.Overhead

func newGate(limit int, credit uint64) *sendGate {
	return &sendGate{limit: limit, credit: credit, path: &Path{sess: &Session{cfg: &Config{}}, sizing: sizing{maxContent: record.MaxPlaintext}}}
}

func newTurn(id uint32, urgency int8, incremental bool) *turn {
	st := &Stream{id: id}
	st.sendCond.L = &st.sendMu
	st.turn = turn{stream: st, index: -1, urgency: urgency, incremental: incremental}
	return &st.turn
}

func TestGateRoom(t *testing.T) {
	for _, test := range []struct {
		name         string
		limit, kept  int
		credit, used uint64
		unsent, held int64
		want, got    int
	}{
		{name: "all", limit: 1 << 20, credit: 1000, want: 100, got: 100},
		{name: "credit bounds", limit: 1 << 20, credit: 1000, used: 950, want: 100, got: 50},
		{name: "no credit", limit: 1 << 20, credit: 1000, used: 1000, want: 100},
		{name: "memory for one byte less", limit: 100 + record.Overhead - 1, credit: 1000, want: 100},
		{name: "memory for a record", limit: 100 + record.Overhead, credit: 1000, want: 100, got: 100},
		{name: "memory for two full records of three", limit: 2*fullRecord + 100, credit: 1 << 20, want: 3 * record.MaxPlaintext, got: 2 * record.MaxPlaintext},
		{name: "memory in use", limit: 2 * fullRecord, kept: fullRecord, credit: 1 << 20, want: 3 * record.MaxPlaintext, got: record.MaxPlaintext},
		{name: "more in use than the limit", limit: 100, kept: 200, credit: 1000, want: 1},
		{name: "chunks held for less", limit: 1 << 20, credit: 1000, held: 2<<20 + 4*record.LargeChunk - 1, want: 100, got: 100},
		{name: "too many chunks held", limit: 1 << 20, credit: 1000, held: 2<<20 + 4*record.LargeChunk, want: 100},
		{name: "a full path", limit: 1 << 20, credit: 1000, unsent: maxUnsent, want: 100},
	} {
		g := newGate(test.limit, test.credit)
		g.kept, g.used = test.kept, test.used
		g.path.unsent.Store(test.unsent)
		g.held.Store(test.held)
		if got := g.room(&turn{stream: &Stream{}}, test.want); got != test.got {
			t.Errorf("%s: room for %d of %d bytes, want %d", test.name, got, test.want, test.got)
		}
	}
}

func TestGateOrder(t *testing.T) {
	g := newGate(1<<20, 0) // without credit everybody waits
	waiting := []*turn{
		newTurn(9, 3, false), newTurn(5, 3, true), newTurn(3, 3, true), newTurn(7, 3, false),
		newTurn(1, 7, false), newTurn(11, 0, true), newTurn(13, 0, false),
	}
	for _, w := range waiting {
		if got, _ := g.enter(w, 10); got != 0 {
			t.Fatalf("stream %d may send %d bytes without credit", w.stream.id, got)
		}
	}
	g.credit = 1 << 20
	if got, _ := g.enter(waiting[0], 10); got != 0 {
		t.Errorf("stream 9 went before more urgent ones")
	}
	var order []uint32
	for g.Len() > 0 {
		first := g.waiting[0]
		got, next := g.enter(first, 10)
		if got != 10 {
			t.Fatalf("the first in the queue got %d bytes", got)
		}
		if (next == nil) != (g.Len() == 0) {
			t.Errorf("behind stream %d, the next is %v", first.stream.id, next)
		}
		order = append(order, first.stream.id)
	}
	if want := []uint32{13, 11, 7, 9, 5, 3, 1}; !slices.Equal(order, want) {
		t.Errorf("streams went in the order %v, want %v", order, want)
	}
	if g.used != 70 || g.kept != 7*(10+record.Overhead) {
		t.Errorf("%d bytes used and %d kept", g.used, g.kept)
	}
}

func (g *sendGate) Len() int { return len(g.waiting) }

func TestGateLeaveAndReprioritize(t *testing.T) {
	g := newGate(1<<20, 0)
	a, b, c := newTurn(1, 3, false), newTurn(3, 3, false), newTurn(5, 3, false)
	for _, w := range []*turn{a, b, c} {
		g.enter(w, 1)
	}
	g.setPriority(c, 0, false)
	if g.waiting[0] != c {
		t.Error("a stream that became urgent isn't the first")
	}
	g.credit = 100
	if next := g.leave(c); next != a {
		t.Error("the first one left, and the next wasn't named")
	}
	if next := g.leave(c); next != nil || c.index != -1 {
		t.Error("one who left can leave again")
	}
	if g.Len() != 2 || !slices.IsSortedFunc([]*turn{heap.Pop(&g.waiting).(*turn), heap.Pop(&g.waiting).(*turn)}, func(x, y *turn) int {
		return int(x.stream.id) - int(y.stream.id)
	}) {
		t.Error("the others lost their order")
	}
}

func TestNth(t *testing.T) {
	for n, want := range []uint32{1, 3, 5} {
		if got := nth(uint32(n), true); got != want {
			t.Errorf("the client's stream %d has id %d, want %d", n, got, want)
		}
		if got := nth(uint32(n), false); got != want+1 {
			t.Errorf("the server's stream %d has id %d, want %d", n, got, want+1)
		}
	}
	if last := nth(wire.MaxStreams-1, true); !wire.IsStream(last) || !wire.ClientOpened(last) {
		t.Errorf("the client's last stream has id %#x", last)
	}
}

func TestRaiseLimit(t *testing.T) {
	for _, test := range []struct {
		most               int
		peers              uint32
		limit, ended, want uint64 // 0: nothing to tell
	}{
		{most: 10, peers: 0, limit: 10, ended: 0},
		{most: 10, peers: 4, limit: 10, ended: 4},
		{most: 10, peers: 5, limit: 10, ended: 3, want: 13},
		{most: 10, peers: 10, limit: 10, ended: 0},
		{most: 10, peers: 10, limit: 10, ended: 10, want: 20},
		{most: 1, peers: 1, limit: 1, ended: 1, want: 2},
		{most: 0, peers: 0, limit: 0, ended: 0},
		{most: wire.MaxStreams, peers: wire.MaxStreams, limit: wire.MaxStreams, ended: 5},
	} {
		s := &Session{cfg: &Config{MaxStreams: test.most}}
		s.table = table{peers: test.peers, limit: test.limit, ended: test.ended}
		if told := s.raiseLimit(); told != (test.want != 0) {
			t.Errorf("%+v: raiseLimit = %v", test, told)
		} else if told && (s.table.limit != test.want || s.words.streamLimit != test.want) {
			t.Errorf("%+v: the limit became %d, and %d was told", test, s.table.limit, s.words.streamLimit)
		}
	}
}

// The first in the queue may come to wait for something else, as for records that
// are sent again: then it holds up nobody.
func TestGatePassesBlockedStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{}, func(client, server *Config) {
			server.StreamRecvWindow, server.SessionRecvWindow = 2*minWindow, minWindow
		})
		var streams [3]*Stream
		for i := range streams {
			var err error
			if streams[i], err = p.client.OpenStream(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := streams[0].Write(make([]byte, minWindow)); err != nil {
			t.Fatal(err)
		}
		write := func(s *Stream) <-chan error {
			done := begun(func() error { _, err := s.Write([]byte("more")); return err })
			synctest.Wait()
			wantBlocked(t, "a Write without the session's credit", done)
			return done
		}
		first, second := write(streams[1]), write(streams[2])
		blocked := streams[1]
		setBlocked := func(p *Path) {
			blocked.sendMu.Lock()
			defer blocked.sendMu.Unlock()
			blocked.replayOn = p
			blocked.sendCond.Broadcast()
		}
		setBlocked(p.client.path())
		synctest.Wait()
		in, err := p.server.AcceptStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(in, make([]byte, minWindow)); err != nil {
			t.Fatal(err)
		}
		if err := <-second; err != nil {
			t.Error(err)
		}
		wantBlocked(t, "a Write behind records that are sent again", first)
		setBlocked(nil)
		if err := <-first; err != nil {
			t.Error(err)
		}
	})
}
