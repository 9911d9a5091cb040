package main

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/go-tcpls/tcpls"
)

// A pathRow is a path in the progress display.
type pathRow struct {
	id       uint32
	state    string
	rate     float64 // bytes a second in both directions, negative if it isn't known yet
	rtt      time.Duration
	from, to string
}

func (r pathRow) String() string {
	speed, rtt := "", ""
	if r.rate >= 0 {
		speed = size(r.rate).String() + "/s"
	}
	if r.rtt > 0 {
		rtt = "rtt " + brief(r.rtt)
	}
	return fmt.Sprintf("path %-2d %-8s %9s  %-10s  %s to %s", r.id, r.state, speed, rtt, r.from, r.to)
}

// A meter tells how fast a path is, over a second or more.
type meter struct {
	at    time.Time
	bytes uint64
	rate  float64
}

// meterInterval is over how long a rate is measured.
const meterInterval = time.Second

// measure takes in that so many bytes have passed.
func (m *meter) measure(bytes uint64, now time.Time) float64 {
	switch d := now.Sub(m.at); {
	case m.at.IsZero():
		*m = meter{now, bytes, -1}
	case d >= meterInterval:
		*m = meter{now, bytes, float64(bytes-m.bytes) / d.Seconds()}
	}
	return m.rate
}

// rows lists the paths of all sessions, where there is more to say than that
// there is one.
func (k *pathKeeper) rows(now time.Time) (rows []pathRow) {
	k.mu.Lock()
	defer k.mu.Unlock()
	dull := true
	for s := range k.sessions {
		k.findPaths(s, now)
		paths := k.sessions[s]
		dull = dull && len(paths) == 1
		for p, m := range paths {
			stats := p.Stats()
			row := pathRow{
				id: p.ID(), state: stateOf(p), rate: m.measure(stats.BytesSent+stats.BytesReceived, now), rtt: stats.RTT,
				from: p.LocalAddr().String(), to: p.RemoteAddr().String(),
			}
			dull = dull && p.State() == tcpls.PathActive
			rows = append(rows, row)
		}
	}
	if dull {
		return nil
	}
	slices.SortStableFunc(rows, func(a, b pathRow) int { return cmp.Compare(a.id, b.id) })
	return rows
}

// findPaths begins to measure the paths that a session has now, and forgets
// those that it had. k.mu is held.
func (k *pathKeeper) findPaths(s *tcpls.Session, now time.Time) {
	old, known := k.sessions[s]
	if !known {
		return // it has ended
	}
	meters := make(map[*tcpls.Path]*meter)
	for _, p := range s.Paths() {
		m := old[p]
		if m == nil {
			stats := p.Stats()
			m = new(meter)
			m.measure(stats.BytesSent+stats.BytesReceived, now)
		}
		meters[p] = m
	}
	k.sessions[s] = meters
}

// stateOf words what a path is good for.
func stateOf(p *tcpls.Path) string {
	if state := p.State(); state != tcpls.PathActive || !p.Backup() {
		return state.String()
	}
	return "backup"
}
