package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/go-tcpls/tcpls"
)

// peerOptions are the values of --peer-opt: TCP options that the server is asked
// to set on its sockets.
type peerOptions []tcpls.TCPOption

// Set parses one more option.
func (p *peerOptions) Set(text string) error {
	o, err := tcpls.ParseTCPOption(text)
	if err != nil {
		return errors.New(cause(err))
	}
	*p = append(*p, o)
	return nil
}

func (p *peerOptions) String() string {
	var texts []string
	for _, o := range *p {
		texts = append(texts, o.String())
	}
	return strings.Join(texts, ",")
}

// Type names the flag's value in help texts.
func (p *peerOptions) Type() string { return "option" }

// A peerOption is what the server has made of one of them.
type peerOption struct {
	Asked  tcpls.TCPOption `json:"asked"`
	Set    tcpls.TCPOption `json:"set,omitzero"`
	Reason string          `json:"not_set_because,omitempty"`
}

// ask has the options set on all paths of a session, in their order.
func (p peerOptions) ask(ctx context.Context, s *tcpls.Session) (results []peerOption, err error) {
	for _, o := range p {
		r := peerOption{Asked: o}
		set, err := s.SetPeerTCPOption(ctx, nil, o)
		var refused *tcpls.TCPOptionError
		switch {
		case errors.As(err, &refused):
			r.Reason = refused.Reason.String()
		case err != nil:
			return results, err
		default:
			r.Set = set
		}
		results = append(results, r)
	}
	return results, nil
}

// trials are options as a careful server may set them, one of each kind.
var trials = [...]tcpls.TCPOption{
	tcpls.TCPUserTimeout(30 * time.Second), tcpls.TCPKeepAlive(time.Minute), tcpls.TCPCongestion("reno"),
	tcpls.TCPNotSentLowWater(128 << 10), tcpls.TCPMaxPacingRate(1 << 30), tcpls.TCPWindowClamp(1 << 20), tcpls.TCPDSCP(0),
}

// tryOptions finds out which options the server would set. Which it could, it
// says by itself; the rest is its policy's business, so each is asked for.
func tryOptions(ctx context.Context, s *tcpls.Session) (taken []string, refused []peerOption, err error) {
	kinds := s.PeerTCPOptionKinds()
	var options peerOptions
	for _, o := range trials {
		if slices.Contains(kinds, o.Kind) {
			options = append(options, o)
		}
	}
	results, err := options.ask(ctx, s)
	for _, r := range results {
		if r.Reason == "" {
			taken = append(taken, r.Asked.Kind.String())
		} else {
			refused = append(refused, r)
		}
	}
	return taken, refused, err
}

// String tells it to a person.
func (r peerOption) String() string {
	switch {
	case r.Reason != "":
		return r.Asked.String() + " is not set: " + r.Reason
	case r.Set != r.Asked:
		return r.Set.String() + " is set, instead of " + r.Asked.String()
	}
	return r.Set.String() + " is set"
}
