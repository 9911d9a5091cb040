package tlstest

import (
	"sync"
	"time"
)

// maxStrikes bounds Strikes: some 40 bytes each.
const maxStrikes = 1 << 16

// Strikes are a strike register for tls13.Config.FirstUse, in memory. When it
// is full it knows nothing as new, so that early data is refused. Its zero
// value is ready, for several goroutines.
type Strikes struct {
	mu   sync.Mutex
	seen map[[32]byte]time.Time // to be remembered until then
}

// FirstUse is tls13.Config.FirstUse.
func (s *Strikes) FirstUse(id []byte, until time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil {
		s.seen = make(map[[32]byte]time.Time)
	}
	if len(s.seen) >= maxStrikes {
		s.forget(time.Now())
	}
	key := [32]byte(id)
	if _, used := s.seen[key]; used || len(s.seen) >= maxStrikes {
		return false
	}
	s.seen[key] = until
	return true
}

func (s *Strikes) forget(now time.Time) {
	for id, until := range s.seen {
		if until.Before(now) {
			delete(s.seen, id)
		}
	}
}
