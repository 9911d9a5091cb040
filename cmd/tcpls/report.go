package main

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/go-tcpls/tcpls"
)

// A report is what check found. Durations are in milliseconds.
type report struct {
	Address     string       `json:"address"`
	Peer        string       `json:"peer,omitempty"` // the address that answered
	TCPLS       bool         `json:"tcpls"`
	Version     string       `json:"tls_version,omitempty"`
	Suite       string       `json:"cipher_suite,omitempty"`
	Group       string       `json:"group,omitempty"`
	HelloRetry  bool         `json:"hello_retry_request,omitempty"`
	ALPN        string       `json:"alpn,omitempty"`
	Certificate *certificate `json:"certificate,omitempty"`
	Takes       []string     `json:"tcp_options,omitempty"`         // those that the server sets
	TakesNot    []peerOption `json:"tcp_options_refused,omitempty"` // those that it could
	Options     []peerOption `json:"peer_options,omitempty"`        // what came of --peer-opt
	Machine     *ccReport    `json:"congestion_control"`            // what this machine could take
	Timings     timings      `json:"timings_ms"`
	Path        *network     `json:"path,omitempty"`
	Refused     []string     `json:"refused"` // what the server didn't take, and why
	Error       string       `json:"error,omitempty"`
	Hint        string       `json:"hint,omitempty"`
	Exit        int          `json:"exit_status"`

	bad error // why the certificate isn't verified
}

type certificate struct {
	Subject  string    `json:"subject"`
	Names    []string  `json:"names"`
	Issuer   string    `json:"issuer"`
	From     time.Time `json:"not_before"`
	Until    time.Time `json:"not_after"`
	Key      string    `json:"key"`
	Pin      string    `json:"pin"`
	Verified bool      `json:"verified"`
	How      string    `json:"verified_by,omitempty"`
	Why      string    `json:"not_verified_because,omitempty"`
}

// A network is what lies between, and what it did to the TCP connection.
type network struct {
	Local   string   `json:"local,omitempty"`
	Seen    string   `json:"seen_by_server,omitempty"` // the client's address
	Hops    *int     `json:"hops,omitempty"`
	Changes []string `json:"changes"`
	Unknown string   `json:"not_known_because,omitempty"`
}

func (n *network) fill(found *tcpls.Inspection) {
	n.Local, n.Seen = found.Local.String(), found.Source.String()
	if found.Hops >= 0 {
		n.Hops = &found.Hops
	}
	for _, f := range found.Findings {
		n.Changes = append(n.Changes, f.String())
	}
}

// words says it for a person, a line each.
func (n *network) words() []string {
	switch {
	case n.Unknown != "":
		return []string{"not known what the network changes: " + n.Unknown}
	case len(n.Changes) > 0:
		return n.Changes
	case n.Hops != nil && *n.Hops == 1:
		return []string{"nothing changed on the way, over 1 router"}
	case n.Hops != nil && *n.Hops > 1:
		return []string{fmt.Sprintf("nothing changed on the way, over %d routers", *n.Hops)}
	}
	return []string{"nothing changed on the way"}
}

// timings of the steps. A step that was done twice counts the second time.
type timings struct {
	Resolve   float64 `json:"resolve,omitempty"`
	Connect   float64 `json:"connect,omitempty"`
	Handshake float64 `json:"handshake,omitempty"`
	Ping      float64 `json:"ping,omitempty"`
}

// fill takes the facts of a session.
func (r *report) fill(state tcpls.ConnectionState) {
	r.TCPLS = state.TCPLS
	r.Version = tls.VersionName(state.TLS.Version)
	r.Suite = tls.CipherSuiteName(state.TLS.CipherSuite)
	if state.TLS.CurveID != 0 {
		r.Group = state.TLS.CurveID.String()
	}
	r.HelloRetry = state.TLS.HelloRetryRequest
	r.ALPN = state.TLS.NegotiatedProtocol
	if !r.TCPLS {
		r.Refused = append(r.Refused, "TCPLS: "+state.Fallback)
	}
	if state.TLS.Version < tls.VersionTLS13 {
		r.Refused = append(r.Refused, "TLS 1.3: the server knows only "+r.Version)
	}
	if r.HelloRetry {
		r.Refused = append(r.Refused, "first key share: the server asked for "+r.Group+", which cost a round trip")
	}
	if r.ALPN == "" {
		r.Refused = append(r.Refused, "ALPN: the server chose neither h2 nor http/1.1")
	}
}

// judge describes the certificate and returns why it isn't verified.
func (r *report) judge(state tls.ConnectionState, f *clientFlags, to target, roots *x509.CertPool) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("the server showed no certificate")
	}
	leaf := state.PeerCertificates[0]
	c := &certificate{
		Subject: leaf.Subject.String(), Issuer: leaf.Issuer.String(), Names: []string{},
		From: leaf.NotBefore.UTC(), Until: leaf.NotAfter.UTC(),
		Key: leaf.PublicKeyAlgorithm.String(), Pin: pinOf(leaf).String(),
	}
	c.Names = append(c.Names, leaf.DNSNames...)
	for _, ip := range leaf.IPAddresses {
		c.Names = append(c.Names, ip.String())
	}
	r.Certificate = c
	var err error
	switch {
	case to.pin != nil:
		c.How = "the pin"
		err = to.pin.verify(state)
	case f.insecure:
		c.Why = "--insecure"
		return nil
	default:
		c.How = "the system's roots"
		if roots != nil {
			c.How = "--cacert"
		}
		options := x509.VerifyOptions{Roots: roots, DNSName: hostOf(to.address), Intermediates: x509.NewCertPool()}
		for _, cert := range state.PeerCertificates[1:] {
			options.Intermediates.AddCert(cert)
		}
		if _, err = leaf.Verify(options); err != nil {
			err = &tls.CertificateVerificationError{UnverifiedCertificates: state.PeerCertificates, Err: err}
		}
	}
	if err != nil {
		c.How, c.Why = "", classify(err).text
		return err
	}
	c.Verified = true
	return nil
}

func hostOf(address string) string {
	host, _, _ := net.SplitHostPort(address)
	return host
}

// maxNames is how many of a certificate's names are shown to a person.
const maxNames = 6

// print writes the report for a person.
func (r *report) print(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(table, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	list := func(name string, lines []string) {
		for _, text := range lines {
			row(name, "%s", text)
			name = ""
		}
	}
	row("server", "%s (%s)", r.Address, cmp.Or(r.Peer, "not reached"))
	if r.Version != "" {
		row("TCPLS", "%s", yesNo(r.TCPLS))
		row("TLS", "%s, %s", r.Version, r.Suite)
		if r.Group != "" {
			row("key exchange", "%s", r.Group)
		}
		row("ALPN", "%s", cmp.Or(printable(r.ALPN), "none"))
	}
	if c := r.Certificate; c != nil {
		row("certificate", "%s, %s key", printable(c.Subject), c.Key)
		names := c.Names[:min(len(c.Names), maxNames)]
		more := ""
		if n := len(c.Names) - len(names); n > 0 {
			more = fmt.Sprintf(" and %d more", n)
		}
		row("", "for %s%s", printable(cmp.Or(strings.Join(names, ", "), "no name")), more)
		row("", "issued by %s, valid from %s until %s", printable(c.Issuer), c.From.Format(time.DateOnly), c.Until.Format(time.DateOnly))
		row("", "%s", c.Pin)
		if c.Verified {
			row("", "verified by %s", c.How)
		} else {
			row("", "NOT verified: %s", c.Why)
		}
	}
	var options []string
	if r.TCPLS {
		options = append(options, cmp.Or(strings.Join(r.Takes, ", "), "none"))
	}
	for _, o := range slices.Concat(r.TakesNot, r.Options) {
		options = append(options, o.String())
	}
	list("TCP options", options)
	row("this machine", "%v", r.Machine)
	if text := r.Timings.String(); text != "" {
		row("timings", "%s", text)
	}
	if r.Path != nil {
		list("path", r.Path.words())
	}
	list("refused", r.Refused)
	return table.Flush()
}

func (t timings) String() string {
	var steps []string
	for _, step := range []struct {
		name string
		ms   float64
	}{{"name", t.Resolve}, {"connect", t.Connect}, {"handshake", t.Handshake}, {"ping", t.Ping}} {
		if step.ms > 0 {
			steps = append(steps, fmt.Sprintf("%s %s ms", step.name, threeDigits(step.ms)))
		}
	}
	return strings.Join(steps, ", ")
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// printable replaces what could steer a terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, text)
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
