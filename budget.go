package tcpls

import (
	"time"

	"github.com/go-tcpls/tcpls/internal/wire"
)

// A budget bounds how many records without stream bytes a peer can make us
// open (protocol 6.3). Records with stream bytes earn some, as do those that
// we send, since they call for acknowledgements, and time does.
type budget struct {
	left   int
	sealed uint64 // of the path, when last refilled
	since  time.Time
}

const (
	budgetMax       = 8192
	budgetPerSecond = 1000
)

var errBudget = violation(wire.CodeLimit, "too many records without stream bytes")

// earn counts a record with n stream bytes.
func (b *budget) earn(n int) {
	if n > 0 && b.left < budgetMax {
		b.left += 2 // one for its announcement
	}
}

// spend counts a record without stream bytes and reports whether the peer may
// send it.
func (b *budget) spend(p *Path) bool {
	if b.left == 0 {
		b.refill(p.sealed.Load(), p.in.now)
	}
	if b.left == 0 {
		return false
	}
	b.left--
	return true
}

func (b *budget) refill(sealed uint64, now time.Time) {
	if b.since.IsZero() {
		b.left = budgetMax
	} else {
		b.left = min(budgetMax, int(min(sealed-b.sealed, budgetMax))+int(min(now.Sub(b.since).Seconds(), 10)*budgetPerSecond))
	}
	if b.left > 0 {
		b.sealed, b.since = sealed, now
	}
}
