package lab

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/net/ipv4"

	"github.com/go-tcpls/tcpls"
	"github.com/go-tcpls/tcpls/bpfcc"
)

// The rows of Table 1 that are about streams and paths.

const tcpIsItsAddresses = "a TCP connection is its two addresses and ports (RFC 9293, 3.3.1)"

var migration = feature{"connection migration", [4]cell{
	{paper: lacks, mark: lacks, absent: tcpIsItsAddresses},
	{paper: lacks, mark: lacks, absent: tcpIsItsAddresses},
	{paper: has, exercise: quicMigrates},
	{paper: has, exercise: tcplsMigrates},
}}

var appMigration = feature{"application-level migration", [4]cell{
	{paper: lacks, mark: lacks, absent: tcpIsItsAddresses},
	{paper: lacks, mark: lacks, absent: tcpIsItsAddresses},
	{paper: lacks, exercise: quicMigrates, restriction: "by calls of quic-go's client that the paper's time hadn't; the server's application has none"},
	{paper: has, exercise: tcplsMigrates},
}}

func quicMigrates(ctx context.Context, b *bench) (string, error) {
	v, err := b.visit(ctx, overQUIC, b.server(), b.client(), nil)
	if err != nil {
		return "", err
	}
	defer v.Close()
	conn := v.session.(*quicSession).conn
	second, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return "", err
	}
	counted := &countingConn{UDPConn: second, batch: ipv4.NewPacketConn(second)}
	tr := &quic.Transport{Conn: counted}
	defer tr.Close()
	defer second.Close()
	return migrates(v, &counted.read, func() error {
		path, err := conn.AddPath(tr)
		if err != nil {
			return err
		}
		if err := path.Probe(ctx); err != nil {
			return fmt.Errorf("probing the new path: %w", err)
		}
		return path.Switch()
	})
}

// A countingConn is a socket for QUIC that counts what is read from it.
type countingConn struct {
	*net.UDPConn
	batch *ipv4.PacketConn
	read  atomic.Int64
}

// ReadBatch is what quic-go reads by.
func (c *countingConn) ReadBatch(messages []ipv4.Message, flags int) (int, error) {
	n, err := c.batch.ReadBatch(messages, flags)
	for _, m := range messages[:max(n, 0)] {
		c.read.Add(int64(m.N))
	}
	return n, err
}

func tcplsMigrates(ctx context.Context, b *bench) (string, error) {
	var target string
	v, err := b.visit(ctx, overTCPLS, b.server(), b.client(), func(to string) (string, closer, error) {
		target = to
		return to, io.NopCloser(nil), nil
	})
	if err != nil {
		return "", err
	}
	defer v.Close()
	r, counted, err := countingRelay(target, toClient)
	if err != nil {
		return "", err
	}
	defer r.Close()
	return migrates(v, counted, func() error {
		_, err := v.session.(tcplsSession).Migrate(ctx, tcpls.PathSpec{Remote: netip.MustParseAddrPort(r.addr())})
		return err
	})
}

// countingRelay is a relay that counts the bytes of one direction.
func countingRelay(target string, which way) (*tcpRelay, *atomic.Int64, error) {
	r, err := newTCPRelay(target)
	if err != nil {
		return nil, nil, err
	}
	counted := new(atomic.Int64)
	r.watch(func(d way, p []byte) bool {
		if d == which {
			counted.Add(int64(len(p)))
		}
		return true
	})
	return r, counted, nil
}

// migrates downloads and goes another way meanwhile, on which it expects to
// see bytes.
func migrates(v *visit, elsewhere *atomic.Int64, migrate func() error) (string, error) {
	migrated := make(chan error, 1)
	got, begun := 0, false
	err := download(v.stream, 2*cutSize, func(n int) {
		if got += n; got >= cutAfter && !begun {
			begun = true
			go func() { migrated <- migrate() }()
		}
	})
	if err := errors.Join(err, <-migrated); err != nil {
		return "", err
	}
	if elsewhere.Load() < cutAfter {
		return "", fmt.Errorf("only %d bytes went over the new path", elsewhere.Load())
	}
	return fmt.Sprintf("%d MiB arrived whole; %d MiB of them over the path that the application went to in the middle", 2*cutSize>>20, elsewhere.Load()>>20), nil
}

var streams = feature{"streams", [4]cell{
	{paper: lacks, exercise: twoStreams(overTCP)},
	{paper: lacks, exercise: twoStreams(overTLS)},
	{paper: has, exercise: twoStreams(overQUIC)},
	{paper: has, exercise: twoStreams(overTCPLS)},
}}

// twoStreams leaves one stream unread until it is full, and uses another.
func twoStreams(t transport) func(context.Context, *bench) (string, error) {
	return func(ctx context.Context, b *bench) (string, error) {
		v, err := b.visit(ctx, t, b.server(), b.client(), nil)
		if err != nil {
			return "", err
		}
		defer v.Close()
		if _, err := v.stream.Write(request(opBulk, 2*cutSize)); err != nil {
			return "", err
		}
		second, err := v.session.open(ctx)
		if errors.Is(err, errOneStream) {
			return "", lack("%v", err)
		}
		if err != nil {
			return "", err
		}
		if err := second.SetDeadline(deadline(ctx)); err != nil {
			return "", err
		}
		if err := echo(second, "beside the first one"); err != nil {
			return "", err
		}
		return "a second stream of the connection worked while nobody read the first", nil
	}
}

var happyEyeballs = feature{"happy eyeballs", [4]cell{
	{paper: lacks, exercise: eyeballs(overTCP)},
	{paper: lacks, exercise: eyeballs(overTLS)},
	{paper: lacks, mark: lacks, absent: "a QUIC connection is dialed to one address (quic.Transport.Dial)"},
	{paper: has, exercise: eyeballs(overTCPLS)},
}}

// eyeballs dials a name of which the IPv6 address takes connections and then
// says nothing, as some middleboxes make it seem, and IPv4 works.
func eyeballs(t transport) func(context.Context, *bench) (string, error) {
	return func(ctx context.Context, b *bench) (string, error) {
		s, err := b.serve(ctx, t, b.server())
		if err != nil {
			return "", err
		}
		defer s.Close()
		_, port, _ := net.SplitHostPort(s.addr())
		silent, err := net.Listen("tcp", net.JoinHostPort("::1", port)) // the kernel takes its connections
		if err != nil {
			return "", fmt.Errorf("IPv6 on loopback: %w", err)
		}
		defer silent.Close()
		client := b.client()
		client.resolver = resolverOf(netip.IPv6Loopback(), netip.MustParseAddr("127.0.0.1"))
		client.dialer = &tcpls.Dialer{AttemptTimeout: 300 * time.Millisecond}
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		c, err := t.dial(ctx, net.JoinHostPort(serverName, port), client)
		if err == nil {
			err = errors.Join(chat(ctx, c), c.Close())
		}
		if err != nil {
			return "", lack("it stays with the address that took its connection and then said nothing (net.Dialer tries all only until a SYN is answered): %v", err)
		}
		return "the name's IPv6 address took the connection and said nothing; IPv4 was used", nil
	}
}

var explicitMultipath = feature{"explicit multipath", [4]cell{
	{paper: lacks, mark: lacks, absent: "Multipath TCP's paths belong to the kernel's path manager and scheduler"},
	{paper: lacks, mark: lacks, absent: "as TCP"},
	{paper: lacks, mark: lacks, absent: "QUIC version 1 has one path at a time (RFC 9000, 9)"},
	{paper: has, exercise: tcplsTwoPaths},
}}

// tcplsTwoPaths uploads on two streams, on a path each.
func tcplsTwoPaths(ctx context.Context, b *bench) (string, error) {
	s, err := b.serve(ctx, overTCPLS, b.server())
	if err != nil {
		return "", err
	}
	defer s.Close()
	var relays [2]*tcpRelay
	var counted [2]*atomic.Int64
	for i := range relays {
		if relays[i], counted[i], err = countingRelay(s.addr(), toServer); err != nil {
			return "", err
		}
		defer relays[i].Close()
	}
	sess, err := b.client().dialTCPLS(ctx, relays[0].addr())
	if err != nil {
		return "", err
	}
	defer sess.Close()
	if _, err := sess.AddPath(ctx, tcpls.PathSpec{Remote: netip.MustParseAddrPort(relays[1].addr())}); err != nil {
		return "", err
	}
	for _, p := range sess.Paths() {
		st, err := sess.OpenStream(ctx)
		if err != nil {
			return "", err
		}
		if err := st.SetPath(p); err != nil {
			return "", err
		}
		if err := upload(st, featureSize); err != nil {
			return "", err
		}
	}
	for i, n := range counted {
		if got := n.Load(); got < featureSize || got > featureSize*5/4 {
			return "", fmt.Errorf("path %d carried %d bytes of a stream of %d", i, got, featureSize)
		}
	}
	return "the application opened a second path and gave each of two streams one of them, which alone carried it", nil
}

// upload sends content, and has its SHA-256 confirmed.
func upload(s stream, size int64) error {
	if _, err := s.Write(request(opUpload, size)); err != nil {
		return err
	}
	if _, err := io.CopyBuffer(onlyWriter{s}, content(size), make([]byte, 256<<10)); err != nil {
		return err
	}
	var sum [sha256.Size]byte
	if _, err := io.ReadFull(s, sum[:]); err != nil {
		return err
	}
	if sum != contentSum(size) {
		return errDamaged
	}
	return s.CloseWrite()
}

var pluginization = feature{"pluginization", [4]cell{
	{paper: lacks, mark: lacks, absent: "a congestion control is the kernel's, chosen by its name"},
	{paper: lacks, mark: lacks, absent: "as TCP"},
	{paper: lacks, mark: lacks, absent: "quic-go has one congestion control and no plugins"},
	{paper: partly, exercise: tcplsPlugin, restriction: "what the peer can send are congestion controls, for Linux, where the application takes them"},
}}

// tcplsPlugin sends the client a congestion control where its kernel can take
// one, and else lets the application's own path manager open a path.
func tcplsPlugin(ctx context.Context, b *bench) (string, error) {
	if bpfcc.Supported() != nil {
		return ownPathManager(ctx, b)
	}
	server, client := b.server(), b.client()
	client.tcpls.CCHost = new(bpfcc.Host)
	l, err := server.listenTCPLS(ctx, "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	sess, err := client.dialTCPLS(ctx, l.Addr().String())
	if err != nil {
		return "", err
	}
	defer sess.Close()
	peer, err := l.Accept(ctx)
	if err != nil {
		return "", err
	}
	if err := peer.OfferCC(ctx, bpfcc.Bandwidth()); err != nil {
		return "", err
	}
	return "the server sent a congestion control, eBPF, which the client's kernel loaded and used from then on", nil
}

func ownPathManager(ctx context.Context, b *bench) (string, error) {
	client := b.client()
	joined := make(chan error, 1)
	client.tcpls.PathManager = tcpls.PathManagerFunc(func(ctx context.Context, s *tcpls.Session) error {
		_, err := s.AddPath(ctx, tcpls.PathSpec{Backup: true})
		joined <- err
		return err
	})
	v, err := b.visit(ctx, overTCPLS, b.server(), client, nil)
	if err != nil {
		return "", err
	}
	defer v.Close()
	select {
	case err = <-joined:
	case <-ctx.Done():
		err = ctx.Err()
	}
	return "the application's own path manager opened a path", err
}

var headOfLine = feature{"resilience to head-of-line blocking", [4]cell{
	{paper: lacks, mark: lacks, absent: "one stream a connection"},
	{paper: lacks, mark: lacks, absent: "one stream a connection"},
	{paper: has, exercise: quicHeadOfLine},
	{paper: partly, exercise: tcplsHeadOfLine, restriction: "by streams on paths of their own; streams on one path share its TCP connection"},
}}

// quicHeadOfLine loses what the first stream sends once, and looks whether the
// second one waits for it.
func quicHeadOfLine(ctx context.Context, b *bench) (string, error) {
	var between relay
	v, err := b.visit(ctx, overQUIC, b.server(), b.client(), relayOf(overQUIC, func(r relay) { between = r }))
	if err != nil {
		return "", err
	}
	defer v.Close()
	second, err := v.session.open(ctx)
	if err != nil {
		return "", err
	}
	if err := errors.Join(second.SetDeadline(deadline(ctx)), greet(v.stream), greet(second)); err != nil {
		return "", err
	}
	// The first stream's next message is lost for as long as the second one's
	// hasn't been echoed. Their lengths tell the datagrams apart.
	const long = 900
	var lost atomic.Int64
	passing := new(atomic.Bool)
	between.watch(func(d way, p []byte) bool {
		if d == toServer && len(p) > long && !passing.Load() {
			lost.Add(1)
			return false
		}
		return true
	})
	if _, err := v.stream.Write(make([]byte, long)); err != nil {
		return "", err
	}
	for lost.Load() == 0 {
		if ctx.Err() != nil {
			return "", errors.New("the box lost nothing")
		}
		time.Sleep(time.Millisecond)
	}
	if _, err := second.Write([]byte("hello")); err != nil {
		return "", err
	}
	if _, err := io.ReadFull(second, make([]byte, 5)); err != nil {
		return "", lack("a stream waited for what another had lost: %v", err)
	}
	passing.Store(true)
	if _, err := io.ReadFull(v.stream, make([]byte, long)); err != nil {
		return "", err
	}
	return "a stream was answered while what another had sent was lost", nil
}

// greet opens an echoing stream and waits for its first answer.
func greet(s stream) error { return echo(s, "hi") }

// tcplsHeadOfLine stalls the path of one of two streams.
func tcplsHeadOfLine(ctx context.Context, b *bench) (string, error) {
	s, err := b.serve(ctx, overTCPLS, b.server())
	if err != nil {
		return "", err
	}
	defer s.Close()
	r, err := newTCPRelay(s.addr())
	if err != nil {
		return "", err
	}
	defer r.Close()
	client := b.client()
	client.tcpls.PathTimeout = exerciseTime // or the stalled stream would just move
	sess, err := client.dialTCPLS(ctx, r.addr())
	if err != nil {
		return "", err
	}
	defer sess.Close()
	if _, err := sess.AddPath(ctx, tcpls.PathSpec{Remote: netip.MustParseAddrPort(s.addr())}); err != nil {
		return "", err
	}
	var both [2]*tcpls.Stream
	for i, p := range sess.Paths() {
		if both[i], err = sess.OpenStream(ctx); err != nil {
			return "", err
		}
		if err := errors.Join(both[i].SetPath(p), both[i].SetDeadline(deadline(ctx)), greet(both[i])); err != nil {
			return "", err
		}
	}
	r.stall(true)
	if _, err := both[0].Write([]byte("stalled")); err != nil {
		return "", err
	}
	for i := range 100 {
		text := strconv.Itoa(i)
		if _, err := both[1].Write([]byte(text)); err != nil {
			return "", err
		}
		if _, err := io.ReadFull(both[1], make([]byte, len(text))); err != nil {
			return "", lack("a stream waited for another's path: %v", err)
		}
	}
	r.stall(false)
	if _, err := io.ReadFull(both[0], make([]byte, len("stalled"))); err != nil {
		return "", err
	}
	return "a stream was answered 100 times while another's path was stalled", nil
}
