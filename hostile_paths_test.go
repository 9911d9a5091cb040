package tcpls

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/tls13"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// join opens one more path of a peer that plays the client, and returns what
// sends on it. Both share the session's keys and contexts.
func (p *testPeer) join() *testPeer {
	p.t.Helper()
	given := p.token // which came with the last join
	if p.token = (wire.PathToken{}); given.Token == nil {
		f := p.wantFrame("a token", wire.Token)
		for f.Path <= p.joined { // said again
			f = p.wantFrame("another token", wire.Token)
		}
		given = wire.PathToken{Path: f.Path, Token: f.Token}
	}
	secret, err := p.sess.tokenSecret(given.Token)
	if err != nil {
		p.t.Fatal(err)
	}
	cfg, _ := newTestConfigs()
	var answer wire.Answer
	engine, err := tls13.NewClient(&tls13.Config{
		TLS: cfg.TLS, Extension: wire.ExtensionType, Offer: wire.AppendOffer(nil),
		Accept: func(b []byte) (err error) { answer, err = wire.ParseAnswer(b); return err },
		PSK:    &tls13.PSK{Identity: slices.Clone(given.Token), Secret: secret, Suite: p.sess.engine.Suite()},
	})
	if err != nil {
		p.t.Fatal(err)
	}
	near, far := memnet.Pipe(memnet.Link{Queue: 1 << 20})
	p.t.Cleanup(func() { _ = near.Close() }) // often closed already
	joined := begun(func() error {
		_, err := Server(p.t.Context(), far, p.sess.cfg)
		return err
	})
	q := *p
	q.joined = given.Path
	q.conn, q.raw, q.alert = near, nil, nil // frames may hold more tokens
	for !engine.HandshakeComplete() {
		q.writeRaw(engine.Output())
		q.fill()
		n, err := engine.Feed(q.raw)
		if err != nil {
			p.t.Fatal(err)
		}
		q.raw = q.raw[n:]
	}
	q.writeRaw(engine.Output())
	wantErrorIs(p.t, "Server with a join", <-joined, ErrJoined)
	q.path = wire.PathContext(uint16(given.Path))
	q.next, q.token = q.path, answer.Tokens[0]
	q.own, q.heard[q.path] = record.NewContext(p.sendKeys, q.path), record.NewContext(p.receiveKeys, q.path)
	return &q
}

// at attaches a stream to the path from a record on that may not be the next.
func (p *testPeer) at(id uint32, seq uint64) {
	p.t.Helper()
	p.attachAt(id, seq, 0)
	p.streams[id] = record.NewContext(p.sendKeys, id)
	p.streams[id].InitAt(p.sendKeys, id, seq)
}

func (p *testPeer) attachAt(id uint32, seq, epoch uint64) {
	p.t.Helper()
	p.writeFrames(wire.AppendAttach(nil, id, seq, epoch))
}

// What a client may not do with two paths, one of which is p's, and the code
// that closes the session.
var pathViolations = []struct {
	name string
	do   func(p, q *testPeer)
	code wire.SessionCode
}{
	{"9.6 more records before their turn than may be", func(p, q *testPeer) {
		q.at(1, 1)
		for range maxHeld + 1 {
			q.writeStream(1, []byte("x"))
		}
	}, wire.CodeLimit},
	{"9.6 empty records before their turn", func(p, q *testPeer) {
		q.at(1, 1)
		for range maxHeld + 1 {
			q.writeStream(1, nil)
		}
	}, wire.CodeLimit},
	{"6.1 more than the stream's credit before its turn", func(p, q *testPeer) {
		q.at(1, 1)
		for range 65 {
			q.writeStream(1, make([]byte, record.MaxPlaintext))
		}
	}, wire.CodeFlowControl},
	{"6.1 more than the session's credit before its turn", func(p, q *testPeer) {
		for id := uint32(1); id <= 5; id += 2 {
			q.at(id, 1)
			for range 64 {
				q.writeStream(id, make([]byte, record.MaxPlaintext))
			}
		}
	}, wire.CodeFlowControl},
	{"6.3 a record again and again", func(p, q *testPeer) {
		q.at(1, 0)
		rec := q.sealed(q.streams[1], []byte("x"), record.ApplicationData)
		q.writeRaw(rec)
		for range 4 * budgetMax {
			q.attachAt(1, 0, 0)
			q.writeRaw(rec)
		}
	}, wire.CodeLimit},
	{"6.3 a thousand records again and again", func(p, q *testPeer) {
		q.at(1, 0)
		var all []byte
		for range 1000 {
			all = append(all, q.sealed(q.streams[1], []byte("x"), record.ApplicationData)...)
		}
		q.writeRaw(all)
		for range 2000 {
			q.attachAt(1, 0, 0)
			q.writeRaw(all)
		}
	}, wire.CodeLimit},
	{"5.2 ATTACH of the control context beyond its next record", func(p, q *testPeer) {
		q.attachAt(wire.Control, p.control.Seq()+1, 0)
	}, wire.CodeProtocol},
	{"5.2 ATTACH of the control context two epochs ahead", func(p, q *testPeer) {
		q.attachAt(wire.Control, p.control.Seq(), 2)
	}, wire.CodeKeyUpdate},
	{"5.2 ATTACH two epochs ahead", func(p, q *testPeer) { q.attachAt(1, 0, 2) }, wire.CodeKeyUpdate},
	{"5.2 ATTACH at the next record in another epoch", func(p, q *testPeer) {
		q.at(1, 0)
		q.writeStream(1, []byte("x"))
		q.attachAt(1, 1, 1)
	}, wire.CodeStreamState},
	{"5.2 ATTACH of a stream of the session's that isn't open", func(p, q *testPeer) { q.attachAt(2, 0, 0) }, wire.CodeStreamState},
	{"5.2 ATTACH beyond the limit", func(p, q *testPeer) { q.attachAt(2*1024+1, 0, 0) }, wire.CodeStreamLimit},
	{"5.11 RESET beyond the limit", func(p, q *testPeer) { p.writeControl(wire.AppendReset(nil, 2*1024+1, 0, 0)) }, wire.CodeStreamLimit},
	{"5.11 RESET below what came before its turn", func(p, q *testPeer) {
		q.at(1, 1)
		q.writeStream(1, []byte("xyz"))
		p.writeFrames(wire.AppendPing(nil, [8]byte{1})) // in either order
		synctest.Wait()
		p.writeControl(wire.AppendReset(nil, 1, 0, 2))
	}, wire.CodeStreamState},
	{"5.16 PATH_LEFT that is cut off", func(p, q *testPeer) { q.writeFrames([]byte{byte(wire.PathLeft), 1, 0}) }, wire.CodeFrame},
	{"5.16 PATH_LEFT for a reason that isn't known", func(p, q *testPeer) { q.writeFrames([]byte{byte(wire.PathLeft), 2, 0, 2}) }, wire.CodeFrame},
	{"6.3 a flood of PATH_LEFT", func(p, q *testPeer) {
		for range 4 * budgetMax {
			q.writeFrames(wire.AppendPathLeft(nil, 0, true), wire.AppendPathLeft(nil, 99, true))
		}
	}, wire.CodeLimit},
}

func TestPathViolations(t *testing.T) {
	for _, test := range pathViolations {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newTestPeer(t, true, func(c *Config) { c.MaxPaths, c.ReconnectFor, c.CloseTimeout = 3, time.Minute, time.Second })
				q := p.join()
				go test.do(p, q) // a session that has ended may not read all of it
				<-p.sess.Context().Done()
				want := &SessionError{Code: uint64(test.code)}
				wantErrorIs(t, test.name, p.sess.cause(), want)
			})
		})
	}
}

// Streams that ended are attached again in any number, by ATTACH alone or with
// their records: few of them stay in memory, and the session goes on.
func TestEndedStreamsAttachedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const streams = 3 * maxEnded
		p := newTestPeer(t, true, func(c *Config) { c.MaxPaths, c.MaxStreams = 3, 2*streams })
		q := p.join()
		var last []byte
		for i := range uint32(streams) {
			id := 2*i + 1
			p.attach(id)
			last = p.sealed(p.streams[id], framed([]byte("x"), wire.AppendFin(nil)), wire.TypeFrames)
			p.writeRaw(last)
			st := p.accept()
			if err := st.Reset(1); err != nil {
				t.Fatal(err)
			}
			_ = st.CloseRead() // its bytes aren't of interest
		}
		p.writeFrames(wire.AppendAck(nil, wire.Control, 0, 0))
		synctest.Wait()
		for i := range uint32(streams) {
			q.attachAt(2*i+1, 0, 0)
		}
		q.writeRaw(last)
		synctest.Wait()
		if err := p.sess.life.cause.Load(); err != nil {
			t.Fatalf("the session ended: %v", *err)
		}
		paths := p.sess.Paths()
		if len(paths) != 2 {
			t.Fatalf("%d paths are left, want 2", len(paths))
		}
		p.sess.inMu.Lock()
		defer p.sess.inMu.Unlock()
		for _, path := range paths {
			if n := len(path.in.attached); n > maxEnded {
				t.Errorf("path %d: %d streams that have ended are attached", path.id, n)
			}
		}
	})
}

// A peer that acknowledges nothing while its paths fail again and again makes
// the session send everything again, and keep no more than before.
func TestNeverAcknowledgedOverManyPaths(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 256 << 10
		p := newTestPeer(t, true, func(c *Config) { c.SendBuffer, c.MaxPaths, c.ReconnectFor = limit, 3, time.Minute })
		p.writeFrames(wire.AppendSessionCredit(nil, 1<<30))
		for id := uint32(1); id < 20; id += 2 {
			p.attach(id)
			st := p.accept()
			go func() { _, _ = st.Write(make([]byte, 1<<20)) }() // ends with the session
		}
		path := p
		for range 40 {
			next := path.join()
			path.conn.Reset()
			path = next
			for range 100 { // all that is sent again, and some PINGs
				_ = path.tryFill(100 * time.Millisecond) // what doesn't come is judged below
				for path.open() {
				}
			}
			clear(path.data)
			s := p.sess
			if n := s.gate.unacknowledged(); n > limit+maxControl+maxControlRecord+record.Overhead {
				t.Fatalf("%d bytes are kept, with a SendBuffer of %d", n, limit)
			}
			if n := s.gate.held.Load(); n > s.gate.mostHeld()+2*(maxUnsent+record.LargeChunk) {
				t.Fatalf("chunks of %d bytes are held, with a SendBuffer of %d", n, limit)
			}
			if n := len(s.Paths()); n > 2 {
				t.Fatalf("%d paths", n)
			}
		}
		if n := p.sess.gate.unacknowledged(); n < limit/2 {
			t.Errorf("only %d bytes are kept, which proves nothing", n)
		}
	})
}

// What a peer says of paths that don't exist changes nothing.
func TestPathLeftOfUnknownPaths(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, true, func(c *Config) { c.MaxPaths = 3 })
		q := p.join()
		q.writeFrames(wire.AppendPathLeft(nil, 99, true), wire.AppendPathLeft(nil, 65535, false), wire.AppendPathLeft(nil, q.joined, true))
		p.writeFrames(wire.AppendPathLeft(nil, 0, true), wire.AppendPathLeft(nil, q.joined, false))
		synctest.Wait()
		if main := p.sess.path(); main.ID() != 0 {
			t.Errorf("path %d took over", main.ID())
		}
		q.writeFrames(wire.AppendPathLeft(nil, 0, false))
		synctest.Wait()
		if main := p.sess.path(); main.ID() != q.joined {
			t.Errorf("path %d is still the main path, which the peer has left", main.ID())
		}
	})
}

// A peer that answers only the last of several PINGs, as it may, answers Ping
// too, though the session asks by itself meanwhile.
func TestPingBesideTheWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, true, func(c *Config) { c.MaxPaths, c.ReconnectFor, c.PathTimeout = 3, time.Minute, 2*time.Second })
		pinged := begun(func() error {
			_, err := p.sess.Ping(t.Context())
			return err
		})
		for range 10 {
			_ = p.tryFill(100 * time.Millisecond) // what doesn't come is judged below
			for p.open() {
			}
		}
		var last heardFrame
		for _, f := range p.frames {
			if f.Kind == wire.Ping {
				last = f
			}
		}
		p.writeFrames(wire.AppendPong(nil, last.Data))
		synctest.Wait()
		select {
		case err := <-pinged:
			if err != nil {
				t.Error(err)
			}
		default:
			t.Error("Ping still waits for an answer")
		}
	})
}

// A peer that has the session change paths again and again, reads nothing and
// acknowledges nothing, doesn't make it queue its control records each time.
func TestPathLeftAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, true, func(c *Config) { c.MaxPaths, c.PathTimeout, c.KeepAlive = 3, time.Hour, -1 })
		q := p.join()
		for id := uint32(1); id < 2000; id += 2 {
			p.attach(id)
			if err := p.accept().CloseRead(); err != nil { // says STOP_SENDING
				t.Fatal(err)
			}
		}
		synctest.Wait()
		s := p.sess
		if n := s.control.keptBytes(); n < 4<<10 {
			t.Fatalf("only %d bytes of control records are kept, which proves nothing", n)
		}
		for range 1000 {
			q.writeFrames(wire.AppendPathLeft(nil, 0, false))
			synctest.Wait()
			if main := s.path(); main.ID() != q.joined {
				t.Fatalf("path %d is still the main path, which the peer has left", main.ID())
			}
			p.writeFrames(wire.AppendPathLeft(nil, q.joined, false))
			synctest.Wait()
		}
		for _, path := range s.Paths() {
			t.Logf("path %d: %d bytes wait", path.ID(), path.unsent.Load())
			if n := path.unsent.Load(); n > 2*maxUnsent {
				t.Errorf("%d bytes wait on path %d", n, path.ID())
			}
		}
		go func() { _ = s.CloseWithError(1, "test") }() // nobody reads it
		time.Sleep(time.Minute)
	})
}

// Of thousands of PATH_STATUS in one record the last one counts, and streams
// are told once.
func TestPathStatusFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const records = 20
		p := newTestPeer(t, true, func(c *Config) { c.Mode = ModePinned })
		for id := uint32(1); id < 200; id += 2 {
			p.attach(id)
			p.accept()
		}
		synctest.Wait()
		s := p.sess
		for round := range records {
			var frames []byte
			for i := 0; len(frames) < record.MaxPlaintext-64; i++ {
				frames = wire.AppendPathStatus(frames, i%2 == 0, uint64(i%wire.MaxWeight+1))
			}
			frames = wire.AppendPathStatus(frames, round%2 == 0, uint64(round+1))
			before := s.gate.changes.Load()
			p.writeFrames(frames)
			synctest.Wait()
			if n := s.gate.changes.Load() - before; n == 0 || n > 2 {
				t.Errorf("one record made the streams look for another path %d times", n)
			}
			if w := s.path().Weight(); w != round+1 {
				t.Errorf("the path weighs %d, want %d", w, round+1)
			}
			if b := s.path().Backup(); b != (round%2 == 0) {
				t.Errorf("the path is a backup: %v, want %v", b, !b)
			}
		}
	})
}

// Whatever a peer says of lost paths, what isn't acknowledged of a stream that has
// ended goes out again once a second at most, and not at all for paths that never
// were.
func TestPathLeftOfManyPaths(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, true, func(c *Config) { c.MaxPaths, c.PathTimeout, c.KeepAlive = 3, time.Hour, -1 })
		q := p.join()
		p.attach(1)
		p.writeStream(1, []byte("x"))
		st := p.accept()
		mustWrite(t, st, []byte("never acknowledged"))
		if err := st.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		resent := func() (n uint64) {
			synctest.Wait()
			for _, path := range p.sess.Paths() {
				n += path.Stats().RecordsResent
			}
			return n
		}
		given := p.sess.tickets.given
		for id := given + 1; id < given+1000; id++ {
			p.writeFrames(wire.AppendPathLeft(nil, id, true))
		}
		if n := resent(); n != 0 {
			t.Errorf("%d records were sent again for paths that never were", n)
		}
		for round := range uint64(5) {
			for i := range 200 {
				p.writeFrames(wire.AppendPathLeft(nil, []uint32{q.joined, given}[i%2], true))
			}
			if n := resent(); n != 2*(round+1) {
				t.Errorf("after %d s, %d records were sent again, want %d", round, n, 2*(round+1))
			}
			time.Sleep(endsPause)
		}
	})
}
