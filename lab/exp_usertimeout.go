package lab

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-tcpls/tcpls"
)

var userTimeout = Experiment{
	Name:   "user-timeout",
	Source: "paper §4.2",
	Claim:  "a server sets the user timeout of its client's TCP through TLS, and a connection that loses everything ends after it",
	Root:   true,
	Run:    runUserTimeout,
}

func runUserTimeout(ctx context.Context, o Options) (*Result, error) {
	b, err := newNetBench(TwoHosts(Shape{Rate: 30 * Mbit, Delay: 20 * time.Millisecond}))
	if err != nil {
		return nil, err
	}
	defer b.Close()
	// TCP looks at its user timeout when it retransmits, and so a little late.
	const late = 3 * time.Second
	t := Table{Name: "timeouts", Title: "An upload loses its path; TCPLS's own detection is off: s until the client's TCP gives the connection up",
		Header: []string{"user timeout set by the server", "in force", "given up after s"}}
	r := new(Result)
	holds := true
	var texts []string
	for _, timeout := range pick(o, []time.Duration{0, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second}, []time.Duration{0, time.Second}) {
		var times []float64
		var inForce tcpls.TCPOption
		patience := pick(o, 20*time.Second, 6*time.Second)
		survived := 0
		for i := range o.reps(5, 1) {
			o.step("user timeout %v: run %d", timeout, i+1)
			took, option, err := b.dieOfSilence(ctx, timeout, patience)
			if err != nil {
				return nil, err
			}
			inForce = option
			if took == 0 {
				survived++
				break // and would again
			}
			times = append(times, took.Seconds())
			holds = holds && timeout > 0 && took >= timeout && took < timeout+late
		}
		if timeout == 0 {
			holds = holds && survived > 0
			t.add("none", "the system's", fmt.Sprintf("not within %v", patience))
			continue
		}
		m := measure(fmt.Sprintf("user timeout %v", timeout), "s", times)
		r.Measures = append(r.Measures, m)
		t.add(timeout, inForce, m)
		texts = append(texts, fmt.Sprintf("with %v after %s s", timeout, m))
	}
	r.Tables = []Table{t}
	r.Verdict = Verdict{Holds, fmt.Sprintf("The client's TCP gave the connection up %s; without, it still tried when the run ended.", joined(texts))}
	if !holds {
		r.Verdict = Verdict{Fails, "A connection outlived its user timeout by more than 3 s, or ended before it: see the table."}
	}
	return r, nil
}

func joined(texts []string) (out string) {
	for i, t := range texts {
		switch {
		case i == 0:
		case i == len(texts)-1:
			out += " and "
		default:
			out += ", "
		}
		out += t
	}
	return out
}

// dieOfSilence uploads until the path loses everything, and returns how long
// the client keeps its connection then: 0 if longer than it has patience.
func (b *bench) dieOfSilence(ctx context.Context, timeout, patience time.Duration) (took time.Duration, inForce tcpls.TCPOption, err error) {
	server, client := b.server(), b.client()
	for _, cfg := range []*tcpls.Config{&server.tcpls, &client.tcpls} {
		cfg.PathTimeout, cfg.ReconnectFor, cfg.KeepAlive = time.Hour, -1, -1
	}
	ends, err := b.meet(ctx, server, client)
	if err != nil {
		return 0, inForce, err
	}
	defer ends.Close()
	sess, peer := ends.client, ends.server
	if timeout > 0 {
		if inForce, err = peer.SetPeerTCPOption(ctx, nil, tcpls.TCPUserTimeout(timeout)); err != nil {
			return 0, inForce, err
		}
	}
	from, err := ends.flood(ctx)
	if err != nil {
		return 0, inForce, err
	}
	if err := receiveSome(from, 1<<20); err != nil {
		return 0, inForce, err
	}
	link := b.net.Links()[0]
	if err := link.SetBlackhole(true); err != nil {
		return 0, inForce, err
	}
	began := time.Now()
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case <-sess.Context().Done():
		took = time.Since(began)
	case <-waiting.Done():
	}
	return took, inForce, errors.Join(ctx.Err(), link.SetBlackhole(false))
}

// receiveSome reads at least n bytes.
func receiveSome(s stream, n int) error {
	buf := make([]byte, 64<<10)
	for got := 0; got < n; {
		m, err := s.Read(buf)
		if err != nil {
			return err
		}
		got += m
	}
	return nil
}
