package main

import (
	"crypto/tls"
	"errors"
	"runtime"
	"slices"
	"testing"

	"github.com/go-tcpls/tcpls"
)

// What a server would set is what its policy takes, not what its system can do.
func TestTryOptions(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("TCP options can be set on Linux only")
	}
	cert, _, _, err := newTestCertificate(0, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	l, err := tcpls.Listen("tcp", "127.0.0.1:0", &tcpls.Config{
		TLS: &tls.Config{Certificates: []tls.Certificate{cert}},
		AcceptTCPOption: func(o tcpls.TCPOption) (tcpls.TCPOption, error) {
			if o.Kind == tcpls.KindCongestion || o.Kind == tcpls.KindDSCP {
				return o, errors.New("not here")
			}
			return tcpls.LimitTCPOption(o)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if s, err := l.Accept(t.Context()); err == nil {
			<-s.Context().Done()
		}
	}()
	s, err := tcpls.Dial(t.Context(), "tcp", l.Addr().String(), &tcpls.Config{TLS: &tls.Config{InsecureSkipVerify: true}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	taken, refused, err := tryOptions(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"user-timeout", "keepalive", "notsent-lowat", "max-pacing-rate", "window-clamp"}; !slices.Equal(taken, want) {
		t.Errorf("the server takes %v, want %v", taken, want)
	}
	var lines []string
	for _, r := range refused {
		lines = append(lines, r.String())
	}
	if want := []string{"congestion=reno is not set: refused by policy", "dscp=0 is not set: refused by policy"}; !slices.Equal(lines, want) {
		t.Errorf("of the others it is said %q, want %q", lines, want)
	}
	if got, want := len(trials), len(s.PeerTCPOptionKinds()); got != want {
		t.Errorf("%d of %d kinds are tried", got, want)
	}
}
