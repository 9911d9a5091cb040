package tcpls

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/go-tcpls/tcpls/internal/netns"
	"github.com/go-tcpls/tcpls/internal/osnet"
)

// fastOpenSession opens a session, uses it, and tells whether data in the SYN
// reached the server.
func fastOpenSession(t *testing.T, d *Dialer, l *Listener) (inSYN bool) {
	t.Helper()
	c, err := d.Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	opened, accepted := openStream(t, c, s)
	mustWrite(t, opened, []byte("hello"))
	wantRead(t, "a stream", accepted, []byte("hello"))
	infos := make([]osnet.Info, 2)
	for i, p := range []*Path{c.path(), s.path()} {
		if infos[i], err = osnet.TCPInfo(p.raw); err != nil {
			t.Fatal(err)
		}
	}
	if infos[0].SYNData != infos[1].SYNData {
		t.Errorf("data in the SYN: %v by the client, %v by the server", infos[0].SYNData, infos[1].SYNData)
	}
	return infos[0].SYNData
}

func TestFastOpen(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		for _, test := range []struct {
			name           string
			sysctl         int
			client, server bool
			want           bool
		}{
			{"both", 3, true, true, true},
			{"client alone", 3, true, false, false},
			{"server alone", 3, false, true, false},
			{"not for clients of this system", 2, true, true, false},
			{"not for servers of this system", 1, true, true, false},
		} {
			t.Run(test.name, func(t *testing.T) {
				if err := netns.SetSysctl("net.ipv4.tcp_fastopen", test.sysctl); err != nil {
					t.Fatal(err)
				}
				client, server := newTestConfigs()
				client.FastOpen, server.FastOpen = test.client, test.server
				l, err := Listen("tcp", "127.0.0.1:0", server)
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				controlled := 0
				d := &Dialer{Config: client, NetDialer: &net.Dialer{Control: func(string, string, syscall.RawConn) error {
					controlled++
					return nil
				}}}
				fastOpenSession(t, d, l) // this one fetches the cookie
				if got := fastOpenSession(t, d, l); got != test.want {
					t.Errorf("data in the SYN: %v, want %v", got, test.want)
				}
				if controlled != 2 {
					t.Errorf("the application's Control was called %d times for 2 connections", controlled)
				}
			})
		}
	})
}

// A ClientHello that is longer than a segment goes in the SYN in part; the rest
// follows.
func TestFastOpenLongHello(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		if err := errors.Join(netns.SetSysctl("net.ipv4.tcp_fastopen", 3), netns.SetMTU("lo", 1500)); err != nil {
			t.Fatal(err)
		}
		client, server := newTestConfigs()
		client.TLS.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768, tls.X25519}
		client.FastOpen, server.FastOpen = true, true
		l, err := Listen("tcp", "127.0.0.1:0", server)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		d := &Dialer{Config: client}
		fastOpenSession(t, d, l)
		if !fastOpenSession(t, d, l) {
			t.Error("no data in the SYN")
		}
	})
}

// A port that is closed since gives the error of dialing, though connecting
// seemed to succeed.
func TestFastOpenRefused(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		if err := netns.SetSysctl("net.ipv4.tcp_fastopen", 3); err != nil {
			t.Fatal(err)
		}
		client, server := newTestConfigs()
		client.FastOpen, server.FastOpen = true, true
		l, err := Listen("tcp", "127.0.0.1:0", server)
		if err != nil {
			t.Fatal(err)
		}
		d := &Dialer{Config: client}
		fastOpenSession(t, d, l)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		_, err = d.Dial(t.Context(), "tcp", l.Addr().String())
		var op *net.OpError
		if !errors.Is(err, syscall.ECONNREFUSED) || !errors.As(err, &op) || op.Op != "dial" {
			t.Errorf("got %v, want a refused dial", err)
		}
	})
}

// The first request travels in the SYN: the server's application has it though
// the client has received nothing yet, not even the SYN-ACK, since its socket
// drops what comes.
func TestRequestInSYN(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		if err := netns.SetSysctl("net.ipv4.tcp_fastopen", 3); err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct {
			name   string
			mtu    uint32
			groups []tls.CurveID
			length int
		}{
			{"in a segment of Ethernet, without a post-quantum key share", 1500, []tls.CurveID{tls.X25519}, 400},
			{"in a segment of loopback", 65536, []tls.CurveID{tls.X25519MLKEM768, tls.X25519}, 10_000},
		} {
			t.Run(test.name, func(t *testing.T) {
				if err := netns.SetMTU("lo", test.mtu); err != nil {
					t.Fatal(err)
				}
				client, server := newEarlyConfigs()
				client.FastOpen, server.FastOpen = true, true
				client.TLS.CurvePreferences = test.groups
				for try := 1; !requestInSYN(t, client, server, testBytes(3, test.length)); try++ {
					if try == 5 { // a busy machine may have kept the request from being written at once
						t.Fatal("the request wasn't in the SYN")
					}
				}
			})
		}
	})
}

// requestInSYN tells whether the server got the request from the SYN alone.
func requestInSYN(t *testing.T, client, server *Config, request []byte) bool {
	l, err := Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var socket syscall.RawConn
	deaf := false
	d := &Dialer{Config: client, EarlyData: true, NetDialer: &net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		if socket = c; !deaf {
			return nil
		}
		return setDeaf(c, true)
	}}}
	fastOpenSession(t, d, l) // this one fetches the cookie, and a ticket

	deaf = true
	c, err := d.Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	st, err := c.OpenStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, st, request)
	s, err := l.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	served, err := s.AcceptStream(ctx)
	if ctx.Err() != nil {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	wantRead(t, "the request", served, request)
	if !served.EarlyData() || s.EarlyData() != EarlyDataPending || c.EarlyData() != EarlyDataPending {
		t.Errorf("the request is early data: %v; what the server says of it: %v, the client: %v",
			served.EarlyData(), s.EarlyData(), c.EarlyData())
	}

	if err := setDeaf(socket, false); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, served, request)
	wantRead(t, "the answer", st, request)
	if err := errors.Join(c.Handshake(t.Context()), s.Handshake(t.Context())); err != nil || c.EarlyData() != EarlyDataAccepted {
		t.Errorf("early data was %v: %v", c.EarlyData(), err)
	}
	for _, p := range []*Path{c.path(), s.path()} {
		if info, err := osnet.TCPInfo(p.raw); err != nil || !info.SYNData {
			t.Errorf("data in the SYN: %v, %v", info.SYNData, err)
		}
	}
	return true
}

// setDeaf makes a socket drop every segment that comes for it, or not any more.
func setDeaf(c syscall.RawConn, deaf bool) error {
	var err error
	cerr := c.Control(func(fd uintptr) {
		if deaf {
			none := &unix.SockFprog{Len: 1, Filter: &unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}}
			err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, none)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
		}
	})
	return errors.Join(cerr, err)
}
