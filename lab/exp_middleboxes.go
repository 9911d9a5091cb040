package lab

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/go-tcpls/tcpls"
)

var middleboxExperiment = Experiment{
	Name:   "middleboxes",
	Source: "paper §5.4",
	Claim: "TCPLS gets through what stands between two ends: handshakes, joins and failovers; where TLS is intercepted, " +
		"it ends in a refusal, or in plain TLS if the policy allows it",
	Root: true,
	Run:  runMiddleboxes,
}

// A finding is a cell of the table.
type finding struct {
	mark     string // yes, no, or another word
	evidence string
}

// A question is a column: something that is tried through a middlebox.
type question struct {
	name string
	ask  func(v *crossing, ctx context.Context) (finding, error)
}

var questions = []question{
	{"TCP options", (*crossing).options},
	{"TLS", (*crossing).tlsHandshake},
	{"TLS, break", (*crossing).tlsBreak},
	{"MPTCP", (*crossing).mptcpHandshake},
	{"MPTCP, join", (*crossing).mptcpJoin},
	{"MPTCP, break", (*crossing).mptcpBreak},
	{"TCPLS", (*crossing).tcplsHandshake},
	{"TCPLS, join", (*crossing).tcplsJoin},
	{"TCPLS, break", (*crossing).tcplsBreak},
	{"TCPLS, fallback", (*crossing).tcplsFallback},
}

// A crossing is one middlebox at one site.
type crossing struct {
	*site
	box middlebox
}

const (
	crossingSize = 2 << 20 // of the download that is broken
	crossingCut  = 512 << 10
	crossingTime = 40 * time.Second // for each question
	crossingJoin = 2 * time.Second  // for Multipath TCP's second subflow
	// crossingHello is how long a handshake may take: so long it lasts to notice a
	// middlebox that swallows it.
	crossingHello = 4 * time.Second
	// How long a transfer may stand still after a break. TCPLS needs a fraction
	// of a second; it gets more so that a busy machine isn't taken for a fault.
	patienceTCP, patienceTCPLS = 3 * time.Second, 20 * time.Second
)

// sitesAtOnce is how many middleboxes are tried at a time: they mostly wait.
const sitesAtOnce = 3

func runMiddleboxes(ctx context.Context, o Options) (*Result, error) {
	if err := errors.Join(Supported(), havePrograms()); err != nil {
		return nil, err
	}
	var rows []middlebox
	for _, b := range middleboxes() {
		if b.quick || !o.Quick {
			rows = append(rows, b)
		}
	}
	var (
		mu       sync.Mutex
		found    = make([][]finding, len(rows))
		failures = make([]error, len(rows))
		running  sync.WaitGroup
		places   = make(chan struct{}, sitesAtOnce)
	)
	for i, b := range rows {
		places <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		running.Go(func() {
			defer func() { <-places }()
			mu.Lock()
			o.step("%s (%s)", b.name, b.software)
			mu.Unlock()
			found[i], failures[i] = cross(ctx, b)
		})
	}
	running.Wait()
	if err := errors.Join(append(failures, ctx.Err())...); err != nil {
		return nil, err
	}
	return middleboxResult(rows, found), nil
}

// cross asks everything about one middlebox.
func cross(ctx context.Context, b middlebox) (found []finding, err error) {
	s, err := newSite(ctx, b.boxes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", b.name, err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if b.start != nil {
		if err := b.start(ctx, s); err != nil {
			return nil, fmt.Errorf("%s: %w", b.name, err)
		}
	}
	for _, q := range questions {
		f, err := (&crossing{s, b}).answer(ctx, q)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", b.name, q.name, err)
		}
		found = append(found, f)
	}
	return found, nil
}

func (v *crossing) answer(ctx context.Context, q question) (finding, error) {
	ctx, cancel := context.WithTimeout(ctx, crossingTime)
	defer cancel()
	f, err := q.ask(v, ctx)
	return f, errors.Join(err, v.Link("path0").SetBlackhole(false))
}

func middleboxResult(rows []middlebox, found [][]finding) *Result {
	table := Table{Name: "table", Title: "What gets through: a transfer; a second path (TCPLS: through the same middlebox, MPTCP: beside it); a transfer whose path is broken in the middle",
		Header: []string{"middlebox", "software", "break"}}
	proof := Table{Name: "evidence", Title: "What was seen", Header: []string{"middlebox", "question", "found", "evidence"}, DataOnly: true}
	for _, q := range questions {
		table.Header = append(table.Header, q.name)
	}
	passed, survived, mptcpPassed, plain := 0, 0, 0, 0
	var against []string
	for i, b := range rows {
		cells := []any{b.name, b.software, b.howItBreaks()}
		answers := make(map[string]string)
		for j, f := range found[i] {
			cells = append(cells, f.mark)
			answers[questions[j].name] = f.mark
			proof.add(b.name, questions[j].name, f.mark, f.evidence)
		}
		table.add(cells...)
		if answers["MPTCP"] == "yes" {
			mptcpPassed++
		}
		want := "TCPLS"
		if b.blocksTCPLS || b.intercepts {
			want = "plain TLS"
			plain++
		} else {
			passed++
		}
		if answers["TCPLS, break"] == "yes" {
			survived++
		}
		blocked := want != "TCPLS"
		if answers["TCPLS, fallback"] != want || blocked == (answers["TCPLS"] == "yes") ||
			!blocked && (answers["TCPLS, join"] != "yes" || answers["TCPLS, break"] != "yes") {
			against = append(against, b.name)
		}
	}
	r := &Result{Tables: []Table{table, proof}, Measures: []Measure{
		measure("middleboxes", "", []float64{float64(len(rows))}),
		measure("TCPLS survives a break", "", []float64{float64(survived)}),
		measure("MPTCP passes", "", []float64{float64(mptcpPassed)}),
	}}
	r.Verdict = Verdict{Holds, fmt.Sprintf("TCPLS passes %d of %d middleboxes and survives a break behind each of them; the other %d stop it, and end in a refusal "+
		"or in plain TLS. Multipath TCP passes %d.", passed, len(rows), plain, mptcpPassed)}
	if len(against) > 0 {
		r.Verdict = Verdict{Fails, "otherwise than expected: " + strings.Join(against, ", ")}
	}
	return r
}

// yesOr turns the outcome of an attempt into a finding. The evidence of a
// success may be empty.
func yesOr(evidence string, err error) finding {
	if err != nil {
		return finding{"no", err.Error()}
	}
	return finding{"yes", evidence}
}

// target is whom clients connect to for what is behind the box.
func (v *crossing) target(port string) string {
	if v.box.addr != "" {
		return net.JoinHostPort(v.box.addr, port)
	}
	return net.JoinHostPort(siteServer, port)
}

// options tells which TCP options the two kernels agree on through the box.
func (v *crossing) options(ctx context.Context) (finding, error) {
	conn, err := v.dialer(new(net.Dialer), v.box.proxy)(ctx, "tcp", v.target(portTLS))
	if err != nil {
		return yesOr("", err), nil
	}
	defer conn.Close()
	text, err := agreedOptions(conn)
	return finding{text, ""}, err
}

// dialTLS opens a plain TLS connection through the box, by Multipath TCP if asked.
func (v *crossing) dialTLS(ctx context.Context, multipath bool) (*tls.Conn, *net.TCPConn, error) {
	var d net.Dialer
	d.SetMultipathTCP(multipath)
	raw, err := v.dialer(&d, v.box.proxy)(ctx, "tcp", v.target(portTLS))
	if err != nil {
		return nil, nil, err
	}
	end, _ := ctx.Deadline()
	conn := tls.Client(raw, v.clientTLS)
	if err := errors.Join(raw.SetDeadline(end), conn.HandshakeContext(ctx)); err != nil {
		raw.Close()
		return nil, nil, err
	}
	return conn, raw.(*net.TCPConn), nil
}

func (v *crossing) tlsHandshake(ctx context.Context) (finding, error) {
	conn, _, err := v.dialTLS(ctx, false)
	if err != nil {
		return yesOr("", err), nil
	}
	defer conn.Close()
	return yesOr("", download(conn, 64<<10, nil)), nil
}

func (v *crossing) tlsBreak(ctx context.Context) (finding, error) {
	conn, _, err := v.dialTLS(ctx, false)
	if err != nil {
		return finding{"-", "no connection"}, nil
	}
	defer conn.Close()
	return v.survive(ctx, conn, patienceTCP)
}

// survive uses a stream, breaks the path through the box, and finds out
// whether the stream goes on within some time.
func (v *crossing) survive(ctx context.Context, s stream, patience time.Duration) (finding, error) {
	if v.box.silence > 0 {
		return v.surviveSilence(ctx, s, patience)
	}
	cut := v.box.cut
	if cut == nil {
		cut = cutByBlackhole
	}
	var got int
	var cutErr error
	var last time.Time // since the break
	var gap time.Duration
	err := download(s, crossingSize, func(n int) {
		if !last.IsZero() {
			now := time.Now()
			last, gap = now, max(gap, now.Sub(last))
		}
		if got += n; got >= crossingCut && last.IsZero() {
			cutErr = errors.Join(cut(ctx, v.site), s.SetDeadline(time.Now().Add(patience)))
			last = time.Now()
		}
	})
	if cutErr != nil {
		return finding{}, cutErr
	}
	return yesOr(fmt.Sprintf("%s; the longest gap was %v", v.box.howItBreaks(), gap.Round(time.Millisecond)), err), nil
}

// surviveSilence lets a stream rest until the box has forgotten the connection.
func (v *crossing) surviveSilence(ctx context.Context, s stream, patience time.Duration) (finding, error) {
	if err := echo(s, "before"); err != nil {
		return yesOr("", err), nil
	}
	select {
	case <-time.After(v.box.silence):
	case <-ctx.Done():
		return finding{}, ctx.Err()
	}
	began := time.Now()
	if err := s.SetDeadline(began.Add(patience)); err != nil {
		return finding{}, err
	}
	err := again(s, "after")
	return yesOr(fmt.Sprintf("%s; the answer to the next byte took %v", v.box.howItBreaks(), time.Since(began).Round(time.Millisecond)), err), nil
}

func (v *crossing) mptcpHandshake(ctx context.Context) (finding, error) {
	conn, raw, err := v.dialTLS(ctx, true)
	if err != nil {
		return yesOr("", err), nil
	}
	defer conn.Close()
	if err := download(conn, 64<<10, nil); err != nil {
		return yesOr("", err), nil
	}
	multipath, err := raw.MultipathTCP()
	if err == nil && !multipath {
		return finding{"TCP", "fell back to TCP"}, nil
	}
	return yesOr("", err), err
}

// dialSubflows opens an MPTCP connection, and waits for its second subflow.
func (v *crossing) dialSubflows(ctx context.Context) (conn *tls.Conn, joined bool, err error) {
	conn, raw, err := v.dialTLS(ctx, true)
	if err != nil {
		return nil, false, err
	}
	if multipath, err := raw.MultipathTCP(); err != nil || !multipath {
		return conn, false, err
	}
	for end := time.Now().Add(crossingJoin); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		n, err := furtherSubflows(raw)
		if err != nil || n > 0 {
			return conn, n > 0, err
		}
	}
	return conn, false, nil
}

func (v *crossing) mptcpJoin(ctx context.Context) (finding, error) {
	conn, joined, err := v.dialSubflows(ctx)
	if err != nil {
		return finding{"-", "no connection"}, nil
	}
	defer conn.Close()
	if !joined {
		return finding{"no", "no second subflow"}, nil
	}
	return finding{"yes", "a subflow on path1"}, nil
}

func (v *crossing) mptcpBreak(ctx context.Context) (finding, error) {
	conn, _, err := v.dialSubflows(ctx)
	if err != nil {
		return finding{"-", "no connection"}, nil
	}
	defer conn.Close()
	return v.survive(ctx, conn, patienceTCP)
}

// dialTCPLS opens a session through the box.
func (v *crossing) dialTCPLS(ctx context.Context, cfg *tls.Config, policy tcpls.FallbackPolicy) (*tcpls.Session, error) {
	e := endpoint{tls: cfg, dialer: &tcpls.Dialer{DialContext: v.dialer(new(net.Dialer), v.box.proxy)}}
	e.tcpls.Fallback = policy
	e.tcpls.HandshakeTimeout = crossingHello
	return e.dialTCPLS(ctx, v.target(portTCPLS))
}

// use transfers something over a session.
func use(ctx context.Context, s *tcpls.Session) error {
	st, err := s.OpenStream(ctx)
	if err != nil {
		return err
	}
	if err := st.SetDeadline(deadline(ctx)); err != nil {
		return err
	}
	return download(st, 64<<10, nil)
}

func (v *crossing) tcplsHandshake(ctx context.Context) (finding, error) {
	s, err := v.dialTCPLS(ctx, v.clientTLS, tcpls.FallbackRefuse)
	if err != nil {
		return yesOr("", err), nil
	}
	defer s.Close()
	return yesOr("", use(ctx, s)), nil
}

// tcplsJoin begins on the direct path, and joins another one through the box.
func (v *crossing) tcplsJoin(ctx context.Context) (finding, error) {
	e := endpoint{tls: v.clientTLS, dialer: &tcpls.Dialer{DialContext: v.dialer(new(net.Dialer), v.box.proxy)}}
	e.tcpls.HandshakeTimeout = crossingHello
	s, err := e.dialTCPLS(ctx, net.JoinHostPort(siteDirect, portTCPLS))
	if err != nil {
		return finding{}, err
	}
	defer s.Close()
	p, err := s.AddPath(ctx, tcpls.PathSpec{Remote: netip.MustParseAddrPort(v.target(portTCPLS))})
	if err == nil {
		err = p.Use()
	}
	if err == nil {
		err = use(ctx, s)
	}
	return yesOr("", err), nil
}

func (v *crossing) tcplsBreak(ctx context.Context) (finding, error) {
	s, err := v.dialTCPLS(ctx, v.clientTLS, tcpls.FallbackRefuse)
	if err != nil {
		return finding{"-", "no session"}, nil
	}
	defer s.Close()
	direct := netip.MustParseAddrPort(net.JoinHostPort(siteDirect, portTCPLS))
	if _, err := s.AddPath(ctx, tcpls.PathSpec{Remote: direct}); err != nil {
		return yesOr("", err), nil
	}
	st, err := s.OpenStream(ctx)
	if err == nil {
		err = st.SetDeadline(deadline(ctx))
	}
	if err != nil {
		return yesOr("", err), nil
	}
	return v.survive(ctx, st, patienceTCPLS)
}

// tcplsFallback dials as the default policy has it. Where TLS is intercepted, that must
// fail by the certificate; the answer is for a client that trusts the
// interceptor.
func (v *crossing) tcplsFallback(ctx context.Context) (finding, error) {
	cfg, note := v.clientTLS, ""
	if v.box.intercepts {
		_, err := v.dialTCPLS(ctx, cfg, tcpls.FallbackAllow)
		var refused *tls.CertificateVerificationError
		if !errors.As(err, &refused) {
			return finding{"no", fmt.Sprintf("the interceptor's certificate: %v", err)}, nil
		}
		note = fmt.Sprintf("by itself: %v; with trust in the interceptor: ", err)
		if cfg, err = v.trustInterceptor(); err != nil {
			return finding{}, err
		}
		if _, err := v.dialTCPLS(ctx, cfg, tcpls.FallbackRefuse); !errors.Is(err, tcpls.ErrNotTCPLS) {
			return finding{"no", fmt.Sprintf("%sthe policy that refuses plain TLS gives %v", note, err)}, nil
		}
	}
	s, err := v.dialTCPLS(ctx, cfg, tcpls.FallbackAllow)
	if err != nil {
		return yesOr("", err), nil
	}
	defer s.Close()
	if err := use(ctx, s); err != nil {
		return yesOr("", err), nil
	}
	if state := s.ConnectionState(); !state.TCPLS {
		return finding{"plain TLS", note + state.Fallback}, nil
	}
	return finding{"TCPLS", note}, nil
}
