package tlstest_test

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/go-tcpls/tcpls/internal/tlstest"
	"github.com/go-tcpls/tcpls/internal/tlstest/outside"
)

// Node.js takes long to start, so that one process of each role makes all its
// ends.

var nodeClient = &peer{
	name: "Node.js client", programs: []string{"node"}, version: nodeVersion, prepare: nodePrepare, lacks: nodeLacks,
	client: func(m *meeting, s *served) {
		port, err := strconv.Atoi(s.port)
		if err != nil {
			m.Fatal(err)
		}
		o := m.nodeOptions(m.own(), m.clientGroups())
		o["host"], o["port"], o["servername"], o["ca"] = "127.0.0.1", port, "localhost", m.authority.File
		o["line"], o["connections"] = m.line()+"\n", 1
		want := []string{fmt.Sprint("received=", len(m.line())+1)}
		if m.special.resumes() {
			o["connections"] = 2
			want = append(want, "resumed=true")
		}
		if m.special == alpn {
			want = append(want, "protocol="+protocol)
		}
		mustContain(m.T, "node", m.tellNode(o).WaitFor("done"), want...)
	},
}

var nodeServer = &peer{
	name: "Node.js server", programs: []string{"node"}, version: nodeVersion, prepare: nodePrepare, lacks: nodeLacks,
	server: func(m *meeting) (addr string, talk func(*tlstest.Conn)) {
		o := m.nodeOptions(m.leaf(), []group{m.group})
		if m.own() != nil {
			o["requestCert"], o["ca"] = true, m.authority.File
		}
		return m.tellNode(o).WaitFor("listening on "), m.echoes(same)
	},
}

func nodePrepare(t *testing.T, r *room) { r.node = outside.Start(t, "node", "testdata/peer.js") }

// tellNode has testdata/peer.js make one end.
func (m *meeting) tellNode(options map[string]any) *outside.Process {
	line, err := json.Marshal(options)
	if err != nil {
		m.Fatal(err)
	}
	m.node.For(m.T).Say(string(line))
	return m.node
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
