package tcpls

import (
	"context"
	"crypto/rand"
	"sync"
	"time"

	"github.com/go-tcpls/tcpls/internal/tls13"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// A ReplayStore remembers which early data was seen. Servers that share their
// ticket keys share one, or a client's early data could be replayed to each of
// them (RFC 8446, section 8).
type ReplayStore interface {
	// Once reports whether key was never seen before. It is remembered at
	// least until the given time. An error refuses the early data, and
	// nothing else. It is called by many goroutines at once.
	Once(ctx context.Context, key [32]byte, until time.Time) (bool, error)
}

// A strikeRegister is the ReplayStore of one process. It remembers keys in two
// generations, each of them for as long as early data can be fresh.
type strikeRegister struct {
	mu       sync.Mutex
	now, old map[[32]byte]struct{}
	until    time.Time // when now becomes old
}

// maxStrikes bounds one generation: 2 MiB of keys. More early data than that
// in one window is refused.
const maxStrikes = 1 << 16

// Once implements ReplayStore.
func (r *strikeRegister) Once(_ context.Context, key [32]byte, until time.Time) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := now(); now.After(r.until) {
		// Two windows without a call leave nothing that could still be fresh.
		r.old = r.now
		if now.Sub(r.until) > strikeWindow {
			r.old = nil
		}
		r.now, r.until = make(map[[32]byte]struct{}), now.Add(strikeWindow)
	}
	_, seen := r.now[key]
	_, before := r.old[key]
	if seen || before || len(r.now) >= maxStrikes {
		return false, nil
	}
	r.now[key] = struct{}{}
	return true, nil
}

const (
	// earlyWindow is how far a client's clock may run apart from ours between
	// a ticket and its use.
	earlyWindow = 10 * time.Second
	// strikeWindow is how long a ClientHello can count as fresh: from
	// earlyWindow before its time to earlyWindow after it.
	strikeWindow = 2 * earlyWindow
)

// processStrikes is the register of all servers of this process that don't
// name their own.
var processStrikes processRegister

type processRegister struct {
	register strikeRegister
	once     sync.Once
	id       [16]byte
}

// life is the same as long as the process lives.
func (r *processRegister) life() []byte {
	r.once.Do(func() { _, _ = rand.Read(r.id[:]) }) // it never fails
	return r.id[:]
}

// serverEarly adds to a server's configuration of the engine that it takes
// early data.
func (c *Config) serverEarly(ctx context.Context, e *tls13.Config) {
	if c.MaxEarlyData == 0 {
		return
	}
	e.MaxEarlyData, e.EarlyWindow = uint32(c.MaxEarlyData), earlyWindow
	e.EarlyContext = wire.AppendAnswer(nil, c.parameters())
	store := c.ReplayStore
	if store == nil {
		// Tickets of an earlier life of the process, whose register is lost,
		// don't allow early data.
		store, e.EarlyContext = &processStrikes.register, append(e.EarlyContext, processStrikes.life()...)
	}
	e.FirstUse = func(id []byte, until time.Time) bool {
		var key [32]byte
		copy(key[:], id)
		first, err := store.Once(ctx, key, until)
		if err != nil {
			c.Logger.Warn("replay store failed; early data refused", "error", err)
		}
		return first && err == nil
	}
}
