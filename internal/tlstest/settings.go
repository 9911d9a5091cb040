package tlstest

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/go-tcpls/tcpls/internal/tls13"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// Settings are the command-line flags that both programs have.
type Settings struct {
	Addr              string
	CertFile, KeyFile string
	CAFile            string
	ALPN, Groups      string // separated by commas
	KeyLogFile        string
	RecordSize        int
	TCPLS             bool
	Timeout           time.Duration
	Behaviour
}

// Behaviour is what an end does after its handshake.
type Behaviour struct {
	Mode      string // one of the program's modes
	Size      int64  // bytes that source sends; 0: until the peer ends
	KeyUpdate bool   // begin with a key update, and ask for the peer's
}

// Register defines the flags, with the program's modes.
func (s *Settings) Register(fs *flag.FlagSet, modes string) {
	fs.StringVar(&s.Addr, "addr", "127.0.0.1:4433", "TCP `address`")
	fs.StringVar(&s.CertFile, "cert", "", "`file` with our certificate chain, PEM")
	fs.StringVar(&s.KeyFile, "key", "", "`file` with our private key, PEM")
	fs.StringVar(&s.CAFile, "ca", "", "`file` with the roots that the peer's certificate must lead to, PEM")
	fs.StringVar(&s.ALPN, "alpn", "", "application `protocols`, best first, separated by commas")
	fs.StringVar(&s.Groups, "groups", "", "key exchange `groups`, best first, separated by commas: "+strings.Join(groupNames(), ", "))
	fs.StringVar(&s.KeyLogFile, "keylog", "", "append the secrets to this `file`, for Wireshark")
	fs.IntVar(&s.RecordSize, "record-size", 0, "the record_size_limit to announce, in `bytes`")
	fs.BoolVar(&s.TCPLS, "tcpls", false, "negotiate the tcpls extension (and then go on with plain TLS)")
	fs.BoolVar(&s.KeyUpdate, "key-update", false, "update the keys right after the handshake, and ask for the peer's update")
	fs.DurationVar(&s.Timeout, "timeout", 10*time.Second, "one `limit` for the whole handshake")
	fs.StringVar(&s.Mode, "mode", "", modes)
	fs.Int64Var(&s.Size, "size", 0, "how many `bytes` -mode source sends; 0: until the peer ends")
}

var groups = []struct {
	name string
	id   tls.CurveID
}{
	{"X25519MLKEM768", tls.X25519MLKEM768},
	{"X25519", tls.X25519},
	{"P-256", tls.CurveP256},
	{"P-384", tls.CurveP384},
	{"P-521", tls.CurveP521},
	{"SecP256r1MLKEM768", tls.SecP256r1MLKEM768},
	{"SecP384r1MLKEM1024", tls.SecP384r1MLKEM1024},
}

func groupNames() []string {
	var names []string
	for _, g := range groups {
		names = append(names, g.name)
	}
	return names
}

func parseGroups(list string) (ids []tls.CurveID, err error) {
next:
	for _, name := range splitList(list) {
		for _, g := range groups {
			if strings.EqualFold(g.name, name) {
				ids = append(ids, g.id)
				continue next
			}
		}
		return nil, fmt.Errorf("-groups: %q isn't one of %s", name, strings.Join(groupNames(), ", "))
	}
	return ids, nil
}

func splitList(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
}

// Config returns the engine's configuration, and what closes the key log. CA
// roots are both RootCAs and ClientCAs.
func (s *Settings) Config() (cfg *tls13.Config, done func() error, err error) {
	t := &tls.Config{NextProtos: splitList(s.ALPN)}
	if t.CurvePreferences, err = parseGroups(s.Groups); err != nil {
		return nil, nil, err
	}
	if s.CertFile != "" || s.KeyFile != "" {
		cert, err := tls.LoadX509KeyPair(s.CertFile, s.KeyFile)
		if err != nil {
			return nil, nil, fmt.Errorf("-cert, -key: %w", err)
		}
		t.Certificates = []tls.Certificate{cert}
	}
	if s.CAFile != "" {
		pem, err := os.ReadFile(s.CAFile)
		if err != nil {
			return nil, nil, fmt.Errorf("-ca: %w", err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, nil, fmt.Errorf("-ca: no certificate in %s", s.CAFile)
		}
		t.RootCAs, t.ClientCAs = roots, roots
	}
	done = func() error { return nil }
	if s.KeyLogFile != "" {
		f, err := os.OpenFile(s.KeyLogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, nil, fmt.Errorf("-keylog: %w", err)
		}
		t.KeyLogWriter, done = f, f.Close
	}
	cfg = &tls13.Config{TLS: t, RecordSizeLimit: s.RecordSize}
	if s.TCPLS {
		negotiateTCPLS(cfg)
	}
	return cfg, done, nil
}

// negotiateTCPLS adds the extension of docs/protocol.md, section 2. Only the
// negotiation is TCPLS's: the records that follow are TLS's.
func negotiateTCPLS(cfg *tls13.Config) {
	cfg.Extension = wire.ExtensionType
	cfg.Offer = wire.AppendOffer(nil)
	cfg.Answer = func(offer []byte) ([]byte, error) {
		if ours, err := wire.ParseOffer(offer); err != nil || !ours {
			return nil, err
		}
		return wire.AppendAnswer(nil, &wire.Parameters{}), nil
	}
	cfg.Accept = func(answer []byte) error {
		_, err := wire.ParseAnswer(answer)
		return err
	}
}

// Facts says in one line what a handshake has settled.
func Facts(c *Conn) string {
	s := c.Engine().ConnectionState()
	facts := fmt.Sprintf("%s %s %s", tls.VersionName(s.Version), tls.CipherSuiteName(s.CipherSuite), s.CurveID)
	for _, fact := range []struct {
		name, value string
		known       bool
	}{
		{"alpn", s.NegotiatedProtocol, s.NegotiatedProtocol != ""},
		{"name", s.ServerName, s.ServerName != ""},
		{"retried", "yes", s.HelloRetryRequest},
		{"resumed", "yes", s.DidResume},
		{"early", strconv.Itoa(c.early), c.Engine().EarlyDataAccepted()},
		{"tcpls", "yes", c.Engine().ExtensionAnswered()},
	} {
		if fact.known {
			facts += " " + fact.name + "=" + fact.value
		}
	}
	if len(s.PeerCertificates) > 0 {
		facts += fmt.Sprintf(" peer=%q", s.PeerCertificates[0].Subject)
	}
	return facts
}
