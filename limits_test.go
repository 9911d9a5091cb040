package tcpls

import (
	"context"
	"errors"
	"net"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// Every limit of Config, reached.

func TestConfigLimits(t *testing.T) {
	for _, test := range []struct {
		field  string
		change func(*Config)
	}{
		{"TLS", func(c *Config) { c.TLS = nil }},
		{"MaxStreams", func(c *Config) { c.MaxStreams = wire.MaxStreams + 1 }},
		{"StreamRecvWindow", func(c *Config) { c.StreamRecvWindow = minWindow - 1 }},
		{"StreamRecvWindow", func(c *Config) { c.StreamRecvWindow, c.StreamRecvMax = 2<<20, 1<<20 }},
		{"SessionRecvWindow", func(c *Config) { c.SessionRecvWindow = 1 }},
		{"SessionRecvWindow", func(c *Config) { c.SessionRecvMax = 1 << 20 }},
		{"SendBuffer", func(c *Config) { c.SendBuffer = minSendBuffer - 1 }},
		{"RekeyAfter", func(c *Config) { c.RekeyAfter = rekeyAfter + 1 }},
		{"RekeyAfter", func(c *Config) { c.RekeyAfter = -1 }},
		{"MaxPending", func(c *Config) { c.MaxPending = -1 }},
		{"MaxPendingPerSource", func(c *Config) { c.MaxPending, c.MaxPendingPerSource = 10, 11 }},
		{"MaxSessions", func(c *Config) { c.MaxSessions = -1 }},
		{"HandshakeTimeout", func(c *Config) { c.HandshakeTimeout = -1 }},
		{"CloseTimeout", func(c *Config) { c.CloseTimeout = -1 }},
		{"IdleTimeout", func(c *Config) { c.IdleTimeout = -1 }},
	} {
		c, _ := newTestConfigs()
		test.change(c)
		if _, err := c.withDefaults(); err == nil || !strings.Contains(err.Error(), test.field) {
			t.Errorf("a bad %s: error %v doesn't name it", test.field, err)
		}
	}
	c, _ := newTestConfigs()
	d, err := c.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if c.SendBuffer != 0 || d.SendBuffer != 8<<20 || d.KeepAlive != 30*time.Second {
		t.Error("defaults were written into the caller's Config, or aren't those that are documented")
	}
	c.IdleTimeout = 10 * time.Second
	if d, err = c.withDefaults(); err != nil || d.KeepAlive != 5*time.Second {
		t.Errorf("KeepAlive with an idle timeout of 10s: %v, %v", d.KeepAlive, err)
	}
	if (*Config)(nil).Clone() != nil {
		t.Error("Clone of nil")
	}
	if clone := c.Clone(); !reflect.DeepEqual(clone, c) || clone == c {
		t.Error("Clone isn't a copy")
	}
}

// A peer that acknowledges nothing makes the session keep SendBuffer at most,
// whatever it writes and on however many streams.
func TestPeerThatNeverAcknowledges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 256 << 10
		p := newTestPeer(t, true, func(c *Config) { c.SendBuffer = limit })
		for id := uint32(1); id < 40; id += 2 {
			p.attach(id)
			st := p.accept()
			go func() { _, _ = st.Write(make([]byte, 1<<20)) }() // ends with the session
		}
		for range 100 {
			_ = p.tryFill(time.Second) // reads what comes, and answers nothing
			if n := p.sess.Stats().Unacknowledged; n > limit {
				t.Fatalf("%d bytes are kept, with a SendBuffer of %d", n, limit)
			}
		}
		if n := p.sess.Stats().Unacknowledged; n < limit/2 {
			t.Errorf("only %d bytes are kept, which proves nothing", n)
		}
	})
}

// A peer that acknowledges all but one small record in each chunk makes the
// session keep whole chunks for them: not many more than SendBuffer, and
// Writes go on when it acknowledges the rest.
func TestPeerThatAcknowledgesUnevenly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit, streams = 1 << 20, 100
		p := newTestPeer(t, true, func(c *Config) { c.SendBuffer = limit })
		p.writeFrames(wire.AppendSessionCredit(nil, 1<<40))
		small := make([]*Stream, streams)
		for i := range small {
			p.attach(uint32(2*i + 1))
			small[i] = p.accept()
		}
		const bulkID = 2*streams + 1
		p.attach(bulkID)
		bulk := p.accept()
		written := begun(func() error {
			for _, st := range small {
				if _, err := st.Write([]byte("a record in each chunk")); err != nil {
					return err
				}
				if _, err := bulk.Write(make([]byte, maxBatch)); err != nil {
					return err
				}
			}
			return nil
		})
		acknowledge := func(id uint32) {
			if ctx := p.heard[id]; ctx != nil {
				p.writeFrames(wire.AppendAck(nil, id, ctx.Seq(), 1<<40))
			}
		}
		acknowledge(bulkID)
		for p.tryFill(time.Second) == nil {
			for p.open() {
			}
			acknowledge(bulkID)
		}
		wantBlocked(t, "a Write with too many chunks held", written)
		kept, held := p.sess.Stats().Unacknowledged, heldChunks(append(small, bulk))
		if most := 2*limit + 6*record.LargeChunk; held > most || kept > limit {
			t.Errorf("%d bytes of chunks are held for %d bytes of records, want %d at most", held, kept, most)
		}
		if held < 2*limit || kept > limit/10 {
			t.Errorf("only %d bytes of chunks are held, for %d bytes of records, which proves nothing", held, kept)
		}
		for len(written) == 0 {
			var acks []byte
			for id, ctx := range p.heard {
				if wire.IsStream(id) {
					acks = wire.AppendAck(acks, id, ctx.Seq(), 1<<40)
				}
			}
			p.writeFrames(acks)
			_ = p.tryFill(time.Second) // Write may have ended meanwhile
			for p.open() {
			}
		}
		if err := <-written; err != nil {
			t.Error(err)
		}
	})
}

// heldChunks is the size of the chunks that the streams' kept records lie in.
func heldChunks(streams []*Stream) (size int) {
	chunks := make(map[*record.Chunk]bool)
	for _, st := range streams {
		st.kept.mu.Lock()
		for _, r := range st.kept.ring {
			if c := r.chunk; c != nil && !chunks[c] {
				chunks[c] = true
				size += c.Len() + c.Room()
			}
		}
		st.kept.mu.Unlock()
	}
	return size
}

// A peer that doesn't read its socket doesn't make output pile up, whatever it
// asks for.
func TestPeerThatNeverReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, true, nil)
		p.attach(1)
		st := p.accept()
		go func() { _, _ = st.Write(make([]byte, 1<<20)) }() // ends with the session
		go echo(p.sess)
		for i := range uint32(500) {
			p.writeFrames(wire.AppendPing(nil, [8]byte{byte(i)}))
			if i < 200 {
				p.attach(2*i + 3)
				p.writeStream(2*i+3, []byte("request"), wire.AppendFin(nil))
			}
		}
		time.Sleep(time.Minute)
		p.sess.path().outMu.Lock()
		defer p.sess.path().outMu.Unlock()
		held := 0
		for _, c := range p.sess.path().queue {
			held += c.Len() + c.Room()
		}
		if held > 4*maxUnsent {
			t.Errorf("%d bytes of output are held for a peer that doesn't read", held)
		}
	})
}

// What nobody reads here is bounded by the windows that were given.
func TestUnreadIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{}, func(_, server *Config) {
			server.StreamRecvWindow, server.SessionRecvWindow = 64<<10, 128<<10
		})
		for range 20 {
			c, _ := p.open(t)
			go func() { _, _ = c.Write(make([]byte, 1<<20)) }() // ends with the session
		}
		time.Sleep(time.Minute)
		if n := p.server.Stats().BytesReceived; n != 128<<10 {
			t.Errorf("%d unread bytes, want those of the session's window, 128 KiB", n)
		}
		_ = p.client.CloseWithError(0, "done") // with bytes waiting
	})
}

// RESET and STOP_SENDING of any number of streams wait in one word each while
// the peer doesn't acknowledge the control context.
func TestControlIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, true, func(c *Config) { c.MaxStreams = 20_000 })
		for id := uint32(1); id < 2*3000; id += 2 {
			p.streams[id] = record.NewContext(p.sendKeys, id)
			p.writeFrames(wire.AppendAttach(nil, id, 0, 0))
			_ = p.accept().Close() // told to the peer by FIN and STOP_SENDING
			for p.open() {
			}
		}
		for p.tryFill(time.Second) == nil {
			for p.open() {
			}
		}
		if n := p.sess.control.keptBytes(); n > maxControl+maxControlRecord+record.Overhead {
			t.Errorf("%d bytes of control records are kept", n)
		}
		// What waited is said once the peer acknowledges.
		p.writeFrames(wire.AppendAck(nil, wire.Control, p.heard[wire.Control].Seq(), 0))
		p.wantFrame("STOP_SENDING that had to wait", wire.StopSending)
	})
}

// A client that sends its handshake byte by byte has HandshakeTimeout for all
// of it.
func TestSlowHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, server := newTestConfigs()
		server.HandshakeTimeout = 10 * time.Second
		near, far := memnet.Pipe(memnet.Link{})
		began := time.Now()
		served := begun(func() error {
			_, err := Server(t.Context(), far, server)
			return err
		})
		wrote := begun(func() error {
			for _, b := range append([]byte{22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3}, make([]byte, 1000)...) {
				time.Sleep(time.Second)
				if _, err := near.Write([]byte{b}); err != nil {
					return err
				}
			}
			return nil
		})
		err := <-served
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("the handshake ended by %v, which isn't a timeout", err)
		}
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("the handshake ended after %v, want its timeout of 10s", took)
		}
		if <-wrote == nil {
			t.Error("the server took everything")
		}
	})
}

// The same for a client whose server is slow.
func TestSlowServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _ := newTestConfigs()
		client.HandshakeTimeout = 10 * time.Second
		near, far := memnet.Pipe(memnet.Link{})
		began := time.Now()
		dialed := begun(func() error {
			_, err := Client(t.Context(), far, client)
			return err
		})
		wrote := begun(func() error {
			for _, b := range append([]byte{22, 3, 3, 1, 0, 2, 0, 0, 0xfc, 3, 3}, make([]byte, 200)...) {
				time.Sleep(time.Second)
				if _, err := near.Write([]byte{b}); err != nil {
					return err
				}
			}
			return nil
		})
		err := <-dialed
		wantErrorIs(t, "a server that takes its time", err, ErrHandshakeTimeout)
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("the handshake ended after %v, want its timeout of 10s", took)
		}
		if <-wrote == nil {
			t.Error("the client took everything")
		}
	})
}

// MaxPending handshakes run at once; another client gets its turn when one of
// them has failed.
func TestMaxPending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := newTestConfigs()
		server.MaxPending, server.HandshakeTimeout = 3, 10*time.Second
		inner := memnet.Listen(memnet.Link{})
		l, err := NewListener(inner, server)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			conn, err := inner.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
		}
		conn, err := inner.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		session := start(func() *Session {
			client.HandshakeTimeout = time.Minute
			s, err := Client(t.Context(), conn, client)
			if err != nil {
				t.Error(err)
			}
			return s
		})
		s, err := l.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c := session()
		if took := time.Since(began); took < 10*time.Second || took > 12*time.Second {
			t.Errorf("the fourth client was served after %v, want once a slow one has timed out", took)
		}
		_, _ = c.Close(), s.Close() // one of them only hears of it
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}

// Sessions that nobody accepts hold their places too.
func TestMaxPendingUnaccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := newTestConfigs()
		server.MaxPending = 2
		inner := memnet.Listen(memnet.Link{})
		l, err := NewListener(inner, server)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		defer cancel()
		var open []*Session
		for i := range 5 {
			conn, err := inner.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s, err := Client(ctx, conn, client)
			if i < 2 && err != nil {
				t.Fatal(err)
			}
			if i >= 2 && err == nil {
				t.Errorf("session %d with a MaxPending of 2", i+1)
			}
			if s != nil {
				open = append(open, s)
			}
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		for _, s := range open {
			<-s.Context().Done()
			wantErrorIs(t, "a session that nobody accepted", context.Cause(s.Context()), &SessionError{Application: true})
			_ = s.Close() // has ended
		}
	})
}
