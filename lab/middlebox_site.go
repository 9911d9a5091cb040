package lab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A site is a client and a server with two paths between them. One leads
// through a host on which software for middleboxes runs:
//
//	        path0           net0
//	client ─────── box ─────────── server
//	     └─────────────────────────┘
//	                path1
type site struct {
	*Network
	serverTLS, clientTLS *tls.Config
	closers              closeAll
}

// The addresses of a site, and the server's ports.
const (
	siteBox    = "10.0.0.254"
	siteServer = "10.1.0.2" // behind the box
	siteDirect = "10.0.1.2" // of the server on path1
	portTCPLS  = "443"
	portTLS    = "444" // by TCP and Multipath TCP
)

func siteTopology(boxes []Middlebox) *Topology {
	end := func(host, addr string) End {
		return End{Host: host, Addrs: []netip.Prefix{netip.MustParsePrefix(addr + "/24")}}
	}
	shape := Shape{Rate: 50 * Mbit, Delay: 5 * time.Millisecond}
	direct := shape
	direct.Delay = 10 * time.Millisecond
	return &Topology{
		Hosts: []HostSpec{
			{Name: "client", Routes: []Route{{To: netip.MustParsePrefix("10.1.0.0/24"), Via: netip.MustParseAddr(siteBox)}}},
			{Name: "box", Forward: true},
			{Name: "server", Routes: []Route{{To: netip.MustParsePrefix("10.0.0.0/24"), Via: netip.MustParseAddr("10.1.0.254")}}},
		},
		Links: []LinkSpec{
			{Name: "path0", A: end("client", "10.0.0.1"), B: end("box", siteBox), Shape: shape, Boxes: boxes},
			{Name: "net0", A: end("box", "10.1.0.254"), B: end("server", siteServer), Shape: shape},
			{Name: "path1", A: end("client", "10.0.1.1"), B: end("server", siteDirect), Shape: direct},
		},
	}
}

// newSite makes a site and starts its servers.
func newSite(ctx context.Context, boxes []Middlebox) (s *site, err error) {
	s = new(site)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.Network, err = New(siteTopology(boxes)); err != nil {
		return s, err
	}
	if s.serverTLS, s.clientTLS, err = newTLS(); err != nil {
		return s, err
	}
	for _, host := range []string{"client", "server"} {
		if err := s.run(ctx, host, "ip", "mptcp", "limits", "set", "subflow", "4", "add_addr_accepted", "4"); err != nil {
			return s, err
		}
	}
	if err := s.run(ctx, "server", "ip", "mptcp", "endpoint", "add", siteDirect, "dev", "path1", "signal"); err != nil {
		return s, err
	}
	for port, t := range map[string]transport{portTCPLS: overTCPLS, portTLS: overMPTCP} {
		err := s.Host("server").Do(func() error {
			l, err := t.listen(ctx, "0.0.0.0:"+port, endpoint{tls: s.serverTLS})
			if err != nil {
				return err
			}
			s.closers.add(l)
			go serve(l)
			return nil
		})
		if err != nil {
			return s, err
		}
	}
	return s, nil
}

func (s *site) Close() error {
	err := s.closers.Close()
	if s.Network != nil {
		err = errors.Join(err, s.Network.Close())
	}
	return err
}

// run runs a command on a host to its end.
func (s *site) run(ctx context.Context, host, name string, args ...string) error {
	out, err := s.Host(host).Command(ctx, name, args...).CombinedOutput()
	return commandError(name, args, out, err)
}

// feed runs a command on the box, and gives it input.
func (s *site) feed(ctx context.Context, input, name string, args ...string) error {
	cmd := s.Host("box").Command(ctx, name, args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	return commandError(name, args, out, err)
}

func commandError(name string, args []string, out []byte, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
}

// file writes a configuration, and returns its name.
func (s *site) file(name, content string) (string, error) {
	path := filepath.Join(s.Dir(), name)
	return path, os.WriteFile(path, []byte(content), 0o644)
}

// start starts software on the box, and waits until it listens on a port.
func (s *site) start(ctx context.Context, port, name string, args ...string) error {
	var out bytes.Buffer
	cmd := s.Host("box").Command(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return commandError(name, args, nil, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	const patience, pause = 30 * time.Second, 20 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		conn, err := s.Host("client").Dial(ctx, "tcp", siteBox+":"+port)
		if err == nil {
			return conn.Close()
		}
		select {
		case err := <-ended:
			return fmt.Errorf("%s ended: %w: %s", name, err, bytes.TrimSpace(out.Bytes()))
		case <-ctx.Done():
			return fmt.Errorf("%s doesn't listen on port %s: %w", name, port, err)
		case <-time.After(pause):
		}
	}
}

// dialer returns a function that connects from the client. To what is behind the
// box it does so by the proxy on it, if there is one.
func (s *site) dialer(d *net.Dialer, proxy string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if proxy == "" || !strings.HasPrefix(address, siteServer+":") {
			return s.Host("client").DialWith(ctx, d, network, address)
		}
		conn, err := s.Host("client").DialWith(ctx, d, network, proxy)
		if err != nil {
			return nil, err
		}
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		err = connectBy(conn, address)
		if !stop() {
			err = ctx.Err()
		}
		if err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		return conn, nil
	}
}

// connectBy asks an HTTP proxy for a connection (RFC 9110, section 9.3.6). Its
// answer ends before the server's first byte, since clients speak first in TLS.
func connectBy(conn net.Conn, address string) error {
	if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", address, address); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect})
	if err != nil {
		return fmt.Errorf("the proxy's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the proxy says %s", resp.Status)
	}
	return nil
}
