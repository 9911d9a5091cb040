package osnet

import (
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
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
