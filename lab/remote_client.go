package lab

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/go-tcpls/tcpls"
)

// A client in a process of its own on its host, which so sees the host's
// addresses and links go. It downloads, and tells on standard output what
// arrives.

const remoteName = "client"

func init() { Register(remoteName, remoteMain) }

// A remoteOrder says what the client is to do.
type remoteOrder struct {
	Transport  string
	Address    string
	Root       []byte // certificate of the server, DER
	Congestion string
	Size       int64
	Resolve    []netip.Addr // what every name leads to

	// TCPLS
	Keep        string         // how it keeps further paths: keepStandby, keepBoth or keepNone
	Second      netip.AddrPort // address of the server for the second path of keepBoth
	PathTimeout time.Duration

	// For those that can't survive: after how much silence the application
	// begins anew, at the next address, with what is missing.
	Retry     time.Duration
	Addresses []string
}

// A remoteReport is one line of what it tells.
type remoteReport struct {
	At    time.Time
	Total int64  `json:",omitempty"`
	Event string `json:",omitempty"`
	Dials bool   `json:",omitempty"`
	Done  bool   `json:",omitempty"`
	Error string `json:",omitempty"`
}

// How a client keeps paths besides the one in use.
const (
	keepNone    = ""        // it joins anew when it has lost its path
	keepStandby = "standby" // tcpls.StandbyPaths keeps one ready
	keepBoth    = "both"    // the stream uses two at once
)

// reportEvery is how close the reports of arrivals may be.
const reportEvery = 2 * time.Millisecond

func remoteMain(args []string) error {
	var order remoteOrder
	if len(args) != 1 {
		return errors.New("one argument is needed, an order")
	}
	if err := json.Unmarshal([]byte(args[0]), &order); err != nil {
		return err
	}
	reports := make(chan remoteReport, 1<<10)
	written := make(chan error)
	go func() {
		enc := json.NewEncoder(os.Stdout)
		var err error
		for r := range reports {
			err = errors.Join(err, enc.Encode(r))
		}
		written <- err
	}()
	c := &remoteClient{remoteOrder: order, tell: func(r remoteReport) {
		r.At = time.Now()
		reports <- r
	}}
	end := remoteReport{Done: true}
	if err := c.run(context.Background()); err != nil {
		end.Error = err.Error()
	}
	c.tell(end)
	close(reports)
	return <-written
}

type remoteClient struct {
	remoteOrder
	tell  func(remoteReport)
	total int64
	told  time.Time
}

func (c *remoteClient) arrived(n int) {
	c.total += int64(n)
	if now := time.Now(); now.Sub(c.told) >= reportEvery || c.total == c.Size {
		c.told = now
		c.tell(remoteReport{Total: c.total})
	}
}

func (c *remoteClient) endpoint() (endpoint, error) {
	root, err := x509.ParseCertificate(c.Root)
	if err != nil {
		return endpoint{}, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	e := endpoint{
		tls:        &tls.Config{RootCAs: pool, ServerName: serverName, MinVersion: tls.VersionTLS13},
		congestion: c.Congestion,
	}
	e.tcpls.PathTimeout = c.PathTimeout
	if len(c.Resolve) > 0 {
		e.resolver = resolverOf(c.Resolve...)
	}
	return e, nil
}

func (c *remoteClient) run(ctx context.Context) error {
	e, err := c.endpoint()
	if err != nil {
		return err
	}
	t, err := transportNamed(c.Transport)
	if err != nil {
		return err
	}
	c.tell(remoteReport{Dials: true})
	switch {
	case t.name == overTCPLS.name:
		return c.overTCPLS(ctx, e)
	case c.Retry > 0:
		return c.retrying(ctx, e, t)
	}
	sess, err := t.dial(ctx, c.Address, e)
	if err != nil {
		return err
	}
	defer sess.Close()
	st, err := sess.open(ctx)
	if err != nil {
		return err
	}
	return download(st, c.Size, c.arrived)
}

func (c *remoteClient) overTCPLS(ctx context.Context, e endpoint) error {
	joined := make(chan struct{}, 1)
	e.tcpls.Hooks = &tcpls.Hooks{PathJoined: func(*tcpls.Session, *tcpls.Path) {
		select {
		case joined <- struct{}{}:
		default:
		}
	}}
	switch c.Keep {
	case keepStandby:
		e.tcpls.PathManager = tcpls.StandbyPaths(1)
	case keepBoth:
		e.tcpls.Mode = tcpls.ModeAggregate
	}
	sess, err := e.dialTCPLS(ctx, c.Address)
	if err != nil {
		return err
	}
	defer sess.Close()
	watching, stop := context.WithCancel(ctx)
	defer stop()
	events := sess.Events(watching)
	go func() {
		for e := range events {
			text := e.Kind.String()
			if e.Path != nil {
				text = fmt.Sprintf("path %d: %s", e.Path.ID(), text)
			}
			if e.Err != nil {
				text += ": " + e.Err.Error()
			}
			c.tell(remoteReport{Event: text})
		}
	}()
	if c.Keep == keepBoth {
		if _, err := sess.AddPath(ctx, tcpls.PathSpec{Remote: c.Second}); err != nil {
			return err
		}
	}
	if c.Keep != keepNone {
		select {
		case <-joined:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	st, err := sess.OpenStream(ctx)
	if err != nil {
		return err
	}
	return download(st, c.Size, c.arrived)
}

// retrying is an application that knows how to go on with another connection.
func (c *remoteClient) retrying(ctx context.Context, e endpoint, t transport) error {
	sum := newDigest()
	for try := 0; ; try++ {
		err := c.rest(ctx, e, t, c.Addresses[try%len(c.Addresses)], sum)
		if err == nil {
			break
		}
		if try == 100 {
			return fmt.Errorf("after %d connections: %w", try, err)
		}
		c.tell(remoteReport{Event: "begins anew: " + err.Error()})
	}
	if sum.sum() != contentSum(c.Size) {
		return errDamaged
	}
	return nil
}

// rest asks for what is missing.
func (c *remoteClient) rest(ctx context.Context, e endpoint, t transport, address string, sum *digest) error {
	ctx, cancel := context.WithTimeout(ctx, c.Retry)
	defer cancel()
	sess, err := t.dial(ctx, address, e)
	if err != nil {
		return err
	}
	defer sess.Close()
	st, err := sess.open(ctx)
	if err != nil {
		return err
	}
	if err := st.SetDeadline(time.Now().Add(c.Retry)); err != nil {
		return err
	}
	if _, err := st.Write(requestFrom(opDownload, c.Size-sum.n, sum.n)); err != nil {
		return err
	}
	return receive(st, c.Size-sum.n, sum, func(n int) {
		_ = st.SetDeadline(time.Now().Add(c.Retry)) // fails for what Read will tell
		c.arrived(n)
	})
}

// A remote is the client as seen from here.
type remote struct {
	*arrivals
	cmd    *exec.Cmd
	stderr strings.Builder
	done   chan struct{}

	// To be read when it has ended.
	dialed time.Duration // when it began
	events []string
	err    error
}

// startRemote starts the client on the network's host "client". It is killed with ctx.
func (b *bench) startRemote(ctx context.Context, order remoteOrder) (*remote, error) {
	order.Root = b.serverTLS.Certificates[0].Certificate[0]
	arg, err := json.Marshal(order)
	if err != nil {
		return nil, err
	}
	r := &remote{arrivals: newArrivals(), done: make(chan struct{})}
	r.cmd = b.net.Host("client").Program(ctx, remoteName, string(arg))
	r.cmd.Stderr = &r.stderr
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(r.done)
		defer r.end()
		r.err = errors.New("the client ended without a word")
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			r.take(lines.Bytes())
		}
		if err := r.cmd.Wait(); err != nil {
			r.err = fmt.Errorf("the client: %w: %s", err, r.stderr.String())
		}
	}()
	return r, nil
}

func (r *remote) take(line []byte) {
	var report remoteReport
	if err := json.Unmarshal(line, &report); err != nil {
		r.err = err
		return
	}
	switch {
	case report.Done && report.Error != "":
		r.err = errors.New(report.Error)
	case report.Done:
		r.err = nil
	case report.Dials:
		r.dialed = report.At.Sub(r.began)
	case report.Event != "":
		r.events = append(r.events, fmt.Sprintf("%.3f s  %s", report.At.Sub(r.began).Seconds(), report.Event))
	default:
		r.put(report.At, report.Total)
	}
}

// finish waits for the client's end.
func (r *remote) finish() error {
	<-r.done
	return r.err
}
