package tlstest_test

import (
	"encoding/json"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/go-tcpls/tcpls/internal/tlstest"
	"github.com/go-tcpls/tcpls/internal/tlstest/outside"
)

var nodeClient = &peer{
	name: "Node.js client", programs: []string{"node"}, version: nodeVersion, lacks: nodeLacks,
	client: func(m *meeting, s *served) {
		port, err := strconv.Atoi(s.port)
		if err != nil {
			m.Fatal(err)
		}
		o := m.nodeOptions(m.own(), m.clientGroups())
		o["host"], o["port"], o["servername"], o["ca"] = "127.0.0.1", port, "localhost", m.authority.File
		if m.special.resumes() {
			o["saveSession"] = filepath.ToSlash(filepath.Join(m.TempDir(), "session"))
			first := m.node(o)
			first.WaitFor("has a session")
			m.echoed(first, m.line())
			o["session"] = o["saveSession"]
		}
		p := m.node(o)
		said := p.WaitFor("connected")
		if m.special == alpn {
			mustContain(m.T, "node", said, "protocol: "+protocol)
		}
		m.echoed(p, m.line())
	},
}

var nodeServer = &peer{
	name: "Node.js server", programs: []string{"node"}, version: nodeVersion, lacks: nodeLacks,
	server: func(m *meeting) (addr string, talk func(*tlstest.Conn)) {
		o := m.nodeOptions(m.leaf(), []group{m.group})
		if m.own() != nil {
			o["requestCert"], o["ca"] = true, m.authority.File
		}
		addr = m.node(o).WaitFor("listening on ")
		if _, _, err := net.SplitHostPort(addr); err != nil {
			m.Fatal(err)
		}
		return addr, m.echoes(same)
	},
}

func nodeVersion(t *testing.T) string {
	return "Node.js " + strings.TrimSpace(outside.Run(t, "node", "-p", "`${process.versions.node} (OpenSSL ${process.versions.openssl})`"))
}

func nodeLacks(t *testing.T, m terms) string {
	switch {
	case m.group == hybrid && !atLeast(nodeVersion(t), "(OpenSSL ", 3, 5):
		return "The OpenSSL below Node.js has X25519MLKEM768 since version 3.5."
	case m.special == theirUpdate:
		return "Node.js has no call for it."
	case m.special.isEarly():
		return "Node.js has no call for early data."
	case m.special == ourLimit || m.special == theirLimit:
		return "OpenSSL has no record_size_limit."
	}
	return ""
}

// nodeOptions are the options that both roles share.
func (m *meeting) nodeOptions(cert *outside.Leaf, groups []group) map[string]any {
	o := make(map[string]any)
	if cert != nil {
		o["cert"], o["key"] = cert.CertFile, cert.KeyFile
	}
	if m.suite.name != "" {
		o["ciphers"] = m.suite.name
	}
	if m.group.id != 0 {
		o["ecdhCurve"] = names(groups, opensslName, ":")
	}
	if m.special == alpn {
		o["ALPNProtocols"] = []string{protocol}
	}
	return o
}

// node runs testdata/peer.js.
func (m *meeting) node(options map[string]any) *outside.Process {
	arg, err := json.Marshal(options)
	if err != nil {
		m.Fatal(err)
	}
	return outside.Start(m.T, "node", "testdata/peer.js", string(arg))
}
