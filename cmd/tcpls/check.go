package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptrace"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/go-tcpls/tcpls"
)

func (t *tool) checkCommand() *cobra.Command {
	f := new(clientFlags)
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check HOST[:PORT]",
		Short: "Say in words what a server speaks",
		Long: `Make one session with a server (default port 443) and say what came out: TCPLS or
not, TLS version, cipher suite, key exchange, certificate, ALPN, TCP options that it
sets if it is asked to, timings, what the network did to the connection, and what was
refused and why.`,
		Example: "  tcpls check example.com\n  tcpls check 'tcpls://192.0.2.7:4433/?pin=sha256:5f0c...' --json",
		Args:    atLeast(1, "HOST or HOST:PORT is needed"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := atMost(1)(cmd, args); err != nil {
				return err
			}
			return t.check(cmd.Context(), f, args[0], asJSON)
		},
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func (t *tool) check(ctx context.Context, f *clientFlags, peer string, asJSON bool) error {
	to, err := parsePeer(peer)
	if err != nil {
		return err
	}
	r := &report{Address: to.address, Refused: []string{}, Machine: examineCC()}
	err = t.examine(ctx, f, to, r)
	switch {
	case err != nil:
	case r.bad != nil:
		err = r.bad
	case f.requireTCPLS && !r.TCPLS:
		err = tcpls.ErrNotTCPLS
	}
	if err != nil {
		failed := explain(ctx, err)
		if failed.status == exitUsage {
			return err
		}
		r.Error, r.Hint, r.Exit = failed.text, failed.hint, failed.status
	}
	if asJSON {
		e := json.NewEncoder(t.out)
		e.SetIndent("", "  ")
		if err := e.Encode(r); err != nil {
			return &localError{err}
		}
	} else if err := r.print(t.out); err != nil {
		return &localError{err}
	}
	return err
}

// examine makes a session and fills in the report.
func (t *tool) examine(ctx context.Context, f *clientFlags, to target, r *report) error {
	config, err := f.config(t, to, "h2", "http/1.1")
	if err != nil {
		return err
	}
	// A bad certificate is a finding, not the end.
	roots := config.TLS.RootCAs
	config.TLS.InsecureSkipVerify = true
	config.TLS.VerifyConnection = func(state tls.ConnectionState) error {
		r.bad = r.judge(state, f, to, roots)
		return nil
	}
	config.Fallback = tcpls.FallbackAllow
	d := f.dialer(config)
	watch := new(stopwatch)
	session, err := d.Dial(watch.trace(ctx), "tcp", to.address)
	now := time.Now()
	watch.mu.Lock()
	r.Peer, r.Timings = watch.peer, watch.timings
	connected := watch.connected
	watch.mu.Unlock()
	if err != nil {
		return err
	}
	defer session.Close()
	r.Timings.Handshake = milliseconds(now.Sub(connected))
	r.fill(session.ConnectionState())
	if r.TCPLS {
		ctx, cancel := context.WithTimeout(ctx, f.timeout)
		defer cancel()
		rtt, err := session.Ping(ctx)
		if err != nil {
			return fmt.Errorf("ping: %w", err)
		}
		r.Timings.Ping = milliseconds(rtt)
		r.inspect(ctx, session)
		if r.Takes, r.TakesNot, err = tryOptions(ctx, session); err != nil {
			return fmt.Errorf("TCP options: %w", err)
		}
		if r.Options, err = f.options.ask(ctx, session); err != nil {
			return fmt.Errorf("--peer-opt: %w", err)
		}
		return nil
	}
	for _, o := range f.options {
		r.Options = append(r.Options, peerOption{Asked: o, Reason: overPlainTLS})
	}
	return nil
}

// inspect asks what the network did to the connection. What can't be known is
// no failure.
func (r *report) inspect(ctx context.Context, session *tcpls.Session) {
	paths := session.Paths()
	if len(paths) == 0 {
		return
	}
	r.Path = &network{Changes: []string{}}
	found, err := paths[0].Inspect(ctx)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		r.Path.Unknown = "this system or the server can't tell"
	case err != nil:
		r.Path.Unknown = err.Error()
	default:
		r.Path.fill(found)
	}
}

// A stopwatch times name resolution and connecting, as package net reports
// them to httptrace. Addresses may be tried at the same time.
type stopwatch struct {
	mu        sync.Mutex
	timings   timings
	peer      string
	connected time.Time // the last time
}

func (s *stopwatch) trace(ctx context.Context) context.Context {
	var resolving time.Time
	connecting := make(map[string]time.Time)
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		DNSStart: func(httptrace.DNSStartInfo) {
			s.mu.Lock()
			defer s.mu.Unlock()
			resolving = time.Now()
		},
		DNSDone: func(httptrace.DNSDoneInfo) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.timings.Resolve = milliseconds(time.Since(resolving))
		},
		ConnectStart: func(_, address string) {
			s.mu.Lock()
			defer s.mu.Unlock()
			connecting[address] = time.Now()
		},
		ConnectDone: func(_, address string, err error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if err == nil {
				s.peer, s.connected = address, time.Now()
				s.timings.Connect = milliseconds(s.connected.Sub(connecting[address]))
			}
		},
	})
}
