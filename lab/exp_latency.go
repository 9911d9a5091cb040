package lab

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/go-tcpls/tcpls"
)

var latency = Experiment{
	Name:   "latency",
	Source: "paper §4.4, §5.2, Figure 2",
	Claim:  "resumption with early data and TCP Fast Open answers a request after one round trip, as QUIC does; a join needs no more than a resumption",
	Root:   true,
	Run:    runLatency,
}

// latencyRTT is so long that what the machine needs doesn't matter.
const latencyRTT = 200 * time.Millisecond

// A visitor is a way to begin. prepare is a visit before, for tickets and
// cookies.
type visitor struct {
	name      string
	transport transport
	prepare   bool
	early     bool
	fastOpen  bool
	curve     tls.CurveID // of the key exchange; 0: the default, post-quantum
	want      float64     // round trips
}

var visitors = []visitor{
	{name: "TCP", transport: overTCP, want: 2},
	{name: "TLS/TCP", transport: overTLS, want: 3},
	{name: "TLS/TCP, resumed", transport: overTLS, prepare: true, want: 3},
	{name: "QUIC", transport: overQUIC, want: 2},
	{name: "QUIC, 0-RTT", transport: overQUIC, prepare: true, early: true, want: 1},
	{name: "TCPLS", transport: overTCPLS, want: 3},
	{name: "TCPLS, resumed", transport: overTCPLS, prepare: true, want: 3},
	{name: "TCPLS, early data", transport: overTCPLS, prepare: true, early: true, want: 2},
	{name: "TCPLS, early data and Fast Open", transport: overTCPLS, prepare: true, early: true, fastOpen: true, curve: tls.X25519, want: 1},
}

func runLatency(ctx context.Context, o Options) (*Result, error) {
	b, err := newNetBench(TwoHosts(Shape{Delay: latencyRTT / 2}))
	if err != nil {
		return nil, err
	}
	defer b.Close()
	t := Table{Name: "first-answer", Title: fmt.Sprintf("From the dial to the first byte of an answer, in round trips of %v; bytes of IP packets until then", latencyRTT),
		Header: []string{"how", "round trips", "expected", "bytes to the server", "bytes to the client"}}
	r := new(Result)
	holds := true
	for _, v := range visitors {
		var trips, up, down []float64
		for i := range o.reps(9, 3) {
			o.step("%s: visit %d", v.name, i+1)
			took, sent, received, err := b.firstAnswer(ctx, v)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", v.name, err)
			}
			trips = append(trips, took.Seconds()/latencyRTT.Seconds())
			up, down = append(up, float64(sent)), append(down, float64(received))
		}
		m := measure(v.name, "round trips", trips)
		r.Measures = append(r.Measures, m)
		t.add(v.name, m, v.want, median(up), median(down))
		holds = holds && m.Median < v.want+0.5
	}
	join := Table{Name: "join", Title: fmt.Sprintf("A further path, in round trips of %v, until AddPath returns", latencyRTT),
		Header: []string{"how", "round trips", "bytes to the server", "bytes to the client"}}
	for _, fastOpen := range []bool{false, true} {
		if err := b.measureJoin(ctx, o, fastOpen, r, &join); err != nil {
			return nil, err
		}
	}
	r.Tables = []Table{t, join}
	last := r.Measures[len(visitors)-1]
	r.Verdict = Verdict{Holds, fmt.Sprintf("With early data and Fast Open the answer came after %s round trips; a join took %s, with Fast Open %s.", last, r.Measures[len(visitors)], r.Measures[len(visitors)+1])}
	if !holds {
		r.Verdict = Verdict{HoldsPartly, "Some visits took more round trips than expected: see the table."}
	}
	return r, nil
}

// endpoints returns those of a visitor.
func (b *bench) endpoints(v visitor) (server, client endpoint) {
	server, client = b.server(), b.client()
	client.tls.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	if v.curve != 0 {
		client.tls.CurvePreferences = []tls.CurveID{v.curve}
	}
	if v.early {
		server.tcpls.MaxEarlyData, server.quic.Allow0RTT = 16<<10, true
		client.dialer = &tcpls.Dialer{EarlyData: true}
	}
	server.tcpls.FastOpen, client.tcpls.FastOpen = v.fastOpen, v.fastOpen
	return server, client
}

// firstAnswer returns how long the first answer takes, and the bytes that were
// sent until then.
func (b *bench) firstAnswer(ctx context.Context, v visitor) (took time.Duration, up, down uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	server, client := b.endpoints(v)
	s, err := b.serve(ctx, v.transport, server)
	if err != nil {
		return 0, 0, 0, err
	}
	defer s.Close()
	dial := v.transport.dial
	if v.transport.name == overQUIC.name && v.early {
		dial = func(ctx context.Context, address string, e endpoint) (session, error) {
			return e.dialQUIC(ctx, address, (*quic.Transport).DialEarly)
		}
	}
	address := b.at(0, false).String()
	if v.prepare {
		sess, err := dial(ctx, address, client)
		if err == nil {
			err = errors.Join(chat(ctx, sess), sess.Close())
		}
		if err != nil {
			return 0, 0, 0, err
		}
	}
	up0, down0, err := b.wireBytes()
	if err != nil {
		return 0, 0, 0, err
	}
	began := time.Now()
	sess, err := dial(ctx, address, client)
	if err != nil {
		return 0, 0, 0, err
	}
	defer sess.Close()
	st, err := sess.open(ctx)
	if err != nil {
		return 0, 0, 0, err
	}
	if err := greet(st); err != nil {
		return 0, 0, 0, err
	}
	took = time.Since(began)
	up, down, err = b.wireBytes()
	return took, up - up0, down - down0, err
}

// wireBytes is how many bytes the first link was given by both ends.
func (b *bench) wireBytes() (up, down uint64, err error) {
	link := b.net.Links()[0]
	c, err := link.Counters("client")
	if err != nil {
		return 0, 0, err
	}
	s, err := link.Counters("server")
	return c.Bytes, s.Bytes, err
}

// measureJoin adds paths to a session.
func (b *bench) measureJoin(ctx context.Context, o Options, fastOpen bool, r *Result, t *Table) error {
	name := "join"
	if fastOpen {
		name = "join with Fast Open"
	}
	server, client := b.endpoints(visitor{fastOpen: fastOpen, curve: tls.X25519})
	s, err := b.serve(ctx, overTCPLS, server)
	if err != nil {
		return err
	}
	defer s.Close()
	sess, err := client.dialTCPLS(ctx, b.at(0, false).String())
	if err != nil {
		return err
	}
	defer sess.Close()
	if err := chat(ctx, tcplsSession{sess}); err != nil {
		return err
	}
	var trips, up, down []float64
	for i := range o.reps(9, 3) {
		o.step("%s %d", name, i+1)
		up0, down0, err := b.wireBytes()
		if err != nil {
			return err
		}
		began := time.Now()
		p, err := sess.AddPath(ctx, tcpls.PathSpec{})
		if err != nil {
			return err
		}
		trips = append(trips, time.Since(began).Seconds()/latencyRTT.Seconds())
		up1, down1, err := b.wireBytes()
		if err != nil {
			return err
		}
		up, down = append(up, float64(up1-up0)), append(down, float64(down1-down0))
		if err := p.Close(ctx); err != nil {
			return err
		}
	}
	m := measure(name, "round trips", trips)
	r.Measures = append(r.Measures, m)
	t.add(name, m, median(up), median(down))
	return nil
}
