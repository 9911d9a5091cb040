package osnet

import (
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/go-tcpls/tcpls/internal/netns"
)

// newOptionPair returns the sockets of a TCP connection over an address family.
func newOptionPair(t *testing.T, address string) map[string]syscall.RawConn {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Skipf("this machine has no such address: %v", err)
	}
	t.Cleanup(func() { _ = l.Close() })
	near, err := net.Dial("tcp", strings.Replace(l.Addr().String(), "[::]", "127.0.0.1", 1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = near.Close() })
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = far.Close() })
	ends := make(map[string]syscall.RawConn)
	for name, c := range map[string]net.Conn{"near": near, "far": far} {
		if ends[name], err = c.(syscall.Conn).SyscallConn(); err != nil {
			t.Fatal(err)
		}
	}
	return ends
}

// What was set is what the kernel then says, over IPv4, IPv6, and IPv4 on a socket
// of IPv6.
func TestOptions(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", "[::]:0"} {
		t.Run(address, func(t *testing.T) {
			for end, rc := range newOptionPair(t, address) {
				check := func(what string, got, want any, errs ...error) {
					t.Helper()
					for _, err := range errs {
						if err != nil {
							t.Fatalf("%s, %s: %v", end, what, err)
						}
					}
					if got != want {
						t.Errorf("%s, %s: the kernel has %v, want %v", end, what, got, want)
					}
				}
				for _, want := range []time.Duration{30 * time.Second, 0} {
					set := SetUserTimeout(rc, want)
					got, err := UserTimeout(rc)
					check("user timeout", got, want, set, err)
				}
				for _, want := range []time.Duration{time.Second, 32767 * time.Second, 0, time.Minute} {
					set := SetKeepAlive(rc, want)
					got, err := KeepAlive(rc)
					check("keepalive", got, want, set, err)
				}
				for _, want := range []int{16 << 10, 1<<31 - 1} {
					set := SetNotSentLowWater(rc, want)
					got, err := NotSentLowWater(rc)
					check("low-water mark", got, want, set, err)
				}
				for _, want := range []uint64{1 << 20, 0} {
					set := SetMaxPacingRate(rc, want)
					got, err := MaxPacingRate(rc)
					check("pacing rate", got, want, set, err)
				}
				for _, want := range []int{46, 8, 0} {
					set := SetDSCP(rc, want)
					got, err := DSCP(rc)
					check("DSCP", got, want, set, err)
				}
				for _, want := range []int{16 << 10, 128 << 10} {
					set := SetWindowClamp(rc, want)
					got, err := WindowClamp(rc)
					check("window", got, want, set, err)
				}
				set := SetWindowClamp(rc, 1)
				got, err := WindowClamp(rc)
				if check("window", set, nil, err); got <= 1 {
					t.Errorf("a window of %d bytes, less than the kernel's least", got)
				}
			}
		})
	}
}

// Who asks for a large window gets no more of the kernel's memory by it than any
// connection may, even from a process that could give it.
func TestWindowClampAndMemory(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		const largest = 1 << 20
		if err := os.WriteFile("/proc/sys/net/ipv4/tcp_rmem", []byte("4096 131072 1048576"), 0); err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct{ clamp, most int }{
			{1 << 30, largest},
			{largest + 1, largest},
			{256 << 10, 512 << 10}, // set, to twice the window
			{64 << 10, 128 << 10},
		} {
			rc := newOptionPair(t, "127.0.0.1:0")["near"]
			if err := SetWindowClamp(rc, test.clamp); err != nil {
				t.Fatal(err)
			}
			if size, err := number(rc, "SO_RCVBUF", unix.SOL_SOCKET, unix.SO_RCVBUF); err != nil || size > test.most {
				t.Errorf("a window of %d bytes has got a buffer of %d, want at most %d; %v", test.clamp, size, test.most, err)
			}
		}
	})
}

func TestMayChooseCongestion(t *testing.T) {
	rc := newOptionPair(t, "127.0.0.1:0")["near"]
	name, err := Congestion(rc)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"reno": true, name: true, "": false, "nonesuch": false, "ren": false} {
		if got := MayChooseCongestion(name); got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
}
