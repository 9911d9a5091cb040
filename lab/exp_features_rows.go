package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/go-tcpls/tcpls"
)

// The rows of Table 1 that are about one connection. What a box does to a
// transfer, it does when cutAfter bytes have arrived; cutSize is more than
// the buffers on the way hold.
const (
	cutAfter = 1 << 20
	cutSize  = 32 << 20
)

var reliability = feature{"transport reliability", [4]cell{
	{paper: has, exercise: reliable(overTCP)},
	{paper: has, exercise: reliable(overTLS)},
	{paper: has, exercise: reliable(overQUIC)},
	{paper: has, exercise: reliable(overTCPLS)},
}}

// reliable downloads over a link that loses packets, if there is one.
func reliable(t transport) func(context.Context, *bench) (string, error) {
	return func(ctx context.Context, b *bench) (string, error) {
		how := "over loopback; without root there is no link that loses packets"
		size := int64(featureSize)
		if b.lossy != nil {
			b, size, how = b.lossy, 1<<20, "over a link that lost 2 % of the packets"
		}
		v, err := b.visit(ctx, t, b.server(), b.client(), nil)
		if err != nil {
			return "", err
		}
		defer v.Close()
		if err := download(v.stream, size, nil); err != nil {
			return "", err
		}
		return fmt.Sprintf("%d MiB arrived whole, by their SHA-256, %s", size>>20, how), nil
	}
}

var confidentiality = feature{"confidentiality and authentication", [4]cell{
	{paper: lacks, exercise: confidential(overTCP)},
	{paper: has, exercise: confidential(overTLS)},
	{paper: has, exercise: confidential(overQUIC)},
	{paper: has, exercise: confidential(overTCPLS)},
}}

// confidential lets a box look for the text and change one bit of it.
func confidential(t transport) func(context.Context, *bench) (string, error) {
	return func(ctx context.Context, b *bench) (string, error) {
		text := make([]byte, 32)
		if _, err := io.ReadFull(content(32), text); err != nil {
			return "", err
		}
		var seen, changed atomic.Bool
		passed := 0
		look := func(d way, p []byte) bool {
			if d == toServer {
				return true
			}
			passed += len(p)
			if bytes.Contains(p, text) {
				seen.Store(true)
			}
			if passed > cutAfter && !changed.Swap(true) {
				p[len(p)/2] ^= 1
			}
			return true
		}
		v, err := b.visit(ctx, t, b.server(), b.client(), relayOf(t, func(r relay) { r.watch(look) }))
		if err != nil {
			return "", err
		}
		defer v.Close()
		err = download(v.stream, featureSize, nil)
		switch {
		case !changed.Load():
			return "", errors.New("the box changed nothing")
		case seen.Load() && errors.Is(err, errDamaged):
			return "", lack("a box on the path read the text, and changed a bit of it unnoticed")
		case seen.Load() || errors.Is(err, errDamaged):
			return "", fmt.Errorf("read: %v; changed: %w", seen.Load(), err)
		case err != nil:
			return "a box on the path saw no text; a changed bit ended the connection: " + err.Error(), nil
		}
		return "a box on the path saw no text; a changed bit did no harm to the transfer", nil
	}
}

var connectionReliability = feature{"connection reliability", [4]cell{
	{paper: lacks, exercise: survives(overTCP)},
	{paper: lacks, exercise: survives(overTLS)},
	{paper: has, exercise: survives(overQUIC)},
	{paper: partly, exercise: survives(overTCPLS)},
}}

// survives breaks what carries the transfer: a TCP connection is reset, a UDP
// flow is forgotten by its NAT.
func survives(t transport) func(context.Context, *bench) (string, error) {
	return func(ctx context.Context, b *bench) (string, error) {
		cut := "a reset"
		if t.name == overQUIC.name {
			cut = "a NAT that forgot the flow"
		}
		err := b.interrupted(ctx, t, func(r relay) error { return r.cut() })
		switch {
		case errors.Is(err, errDamaged):
			return "", err
		case err != nil:
			return "", lack("%s ended the transfer: %v", cut, err)
		}
		return fmt.Sprintf("%d MiB arrived whole in spite of %s", cutSize>>20, cut), nil
	}
}

// interrupted downloads cutSize bytes; a box does something in between.
func (b *bench) interrupted(ctx context.Context, t transport, do func(r relay) error) error {
	var between relay
	v, err := b.visit(ctx, t, b.server(), b.client(), relayOf(t, func(r relay) { between = r }))
	if err != nil {
		return err
	}
	defer v.Close()
	got, done := 0, false
	var failed error
	err = download(v.stream, cutSize, func(n int) {
		if got += n; got >= cutAfter && !done {
			done = true
			failed = do(between)
		}
	})
	if failed != nil {
		return errors.Join(errDamaged, failed) // nothing was shown
	}
	return err
}

var secureClose = feature{"secure connection closing", [4]cell{
	{paper: lacks, exercise: truncatedUnnoticed(overTCP)},
	{paper: lacks, exercise: truncatedUnnoticed(overTLS)},
	{paper: has, exercise: func(ctx context.Context, b *bench) (string, error) {
		return "a box's own datagrams, made to end the connection, did no harm", b.interrupted(ctx, overQUIC, (relay).forge)
	}},
	{paper: partly, exercise: func(ctx context.Context, b *bench) (string, error) {
		return "a box's FIN in the middle didn't end the stream, which arrived whole", b.interrupted(ctx, overTCPLS, (relay).forge)
	}},
}}

// truncatedUnnoticed ends a connection between two messages. (crypto/tls notices
// it within a record only.)
func truncatedUnnoticed(t transport) func(context.Context, *bench) (string, error) {
	return func(ctx context.Context, b *bench) (string, error) {
		var between relay
		v, err := b.visit(ctx, t, b.server(), b.client(), relayOf(t, func(r relay) { between = r }))
		if err != nil {
			return "", err
		}
		defer v.Close()
		if err := errors.Join(greet(v.stream), between.forge()); err != nil {
			return "", err
		}
		_, err = v.stream.Read(make([]byte, 1))
		if errors.Is(err, io.EOF) {
			return "", lack("a box's FIN between two messages was taken for the end: Read says %v", err)
		}
		return "a box's FIN was noticed: " + fmt.Sprint(err), nil
	}
}

var resumption = feature{"session resumption", [4]cell{
	{paper: lacks, mark: lacks, absent: "TCP has no sessions"},
	{paper: has, exercise: func(ctx context.Context, b *bench) (string, error) {
		return resumes(ctx, b, overTLS, func(s session) bool { return s.(*single).stream.(*tls.Conn).ConnectionState().DidResume })
	}},
	{paper: has, exercise: func(ctx context.Context, b *bench) (string, error) {
		return resumes(ctx, b, overQUIC, func(s session) bool { return s.(*quicSession).conn.ConnectionState().TLS.DidResume })
	}},
	{paper: has, exercise: func(ctx context.Context, b *bench) (string, error) {
		return resumes(ctx, b, overTCPLS, func(s session) bool { return s.(tcplsSession).ConnectionState().TLS.DidResume })
	}},
}}

func resumes(ctx context.Context, b *bench, t transport, did func(s session) bool) (string, error) {
	s, err := b.serve(ctx, t, b.server())
	if err != nil {
		return "", err
	}
	defer s.Close()
	client := b.client()
	client.tls.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for visit := range 2 {
		c, err := t.dial(ctx, s.addr(), client)
		if err != nil {
			return "", err
		}
		again := did(c)
		if err := chat(ctx, c); err != nil {
			return "", errors.Join(err, c.Close())
		}
		if err := c.Close(); err != nil {
			return "", err
		}
		if again != (visit == 1) {
			return "", fmt.Errorf("visit %d: resumed is %v", visit, again)
		}
	}
	return "the second visit resumed the first one's session by its ticket", nil
}

// chat has a text echoed, so that tickets arrive.
func chat(ctx context.Context, c session) error {
	s, err := c.open(ctx)
	if err != nil {
		return err
	}
	if err := s.SetDeadline(deadline(ctx)); err != nil {
		return err
	}
	if err := echo(s, "good day"); err != nil {
		return err
	}
	return s.CloseWrite()
}

var earlyData = feature{"0-RTT", [4]cell{
	{paper: has, exercise: tcpEarly},
	{paper: hard, mark: hard, absent: "TLS 1.3 has early data (RFC 8446, 2.3), but crypto/tls doesn't offer it over TCP"},
	{paper: has, exercise: quicEarly},
	{paper: has, exercise: tcplsEarly},
}}

// tcpEarly asks over the link that takes its time, with TCP Fast Open.
func tcpEarly(ctx context.Context, b *bench) (string, error) {
	if b.lossy == nil {
		return "", lack("TCP Fast Open is off for servers by default, and it takes root to change that")
	}
	b = b.lossy
	const slow = 1 // the link
	server, client := b.server(), b.client()
	server.tcpls.FastOpen, client.tcpls.FastOpen = true, true
	s, err := b.serve(ctx, overTCP, server)
	if err != nil {
		return "", err
	}
	defer s.Close()
	var took time.Duration
	for range 2 { // the first visit gets the cookie
		began := time.Now()
		c, err := overTCP.dial(ctx, b.at(slow, false).String(), client)
		if err != nil {
			return "", err
		}
		err = chat(ctx, c)
		took = time.Since(began)
		if err = errors.Join(err, c.Close()); err != nil {
			return "", err
		}
	}
	trips := took.Seconds() / latencyRTT.Seconds()
	if trips > 1.5 {
		return "", lack("the answer took %.2f round trips", trips)
	}
	return fmt.Sprintf("with TCP Fast Open, the second visit's answer came after %.2f round trips", trips), nil
}

func quicEarly(ctx context.Context, b *bench) (string, error) {
	server, client := b.server(), b.client()
	server.quic.Allow0RTT = true
	client.tls.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	s, err := b.serve(ctx, overQUIC, server)
	if err != nil {
		return "", err
	}
	defer s.Close()
	first, err := overQUIC.dial(ctx, s.addr(), client)
	if err != nil {
		return "", err
	}
	if err := errors.Join(chat(ctx, first), first.Close()); err != nil {
		return "", err
	}
	second, err := client.dialQUIC(ctx, s.addr(), (*quic.Transport).DialEarly)
	if err != nil {
		return "", err
	}
	defer second.Close()
	if err := chat(ctx, second); err != nil {
		return "", err
	}
	if !second.conn.ConnectionState().Used0RTT {
		return "", errors.New("the request didn't travel as 0-RTT data")
	}
	return "the second visit's request went out with the ClientHello, and was answered", nil
}

func tcplsEarly(ctx context.Context, b *bench) (string, error) {
	server, client := b.server(), b.client()
	server.tcpls.MaxEarlyData = 16 << 10
	client.tls.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	client.dialer = &tcpls.Dialer{EarlyData: true}
	s, err := b.serve(ctx, overTCPLS, server)
	if err != nil {
		return "", err
	}
	defer s.Close()
	for _, want := range []tcpls.EarlyData{tcpls.EarlyDataNone, tcpls.EarlyDataAccepted} {
		c, err := client.dialTCPLS(ctx, s.addr())
		if err != nil {
			return "", err
		}
		err = errors.Join(chat(ctx, tcplsSession{c}), c.Handshake(ctx))
		got := c.EarlyData()
		if err := errors.Join(err, c.Close()); err != nil {
			return "", err
		}
		if got != want {
			return "", fmt.Errorf("early data: %v, not %v", got, want)
		}
	}
	return "the second visit's request went out with the ClientHello, and was answered", nil
}

// A relay stands between a client and a server.
type relay interface {
	closer
	watch(t tap)
	// cut breaks the connections, or flows, that there are.
	cut() error
	// forge ends them as somebody would who hasn't their keys.
	forge() error
	addr() string
}

// relayOf makes the relay for a transport's packets, and gives it to set up.
func relayOf(t transport, set func(r relay)) func(target string) (string, closer, error) {
	return func(target string) (string, closer, error) {
		r, err := newRelay(t, target)
		if err != nil {
			return "", nil, err
		}
		set(r)
		return r.addr(), r, nil
	}
}

func newRelay(t transport, target string) (relay, error) {
	if t.name == overQUIC.name {
		return newUDPRelay(target)
	}
	return newTCPRelay(target)
}

func (r *tcpRelay) cut() error   { r.reset(); return nil }
func (r *tcpRelay) forge() error { r.finish(); return nil }
func (r *udpRelay) cut() error   { return r.rebind() }

// forge sends datagrams with the look of QUIC packets, which can't be more
// than that without the keys.
func (r *udpRelay) forge() error {
	for range 16 {
		p := make([]byte, 64)
		_, _ = rand.Read(p) // never fails
		p[0] = 0x40         // a short header (RFC 9000, 17.3.1)
		if err := r.inject(p); err != nil {
			return err
		}
	}
	return nil
}
