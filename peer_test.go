package tcpls

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/tls13"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// A testPeer is the other end of a session, played by the test record by
// record: it makes the real handshake, and then says what it is told to.
type testPeer struct {
	t      testing.TB
	conn   *memnet.Conn
	client bool // the role that it plays
	sess   *Session

	sendKeys, receiveKeys *record.Keys
	own, control          *record.Context            // sending
	streams               map[uint32]*record.Context // sending
	heard                 map[uint32]*record.Context // receiving
	params                wire.Answer                // of the session, to a client
	engine                *tls13.Conn
	tickets               bool   // the session may give some
	said                  []byte // all that was sent

	path    uint32               // the own context of the path that it reads
	joined  uint32               // the last path's number
	token   wire.PathToken       // for the next one, if it came with a join
	next    uint32               // the context announced last
	raw     []byte               // received, unopened
	frames  []heardFrame         // received, not yet asked for
	options []wire.OptionRequest // likewise
	data    map[uint32][]byte
	alert   []byte
}

type heardFrame struct {
	context uint32
	wire.Frame
}

// newTestPeer connects a session in one role to a peer in the other.
func newTestPeer(t testing.TB, client bool, change func(*Config)) *testPeer {
	t.Helper()
	p := startTestPeer(t, client, change)
	if client {
		p.writeControl(wire.AppendParameters(nil, generous))
	} else {
		p.wantFrame("the client's parameters", wire.Params)
	}
	return p
}

// generous are the parameters that a testPeer gives.
var generous = &wire.Parameters{StreamCredit: 1 << 20, SessionCredit: 4 << 20, StreamLimit: 100}

// startTestPeer is newTestPeer without the client's parameters.
func startTestPeer(t testing.TB, client bool, change func(*Config)) *testPeer {
	t.Helper()
	clientConfig, serverConfig := newTestConfigs()
	ours, theirs := serverConfig, clientConfig
	if client {
		ours, theirs = clientConfig, serverConfig
	}
	smallWindows(theirs)
	if change != nil {
		change(theirs)
	}
	near, far := memnet.Pipe(memnet.Link{Queue: 1 << 20})
	p := &testPeer{
		t: t, conn: near, client: client, next: wire.Control, // attached from the beginning
		streams: make(map[uint32]*record.Context), heard: make(map[uint32]*record.Context), data: make(map[uint32][]byte),
	}
	open := Server
	if !client {
		open = Client
	}
	var failed error
	session := start(func() *Session {
		s, err := open(context.Background(), far, theirs)
		failed = err
		return s
	})
	p.handshake(ours)
	if p.sess = session(); failed != nil {
		t.Fatal(failed)
	}
	t.Cleanup(func() {
		_ = p.conn.Close() // often closed already
		_ = p.sess.Close() // the test has judged its end
	})
	return p
}

func (p *testPeer) handshake(cfg *Config) {
	p.t.Helper()
	tc := &tls13.Config{TLS: cfg.TLS, Extension: wire.ExtensionType}
	newEngine := tls13.NewServer
	if p.client {
		newEngine = tls13.NewClient
		tc.Offer = wire.AppendOffer(nil)
		tc.Accept = func(answer []byte) (err error) {
			p.params, err = wire.ParseAnswer(answer)
			return err
		}
	} else {
		tc.Answer = func([]byte) ([]byte, error) { return wire.AppendAnswer(nil, generous), nil }
	}
	e, err := newEngine(tc)
	if err != nil {
		p.t.Fatal(err)
	}
	for {
		if out := e.Output(); len(out) > 0 {
			p.writeRaw(out)
		}
		if e.HandshakeComplete() {
			break
		}
		p.fill()
		n, err := e.Feed(p.raw)
		if err != nil {
			p.t.Fatalf("handshake of the test's peer: %v", err)
		}
		p.raw = p.raw[n:]
	}
	p.sendKeys, p.receiveKeys = e.TakeKeys()
	p.own, p.control = record.NewContext(p.sendKeys, wire.FirstPath), record.NewContext(p.sendKeys, wire.Control)
	for _, id := range []uint32{wire.FirstPath, wire.Control} {
		p.heard[id] = record.NewContext(p.receiveKeys, id)
	}
}

// writeRaw doesn't mind a session that is gone: what it said before is judged.
func (p *testPeer) writeRaw(b []byte) {
	p.said = append(p.said, b...)
	_, _ = p.conn.Write(b)
}

// sealed returns one record of a context.
func (p *testPeer) sealed(ctx *record.Context, content []byte, t record.Type) []byte {
	p.t.Helper()
	b := make([]byte, record.HeaderLen, record.Overhead+len(content))
	rec, err := ctx.Seal(append(b, content...), t)
	if err != nil {
		p.t.Fatal(err)
	}
	return rec
}

func (p *testPeer) write(ctx *record.Context, content []byte, t record.Type) {
	p.t.Helper()
	p.writeRaw(p.sealed(ctx, content, t))
}

// framed is the content of a record with bytes and frames.
func framed(data []byte, frames ...[]byte) []byte {
	b := slices.Clone(data)
	return wire.AppendTrailer(append(b, slices.Concat(frames...)...), len(data))
}

// writeFrames sends frames in the path's own context.
func (p *testPeer) writeFrames(frames ...[]byte) {
	p.t.Helper()
	p.write(p.own, framed(nil, frames...), wire.TypeFrames)
}

// writeControl sends frames in the control context.
func (p *testPeer) writeControl(frames ...[]byte) {
	p.t.Helper()
	p.write(p.control, framed(nil, frames...), wire.TypeFrames)
}

// attach opens a stream, or attaches one of the session's.
func (p *testPeer) attach(id uint32) *record.Context {
	p.t.Helper()
	p.streams[id] = record.NewContext(p.sendKeys, id)
	p.writeFrames(wire.AppendAttach(nil, id, 0, 0))
	return p.streams[id]
}

// writeStream sends stream bytes and frames.
func (p *testPeer) writeStream(id uint32, data []byte, frames ...[]byte) {
	p.t.Helper()
	if len(frames) == 0 {
		p.write(p.streams[id], data, record.ApplicationData)
	} else {
		p.write(p.streams[id], framed(data, frames...), wire.TypeFrames)
	}
}

// fill reads more, for a minute at most.
func (p *testPeer) fill() {
	p.t.Helper()
	if err := p.tryFill(time.Minute); err != nil {
		p.t.Fatalf("the test's peer can't read: %v", err)
	}
}

func (p *testPeer) tryFill(patience time.Duration) error {
	_ = p.conn.SetReadDeadline(time.Now().Add(patience)) // Read tells if it fails
	buf := make([]byte, 64<<10)
	n, err := p.conn.Read(buf)
	p.raw = append(p.raw, buf[:n]...)
	if n > 0 {
		return nil
	}
	return err
}

// open takes one complete record out of what was received.
func (p *testPeer) open() bool {
	p.t.Helper()
	if len(p.raw) < record.HeaderLen {
		return false
	}
	h := record.ParseHeader(p.raw)
	n := record.HeaderLen + h.Len
	if len(p.raw) < n {
		return false
	}
	rec := p.raw[:n]
	p.raw = p.raw[n:]
	if h.Type != record.ApplicationData || h.Version != 0x0303 {
		p.t.Fatalf("the session sent a record of type %d, version %#x (protocol 1.1)", h.Type, h.Version)
	}
	for _, id := range []uint32{p.next, p.path} { // NEXT is kept by every session
		ctx := p.heard[id]
		content, t, err := ctx.Open(make([]byte, len(rec)), rec)
		if err == record.ErrAuth {
			continue
		}
		if err != nil {
			p.t.Fatal(err)
		}
		p.heardRecord(id, ctx, content, t)
		return true
	}
	p.t.Fatal("the session sent a record of another context than it announced")
	return false
}

func (p *testPeer) heardRecord(id uint32, ctx *record.Context, content []byte, t record.Type) {
	p.t.Helper()
	switch t {
	case record.Alert:
		p.alert = slices.Clone(content)
	case record.ApplicationData:
		p.data[id] = append(p.data[id], content...)
	case wire.TypeFrames:
		data, frames, err := wire.SplitTrailer(content)
		if err != nil {
			p.t.Fatal(err)
		}
		p.data[id] = append(p.data[id], data...)
		place := wire.OnStream
		if wire.IsPath(id) {
			place = wire.OnPath
		} else if id == wire.Control {
			place = wire.OnControl
		}
		for len(frames) > 0 {
			f := heardFrame{context: id}
			if frames, err = f.Parse(frames, place); err != nil {
				p.t.Fatal(err)
			}
			f.Reason = slices.Clone(f.Reason)
			p.heardFrame(ctx, &f)
		}
	case record.Handshake:
		if !p.tickets || id != wire.FirstPath {
			p.t.Fatalf("the session sent a TLS message in context %#x", id)
		}
	case wire.TypeOption:
		r, err := wire.ParseOptionRequest(content)
		if err != nil || id != wire.Control {
			p.t.Fatalf("the session sent a TCP option in context %#x: %v", id, err)
		}
		p.options = append(p.options, r)
	default:
		p.t.Fatalf("the session sent a record of inner type %d in context %#x", t, id)
	}
}

func (p *testPeer) heardFrame(ctx *record.Context, f *heardFrame) {
	p.t.Helper()
	switch f.Kind {
	case wire.Next:
		p.next = f.Frame.Context
	case wire.Attach:
		p.next = f.Frame.Context
		if p.heard[f.Frame.Context] == nil {
			p.heard[f.Frame.Context] = record.NewContext(p.receiveKeys, f.Frame.Context)
		}
		if ctx := p.heard[f.Frame.Context]; ctx.Seq() != f.Seq { // on another path than before
			ctx.InitAt(ctx.Keys(), f.Frame.Context, f.Seq)
		}
	case wire.KeyUpdate:
		if ctx.Keys() == p.receiveKeys {
			next, err := p.receiveKeys.Next()
			if err != nil {
				p.t.Fatal(err)
			}
			p.receiveKeys = next
		}
		ctx.SetKeys(p.receiveKeys)
	}
	p.frames = append(p.frames, *f)
}

// wantFrame returns the next frame of a kind, and passes over others.
func (p *testPeer) wantFrame(why string, kind wire.Kind) heardFrame {
	p.t.Helper()
	for {
		for i, f := range p.frames {
			if f.Kind == kind {
				p.frames = p.frames[i+1:]
				return f
			}
		}
		p.frames = nil
		for !p.open() {
			if err := p.tryFill(time.Minute); err != nil {
				p.t.Fatalf("%s: no %v came: %v", why, kind, err)
			}
		}
	}
}

// wantClose checks the code that the session closes with, and ends the
// connection, to which a violation may still be writing.
func (p *testPeer) wantClose(why string, code wire.SessionCode) {
	p.t.Helper()
	f := p.wantFrame(why, wire.Close)
	if f.Class != wire.Protocol || f.Code != uint64(code) {
		p.t.Errorf("%s: the session closes with %v %v (%q), want %v", why, f.Class, wire.SessionCode(f.Code), f.Reason, code)
	}
	p.wantAlert(why, levelWarning, alertCloseNotify)
	_ = p.conn.CloseWrite() // the session reads until then
	p.wantEnd(why)
	var e *SessionError
	if err := context.Cause(p.sess.Context()); !errors.As(err, &e) || e.Code != uint64(code) || e.Remote || e.Application {
		p.t.Errorf("%s: the session's cause is %v, want %v of its own", why, err, code)
	}
}

func (p *testPeer) wantAlert(why string, level, description byte) {
	p.t.Helper()
	for p.alert == nil {
		for !p.open() {
			if err := p.tryFill(time.Minute); err != nil {
				p.t.Fatalf("%s: no alert came: %v", why, err)
			}
		}
	}
	if p.alert[0] != level || p.alert[1] != description {
		p.t.Errorf("%s: alert %d of level %d, want %d of level %d", why, p.alert[1], p.alert[0], description, level)
	}
	p.alert = nil
}

// wantEnd waits for the end of what the session sends.
func (p *testPeer) wantEnd(why string) {
	p.t.Helper()
	for {
		for p.open() {
		}
		if err := p.tryFill(time.Minute); err == io.EOF {
			return
		} else if err != nil {
			p.t.Fatalf("%s: the session doesn't end its side of the connection: %v", why, err)
		}
	}
}

// wantIdle checks that the session lives, says nothing for a while, and has
// nothing against what it was sent.
func (p *testPeer) wantIdle(why string) {
	p.t.Helper()
	for {
		for p.open() {
		}
		if err := p.tryFill(time.Second); errors.Is(err, os.ErrDeadlineExceeded) {
			break
		} else if err != nil {
			p.t.Fatalf("%s: %v", why, err)
		}
	}
	if err := context.Cause(p.sess.Context()); err != nil {
		p.t.Fatalf("%s: the session ended: %v", why, err)
	}
}

// accept returns the stream that the peer has opened.
func (p *testPeer) accept() *Stream {
	p.t.Helper()
	st, err := p.sess.AcceptStream(context.Background())
	if err != nil {
		p.t.Fatal(err)
	}
	return st
}
