package tcpls

import "github.com/go-tcpls/tcpls/internal/wire"

// ccWords are what the control context must say of congestion controls, ours
// and the peer's: one of each, which newer ones overwrite. Guarded by
// control.mu.
type ccWords struct {
	program outgoingCC
	answer  answerCC
}

// An outgoingCC is our last offer.
type outgoingCC struct {
	wire.Program
	object                []byte // what is still to be sent
	wanted                bool   // object may be sent
	offerDue, withdrawDue bool
}

func newOutgoingCC(id uint64, o *CCOffer) outgoingCC {
	return outgoingCC{
		Program: wire.Program{
			ID: id, Size: uint64(o.Size), Kernel: uint64(o.MinKernel[0]<<8 | o.MinKernel[1]),
			Hash: o.Hash[:], Name: []byte(o.Name),
		},
		object: o.Object, offerDue: true,
	}
}

func (o *outgoingCC) withdraw() { o.withdrawDue, o.object = true, nil }

// An answerCC is what is to be said of the peer's last offer.
type answerCC struct {
	id     uint64
	state  wire.ProgramState
	code   wire.ProgramCode
	reason string
	due    bool
}

const (
	// ccPiece is how many bytes of an object one record carries.
	ccPiece = 1024
	// ccWindow bounds the bytes of the control context that may be
	// unacknowledged for another piece to be sent, so that an object never
	// stands in the way of other words. Acknowledgements may lie behind what
	// a slow path has in its socket, so it is as large as most objects.
	ccWindow = maxControl / 2
)

// appendCC appends what is due: at most one frame of each sort, and a piece of
// the object only while kept, the bytes that the peer hasn't acknowledged, are
// few. It leaves room for what may follow in the record. The caller holds mu.
func (c *control) appendCC(b []byte, limit, kept int) []byte {
	p := &c.cc.program
	if p.offerDue {
		b = wire.AppendOfferCC(b, &p.Program)
		p.offerDue = false
	}
	if p.withdrawDue {
		b = wire.AppendWithdrawCC(b, p.ID)
		p.withdrawDue = false
	}
	if a := &c.cc.answer; a.due {
		b = wire.AppendAnswerCC(b, a.id, a.state, a.code, a.reason)
		a.due = false
	}
	if p.sends() && kept < ccWindow && len(b)+ccPiece+wire.MaxFrameLen <= limit {
		n := min(len(p.object), ccPiece)
		b = wire.AppendDataCC(b, p.ID, p.Offset, p.object[:n])
		p.Offset += uint64(n)
		p.object = p.object[n:]
	}
	return b
}

// sends reports whether there is more of the object to send.
func (o *outgoingCC) sends() bool { return o.wanted && len(o.object) > 0 }

// sentCC reports whether all of the object that was offered last was sent.
func (c *control) sentCC() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cc.program.Offset == c.cc.program.Size
}

// resumeCC goes on with the object, since the peer has acknowledged something.
func (c *control) resumeCC() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cc.program.sends() {
		c.due.Store(true)
	}
}

// answerCC makes an answer due.
func (c *control) answerCC(a answerCC) {
	a.due = true
	c.say(func(c *control) { c.cc.answer = a })
}
