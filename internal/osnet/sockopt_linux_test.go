package osnet

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func newTestRaw(t *testing.T, c syscall.Conn) syscall.RawConn {
	t.Helper()
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	return rc
}

func TestCongestion(t *testing.T) {
	a, _ := newTestPair(t)
	rc := newTestRaw(t, a)
	// reno is built into every kernel and open to every process.
	if err := SetCongestion(rc, "reno"); err != nil {
		t.Fatal(err)
	}
	if name, err := Congestion(rc); name != "reno" || err != nil {
		t.Errorf("got %q, %v", name, err)
	}
	err := SetCongestion(rc, "no-such-thing")
	if !errors.Is(err, syscall.ENOENT) || !strings.Contains(err.Error(), "no-such-thing") {
		t.Errorf("unknown algorithm: got %v", err)
	}
	if name, _ := Congestion(rc); name != "reno" {
		t.Errorf("a refused choice left %q", name)
	}
}

func TestUserTimeout(t *testing.T) {
	a, _ := newTestPair(t)
	rc := newTestRaw(t, a)
	for _, test := range []struct {
		d    time.Duration
		want int // milliseconds in the kernel
	}{
		{5 * time.Second, 5000},
		{time.Nanosecond, 1}, // 0 would mean the system's own
		{1 << 62, 1<<31 - 1},
		{0, 0},
	} {
		if err := SetUserTimeout(rc, test.d); err != nil {
			t.Fatalf("%v: %v", test.d, err)
		}
		var got int
		err := control(rc, "TCP_USER_TIMEOUT", func(fd int) (err error) {
			got, err = unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
			return err
		})
		if got != test.want || err != nil {
			t.Errorf("%v: the kernel has %d ms, %v; want %d", test.d, got, err, test.want)
		}
	}
	if err := SetUserTimeout(rc, -1); err == nil {
		t.Error("a negative timeout was accepted")
	}
}

func TestMaxRTO(t *testing.T) {
	a, _ := newTestPair(t)
	rc := newTestRaw(t, a)
	if err := SetMaxRTO(rc, time.Second); errors.Is(err, errors.ErrUnsupported) {
		t.Skipf("Linux 6.15 has it: %v", err)
	}
	for _, test := range []struct {
		d    time.Duration
		want int // milliseconds in the kernel
	}{
		{1500 * time.Millisecond, 1500},
		{time.Millisecond, 1000},
		{time.Hour, 120_000},
		{0, 120_000},
	} {
		if err := SetMaxRTO(rc, test.d); err != nil {
			t.Fatalf("%v: %v", test.d, err)
		}
		var got int
		err := control(rc, "TCP_RTO_MAX_MS", func(fd int) (err error) {
			got, err = unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_RTO_MAX_MS)
			return err
		})
		if got != test.want || err != nil {
			t.Errorf("%v: the kernel has %d ms, %v; want %d", test.d, got, err, test.want)
		}
	}
}

func TestTCPInfo(t *testing.T) {
	a, b := newTestPair(t)
	const size = 1 << 20
	go func() { a.Write(make([]byte, size)) }()
	if _, err := io.ReadFull(b, make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	// The answer travels behind the acknowledgement of all bytes.
	if _, err := b.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(a, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	info, err := TCPInfo(newTestRaw(t, a))
	if err != nil {
		t.Fatal(err)
	}
	const syn = 1 // counted by the side that connects
	if info.BytesAcked != size+syn || info.Unacked != 0 || info.NotSent != 0 {
		t.Errorf("%d of %d bytes acknowledged, %d segments not, %d bytes not sent",
			info.BytesAcked, size, info.Unacked, info.NotSent)
	}
	if info.RTT <= 0 || info.MinRTT <= 0 || info.RTO <= 0 || info.CWnd <= 0 || info.SendMSS <= 0 || info.DeliveryRate <= 0 {
		t.Errorf("unmeasured after %d bytes: %+v", size, info)
	}
}

// A connection that has written one byte could deliver more.
func TestAppLimited(t *testing.T) {
	a, b := newTestPair(t)
	for _, c := range []net.Conn{a, b} {
		if _, err := c.Write([]byte{0}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.ReadFull(a, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	info, err := TCPInfo(newTestRaw(t, a))
	if err != nil || !info.AppLimited || info.DeliveryRate <= 0 {
		t.Errorf("%v: %d bytes a second, limited by what was written: %v", err, info.DeliveryRate, info.AppLimited)
	}
}

func TestMultipathTCP(t *testing.T) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(true)
	l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	rc := newTestRaw(t, l.(*net.TCPListener))
	is, err := IsMPTCP(rc)
	if err != nil {
		t.Fatal(err)
	}
	if !is {
		t.Skip("this kernel has no Multipath TCP, or it is switched off")
	}
	var unsupported *UnsupportedError
	err = SetUserTimeout(rc, time.Second)
	if !errors.As(err, &unsupported) || !errors.Is(err, errors.ErrUnsupported) || unsupported.Feature != "TCP_USER_TIMEOUT" {
		t.Errorf("user timeout on Multipath TCP: got %v", err)
	}

	a, _ := newTestPair(t)
	if is, err := IsMPTCP(newTestRaw(t, a)); is || err != nil {
		t.Errorf("plain TCP: got %v, %v", is, err)
	}
}

func TestWrongSocket(t *testing.T) {
	u, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	rc := newTestRaw(t, u.(*net.UDPConn))
	if _, err := TCPInfo(rc); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("TCP_INFO of a UDP socket: got %v", err)
	}
	u.Close()
	if _, err := Congestion(rc); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed socket: got %v", err)
	}
}

func TestUnsupportedError(t *testing.T) {
	for _, test := range []struct {
		err  *UnsupportedError
		want string
	}{
		{&UnsupportedError{Feature: "TCP_INFO", Needs: "Linux"},
			"TCP_INFO is not supported here: needs Linux"},
		{&UnsupportedError{"TCP_INFO", "a plain TCP socket", unix.EOPNOTSUPP},
			"TCP_INFO is not supported here: needs a plain TCP socket (operation not supported)"},
	} {
		if test.err.Error() != test.want || !errors.Is(test.err, errors.ErrUnsupported) {
			t.Errorf("got %v, want %s", test.err, test.want)
		}
		if test.err.Err != nil && !errors.Is(test.err, test.err.Err) {
			t.Errorf("%v hides the kernel's answer", test.err)
		}
	}
}

// A socket that may hold few unsent bytes takes no more once its peer's window
// and these are full.
func TestNotSentLowWater(t *testing.T) {
	a, _ := newTestPair(t)
	rc := newTestRaw(t, a)
	const most = 64 << 10
	if err := SetNotSentLowWater(rc, most); err != nil {
		t.Fatal(err)
	}
	if err := a.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	for piece := make([]byte, 16<<10); ; {
		if _, err := a.Write(piece); err != nil {
			break // nobody reads
		}
	}
	info, err := TCPInfo(rc)
	if err != nil {
		t.Fatal(err)
	}
	if info.NotSent > 2*most {
		t.Errorf("%d bytes wait unsent, with a low water of %d", info.NotSent, most)
	}
}
