package tcpls

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Happy eyeballs (RFC 8305): the addresses of a name are tried in turn, a little
// apart, and the first connection that comes about wins. A winner that then
// swallows the ClientHello, or resets the connection, is one more address that
// has failed: the race goes on.

const (
	// attemptDelay is RFC 8305's Connection Attempt Delay (section 8).
	attemptDelay = 250 * time.Millisecond
	// attemptTimeout is how long one of several candidates may take to accept the
	// connection, and answerTimeout, or answerTimes what that took, to answer
	// the ClientHello.
	attemptTimeout = 5 * time.Second
	answerTimeout  = 2 * time.Second
	answerTimes    = 4
	// maxCandidates is how many addresses of one name are tried.
	maxCandidates = 16
)

// A race is the way to one of several addresses. One goroutine owns it.
type race struct {
	caller  context.Context // of Dial
	ctx     context.Context // of all attempts; it outlives Dial if losers are kept
	cancel  context.CancelFunc
	leave   func() bool // ends ctx's dependence on the caller's; nil: losers aren't kept
	dial    func(ctx context.Context, c candidate) (net.Conn, error)
	waiting []candidate   // that weren't tried yet
	delay   time.Duration // between two attempts; negative: one follows the other's failure
	timeout time.Duration // of an attempt; 0: none
	answer  time.Duration // and of its answer; 0: by what the attempt took
	running int
	results chan attempt // has room for all
	failed  []error
}

// A candidate is one way to a server.
type candidate struct {
	address string
	from    string // the network interface; empty: the system chooses
}

func (c candidate) String() string {
	if c.from == "" {
		return c.address
	}
	return c.address + " from " + c.from
}

// An attempt is how one candidate did.
type attempt struct {
	candidate
	conn net.Conn
	took time.Duration
	err  error
}

// newRace begins nothing before the first call of next.
func newRace(ctx context.Context, candidates []candidate, dial func(context.Context, candidate) (net.Conn, error)) *race {
	r := &race{caller: ctx, dial: dial, waiting: candidates, delay: attemptDelay, results: make(chan attempt, len(candidates))}
	r.ctx, r.cancel = context.WithCancel(ctx)
	if len(candidates) > 1 {
		r.timeout = attemptTimeout
	}
	return r
}

// newRace is a race as the dialer wants it.
func (d *Dialer) newRace(ctx context.Context, candidates []candidate, dial func(context.Context, candidate) (net.Conn, error)) *race {
	r := newRace(ctx, candidates, dial)
	d.pace(r)
	if d.KeepLosers && len(candidates) > 1 {
		r.cancel()
		r.ctx, r.cancel = context.WithCancel(context.WithoutCancel(ctx))
		r.leave = context.AfterFunc(ctx, r.cancel)
	}
	return r
}

// pace gives the race the dialer's times.
func (d *Dialer) pace(r *race) {
	if d.FallbackDelay != 0 {
		r.delay = d.FallbackDelay
	}
	if d.AttemptTimeout != 0 {
		r.timeout, r.answer = d.AttemptTimeout, d.AttemptTimeout
	}
}

func (r *race) begin() {
	c := r.waiting[0]
	r.waiting = r.waiting[1:]
	r.running++
	go func() {
		ctx := r.ctx
		if r.timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, r.timeout)
			defer cancel()
		}
		began := time.Now()
		conn, err := r.dial(ctx, c)
		r.results <- attempt{c, conn, time.Since(began), err}
	}()
}

// next returns the next connection that comes about, if any still does. No
// other attempt begins until it is called again.
func (r *race) next() (a attempt, ok bool) {
	for r.running > 0 || r.more() {
		if r.running == 0 {
			r.begin()
		}
		var due <-chan time.Time
		if r.delay >= 0 && r.more() {
			due = time.After(r.delay)
		}
		select {
		case a := <-r.results:
			r.running--
			if a.err == nil {
				return a, true
			}
			r.fail(a)
			if r.delay < 0 || !r.more() {
				continue
			}
			r.begin() // a failure is no reason to wait (section 5)
		case <-due:
			r.begin()
		}
	}
	return attempt{}, false
}

// more reports whether there are candidates to try.
func (r *race) more() bool { return len(r.waiting) > 0 && r.ctx.Err() == nil }

// last reports whether nothing else is left to hope for.
func (r *race) last() bool { return r.running == 0 && len(r.waiting) == 0 }

// patience is how long to wait for the first byte of an answer on a connection;
// 0: as long as it takes.
func (r *race) patience(a attempt) time.Duration {
	switch {
	case r.last():
		return 0
	case r.answer != 0:
		return r.answer
	}
	return max(answerTimeout, answerTimes*a.took)
}

func (r *race) fail(a attempt) {
	if op, ok := errors.AsType[*net.OpError](a.err); !ok || op.Addr == nil {
		a.err = &addressError{a.String(), a.err}
	}
	r.failed = append(r.failed, a.err)
}

// err says why every address has failed.
func (r *race) err(address string) error {
	if cause := context.Cause(r.caller); cause != nil && (len(r.failed) == 0 || r.leave != nil) {
		r.failed = append(r.failed, cause)
	}
	switch {
	case len(r.failed) > 1:
		return &raceError{address, r.failed}
	}
	if e, ok := r.failed[0].(*addressError); ok {
		return e.err // there was only this one
	}
	return r.failed[0]
}

// end gives up the attempts that still run.
func (r *race) end() {
	if r.leave != nil {
		r.leave() // the caller's context may outlive many races
	}
	r.cancel()
	if r.running > 0 {
		go r.rest(r.running, func(conn net.Conn) { _ = conn.Close() }) // never used
	}
}

// rest takes the connections of the last n attempts.
func (r *race) rest(n int, use func(net.Conn)) {
	for range n {
		if a := <-r.results; a.err == nil {
			use(a.conn)
		}
	}
}

// keep lets the attempts that still run go on, and makes their connections paths
// of s that stand by, one after the other, as many as it may have.
func (r *race) keep(s *Session) {
	if r.running == 0 || r.leave == nil || !r.leave() {
		return
	}
	n, cancel := r.running, r.cancel
	r.running, r.cancel = 0, func() {} // for end
	go func() {
		defer cancel()
		defer context.AfterFunc(s.Context(), cancel)()
		err := s.Handshake(r.ctx) // before which there is no token
		r.rest(n, func(conn net.Conn) {
			if err != nil || len(s.Paths()) >= s.cfg.MaxPaths {
				_ = conn.Close() // never used
				return
			}
			ctx, cancel := context.WithTimeout(r.ctx, s.cfg.HandshakeTimeout)
			defer cancel()
			if _, err := s.JoinPath(ctx, conn); err != nil {
				s.log.Debug("a connection that lost the race can't be kept", "remote", conn.RemoteAddr(), "error", err)
			}
		})
	}()
}

// An addressError is an error that doesn't name its address itself.
type addressError struct {
	address string
	err     error
}

func (e *addressError) Error() string { return e.address + ": " + e.err.Error() }
func (e *addressError) Unwrap() error { return e.err }

// A raceError is why no address of a server could be used.
type raceError struct {
	address string
	errs    []error
}

func (e *raceError) Error() string {
	texts := make([]string, len(e.errs))
	for i, err := range e.errs {
		texts[i] = err.Error()
	}
	return "tcpls: no address of " + e.address + " could be used: " + strings.Join(texts, "; ")
}

func (e *raceError) Unwrap() []error { return e.errs }

// candidates returns what to try for an address that may hold a name.
func (d *Dialer) candidates(ctx context.Context, network, address string) ([]candidate, error) {
	addresses, err := d.addresses(ctx, network, address)
	return d.ways(addresses...), err
}

// ways lists each of the addresses from each interface.
func (d *Dialer) ways(addresses ...string) (list []candidate) {
	interfaces := d.Interfaces
	if len(interfaces) == 0 {
		interfaces = []string{""}
	}
	for _, address := range addresses {
		for _, from := range interfaces {
			list = append(list, candidate{address, from})
		}
	}
	return list
}

// addresses looks up an address that may hold a name.
func (d *Dialer) addresses(ctx context.Context, network, address string) ([]string, error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if _, err := netip.ParseAddr(host); err == nil || host == "" || d.DialContext != nil {
		return []string{address}, nil
	}
	var nd net.Dialer
	if d.NetDialer != nil {
		nd = *d.NetDialer
	}
	if nd.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, nd.Timeout)
		defer cancel()
	}
	if nd.Resolver == nil {
		nd.Resolver = net.DefaultResolver
	}
	port, err := nd.Resolver.LookupPort(ctx, network, service)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	ips, err := nd.Resolver.LookupNetIP(ctx, "ip"+strings.TrimPrefix(network, "tcp"), host)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	var list []string
	for _, ip := range alternate(ips, nd.LocalAddr) {
		list = append(list, net.JoinHostPort(ip.String(), strconv.Itoa(port)))
	}
	if len(list) == 0 {
		err := &net.AddrError{Err: "no address of the local address's family", Addr: host}
		return nil, &net.OpError{Op: "dial", Net: network, Source: nd.LocalAddr, Err: err}
	}
	return list, nil
}

// alternate switches between the families that local allows, from IPv6 on
// (RFC 8305, section 4). Within one the resolver's order stays (RFC 6724).
func alternate(ips []netip.Addr, local net.Addr) (order []netip.Addr) {
	var families [2][]netip.Addr // IPv6, IPv4
	want4, want6 := true, true
	if a, ok := local.(*net.TCPAddr); ok && a.IP != nil && !a.IP.IsUnspecified() {
		want4 = a.IP.To4() != nil
		want6 = !want4
	}
	for _, ip := range ips {
		switch ip = ip.Unmap(); {
		case ip.Is4() && want4:
			families[1] = append(families[1], ip)
		case ip.Is6() && want6:
			families[0] = append(families[0], ip)
		}
	}
	for i := range ips {
		for _, family := range families {
			if i < len(family) && len(order) < maxCandidates {
				order = append(order, family[i])
			}
		}
	}
	return order
}
