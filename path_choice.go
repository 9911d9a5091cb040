package tcpls

import (
	"cmp"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/go-tcpls/tcpls/internal/wire"
)

// Which path is the main one. A path that works is better than one that
// doesn't, one that isn't a backup better than one that is, and then the
// shorter round trip decides. An end leaves its main path when it fails; the
// client also leaves a backup for a better path that has proved itself. The
// server follows (protocol 9.5), so that both don't pull in different directions.

// A rank is what a path is worth.
type rank struct {
	own, peer atomic.Bool   // this end or the peer takes it for a backup
	since     time.Duration // when it became active, since the session began; guarded by its mu
	// The path's weight, as this end and the peer have it; 0: no wish.
	weight, peerWeight atomic.Int32
}

func (r *rank) backup() bool { return r.own.Load() || r.peer.Load() }

// onlyBackups reports whether no other path works.
func (s *Session) onlyBackups() bool {
	return !slices.ContainsFunc(s.livePaths(), func(p *Path) bool { return p.works() && !p.rank.backup() })
}

// settleTime is how long a path has to work and to answer before it takes over
// from a backup.
const settleTime = 500 * time.Millisecond

// Backup reports whether either end takes the path for a backup.
func (p *Path) Backup() bool { return p.rank.backup() }

// SetBackup makes p a backup, which both ends use only while there is no other
// path, or takes this end's word for that back. A backup in use is left for a
// better path as soon as that one has worked for 500 ms; where the server has
// said SetBackup, that is up to the client all the same.
func (p *Path) SetBackup(backup bool) {
	p.rank.own.Store(backup)
	p.sayStatus()
	p.sess.rankChanged()
}

// Weight returns the path's weight: this end's, the peer's where this end has
// none, or 1.
func (p *Path) Weight() int {
	if own := p.rank.weight.Load(); own > 0 {
		return int(own)
	}
	return int(max(1, p.rank.peerWeight.Load()))
}

// SetWeight says what share of the streams' bytes the path should carry, from 1
// to 1000, in proportion to the other paths' weights; 0 takes that back. The
// peer is told, and follows where it has given no weight itself. Weights count
// in ModeAggregate, ModePinned, and for schedulers that heed them. The error is
// a *PathError.
func (p *Path) SetWeight(weight int) error {
	if err := checkWeight(weight); err != nil {
		return &PathError{Path: p.ID(), Op: "set", Err: err}
	}
	if p.rank.weight.Swap(int32(weight)) != int32(weight) {
		p.sayStatus()
		p.sess.pathsChanged()
	}
	return nil
}

func checkWeight(weight int) error {
	if weight < 0 || weight > wire.MaxWeight {
		return fmt.Errorf("a path's weight is from 1 to %d, not %d", wire.MaxWeight, weight)
	}
	return nil
}

// sayStatus tells the peer what this end takes the path for.
func (p *Path) sayStatus() {
	p.outMu.Lock()
	p.pongs.statusDue = true
	p.pongDue.Store(true)
	p.outMu.Unlock()
	p.kick()
}

// ranked notes PATH_STATUS. The last one of what was read together counts: one
// record holds thousands of them.
func (p *Path) ranked(backup bool, weight int) {
	reweighed := p.rank.peerWeight.Swap(int32(weight)) != int32(weight)
	reranked := p.rank.peer.Swap(backup) != backup
	p.in.reranked = p.in.reranked || reranked || reweighed
}

// rankChanged acts on what a path is worth now. The caller holds no lock.
func (s *Session) rankChanged() {
	s.mu.Lock()
	s.hurry()
	s.mu.Unlock()
	s.pathsChanged()
}

// hurry has all paths looked at soon. The caller holds mu.
func (s *Session) hurry() {
	for _, p := range s.livePaths() {
		s.startWatch(p)
	}
}

// best is the path to use instead of p, nil if there is none.
func (s *Session) best(p *Path) *Path {
	s.mu.Lock()
	defer s.mu.Unlock()
	good := slices.Clone(s.livePaths())
	good = slices.DeleteFunc(good, func(o *Path) bool { return o == p || o.state != PathActive })
	if len(good) == 0 {
		return nil
	}
	return slices.MinFunc(good, func(a, b *Path) int {
		if a.rank.backup() != b.rank.backup() {
			if a.rank.backup() {
				return 1
			}
			return -1
		}
		return cmp.Compare(a.watch.rtt, b.watch.rtt)
	})
}

// comesBack reports whether p is about to take over from a backup, and how long
// it still has to work for that. The caller holds mu.
func (s *Session) comesBack(p *Path, now time.Duration) (wait time.Duration, ok bool) {
	main := s.path()
	if !s.client || p == main || !main.rank.backup() || p.rank.backup() || p.state != PathActive || !p.confirmed {
		return 0, false
	}
	wait = p.rank.since + settleTime - now
	if p.watch.asked > 0 { // and not answered
		wait = max(wait, silentAsk)
	}
	return max(wait, 0), true
}

// comeBack lets p take over from a backup.
func (s *Session) comeBack(p *Path) {
	s.log.Info("path is used again", "path", p.id, "backup", s.path().id)
	s.switchTo(p, s.path().State() != PathActive)
}
