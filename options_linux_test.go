package tcpls

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/go-tcpls/tcpls/internal/netns"
	"github.com/go-tcpls/tcpls/internal/osnet"
)

// What TCP options do, as far as others can see: each test compares a session
// whose peer was asked for an option with one whose peer wasn't.

// swallow makes paths' sockets drop what arrives, before TCP sees it, until the
// test is over.
func swallow(t *testing.T, paths ...*Path) {
	t.Helper()
	for _, p := range paths {
		drop := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
		var failed error
		err := p.raw.Control(func(fd uintptr) {
			failed = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
				&unix.SockFprog{Len: uint16(len(drop)), Filter: &drop[0]})
		})
		if err := errors.Join(err, failed); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = p.raw.Control(func(fd uintptr) { // which may be closed already
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
			})
		})
	}
}

// patient leaves failures to TCP: silence alone ends nothing for a long time.
func patient(client, server *Config) {
	for _, c := range []*Config{client, server} {
		c.PathTimeout, c.KeepAlive, c.ReconnectFor = time.Hour, -1, -1
		c.AcceptTCPOption = func(o TCPOption) (TCPOption, error) { return o, nil }
	}
}

// wantTimeout waits until TCP has given up a session's only path, and checks
// that it took at least as long as was asked for, and that the other session
// still lives.
func wantTimeout(t *testing.T, s, other *Session, least time.Duration, began time.Time) {
	t.Helper()
	select {
	case <-s.Context().Done():
	case <-time.After(time.Minute):
		t.Fatal("the path still lives after a minute")
	}
	took := time.Since(began)
	wantErrorIs(t, "the path's end", context.Cause(s.Context()), syscall.ETIMEDOUT)
	if took < least {
		t.Errorf("the path died after %v, before the %v that were asked for", took, least)
	}
	if err := context.Cause(other.Context()); err != nil {
		t.Errorf("the path without the option died too: %v", err)
	}
	t.Logf("the path died after %v, asked for were %v", took, least)
}

// A path in a black hole dies after the user timeout that the peer has set.
func TestUserTimeoutEffect(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		client, server := tcpPair(t, patient)
		otherClient, other := tcpPair(t, patient)
		wantOption(t, client, nil, TCPUserTimeout(2*time.Second), TCPUserTimeout(2*time.Second))
		_, accepted := openStream(t, client, server)
		_, otherStream := openStream(t, otherClient, other)
		swallow(t, client.path(), server.path(), otherClient.path(), other.path())
		began := time.Now()
		mustWrite(t, accepted, []byte("nobody acknowledges this"))
		mustWrite(t, otherStream, []byte("nor this"))
		wantTimeout(t, server, other, 2*time.Second, began)
	})
}

// A peer that has vanished is noticed by keepalive probes though nothing is
// outstanding.
func TestKeepAliveEffect(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		client, server := tcpPair(t, patient)
		otherClient, other := tcpPair(t, patient)
		wantOption(t, client, nil, TCPKeepAlive(time.Second), TCPKeepAlive(time.Second))
		wantOption(t, otherClient, nil, TCPKeepAlive(0), TCPKeepAlive(0))
		swallow(t, client.path(), server.path(), otherClient.path(), other.path())
		wantTimeout(t, server, other, time.Second, time.Now())
	})
}

// goodput is how many bytes per second arrive of n that are written. look is
// called beside each piece that arrives.
func goodput(t *testing.T, from, to *Stream, n int, look func()) float64 {
	t.Helper()
	began := time.Now()
	go func() { _, _ = from.Write(make([]byte, n)) }() // what doesn't arrive is missed below
	for buf, left := make([]byte, 64<<10), n; left > 0; {
		got, err := to.Read(buf[:min(len(buf), left)])
		if err != nil {
			t.Fatal(err)
		}
		left -= got
		look()
	}
	return float64(n) / time.Since(began).Seconds()
}

func TestPacingRateEffect(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		// The kernel doesn't pace a connection's first ten segments, which are
		// large ones on loopback.
		if err := netns.SetMTU("lo", 1500); err != nil {
			t.Fatal(err)
		}
		const rate = 256 << 10
		client, server := tcpPair(t, nil)
		opened, accepted := openStream(t, client, server)
		wantOption(t, client, nil, TCPMaxPacingRate(rate), TCPMaxPacingRate(rate))
		paced := goodput(t, accepted, opened, 2*rate, func() {})
		wantOption(t, client, nil, TCPMaxPacingRate(0), TCPMaxPacingRate(0))
		free := goodput(t, accepted, opened, 2*rate, func() {})
		t.Logf("%.0f KiB/s of %d that were asked for, %.0f without", paced/(1<<10), rate>>10, free/(1<<10))
		if paced > 1.5*rate || paced < rate/4 {
			t.Errorf("%.0f bytes per second, of %d", paced, rate)
		}
		if free < 3*rate {
			t.Errorf("%.0f bytes per second without a limit, too few to tell the difference", free)
		}
	})
}

// A socket behind a slow link holds no more unsent bytes than the peer wants.
func TestNotSentLowWaterEffect(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		const rate, mark = 8 << 20, 32 << 10
		most := func(options ...TCPOption) (bytes int) {
			client, server := tcpPair(t, nil)
			opened, accepted := openStream(t, client, server)
			for _, o := range append(options, TCPMaxPacingRate(rate)) {
				wantOption(t, client, nil, o, o)
			}
			goodput(t, accepted, opened, rate, func() {
				info, err := osnet.TCPInfo(server.path().raw)
				if err != nil {
					t.Fatal(err)
				}
				bytes = max(bytes, info.NotSent)
			})
			return bytes
		}
		with, without := most(TCPNotSentLowWater(mark)), most()
		t.Logf("at most %d bytes unsent with a mark of %d, %d without", with, mark, without)
		if with > 8*mark || without < 2*with {
			t.Errorf("%d bytes unsent with a mark of %d, %d without", with, mark, without)
		}
	})
}

// sendWindow is the largest window that the peer of a path has offered while it
// was sent n bytes.
func sendWindow(t *testing.T, from, to *Stream, n int) (window uint32) {
	t.Helper()
	goodput(t, from, to, n, func() {
		var info *unix.TCPInfo
		var failed error
		err := from.Session().path().raw.Control(func(fd uintptr) {
			info, failed = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		})
		if err := errors.Join(err, failed); err != nil {
			t.Fatal(err)
		}
		window = max(window, info.Snd_wnd)
	})
	return window
}

func TestWindowClampEffect(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		if err := netns.SetMTU("lo", 1500); err != nil {
			t.Fatal(err)
		}
		const clamp = 128 << 10
		client, server := tcpPair(t, nil)
		opened, accepted := openStream(t, client, server)
		without := sendWindow(t, opened, accepted, 8<<20)
		wantOption(t, client, nil, TCPWindowClamp(clamp), TCPWindowClamp(clamp))
		goodput(t, opened, accepted, 8<<20, func() {}) // what was offered before is used up
		with := sendWindow(t, opened, accepted, 4<<20)
		t.Logf("windows of up to %d bytes, asked for were %d; %d before", with, clamp, without)
		if with > clamp || without < 2*clamp {
			t.Errorf("windows of up to %d bytes, asked for were %d; %d before", with, clamp, without)
		}
	})
}

func TestDSCPEffect(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		client, server := tcpPair(t, nil)
		opened, accepted := openStream(t, client, server)
		seen := watchTOS(t, server.LocalAddr().(*net.TCPAddr).Port)
		for _, codePoint := range []int64{8, 0} {
			wantOption(t, client, nil, TCPDSCP(codePoint), TCPDSCP(codePoint))
			mustWrite(t, accepted, []byte("marked"))
			wantRead(t, "marked", opened, []byte("marked"))
			for { // packets of before may come first
				if tos := seen(); int64(tos>>2) == codePoint {
					break
				}
			}
		}
	})
}

// watchTOS returns a function that returns the TOS field of the next IPv4 packet
// from a TCP port, of all that pass the loopback interface from now on.
func watchTOS(t *testing.T, port int) func() byte {
	t.Helper()
	protocol := binary.NativeEndian.Uint16([]byte{0x08, 0x00})
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(protocol))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30}); err != nil {
		t.Fatal(err)
	}
	packet := make([]byte, 1<<16)
	return func() byte {
		for {
			n, err := unix.Read(fd, packet)
			if err != nil {
				t.Fatalf("no packet with that mark: %v", err)
			}
			if p := packet[:n]; n >= 40 && p[0]>>4 == 4 && p[9] == unix.IPPROTO_TCP {
				if tcp := p[4*(p[0]&15):]; len(tcp) >= 2 && int(binary.BigEndian.Uint16(tcp)) == port {
					return p[1]
				}
			}
		}
	}
}

// An option that is asked for on a path that fails is set once all the same, and
// the answer comes over another one.
func TestTCPOptionOverFailedPath(t *testing.T) {
	var asked atomic.Int32
	client, server := tcpPair(t, func(client, server *Config) {
		server.AcceptTCPOption = func(o TCPOption) (TCPOption, error) {
			asked.Add(1)
			return o, nil
		}
	})
	second, err := client.AddPath(t.Context(), PathSpec{})
	if err != nil {
		t.Fatal(err)
	}
	wantOption(t, client, second, TCPDSCP(8), TCPDSCP(8)) // so both ends have it
	asked.Store(0)
	swallow(t, client.path(), server.path()) // the request arrives nowhere, or nobody hears the answer
	wantOption(t, client, nil, TCPUserTimeout(30*time.Second), TCPUserTimeout(30*time.Second))
	if n := asked.Load(); n != 1 {
		t.Errorf("the server's policy was asked %d times, want once", n)
	}
	for _, p := range server.livePaths() {
		wantInForce(t, "asked for all paths", p, TCPUserTimeout(30*time.Second))
	}
	opened, accepted := openStream(t, client, server)
	mustWrite(t, opened, []byte("over the second path"))
	wantRead(t, "over the second path", accepted, []byte("over the second path"))
	if err := opened.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, accepted); err != nil {
		t.Fatal(err)
	}
}

// Whoever opens a connection may want less to wait in its socket than a path does.
func TestOwnNotSentLowWater(t *testing.T) {
	for own, want := range map[int]int{0: lowWater, 4 * lowWater: lowWater, lowWater / 8: lowWater / 8} {
		near, far := tcpConns(t)
		raw, err := near.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if own > 0 {
			if err := osnet.SetNotSentLowWater(raw, own); err != nil {
				t.Fatal(err)
			}
		}
		clientConfig, serverConfig := newTestConfigs()
		server := start(func() *Session {
			s, _ := Server(t.Context(), far, serverConfig) // the client tells if it fails
			return s
		})
		client, err := Client(t.Context(), near, clientConfig)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := osnet.NotSentLowWater(raw); n != want || err != nil {
			t.Errorf("%d bytes may wait in a socket for which %d were set, %v; want %d", n, own, err, want)
		}
		_ = client.CloseWithError(0, "the test is over")
		<-server().Context().Done()
	}
}

// tcpConns returns both ends of a connection over loopback.
func tcpConns(t *testing.T) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn), s.(*net.TCPConn)
}
