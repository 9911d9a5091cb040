package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/go-tcpls/tcpls"
)

// serveFlags say what is served, where, and to whom.
type serveFlags struct {
	identityFlags
	listen       string
	allowPut     bool
	overwrite    bool
	putLimit     size
	hidden       bool
	requireTCPLS bool
	offerCC      string
}

// Times of the HTTP server.
const (
	headerTimeout = 10 * time.Second // for the header of a request
	drainTimeout  = 10 * time.Second // for transfers, once asked to end
)

func (t *tool) serveCommand() *cobra.Command {
	f := &serveFlags{putLimit: 10 << 30}
	cmd := &cobra.Command{
		Use:   "serve [DIR|FILE]",
		Short: "Share a folder or a file over TCPLS and HTTPS",
		Long: `Share a folder (default: the current one) or a single file.

The first line on standard output is the URL for 'tcpls get'; its pin makes it as
safe as a certificate. Browsers and curl get the same files over plain HTTPS from
the same port. Names that begin with a dot are not served, and no path, nor
symbolic link, leads out of the folder. An interrupt lets transfers end.`,
		Example: "  tcpls serve photos\n  tcpls serve report.pdf --listen 192.0.2.7:443 --cert cert.pem --key key.pem",
		Args:    atMost(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return t.serve(cmd.Context(), f, args) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.listen, "listen", ":4433", "`address` to listen on; port 0 picks a free one")
	f.identityFlags.register(cmd)
	flags.BoolVar(&f.allowPut, "allow-put", false, "accept uploads of new files")
	flags.BoolVar(&f.overwrite, "allow-overwrite", false, "let uploads replace files; needs --allow-put")
	flags.Var(&f.putLimit, "put-limit", "bytes that uploads may bring in this run, all together")
	flags.BoolVar(&f.hidden, "hidden", false, "also serve names that begin with a dot")
	flags.BoolVar(&f.requireTCPLS, "require-tcpls", false, "refuse browsers, curl and other plain TLS clients")
	flags.StringVar(&f.offerCC, "offer-cc", "", "offer clients a congestion control, compiled from eBPF in `file` (ELF), for what they send")
	return cmd
}

func (t *tool) serve(ctx context.Context, f *serveFlags, args []string) error {
	offer, err := readCC(f.offerCC)
	if err != nil {
		return err
	}
	files, err := t.openFiles(f, args)
	if err != nil {
		return err
	}
	defer files.root.Close()
	ln, here, err := t.listen(ctx, f.listen, &f.identityFlags, f.requireTCPLS, "http/1.1")
	if err != nil {
		return err
	}
	defer ln.Close()
	url := here.share("/" + files.only)
	if _, err := fmt.Fprintln(t.out, url); err != nil {
		return &localError{err}
	}
	verb := "list and get the files"
	if files.only != "" {
		verb = "get it"
	}
	t.say("serving %q; %s with: tcpls get '%s'", filepath.Join(files.root.Name(), files.only), verb, url)
	if f.cert == "" {
		t.say("the certificate is made for this run, and the pin with it; --cert and --key keep them")
	}
	t.say("or open https://%s/%s in a browser", here.address, (here.request()).Path[1:])
	server := &http.Server{
		Handler:           files,
		ConnContext:       t.greeter(offer),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(t.logger.Handler(), slog.LevelWarn),
	}
	return t.serveUntil(ctx, server, ln)
}

// openFiles opens the folder that is served.
func (t *tool) openFiles(f *serveFlags, args []string) (*fileServer, error) {
	if f.overwrite && !f.allowPut {
		return nil, &usageError{"--allow-overwrite needs --allow-put", ""}
	}
	dir, only := ".", ""
	if len(args) == 1 {
		dir = args[0]
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, &localError{err}
	}
	if !info.IsDir() {
		dir, only = filepath.Split(filepath.Clean(dir))
		if dir == "" {
			dir = "."
		}
		switch {
		case !info.Mode().IsRegular():
			return nil, &localError{fmt.Errorf("%s is neither a folder nor a file", args[0])}
		case f.allowPut:
			return nil, &usageError{"--allow-put needs a folder, not a file", ""}
		}
		if err := checkName(only); err != nil {
			return nil, &localError{err}
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, &localError{err}
	}
	if only != "" { // else only a client would find out
		f, err := root.Open(only)
		if err != nil {
			root.Close()
			return nil, &localError{err}
		}
		f.Close()
	}
	files := &fileServer{
		root: root, only: only, hidden: f.hidden || only != "", sums: newDigests(), logger: t.logger, say: t.say,
	}
	if f.allowPut {
		files.put = newUploads(f.overwrite, int64(f.putLimit))
	}
	return files, nil
}

// register adds the flags of a certificate.
func (f *identityFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.cert, "cert", "", "certificate `file` (PEM); default: one made for this run")
	cmd.Flags().StringVar(&f.key, "key", "", "its private key `file` (PEM)")
}

// listen opens a listener and tells its target, with the pin of its key.
func (t *tool) listen(ctx context.Context, address string, id *identityFlags, requireTCPLS bool, protocols ...string) (*tcpls.Listener, target, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, target{}, &usageError{fmt.Sprintf("%q isn't an address such as :4433 or 127.0.0.1:0", address), ""}
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		return nil, target{}, &usageError{fmt.Sprintf("%q is no port to listen on; they go from 1 to 65535, and 0 picks a free one", port), ""}
	}
	cert, err := id.load(host)
	if err != nil {
		return nil, target{}, err
	}
	config := &tcpls.Config{
		TLS:    &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: protocols, KeyLogWriter: t.secret},
		Logger: t.logger,
	}
	if requireTCPLS {
		config.Fallback = tcpls.FallbackRefuse
	}
	ln, err := tcpls.Listen("tcp", address, config)
	if err != nil {
		return nil, target{}, err
	}
	p := pinOf(cert.Leaf)
	return ln, target{address: shareAddress(ln.Addr()), path: "/", pin: &p}, nil
}

// serveUntil serves until ctx ends, and then lets transfers end.
func (t *tool) serveUntil(ctx context.Context, server *http.Server, ln *tcpls.Listener) error {
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln.Streams()) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	t.say("ending; transfers have %v", drainTimeout)
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	err := server.Shutdown(drain) // also closes ln
	if sessions := ln.Shutdown(drain); !errors.Is(sessions, net.ErrClosed) {
		err = errors.Join(err, sessions)
	}
	if err != nil {
		server.Close()
		t.say("transfers were cut: %v", err)
	}
	return err
}

type contextKey struct{}

// greeter is greet, which also makes each session an offer.
func (t *tool) greeter(offer *tcpls.CCOffer) func(context.Context, net.Conn) context.Context {
	return func(ctx context.Context, c net.Conn) context.Context {
		ctx = t.greet(ctx, c)
		if s, ok := c.(*tcpls.Stream); ok && offer != nil && s.ID() <= 1 && isTCPLS(ctx) {
			go t.offerCC(s.Session(), *offer)
		}
		return ctx
	}
}

// greet notes what a request comes over, and reports a client's first stream.
func (t *tool) greet(ctx context.Context, c net.Conn) context.Context {
	s, ok := c.(*tcpls.Stream)
	if !ok {
		return ctx
	}
	isTCPLS := s.Session().ConnectionState().TCPLS
	if s.ID() <= 1 {
		state := s.ConnectionState()
		how := "plain " + tls.VersionName(state.Version)
		if isTCPLS {
			how = "TCPLS"
		}
		t.say("%s  connected  %s, %s", c.RemoteAddr(), how, tls.CipherSuiteName(state.CipherSuite))
	}
	return context.WithValue(ctx, contextKey{}, isTCPLS)
}

// isTCPLS reports what greet noted.
func isTCPLS(ctx context.Context) bool {
	is, _ := ctx.Value(contextKey{}).(bool)
	return is
}
