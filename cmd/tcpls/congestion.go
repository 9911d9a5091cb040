package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/go-tcpls/tcpls"
	"github.com/go-tcpls/tcpls/bpfcc"
)

// Congestion controls: serve offers one, get and put take it, check says
// whether this machine could.

// registerCC adds the flag of those clients that send.
func (f *clientFlags) registerCC(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.acceptCC, "accept-cc", false, "let the server send a congestion control that runs in this machine's kernel (Linux, root)")
}

// takeCC makes sessions take congestion controls from a server that was
// verified.
func (f *clientFlags) takeCC(t *tool, to target, config *tcpls.Config) {
	if !f.acceptCC {
		return
	}
	if err := bpfcc.Supported(); err != nil {
		t.say("warning: --accept-cc: %s", ccReason(err))
	}
	config.CCHost = new(bpfcc.Host)
	config.AcceptCC = func(*tcpls.Session, tcpls.CCOffer) error {
		if f.insecure && to.pin == nil {
			return errors.New("the server isn't verified")
		}
		return nil
	}
}

// ccReason words why a congestion control isn't used.
func ccReason(err error) string {
	var coded *tcpls.CCError
	if errors.As(err, &coded) {
		return printable(oneLine(coded.Reason, 200))
	}
	return cause(err)
}

// readCC reads the file of --offer-cc.
func readCC(name string) (*tcpls.CCOffer, error) {
	if name == "" {
		return nil, nil
	}
	object, err := os.ReadFile(name)
	if err != nil {
		return nil, &localError{fmt.Errorf("--offer-cc: %w", err)}
	}
	offer, err := bpfcc.Read(object)
	if err != nil {
		return nil, &localError{fmt.Errorf("--offer-cc: %s can't be offered: %s", name, ccReason(err))}
	}
	return &offer, nil
}

// offerCC offers a congestion control in a new session, and says what comes of
// it.
func (t *tool) offerCC(s *tcpls.Session, o tcpls.CCOffer) {
	go t.followCC(s, o)
	switch err := s.OfferCC(s.Context(), o); {
	case err == nil:
		t.say("%s  uses the congestion control %s", s.RemoteAddr(), o.Name)
	case errors.Is(err, tcpls.ErrNoCC), s.Context().Err() != nil:
		return
	default:
		t.say("%s  doesn't use the congestion control %s: %s", s.RemoteAddr(), o.Name, ccReason(err))
	}
}

// followCC says if the client switches back.
func (t *tool) followCC(s *tcpls.Session, o tcpls.CCOffer) {
	for e := range s.Events(s.Context()) {
		if e.Kind == tcpls.EventCCEnded {
			t.say("%s  doesn't use the congestion control %s any more: %s", s.RemoteAddr(), o.Name, ccReason(e.Err))
		}
	}
}

// A ccReport says whether this machine could take a congestion control.
type ccReport struct {
	Supported bool   `json:"supported"`
	Why       string `json:"not_because,omitempty"`
}

func examineCC() *ccReport {
	err := bpfcc.Supported()
	if err == nil {
		return &ccReport{Supported: true}
	}
	return &ccReport{Why: ccReason(err)}
}

func (r *ccReport) String() string {
	if r.Supported {
		return "could take a congestion control (eBPF) from a peer"
	}
	return "can't take a congestion control (eBPF) from a peer: " + r.Why
}
