package osnet

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"

	"github.com/go-tcpls/tcpls/internal/netns"
)

// connectFastOpen connects, with Fast Open where the system allows it.
func connectFastOpen(l net.Listener) (net.Conn, error) {
	d := net.Dialer{Control: func(_, _ string, rc syscall.RawConn) error {
		if err := SetFastOpenConnect(rc); !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
		return nil
	}}
	d.SetMultipathTCP(false)
	return d.Dial("tcp", l.Addr().String())
}

// dialFastOpen connects with Fast Open, writes, and returns what the other end
// got at once and what the kernel says of both.
func dialFastOpen(t *testing.T, l net.Listener, hello string) (client, server Info) {
	t.Helper()
	c, err := connectFastOpen(l)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, hello); err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got := make([]byte, len(hello))
	if _, err := io.ReadFull(s, got); err != nil || string(got) != hello {
		t.Fatalf("the server got %q, %v", got, err)
	}
	if _, err := io.WriteString(s, "answer"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, len("answer"))); err != nil {
		t.Fatal(err)
	}
	if client, err = TCPInfo(newTestRaw(t, c.(*net.TCPConn))); err != nil {
		t.Fatal(err)
	}
	if server, err = TCPInfo(newTestRaw(t, s.(*net.TCPConn))); err != nil {
		t.Fatal(err)
	}
	return client, server
}

// listenFastOpen listens with Fast Open, where queue isn't 0.
func listenFastOpen(t *testing.T, queue int) net.Listener {
	t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		if queue == 0 {
			return nil
		}
		return SetFastOpenQueue(rc, queue)
	}}
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestFastOpen(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		const clients, servers = 1, 2
		for _, test := range []struct {
			name   string
			sysctl int
			queue  int
			want   bool // data in the second SYN
		}{
			{"both", clients | servers, 16, true},
			{"client only by the system", clients, 16, false},
			{"server only by the system", servers, 16, false},
			{"server without it", clients | servers, 0, false},
		} {
			t.Run(test.name, func(t *testing.T) {
				if err := netns.SetSysctl("net.ipv4.tcp_fastopen", test.sysctl); err != nil {
					t.Fatal(err)
				}
				l := listenFastOpen(t, test.queue)
				dialFastOpen(t, l, "this one fetches the cookie")
				client, server := dialFastOpen(t, l, "this one has it")
				if client.SYNData != test.want || server.SYNData != test.want {
					t.Errorf("data in the SYN: %v by the client, %v by the server, want %v", client.SYNData, server.SYNData, test.want)
				}
			})
		}
		t.Run("nobody listens", func(t *testing.T) {
			if err := netns.SetSysctl("net.ipv4.tcp_fastopen", clients|servers); err != nil {
				t.Fatal(err)
			}
			l := listenFastOpen(t, 16)
			dialFastOpen(t, l, "this one fetches the cookie")
			l.Close()
			c, err := connectFastOpen(l)
			if err == nil { // deferred: the address had a cookie
				defer c.Close()
				if _, err = io.WriteString(c, "hello"); err == nil {
					_, err = c.Read(make([]byte, 1))
				}
			}
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("got %v", err)
			}
		})
	})
}

func TestFastOpenNeedsTCP(t *testing.T) {
	u, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	rc := newTestRaw(t, u.(*net.UDPConn))
	for name, err := range map[string]error{"connect": SetFastOpenConnect(rc), "queue": SetFastOpenQueue(rc, 1)} {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s with a UDP socket: got %v", name, err)
		}
	}
}
