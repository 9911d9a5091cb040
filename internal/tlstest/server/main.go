// Command server is a bare TLS 1.3 server over the module's own engine, for
// outside test suites. It isn't meant for anything else.
package main

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"log"
	"math"
	"net"
	"os"
	"os/signal"

	"github.com/go-tcpls/tcpls/internal/tlstest"
)

const about = `server runs internal/tls13 alone, without TCPLS sessions and without crypto/tls,
so that outside test suites (TLS fuzzers and conformance tools, openssl, GnuTLS,
curl, browsers) can examine the engine itself. It speaks TLS 1.3 only.

Its first line on stdout is the address that it listens on. Each connection ends
with one line on stderr, "closed" or "failed" with the reason; a connection that
ends without close_notify has failed.

usage: server -addr ADDR -cert FILE -key FILE [flags]
`

var clientAuth = map[string]tls.ClientAuthType{
	"none":    tls.NoClientCert,
	"request": tls.RequestClientCert,
	"require": tls.RequireAnyClientCert,
	"verify":  tls.RequireAndVerifyClientCert,
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), about)
		flag.PrintDefaults()
	}
	var s tlstest.Settings
	s.Register(flag.CommandLine, "auto (a small page for GET, otherwise echo), echo (of lines), discard, or source")
	auth := flag.String("client-auth", "none", "client certificate: none, request, require, or verify (against -ca)")
	tickets := flag.Int("tickets", 2, "how `many` session tickets a connection gives out")
	early := flag.Uint("early-data", 0, "how many `bytes` of early data a ticket allows")
	flag.Parse()
	if s.CertFile == "" || s.KeyFile == "" {
		return fmt.Errorf("-cert and -key are needed")
	}
	switch s.Mode {
	case "":
		s.Mode = tlstest.ModeAuto
	case tlstest.ModeAuto, tlstest.ModeEcho, tlstest.ModeDiscard, tlstest.ModeSource:
	default:
		return fmt.Errorf("-mode: there is no %q", s.Mode)
	}
	cfg, done, err := s.Config()
	if err != nil {
		return err
	}
	defer func() {
		if cerr := done(); err == nil {
			err = cerr
		}
	}()
	var ok bool
	if cfg.TLS.ClientAuth, ok = clientAuth[*auth]; !ok {
		return fmt.Errorf("-client-auth: there is no %q", *auth)
	}
	cfg.TLS.SessionTicketsDisabled = *tickets <= 0
	cfg.TicketCount = *tickets
	if *early > math.MaxUint32 {
		return fmt.Errorf("-early-data: %d doesn't fit 32 bits", *early)
	}
	if *early > 0 {
		cfg.MaxEarlyData, cfg.FirstUse = uint32(*early), new(tlstest.Strikes).FirstUse
	}
	l, err := net.Listen("tcp", s.Addr)
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	server := &tlstest.TestServer{
		Config: cfg, Timeout: s.Timeout, Behaviour: s.Behaviour,
		Log: log.New(os.Stderr, "", 0),
	}
	return server.Serve(ctx, l)
}
