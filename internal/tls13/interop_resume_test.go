package tls13

import (
	"crypto/tls"
	"io"
	"net"
	"testing"
)

// endWell is ourEnd with close_notify from both ends, after which a client has
// seen all tickets.
func endWell(d *driver) error {
	if err := ourEnd(d); err != nil {
		return err
	}
	d.CloseNotify()
	if _, err := d.net.Write(d.Output()); err != nil {
		return err
	}
	if _, err := d.next(); err != io.EOF {
		return err
	}
	return nil
}

// meetGo connects one end of ours with one of crypto/tls, to the end.
func meetGo(t *testing.T, ours *Conn, peer func(net.Conn) *tls.Conn) tls.ConnectionState {
	t.Helper()
	a, b := loopback(t)
	if !ours.isClient {
		a, b = b, a
	}
	done := make(chan outcome, 1)
	go func() {
		conn := peer(b)
		err := goEnd(conn, ours.isClient)
		if err == nil {
			err = conn.CloseWrite()
		}
		if err == nil {
			_, err = io.Copy(io.Discard, conn)
		}
		done <- outcome{conn.ConnectionState(), err}
	}()
	err := endWell(&driver{Conn: ours, net: a})
	theirs := <-done
	mustAgree(t, err, ours, theirs)
	if got := ours.ConnectionState().DidResume; got != theirs.state.DidResume {
		t.Errorf("resumed: ours says %v, crypto/tls %v", got, theirs.state.DidResume)
	}
	return theirs.state
}

// TestResumptionWithGo resumes with crypto/tls at the other end, also after a
// HelloRetryRequest and with a client's certificate.
func TestResumptionWithGo(t *testing.T) {
	for _, kind := range []string{"usual", "HelloRetryRequest", "client certificate", "AES-256"} {
		client, server := clientTLS(), serverTLS()
		client.ClientSessionCache = tls.NewLRUClientSessionCache(4)
		switch kind {
		case "HelloRetryRequest":
			server.CurvePreferences = []tls.CurveID{tls.CurveP384}
		case "client certificate":
			client.Certificates = []tls.Certificate{testCertificates()["P-384"]}
			server.ClientAuth, server.ClientCAs = tls.RequireAndVerifyClientCert, authority().pool
		}
		t.Run(kind+"/Go server", func(t *testing.T) {
			if kind == "AES-256" {
				withSuite(t, tls.TLS_AES_256_GCM_SHA384)
			}
			for i := range 3 {
				c := mustClient(t, &Config{TLS: client})
				s := meetGo(t, c, func(n net.Conn) *tls.Conn { return tls.Server(n, server) })
				if s.DidResume != (i > 0) {
					t.Errorf("connection %d: resumed %v", i, s.DidResume)
				}
			}
		})
		client.ClientSessionCache = tls.NewLRUClientSessionCache(4)
		t.Run(kind+"/Go client", func(t *testing.T) {
			if kind == "AES-256" {
				withSuite(t, tls.TLS_AES_256_GCM_SHA384)
			}
			for i := range 3 {
				s := mustServer(t, &Config{TLS: server})
				if c := meetGo(t, s, func(n net.Conn) *tls.Conn { return tls.Client(n, client) }); c.DidResume != (i > 0) {
					t.Errorf("connection %d: resumed %v", i, c.DidResume)
				}
			}
		})
	}
}

// TestCacheSharedWithGo: a program may use one tls.Config, and so one cache
// and one set of ticket keys, for both implementations. Neither trips over the
// other's sessions.
func TestCacheSharedWithGo(t *testing.T) {
	client, server := clientTLS(), serverTLS()
	client.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	ours := func() bool {
		c, s := newTestPair(t, &Config{TLS: client}, &Config{TLS: server})
		mustShake(t, c, s)
		exchange(t, s, c, []byte("x"))
		return c.ConnectionState().DidResume
	}
	theirs := func() bool {
		a, b := loopback(t)
		done := make(chan error, 1)
		go func() { done <- goEnd(tls.Server(b, server), true) }()
		conn := tls.Client(a, client)
		if err := goEnd(conn, false); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		return conn.ConnectionState().DidResume
	}
	for i, test := range []struct {
		what   string
		meet   func() bool
		resume bool
	}{
		{"theirs", theirs, false}, {"theirs", theirs, true}, {"ours", ours, false}, {"ours", ours, true},
		{"theirs", theirs, false}, {"theirs", theirs, true}, {"ours", ours, false},
	} {
		if got := test.meet(); got != test.resume {
			t.Errorf("meeting %d (%s): resumed %v, want %v", i, test.what, got, test.resume)
		}
	}
	// Our tickets at their server, and theirs at ours, are unknown and no more.
	meetGo(t, mustClient(t, &Config{TLS: client}), func(n net.Conn) *tls.Conn { return tls.Server(n, server) })
	theirs()
	meetGo(t, mustServer(t, &Config{TLS: server}), func(n net.Conn) *tls.Conn { return tls.Client(n, client) })
}
