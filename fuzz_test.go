package tcpls

import (
	"context"
	"encoding/binary"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// FuzzSession plays a peer whose records authenticate and say anything. Its
// input is a list of records: one byte for the context (0 the path's own, 1
// the control context, else a stream), one for the inner type, two for the
// length of the content, and the content.
func FuzzSession(f *testing.F) {
	f.Add([]byte{})
	frames := func(context byte, data string, frames ...[]byte) []byte {
		return fuzzRecord(context, wire.TypeFrames, framed([]byte(data), frames...))
	}
	attach := frames(0, "", wire.AppendAttach(nil, 1, 0, 0))
	for _, seed := range [][][]byte{
		{attach, fuzzRecord(2, byte(record.ApplicationData), []byte("hello")), frames(2, "end", wire.AppendFin(nil))},
		{attach, frames(1, "", wire.AppendReset(nil, 1, 7, 0)), frames(1, "", wire.AppendStopSending(nil, 1, 7))},
		{frames(0, "", wire.AppendAck(nil, wire.Control, 0, 0), wire.AppendSessionCredit(nil, 1<<30), wire.AppendStreamLimit(nil, 5))},
		{frames(0, "", wire.AppendPing(nil, [8]byte{1}), wire.AppendPong(nil, [8]byte{2}), wire.AppendNext(nil, wire.Control))},
		{frames(0, "", wire.AppendKeyUpdate(nil, 1)), frames(1, "", wire.AppendKeyRequest(nil, 1), wire.AppendKeyUpdate(nil, 1))},
		{frames(1, "", wire.AppendGoingAway(nil, 0)), frames(1, "", wire.AppendClose(nil, wire.Application, 3, "bye"))},
		{attach, frames(2, "x", wire.AppendKeyUpdate(nil, 1)), frames(0, "", wire.AppendAttach(nil, 5, 0, 0), wire.AppendAck(nil, 1, 1, 1<<20))},
		{fuzzRecord(1, wire.TypeOption, []byte{1, 0, 28, 0, 30}), fuzzRecord(1, wire.TypeOption, []byte{2, 0x80, 1, 0, 0, 0x41, 4, 0, 0})},
		{frames(1, "", wire.AppendOptionAnswer(nil, 1, wire.OptionSet, []byte{0, 30}))},
		{frames(1, "", offerOf(1, []byte("object"))), frames(1, "", wire.AppendDataCC(nil, 1, 0, []byte("obj")), wire.AppendDataCC(nil, 1, 3, []byte("ect")))},
		{frames(1, "", offerOf(1, []byte("object"))), frames(1, "", wire.AppendWithdrawCC(nil, 1), offerOf(2, []byte("another")))},
		{frames(1, "", wire.AppendAnswerCC(nil, 1, wire.ProgramWanted, 0, ""), wire.AppendAnswerCC(nil, 1, wire.ProgramLoaded, 0, ""))},
		{fuzzRecord(0, byte(record.Alert), []byte{1, 0})},
		{fuzzRecord(0, byte(record.Handshake), []byte{4, 0, 0, 1, 0})},
	} {
		var b []byte
		for _, rec := range seed {
			b = append(b, rec...)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		if len(input) > 64<<10 {
			return
		}
		synctest.Test(t, func(t *testing.T) { fuzzSession(t, input) })
	})
}

func fuzzRecord(context, t byte, content []byte) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{context, t}, uint16(len(content))), content...)
}

func fuzzSession(t *testing.T, input []byte) {
	host := &testCCHost{max: 4 << 10}
	p := newTestPeer(t, true, func(c *Config) {
		c.SendBuffer, c.MaxStreams, c.CloseTimeout = 64<<10, 20, time.Second
		takeCC(host)(c)
	})
	go echo(p.sess)
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		buf := make([]byte, 64<<10)
		for {
			if _, err := p.conn.Read(buf); err != nil {
				return
			}
		}
	}()
	_ = p.conn.SetReadDeadline(time.Time{}) // of the handshake
	for len(input) >= 4 {
		n := min(int(binary.BigEndian.Uint16(input[2:])), len(input)-4, record.MaxPlaintext)
		context, kind, content := input[0], record.Type(input[1]), input[4:4+n]
		input = input[4+n:]
		ctx := p.own
		switch id := uint32(context); {
		case id == 1:
			ctx = p.control
		case id > 1:
			if ctx = p.streams[id-1]; ctx == nil {
				ctx = record.NewContext(p.sendKeys, id-1)
				p.streams[id-1] = ctx
			}
		}
		p.write(ctx, content, kind)
	}
	synctest.Wait()
	if s := p.sess; s.Stats().Unacknowledged > s.cfg.SendBuffer+maxControl+2*fullRecord {
		t.Errorf("%d bytes are kept", s.Stats().Unacknowledged)
	}
	if n := p.sess.Stats().Streams; n > 20 {
		t.Errorf("%d streams are open, 20 are allowed", n)
	}
	if n := len(p.sess.hosted.object); n > host.max {
		t.Errorf("%d bytes of an object are kept, %d are taken", n, host.max)
	}
	_ = p.conn.Close() // ends the session, if it lives
	<-p.sess.Context().Done()
	<-drained
	_ = p.sess.Close() // what hosts a congestion control has ended then
	if host.loads.Load() != host.closed.Load() || host.loads.Load() > maxCCOffers {
		t.Errorf("%d congestion controls were loaded, %d unloaded", host.loads.Load(), host.closed.Load())
	}
	if context.Cause(p.sess.Context()) == nil {
		t.Error("the session ended without a reason")
	}
}
