package tlstest_test

import (
	"io"
	"maps"
	"os/exec"
	"strings"
	"testing"

	"github.com/go-tcpls/tcpls/internal/tlstest"
	"github.com/go-tcpls/tcpls/internal/tlstest/outside"
)

// NSS's own test programs speak HTTP: tstclnt sends a file and ends when the
// server does, and selfserv answers with what it was sent, and ends.

var nssPrograms = []string{"certutil", "pk12util", "openssl"}

var nssClient = &peer{
	name: "NSS tstclnt", programs: append([]string{"tstclnt"}, nssPrograms...), version: nssVersion, prepare: nssPrepare,
	lacks: func(t *testing.T, m terms) string {
		switch {
		case m.special == alpn:
			return "tstclnt doesn't offer protocols."
		case m.special.resumes() && m.suite.name != "":
			return "tstclnt aborts when it is told both suites and a second connection."
		}
		return nssLacks(t, m)
	},
	client: func(m *meeting, s *served) {
		args := append(m.nssArgs(m.clientGroups()), "-4", "-h", "localhost", "-p", s.port, "-A", m.file(m.request()))
		if m.own() != nil {
			args = append(args, "-n", m.clientKey)
		}
		if m.special.resumes() {
			args = append(args, "-L", "2") // connections
		}
		mustContain(m.T, "page", outside.Run(m.T, "tstclnt", args...), m.facts(m.special.resumes())...)
	},
}

var nssServer = &peer{
	name: "NSS selfserv", programs: append([]string{"selfserv"}, nssPrograms...), version: nssVersion, prepare: nssPrepare,
	lacks: func(t *testing.T, m terms) string {
		if m.special == early {
			return "selfserv refuses early data in the seconds after its start, as a guard against replays."
		}
		return nssLacks(t, m)
	},
	server: func(m *meeting) (addr string, talk func(*tlstest.Conn)) {
		nickname := m.key
		if nickname == "" {
			nickname = outside.P256
		}
		args := m.nssArgs([]group{m.group})
		if nickname == outside.RSA {
			args = append(args, "-n", nickname)
		} else {
			args = append(args, "-e", nickname)
		}
		if m.own() != nil {
			args = append(args, "-r", "-r") // request, and require
		}
		if m.special == alpn {
			args = append(args, "-Q") // http/1.1
		}
		if m.special.resumes() {
			args = append(args, "-u") // tickets
		}
		_, addr = outside.NSSServer(m.T, args...)
		return addr, func(c *tlstest.Conn) {
			if _, err := io.WriteString(c, m.request()); err != nil {
				m.Fatal(err)
			}
			page, err := io.ReadAll(c)
			if err != nil {
				m.Error(err)
			}
			mustContain(m.T, "page", string(page), "200 OK", m.line())
			if err := c.Close(); err != nil {
				m.Error(err)
			}
		}
	},
}

func nssPrepare(t *testing.T, r *room) {
	leaves := maps.Clone(r.leaves)
	maps.DeleteFunc(leaves, func(key string, _ *outside.Leaf) bool { return nssLacks(t, terms{key: key}) != "" })
	r.nssDB = outside.NSSDatabase(t, r.authority, leaves)
}

// nssVersion asks Debian: the programs don't tell.
func nssVersion(t *testing.T) string {
	version, err := exec.Command("dpkg-query", "-W", "-f", "${Version}", "libnss3-tools").Output()
	if err != nil {
		return "NSS"
	}
	return "NSS " + strings.TrimPrefix(string(version), "2:")
}

func nssLacks(t *testing.T, m terms) string {
	switch {
	case m.group == hybrid && !nssKnows(hybrid.nss):
		return "This NSS has no X25519MLKEM768."
	case m.key == outside.Ed25519 || m.clientKey == outside.Ed25519:
		return "NSS doesn't import Ed25519 keys."
	case m.special == theirUpdate:
		return "NSS's programs have no option for it."
	case m.special == theirLimit:
		return "NSS's programs always announce the largest limit."
	}
	return ""
}

// nssKnows tells whether the usage of tstclnt names something.
func nssKnows(name string) bool {
	usage, _ := exec.Command("tstclnt").CombinedOutput() // fails, since it lacks arguments
	return strings.Contains(string(usage), name)
}

// nssArgs are the arguments that both programs share.
func (m *meeting) nssArgs(groups []group) []string {
	args := []string{"-d", m.nssDB, "-V", "tls1.3:tls1.3"}
	if m.suite.name != "" {
		args = append(args, "-c", m.suite.nss)
	}
	if m.group.id != 0 {
		args = append(args, "-I", names(groups, nssName, ","))
	}
	if m.special.isEarly() {
		args = append(args, "-Z")
	}
	return args
}
