package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/go-tcpls/tcpls"
	"github.com/go-tcpls/tcpls/internal/linkemu"
)

// sampleInterval is how often the demo looks at its links, and the width of a
// bin of goodput.
const sampleInterval = 100 * time.Millisecond

// A demo is one run: two servers, the links in front of them, their clients.
type demo struct {
	*tool
	flags   *demoFlags
	content *content

	links      [2]*demoLink
	client     *tcpls.Session
	server     *tcpls.Session
	tcpls, tls *transfer
	began      time.Time
	migrated   time.Duration // 0: not yet
	touched    bool          // somebody has pressed a key

	mu      sync.Mutex
	closers []io.Closer
	notes   []note
}

// A demoLink is a link as both transfers see it: each has one of its own of
// the same kind. TLS has none on link 2.
type demoLink struct {
	name  string
	shape linkemu.Shape
	tcpls *linkemu.Link
	tls   *linkemu.Link // or nil

	passed  int64   // bytes of TCPLS so far
	samples []int64 // of TCPLS, those that passed in each interval
	changes []change
}

// A change is a link's new condition.
type change struct {
	at time.Duration
	to linkemu.Condition
}

func (l *demoLink) condition() linkemu.Condition { return l.tcpls.Condition() }

// A note is something that happened.
type note struct {
	at   time.Duration
	text string
}

// note keeps what happened, for the view and the report.
func (d *demo) note(at time.Duration, format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.notes = append(d.notes, note{at, fmt.Sprintf(format, args...)})
}

// notesFrom returns the notes but for the first n.
func (d *demo) notesFrom(n int) []note {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.notes[n:len(d.notes):len(d.notes)]
}

func (d *demo) keep(c io.Closer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closers = append(d.closers, c)
}

// close ends what was opened, the last first. It may be called again.
func (d *demo) close() {
	d.mu.Lock()
	closers := d.closers
	d.closers = nil
	d.mu.Unlock()
	for i := len(closers) - 1; i >= 0; i-- {
		if err := closers[i].Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			d.logger.Debug("closing", "err", err)
		}
	}
}

// open connects everything and leaves both transfers ready to start.
func (d *demo) open(ctx context.Context) error {
	cert, err := selfSigned([]string{"127.0.0.1"})
	if err != nil {
		return err
	}
	ln, err := tcpls.Listen("tcp", "127.0.0.1:0", &tcpls.Config{TLS: d.serverConfig(cert), CloseTimeout: closing, Logger: d.pathLogger()})
	if err != nil {
		return err
	}
	d.keep(ln)
	var listen net.ListenConfig
	listen.SetMultipathTCP(false)
	plain, err := listen.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	d.keep(plain)
	for i, shape := range d.flags.links {
		l := &demoLink{name: fmt.Sprintf("link %d", i+1), shape: shape}
		if l.tcpls, err = d.link(ln.Addr(), shape); err != nil {
			return err
		}
		if i == 0 {
			if l.tls, err = d.link(plain.Addr(), shape); err != nil {
				return err
			}
		}
		d.links[i] = l
	}
	if err := d.openTCPLS(ctx, ln, cert); err != nil {
		return fmt.Errorf("TCPLS: %w", err)
	}
	if err := d.openTLS(ctx, plain, cert); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	return nil
}

// closing is how long sessions may take to end.
const closing = time.Second

// link opens an emulated link; what clients send needs little of it.
func (d *demo) link(to net.Addr, shape linkemu.Shape) (*linkemu.Link, error) {
	l, err := linkemu.New(to.String(), shape, shape)
	if err == nil {
		d.keep(l)
	}
	return l, err
}

func (d *demo) serverConfig(cert tls.Certificate) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{cert}, KeyLogWriter: d.secret}
}

// clientConfig believes the demo's certificate by its pin.
func (d *demo) clientConfig(cert tls.Certificate) *tls.Config {
	return &tls.Config{
		ServerName:         "127.0.0.1",
		InsecureSkipVerify: true, // VerifyConnection does it
		VerifyConnection:   pinOf(cert.Leaf).verify,
		MinVersion:         tls.VersionTLS13,
		KeyLogWriter:       d.secret,
	}
}

// hello is what the clients say first: it makes a stream known to the server.
var hello = []byte("hello\n")

// openTCPLS opens a session over link 1, its stream, and, except for a
// migration, a path over link 2.
func (d *demo) openTCPLS(ctx context.Context, ln *tcpls.Listener, cert tls.Certificate) error {
	use := tcpls.ModeFailover
	if d.flags.mode == modeAggregate {
		use = tcpls.ModeAggregate
	}
	var err error
	d.client, err = tcpls.Dial(ctx, "tcp", d.links[0].tcpls.Addr().String(), &tcpls.Config{
		TLS: d.clientConfig(cert), Fallback: tcpls.FallbackRefuse, Mode: use, CloseTimeout: closing, Logger: d.pathLogger(),
	})
	if err != nil {
		return err
	}
	d.keep(d.client)
	if d.server, err = ln.Accept(ctx); err != nil {
		return err
	}
	d.keep(d.server)
	to, err := d.client.OpenStream(ctx)
	if err != nil {
		return err
	}
	if _, err := to.Write(hello); err != nil {
		return err
	}
	from, err := d.server.AcceptStream(ctx)
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(from, make([]byte, len(hello))); err != nil {
		return err
	}
	d.tcpls = newTransfer("TCPLS", d.content, from, to)
	if d.flags.mode != modeMigrate {
		if _, err := d.client.Ping(ctx); err != nil { // behind it the server's tokens have come
			return err
		}
		_, err = d.client.AddPath(ctx, d.specOf(1))
	}
	return err
}

// specOf says where a path over a link goes.
func (d *demo) specOf(link int) tcpls.PathSpec {
	return tcpls.PathSpec{Remote: d.links[link].tcpls.Addr().AddrPort()}
}

func (d *demo) openTLS(ctx context.Context, ln net.Listener, cert tls.Certificate) error {
	type accepted struct {
		conn *tls.Conn
		err  error
	}
	serverc := make(chan accepted, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			serverc <- accepted{err: err}
			return
		}
		d.keep(conn)
		server := tls.Server(conn, d.serverConfig(cert))
		_, err = io.ReadFull(server, make([]byte, len(hello)))
		serverc <- accepted{server, err}
	}()
	dialer := tls.Dialer{NetDialer: new(net.Dialer), Config: d.clientConfig(cert)}
	to, err := dialer.DialContext(ctx, "tcp", d.links[0].tls.Addr().String())
	if err != nil {
		return err
	}
	d.keep(to)
	if _, err := to.Write(hello); err != nil {
		return err
	}
	select {
	case server := <-serverc:
		d.tls = newTransfer("plain TLS", d.content, server.conn, to)
		return server.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// start lets both transfers run.
func (d *demo) start(ctx context.Context) {
	d.began = time.Now()
	for end, session := range map[string]*tcpls.Session{"client": d.client, "server": d.server} {
		go d.observe(ctx, end, session)
	}
	for _, t := range []*transfer{d.tcpls, d.tls} {
		t.start(d.began)
	}
}

// observe notes what happens to the paths of one end.
func (d *demo) observe(ctx context.Context, end string, s *tcpls.Session) {
	for e := range s.Events(ctx) {
		if text := eventText(e); text != "" {
			d.note(time.Since(d.began), "%s  %s", end, text)
		}
	}
}

// setLink cuts or restores a link. Paths that were reset on it are joined anew
// once it is back.
func (d *demo) setLink(ctx context.Context, i int, to linkemu.Condition) {
	l := d.links[i]
	l.tcpls.Set(to)
	if l.tls != nil {
		l.tls.Set(to)
	}
	now := time.Since(d.began)
	l.changes = append(l.changes, change{now, to})
	d.note(now, "%s  %s", l.name, conditionWords[to])
	if to == linkemu.Up && !d.hasPath(i) && d.flags.mode != modeMigrate {
		go d.addPath(ctx, i)
	}
}

var conditionWords = map[linkemu.Condition]string{
	linkemu.Up: "restored", linkemu.Blackhole: "cut: a silent blackhole", linkemu.Reset: "cut: connections reset",
	linkemu.Closed: "cut: connections closed",
}

// hasPath reports whether the client has a path over a link.
func (d *demo) hasPath(link int) bool {
	return slices.ContainsFunc(d.client.Paths(), func(p *tcpls.Path) bool { return d.linkOf(p) == link })
}

// linkOf returns the link that the client's path runs over.
func (d *demo) linkOf(p *tcpls.Path) int {
	return slices.IndexFunc(d.links[:], func(l *demoLink) bool { return l.tcpls.Addr().String() == p.RemoteAddr().String() })
}

func (d *demo) addPath(ctx context.Context, link int) {
	if _, err := d.client.AddPath(ctx, d.specOf(link)); err != nil && ctx.Err() == nil {
		d.note(time.Since(d.began), "client  no path over link %d: %v", link+1, err)
	}
}

// migrate moves the session to link 2.
func (d *demo) migrate(ctx context.Context) {
	d.migrated = time.Since(d.began)
	d.note(d.migrated, "client  migrates to link 2")
	go func() {
		if _, err := d.client.Migrate(ctx, d.specOf(1)); err != nil && ctx.Err() == nil {
			d.note(time.Since(d.began), "client  migrating: %v", err)
		}
	}()
}

// sample notes what has passed over the links since the last time.
func (d *demo) sample(now time.Duration) {
	for _, l := range d.links {
		down, _ := l.tcpls.Delivered()
		i := int(now / sampleInterval)
		for len(l.samples) <= i {
			l.samples = append(l.samples, 0)
		}
		l.samples[i] += down - l.passed
		l.passed = down
	}
}
