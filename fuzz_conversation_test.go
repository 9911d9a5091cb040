package tcpls

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/tls13"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// A talker is a peer with good keys that follows a script: four bytes a step,
// of which the first names one of talkerSteps. Its steps keep streams, epochs
// and acknowledgements in order, or break them, while the session's own
// application opens, writes, closes and waits.
type talker struct {
	*testPeer
	epoch   uint64
	over    map[uint32]bool   // streams on which FIN was sent
	said    map[uint32][]byte // bytes sealed for each stream
	sealed  []sealedRecord    // of streams
	held    []byte            // a record that goes behind the next
	damage  func(rec []byte) []byte
	deaf    bool // reads nothing any more
	alerts  int
	closes  int
	opened  int             // streams, by the session's application
	ctx     context.Context // ends with the script
	tokens  []wire.Frame    // that the session gave
	other   *otherPath      // once the talker has joined
	working sync.WaitGroup

	mu      sync.Mutex
	streams []*Stream         // of the session
	heard   map[uint32][]byte // what its application has read
	ended   map[uint32]bool   // and where it has read io.EOF
}

// An otherPath is the one of two that the talker doesn't use at the moment.
type otherPath struct {
	conn *memnet.Conn
	own  *record.Context
}

// A sealedRecord can be sent again on another path.
type sealedRecord struct {
	stream uint32
	seq    uint64
	epoch  uint64
	bytes  []byte
}

type talkerStep struct{ a, b, c byte }

// FuzzConversation talks to a session. Whatever is said, what its application
// reads is what was sent, its end only if FIN was sent, and nothing that the
// session keeps grows beyond its limits.
func FuzzConversation(f *testing.F) {
	for step := range byte(len(talkerSteps)) {
		for _, more := range [][]byte{{}, {2, 1, 9, 1}, {0, 0, 0, 0, step, 7, 3, 5, 8, 0, 0, 0}} {
			f.Add(step%2 == 0, append([]byte{0, 0, 0, 0, 1, 0, 200, 0, step, 0, step, 2}, more...))
		}
	}
	for _, more := range [][]byte{
		{joinStep, 0, 0, 0, swapStep, 0, 0, 0, 0, 0, 0, 0, 1, 0, 90, 3, 2, 0, 9, 9},
		{joinStep, 0, 0, 0, endStep, 0, 0, 0, againStep, 0, 0, 0, 2, 0, 4, 4},
		{joinStep, 0, 0, 0, 7, 0, 0, 0, swapStep, 0, 0, 0, againStep, 0, 1, 0, 1, 0, 4, 4},
	} {
		f.Add(true, append([]byte{0, 0, 0, 0, 1, 0, 200, 0, 1, 0, 100, 1}, more...))
	}
	f.Fuzz(func(t *testing.T, client bool, script []byte) {
		if len(script) <= 4*64 {
			synctest.Test(t, func(t *testing.T) { talk(t, client, script) })
		}
	})
}

func talk(t *testing.T, client bool, script []byte) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p := &talker{
		testPeer: newTestPeer(t, client, func(c *Config) {
			c.SendBuffer, c.MaxStreams, c.MaxPaths, c.KeepAlive = 64<<10, 20, 3, -1
			c.CloseTimeout, c.ReconnectFor = time.Second, time.Second
		}),
		over: make(map[uint32]bool), said: make(map[uint32][]byte), heard: make(map[uint32][]byte), ended: make(map[uint32]bool), ctx: ctx,
	}
	p.working.Go(p.accepts)
	for step := range slices.Chunk(script, 4) {
		if len(step) == 4 {
			talkerSteps[int(step[0])%len(talkerSteps)](p, talkerStep{step[1], step[2], step[3]})
		}
		p.hear()
		p.checkLimits()
	}
	p.damage = nil
	p.sendRecord(nil) // what was held
	synctest.Wait()
	p.checkLimits()
	_ = p.conn.Close() // ends the session, if it lives
	if p.other != nil {
		_ = p.other.conn.Close()
	}
	<-p.sess.Context().Done()
	cancel()
	_ = p.sess.Close() // what matters is that it returns
	p.working.Wait()
	p.checkEnd()
}

// accepts reads every stream that the peer opens.
func (p *talker) accepts() {
	for {
		st, err := p.sess.AcceptStream(p.ctx)
		if err != nil {
			return
		}
		p.reads(st)
	}
}

func (p *talker) reads(st *Stream) {
	p.mu.Lock()
	p.streams = append(p.streams, st)
	p.mu.Unlock()
	p.working.Go(func() {
		buf := make([]byte, 3000)
		for {
			n, err := st.Read(buf)
			p.mu.Lock()
			p.heard[st.ID()] = append(p.heard[st.ID()], buf[:n]...)
			p.ended[st.ID()] = err == io.EOF
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	})
}

// hear reads what the session says, every record of which must make sense.
func (p *talker) hear() {
	if p.other != nil { // what comes on which path is the session's choice
		p.drain(p.conn)
		p.drain(p.other.conn)
		return
	}
	for !p.deaf && p.tryFill(time.Millisecond) == nil {
		for p.open() {
			if p.alerts > 0 {
				p.t.Fatal("the session sends a record behind its alert")
			}
			if p.alert != nil {
				p.alerts++
			}
			p.alert = nil
		}
	}
	for _, f := range p.frames {
		switch f.Kind {
		case wire.Close:
			p.closes++
		case wire.Token:
			f.Token = slices.Clone(f.Token)
			p.tokens = append(p.tokens, f.Frame)
		}
	}
	if p.frames = nil; p.closes > 1 {
		p.t.Fatal("the session says CLOSE twice")
	}
	clear(p.data)
}

func (p *talker) drain(conn *memnet.Conn) {
	buf := make([]byte, 16<<10)
	for !p.deaf {
		_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond)) // Read tells if it fails
		if n, err := conn.Read(buf); n == 0 || err != nil {
			return
		}
	}
}

// join opens a second path, if the session takes it.
func (p *talker) join() {
	if !p.client || p.other != nil || len(p.tokens) == 0 {
		return
	}
	given := p.tokens[0]
	secret, err := p.sess.tokenSecret(given.Token)
	if err != nil {
		p.t.Fatal(err)
	}
	near, far := memnet.Pipe(memnet.Link{Queue: 1 << 20})
	p.working.Go(func() { _, _ = serve(p.ctx, far, p.sess.cfg) }) // a refusal ends the handshake below
	cfg, _ := newTestConfigs()
	engine, err := tls13.NewClient(&tls13.Config{
		TLS: cfg.TLS, Extension: wire.ExtensionType, Offer: wire.AppendOffer(nil),
		PSK: &tls13.PSK{Identity: given.Token, Secret: secret, Suite: p.sess.engine.Suite()},
	})
	if err != nil {
		p.t.Fatal(err)
	}
	_ = near.SetDeadline(time.Now().Add(time.Second)) // Read tells if it fails
	var have []byte
	buf := make([]byte, 16<<10)
	for !engine.HandshakeComplete() {
		_, _ = near.Write(engine.Output())
		n, err := near.Read(buf)
		have = append(have, buf[:n]...)
		used, fed := engine.Feed(have)
		if have = have[used:]; err != nil || fed != nil {
			_ = near.Close()
			return
		}
	}
	_, _ = near.Write(engine.Output())
	_ = near.SetDeadline(time.Time{})
	p.other = &otherPath{near, record.NewContext(p.sendKeys, wire.PathContext(uint16(given.Path)))}
}

func (p *talker) checkLimits() {
	s := p.sess.Stats()
	if s.Unacknowledged > p.sess.cfg.SendBuffer+maxControl+2*fullRecord {
		p.t.Fatalf("%d bytes are kept", s.Unacknowledged)
	}
	if s.Streams > 20+p.opened {
		p.t.Fatalf("%d streams are open, of which the session opened at most %d", s.Streams, p.opened)
	}
}

// checkEnd holds what was read against what was sent, and the session's end
// against its rules.
func (p *talker) checkEnd() {
	for id, got := range p.heard {
		if !bytes.HasPrefix(p.said[id], got) {
			p.t.Fatalf("stream %d: %d bytes were read that aren't the first of the %d sent", id, len(got), len(p.said[id]))
		}
		if p.ended[id] && (!p.over[id] || len(got) != len(p.said[id])) {
			p.t.Fatalf("stream %d ended after %d bytes of %d; FIN was sent: %v", id, len(got), len(p.said[id]), p.over[id])
		}
	}
	var coded *SessionError
	switch err := context.Cause(p.sess.Context()); {
	case err == nil || err.Error() == "":
		p.t.Fatal("the session ended without a reason")
	case errors.As(err, &coded) && !coded.Application && !coded.Remote && coded.Code == uint64(wire.CodeInternal):
		p.t.Fatalf("%v, which is nobody's fault but ours", err)
	}
}

// sendRecord sends a record as the step before wants it.
func (p *talker) sendRecord(rec []byte) {
	_ = p.conn.SetWriteDeadline(time.Now().Add(time.Second)) // a session that has ended may not read
	if p.damage != nil && rec != nil {
		rec = p.damage(rec)
		p.damage = nil
		if p.held != nil {
			return
		}
	}
	p.writeRaw(append(rec, p.held...))
	p.held = nil
}

func (p *talker) say(ctx *record.Context, content []byte, t record.Type) {
	seq := ctx.Seq()
	rec := p.testPeer.sealed(ctx, content, t)
	if wire.IsStream(ctx.ID()) {
		p.sealed = append(p.sealed, sealedRecord{ctx.ID(), seq, p.epoch, bytes.Clone(rec)})
	}
	p.sendRecord(rec)
}

func (p *talker) sayFrames(ctx *record.Context, frames ...[]byte) {
	p.say(ctx, framed(nil, frames...), wire.TypeFrames)
}

// id is a stream, mostly of the talker's own.
func (p *talker) id(n byte) uint32 {
	id := 2 * uint32(n%8)
	if p.client != (n >= 224) {
		return id + 1
	}
	return id + 2
}

// stream returns the context of a stream, which may not be attached.
func (p *talker) stream(n byte) (uint32, *record.Context) {
	id := p.id(n)
	if p.testPeer.streams[id] == nil {
		p.testPeer.streams[id] = record.NewContext(p.sendKeys, id)
	}
	return id, p.testPeer.streams[id]
}

// note keeps what a stream should carry, which is nothing behind its FIN.
func (p *talker) note(id uint32, data []byte) {
	if !p.over[id] {
		p.said[id] = append(p.said[id], data...)
	}
}

// number is a value that limits and ids are near to.
func number(n byte) uint64 {
	values := [...]uint64{
		0, 1, 2, 3, 4, 5, 8, 17, 63, 64, 200, 1000, 1 << 14, 1<<16 - 1, 1 << 16, 1 << 20, 1<<20 + 1, 4 << 20, 1<<29 - 1, 1 << 29,
		uint64(wire.MaxStreamID), uint64(wire.MaxStreamID) + 1, uint64(wire.Control), uint64(wire.Control) + 1, 0xc0000001, 1<<32 - 1, 1 << 32, 1<<62 - 1,
	}
	return values[int(n)%len(values)]
}

// fieldsOf is how many integers the body of a frame has.
var fieldsOf = map[wire.Kind]int{
	wire.Next: 1, wire.Attach: 4, wire.Ack: 3, wire.SessionCredit: 1, wire.StreamLimit: 1, wire.KeyUpdate: 1,
	wire.Reset: 3, wire.StopSending: 2, wire.KeyRequest: 1, wire.GoingAway: 1, wire.Close: 2, wire.PathLeft: 2, wire.PathStatus: 2, wire.Token: 1,
	wire.AddAddress: 1, wire.RemoveAddress: 1, wire.SYNRequest: 1, wire.SYNReport: 1,
}

var kinds = []wire.Kind{
	wire.Next, wire.Attach, wire.Ack, wire.SessionCredit, wire.StreamLimit, wire.Ping, wire.Pong, wire.Fin, wire.KeyUpdate,
	wire.Params, wire.Reset, wire.StopSending, wire.KeyRequest, wire.GoingAway, wire.Close, 0x30, 0x3fff, wire.PathLeft, wire.Token, wire.PathStatus,
	wire.AddAddress, wire.RemoveAddress, wire.SYNRequest, wire.SYNReport,
}

// anyFrame is a frame of any kind with any numbers.
func anyFrame(a, b, c byte) []byte {
	kind := kinds[int(a)%len(kinds)]
	var body []byte
	for i := range fieldsOf[kind] {
		body = wire.AppendVarint(body, number(byte(int(b)>>i)+byte(i)*c))
	}
	if kind == wire.Ping || kind == wire.Pong {
		body = make([]byte, 8)
	}
	if kind == wire.Token {
		body = append(body, bytes.Repeat([]byte{c}, 7*int(b))...)
	}
	if kind == wire.AddAddress {
		body = append(body, b, c, 192, 0, 2, c)
	}
	frame := wire.AppendVarint(nil, uint64(kind))
	return append(wire.AppendVarint(frame, uint64(len(body))), body...)
}

// swap goes to the other path.
func (p *talker) swap() {
	p.conn, p.other.conn = p.other.conn, p.conn
	p.own, p.other.own = p.other.own, p.own
}

// worker runs the application's side of a step, which ends with the session.
func (p *talker) worker(n byte, f func(st *Stream)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.streams) > 0 {
		st := p.streams[int(n)%len(p.streams)]
		p.working.Go(func() { f(st) })
	}
}

// The places of some steps in the list.
const (
	joinStep  = 17
	swapStep  = 18
	againStep = 19
	endStep   = 20
)

var talkerSteps = []func(p *talker, s talkerStep){
	func(p *talker, s talkerStep) { // attach, as is right
		id, ctx := p.stream(s.a)
		p.sayFrames(p.own, wire.AppendAttach(nil, id, ctx.Seq(), p.epoch))
	},
	func(p *talker, s talkerStep) { // stream bytes
		id, ctx := p.stream(s.a)
		data := bytes.Repeat([]byte{byte(len(p.said[id])), s.c}, 32*int(s.b))
		p.note(id, data)
		p.say(ctx, data, record.ApplicationData)
	},
	func(p *talker, s talkerStep) { // stream bytes and FIN
		id, ctx := p.stream(s.a)
		data := bytes.Repeat([]byte{s.c}, int(s.b))
		p.note(id, data)
		p.over[id] = true
		p.say(ctx, framed(data, wire.AppendFin(nil)), wire.TypeFrames)
	},
	func(p *talker, s talkerStep) { p.sayFrames(p.own, anyFrame(s.a, s.b, s.c)) },
	func(p *talker, s talkerStep) { p.sayFrames(p.control, anyFrame(s.a, s.b, s.c)) },
	func(p *talker, s talkerStep) {
		id, ctx := p.stream(s.c)
		p.over[id] = p.over[id] || kinds[int(s.a)%len(kinds)] == wire.Fin
		p.sayFrames(ctx, anyFrame(s.a, s.b, s.c))
	},
	func(p *talker, s talkerStep) { // acknowledge all that came, and give credit
		for _, id := range slices.Sorted(maps.Keys(p.testPeer.heard)) {
			if ctx := p.testPeer.heard[id]; !wire.IsPath(id) {
				p.sayFrames(p.own, wire.AppendAck(nil, id, ctx.Seq(), 1<<20), wire.AppendSessionCredit(nil, 8<<20))
			}
		}
	},
	func(p *talker, s talkerStep) { // the next epoch, everywhere
		next := p.nextKeys()
		p.epoch++
		update := wire.AppendKeyUpdate(nil, p.epoch)
		for _, id := range slices.Sorted(maps.Keys(p.testPeer.streams)) {
			ctx := p.testPeer.streams[id]
			if !p.over[id] {
				p.sayFrames(ctx, update)
			}
			ctx.SetKeys(next)
		}
		p.sayFrames(p.control, update)
		p.control.SetKeys(next)
		p.sayFrames(p.own, update)
		p.own.SetKeys(next)
		if p.other != nil {
			p.swap()
			p.sayFrames(p.own, update)
			p.own.SetKeys(next)
			p.swap()
		}
	},
	func(p *talker, s talkerStep) { p.damage = func([]byte) []byte { return nil } },
	func(p *talker, s talkerStep) { p.damage = func(rec []byte) []byte { return slices.Repeat(rec, 2) } },
	func(p *talker, s talkerStep) { p.damage = func(rec []byte) []byte { p.held = rec; return nil } },
	func(p *talker, s talkerStep) { // flip a bit
		p.damage = func(rec []byte) []byte { rec[(int(s.a)<<8|int(s.b))%len(rec)] ^= 1 << (s.c % 8); return rec }
	},
	func(p *talker, s talkerStep) { // cut
		p.damage = func(rec []byte) []byte { return rec[:(int(s.a)<<8|int(s.b))%len(rec)] }
	},
	func(p *talker, s talkerStep) { p.say(p.own, []byte{s.b, s.c}, record.Type(20+s.a%5)) },
	func(p *talker, s talkerStep) { // a flood
		for range 16 * int(s.a) {
			p.sayFrames(p.own, anyFrame(s.b, s.c, s.c))
		}
	},
	func(p *talker, s talkerStep) { time.Sleep(time.Duration(s.a) * 50 * time.Millisecond) },
	func(p *talker, s talkerStep) { p.deaf = s.a%2 == 0 },
	func(p *talker, s talkerStep) { p.join() },
	func(p *talker, s talkerStep) { // use the other path, which may be said
		if p.other == nil {
			return
		}
		p.swap()
		if s.a%2 == 0 {
			p.sayFrames(p.own, wire.AppendPathLeft(nil, uint32(s.b%2), s.c%2 == 0))
		}
	},
	func(p *talker, s talkerStep) { // send records of a stream again, bit for bit
		id, skip := p.id(s.a), int(s.b%8)
		for _, rec := range p.sealed {
			if rec.stream != id || rec.seq < uint64(skip) {
				continue
			}
			if rec.seq == uint64(skip) {
				p.sayFrames(p.own, wire.AppendAttach(nil, id, rec.seq, rec.epoch))
			}
			p.sendRecord(bytes.Clone(rec.bytes))
		}
	},
	func(p *talker, s talkerStep) { // a path ends
		if p.other != nil {
			p.swap()
			_ = p.other.conn.Close()
		}
	},
	func(p *talker, s talkerStep) { // the application opens a stream and writes
		p.opened++
		p.working.Go(func() {
			if st, err := p.sess.OpenStream(p.ctx); err == nil {
				p.reads(st)
				_, _ = st.Write(make([]byte, 500*int(s.a))) // ends with the session
			}
		})
	},
	func(p *talker, s talkerStep) {
		p.worker(s.a, func(st *Stream) { _, _ = st.Write(make([]byte, 300*int(s.b))) })
	},
	func(p *talker, s talkerStep) { p.worker(s.a, func(st *Stream) { _ = st.CloseWrite() }) },
	func(p *talker, s talkerStep) { p.worker(s.a, func(st *Stream) { _ = st.Reset(uint64(s.b)) }) },
	func(p *talker, s talkerStep) { p.worker(s.a, func(st *Stream) { _ = st.Flush(p.ctx) }) },
	func(p *talker, s talkerStep) { p.working.Go(func() { _ = p.sess.UpdateKeys(p.ctx) }) },
	func(p *talker, s talkerStep) { p.working.Go(func() { _, _ = p.sess.Ping(p.ctx) }) },
	func(p *talker, s talkerStep) { p.working.Go(func() { _ = p.sess.Shutdown(p.ctx) }) },
	func(p *talker, s talkerStep) { p.working.Go(func() { _ = p.sess.CloseWithError(uint64(s.a), "bye") }) },
}
