// Command client is a bare TLS 1.3 client over the module's own engine, for
// outside test suites. It isn't meant for anything else.
package main

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"math"
	"net"
	"os"
	"os/signal"

	"github.com/go-tcpls/tcpls/internal/tlstest"
)

const about = `client runs internal/tls13 alone, without TCPLS sessions and without crypto/tls,
so that outside test suites (TLS fuzzers and conformance tools, openssl s_server,
GnuTLS) can examine the engine itself. It speaks TLS 1.3 only.

It sends stdin and prints what the server sends to stdout, and the facts of the
handshake to stderr. The exit code is 0 only if the server has ended the
connection by close_notify; 1 after an error, which stderr tells; 2 for an
unknown flag.

usage: client -addr ADDR [flags]
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), about)
		flag.PrintDefaults()
	}
	var s tlstest.Settings
	s.Register(flag.CommandLine, "source, or discard; default: stdin and stdout")
	name := flag.String("name", "", "the server's `name`; default: the host of -addr")
	insecure := flag.Bool("insecure", false, "don't verify the server's certificate")
	path := flag.String("get", "", "send an HTTP/1.0 request for `path` instead of stdin")
	resume := flag.Int("resume", 0, "connect `N` times before, each time for tickets, and resume by them")
	early := flag.Bool("early", false, "with -resume: send the first of stdin or the request as early data, and again if the server refuses it")
	flag.Parse()
	switch s.Mode {
	case "", tlstest.ModeDiscard, tlstest.ModeSource:
	default:
		return fmt.Errorf("-mode: there is no %q", s.Mode)
	}
	host, _, err := net.SplitHostPort(s.Addr)
	if err != nil {
		return fmt.Errorf("-addr: %w", err)
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
	cfg.TLS.ServerName, cfg.TLS.InsecureSkipVerify = *name, *insecure
	if *name == "" {
		cfg.TLS.ServerName = host
	}
	if *resume > 0 {
		cfg.TLS.ClientSessionCache = tls.NewLRUClientSessionCache(0)
	}
	if *early {
		cfg.MaxEarlyData = math.MaxUint32
	}
	client := &tlstest.TestClient{
		Config: cfg, Timeout: s.Timeout, Behaviour: s.Behaviour, Get: *path, Resume: *resume, Early: *early,
		In: os.Stdin, Out: os.Stdout, Log: os.Stderr,
	}
	return client.Run(ctx, s.Addr)
}
