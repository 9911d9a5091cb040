package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/go-tcpls/tcpls"
)

// clientFlags say whom a client believes and how patient it is.
type clientFlags struct {
	cacert       string
	insecure     bool
	requireTCPLS bool
	timeout      time.Duration
	interfaces   []string
	options      peerOptions
	acceptCC     bool      // of get and put
	paths        pathSpecs // of get and put
	mode         pathMode  // likewise
}

func (f *clientFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.cacert, "cacert", "", "believe only certificates that lead to those in `file` (PEM)")
	flags.BoolVar(&f.insecure, "insecure", false, "believe any certificate; only for tests")
	flags.BoolVar(&f.requireTCPLS, "require-tcpls", false, "refuse servers that speak only plain TLS (exit status 3)")
	flags.DurationVar(&f.timeout, "timeout", 10*time.Second, "how long to wait for a connection, an answer, or the next byte")
	flags.StringArrayVar(&f.interfaces, "interface", nil, "dial from network interface `NAME`; from several, in turn, until one leads to the server; repeatable")
	flags.Var(&f.options, "peer-opt", "ask the server to set a TCP option on its sockets, as user-timeout=30s; repeatable")
}

func (f *clientFlags) dialer(c *tcpls.Config) *tcpls.Dialer {
	return &tcpls.Dialer{Config: c, NetDialer: &net.Dialer{Timeout: f.timeout}, Interfaces: f.interfaces}
}

// idleTimeout ends sessions whose peer has vanished: pings go unanswered.
const idleTimeout = time.Minute

// config returns the settings for sessions with the target.
func (f *clientFlags) config(t *tool, to target, protocols ...string) (*tcpls.Config, error) {
	if f.timeout <= 0 {
		return nil, &usageError{"--timeout must be positive", ""}
	}
	host, _, err := net.SplitHostPort(to.address)
	if err != nil {
		return nil, &usageError{err.Error(), ""}
	}
	conf := &tls.Config{ServerName: host, NextProtos: protocols, KeyLogWriter: t.secret}
	if f.cacert != "" { // its errors are told also where a pin decides
		if conf.RootCAs, err = readRoots(f.cacert); err != nil {
			return nil, err
		}
	}
	switch {
	case to.pin != nil:
		// The pin is the whole verification.
		conf.InsecureSkipVerify = true
		conf.VerifyConnection = to.pin.verify
	case f.insecure:
		t.warnInsecure()
		conf.InsecureSkipVerify = true
	}
	c := &tcpls.Config{TLS: conf, HandshakeTimeout: f.timeout, IdleTimeout: idleTimeout, Mode: tcpls.Mode(f.mode), Logger: t.logger}
	if f.requireTCPLS {
		c.Fallback = tcpls.FallbackRefuse
	}
	f.takeCC(t, to, c)
	return c, nil
}

func (t *tool) warnInsecure() {
	t.insecureOnce.Do(func() { t.say("warning: --insecure: the server may be anyone") })
}

func readRoots(name string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(name)
	if err != nil {
		return nil, &localError{fmt.Errorf("--cacert: %w", err)}
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, &localError{fmt.Errorf("--cacert: %s holds no PEM certificate", name)}
	}
	return roots, nil
}

// A remote is an HTTP server on the other end of a session, or of plain TLS
// connections. Each request has a stream of its own.
type remote struct {
	dialer  *tcpls.Dialer
	paths   *pathKeeper
	http    *http.Client
	timeout time.Duration
}

func (f *clientFlags) remote(t *tool, to target) (*remote, error) {
	config, err := f.config(t, to, "http/1.1")
	if err != nil {
		return nil, err
	}
	config.Logger = t.pathLogger()
	d := f.dialer(config)
	keeper := &pathKeeper{tool: t, specs: f.paths, options: f.options}
	transport := &http.Transport{
		DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := d.DialStream(ctx, network, address)
			if stream, ok := conn.(*tcpls.Stream); ok && err == nil {
				keeper.meet(stream.Session())
			}
			return conn, err
		},
		DisableKeepAlives:     true, // a stream is cheaper than keeping one
		DisableCompression:    true, // digests are of the content as stored
		ExpectContinueTimeout: 2 * time.Second,
		WriteBufferSize:       64 << 10,
	}
	return &remote{
		dialer:  d,
		paths:   keeper,
		timeout: f.timeout,
		http: &http.Client{Transport: transport, CheckRedirect: func(req *http.Request, via []*http.Request) error {
			switch {
			case req.URL.Scheme != "https":
				return fmt.Errorf("the server redirects to %q, which isn't secure", req.URL.Redacted())
			case to.pin != nil && req.URL.Host != via[0].URL.Host:
				return fmt.Errorf("the server redirects to another host, %q, which the pin isn't for", req.URL.Host)
			case len(via) >= 10:
				return fmt.Errorf("the server redirected %d times", len(via))
			}
			return nil
		}},
	}, nil
}

// Close ends the sessions, gracefully.
func (r *remote) Close() error {
	r.http.CloseIdleConnections()
	return r.dialer.Close()
}

// An answer is a response and how it came. Its Body must be closed.
type answer struct {
	*http.Response
	conn net.Conn
}

// do sends a request. It fails when the server is silent for the given time:
// before the answer, and before each next byte of its body.
func (r *remote) do(req *http.Request, patience time.Duration) (*answer, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	dog := &watchdog{patience: patience, ctx: ctx, cancel: cancel}
	// Until there is a connection, dialing has timeouts of its own, which know
	// more of what is wrong.
	dog.timer = time.AfterFunc(3*patience, func() { cancel(&silenceError{patience}) })
	a := new(answer)
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		a.conn = info.Conn
		dog.timer.Reset(patience)
	}}
	req = req.WithContext(httptrace.WithClientTrace(ctx, trace))
	if req.Body != nil && req.Body != http.NoBody {
		req.Body = &watchedUpload{req.Body, dog}
	}
	resp, err := r.http.Do(req)
	dog.timer.Stop()
	if err != nil {
		err = dog.cause(err)
		dog.stop()
		return nil, err
	}
	resp.Body = &watchedDownload{resp.Body, dog}
	a.Response = resp
	return a, nil
}

// isTCPLS reports whether the answer came over TCPLS; if not, why says why.
func (a *answer) isTCPLS() (is bool, why string) {
	s, ok := a.conn.(*tcpls.Stream)
	if !ok {
		return false, ""
	}
	state := s.Session().ConnectionState()
	return state.TCPLS, state.Fallback
}

// how says over what the answer came.
func (a *answer) how() string {
	is, why := a.isTCPLS()
	if is {
		return "TCPLS"
	}
	return "plain TLS: " + why
}

// refusal turns an answer that isn't wanted into an error, with the server's
// first words.
func (a *answer) refusal() error {
	text, _ := io.ReadAll(io.LimitReader(a.Body, 512))
	return &statusError{a.StatusCode, oneLine(string(text), 200)}
}

// A watchdog cancels a request whose peer is silent. It is awake while the
// request waits for the peer, and asleep while the peer waits for us.
type watchdog struct {
	patience time.Duration
	timer    *time.Timer
	ctx      context.Context
	cancel   context.CancelCauseFunc
}

func (d *watchdog) stop() {
	d.timer.Stop()
	d.cancel(context.Canceled)
}

// cause returns why an operation of the request failed.
func (d *watchdog) cause(err error) error {
	if err != nil && err != io.EOF && d.ctx.Err() != nil {
		return context.Cause(d.ctx)
	}
	return err
}

// settlePatience is how long the receiver of an upload may take to store it.
const settlePatience = 2 * time.Minute

// A watchedUpload is a request body: between two reads, the bytes of the
// first are on their way.
type watchedUpload struct {
	io.ReadCloser
	dog *watchdog
}

func (u *watchedUpload) Read(p []byte) (int, error) {
	u.dog.timer.Stop()
	n, err := u.ReadCloser.Read(p)
	if err == nil {
		u.dog.timer.Reset(u.dog.patience)
	} else {
		u.dog.timer.Reset(max(u.dog.patience, settlePatience))
	}
	return n, err
}

// A watchedDownload is a response body.
type watchedDownload struct {
	io.ReadCloser
	dog *watchdog
}

func (d *watchedDownload) Read(p []byte) (int, error) {
	d.dog.timer.Reset(d.dog.patience)
	n, err := d.ReadCloser.Read(p)
	d.dog.timer.Stop()
	return n, d.dog.cause(err)
}

func (d *watchedDownload) Close() error {
	d.dog.stop()
	return d.ReadCloser.Close()
}
