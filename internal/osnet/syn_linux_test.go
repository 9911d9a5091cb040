package osnet

import (
	"context"
	"net"
	"syscall"
	"testing"

	"github.com/go-tcpls/tcpls/internal/netns"
)

// listenSaving returns a listener that keeps SYNs, where keep is set.
func listenSaving(t *testing.T, address string, keep bool) net.Listener {
	t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		if !keep {
			return nil
		}
		return SaveSYN(rc)
	}}
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestSavedSYN(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		if err := netns.SetMTU("lo", 1500); err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct {
			name, address string
			keep          bool
			version       byte
			headers, mss  int
		}{
			{"IPv4", "127.0.0.1:0", true, 4, 20, 1460},
			{"IPv6", "[::1]:0", true, 6, 40, 1440},
			{"not kept", "127.0.0.1:0", false, 0, 0, 1460},
		} {
			t.Run(test.name, func(t *testing.T) {
				l := listenSaving(t, test.address, test.keep)
				c, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				conn, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				raw := newTestRaw(t, conn.(*net.TCPConn))
				b, err := SavedSYN(raw)
				if err != nil || test.keep != (len(b) > 0) {
					t.Fatalf("got %d bytes, %v", len(b), err)
				}
				if test.keep {
					if b[0]>>4 != test.version {
						t.Errorf("the headers begin with %#x", b[0])
					}
					port := int(b[test.headers])<<8 | int(b[test.headers+1])
					if want := c.LocalAddr().(*net.TCPAddr).Port; port != want {
						t.Errorf("the SYN comes from port %d, want %d", port, want)
					}
				}
				if again, err := SavedSYN(raw); len(again) > 0 || err != nil {
					t.Errorf("the second time: %d bytes, %v", len(again), err)
				}
				s, err := SYNOf(newTestRaw(t, c.(*net.TCPConn)), c.LocalAddr())
				t.Logf("%+v", s)
				all := uint8(NegotiatedTimestamps | NegotiatedSACK | NegotiatedScale)
				if err != nil || s.MSS != test.mss || s.PeerMSS != 0 || s.HopLimit == 0 || s.Negotiated != all || s.Asked&all != all {
					t.Errorf("got %+v, %v", s, err)
				}
				if !s.HasClock || s.Scale == 0 {
					t.Errorf("no clock, or no scale: %+v", s)
				}
			})
		}
	})
}
