package tlstest_test

import (
	"crypto/tls"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"

	"github.com/go-tcpls/tcpls/internal/tlstest"
)

var goClient = &peer{
	name: "Go client", version: goVersion, lacks: goLacks,
	client: func(m *meeting, s *served) {
		cfg := m.clientConfig().TLS
		m.goConnect(s.addr, cfg)
		if m.special.resumes() {
			m.goConnect(s.addr, cfg)
		}
	},
}

// goConnect makes one connection by crypto/tls.
func (m *meeting) goConnect(addr string, cfg *tls.Config) {
	c, err := tls.Dial("tcp", addr, cfg)
	if err != nil {
		m.Fatal(err)
	}
	defer c.Close()
	mustAnswer(m.T, c, m.line(), m.line())
	if err := c.CloseWrite(); err != nil {
		m.Error(err)
	}
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		m.Errorf("at the end: %d bytes more, %v; want our close_notify", len(rest), err)
	}
}

var goServer = &peer{
	name: "Go server", version: goVersion, lacks: goLacks,
	server: func(m *meeting) (addr string, talk func(*tlstest.Conn)) {
		l, err := tls.Listen("tcp", "127.0.0.1:0", m.serverConfig().TLS)
		if err != nil {
			m.Fatal(err)
		}
		var all sync.WaitGroup
		all.Go(func() { echoAll(l) })
		m.Cleanup(func() {
			l.Close()
			all.Wait()
		})
		return l.Addr().String(), m.echoes(same)
	},
}

// echoAll echoes on each connection until the client ends it.
func echoAll(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(c, c) // the client tells what is missing
		_ = c.Close()
	}
}

func goVersion(*testing.T) string { return "Go " + runtime.Version()[len("go"):] }

func goLacks(_ *testing.T, m terms) string {
	switch {
	case m.suite.name != "":
		return "crypto/tls doesn't let its users choose suites of TLS 1.3; the tests of `internal/tls13` meet it with each of them."
	case m.special.isEarly():
		return "crypto/tls has no early data over TCP."
	case m.special == theirUpdate:
		return "crypto/tls answers key updates, but has no call for one."
	case m.special == ourLimit || m.special == theirLimit:
		return "crypto/tls has no record_size_limit."
	}
	return ""
}
