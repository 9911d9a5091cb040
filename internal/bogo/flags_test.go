package bogo

import (
	"crypto/tls"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// errUnimplemented tells that a test wants what the shim hasn't got.
var errUnimplemented = errors.New("not implemented")

// options are the runner's flags for one connection of a test. Flags with no
// field, or that no test of TLS 1.3 gives, are errUnimplemented.
type options struct {
	process
	credential  // the default one
	credentials []*credential
	behaviour
	settings
	expectations
}

// process is what concerns the shim as a process.
type process struct {
	port                 int
	ipv6                 bool
	shimID               uint64
	server               bool
	resumeCount          int
	isHandshakerPossible bool
	extension            bool // ours, not the runner's
}

// extensionFlag makes the shim use an extension of its own, as TCPLS does.
const extensionFlag = "own-extension"

// A credential is a certificate that the shim may use.
type credential struct {
	certFile, keyFile string
	signingPrefs      numbers
	ocsp, scts        encoded
	mustMatchIssuer   bool
}

// behaviour is what the shim does with the connection.
type behaviour struct {
	writesFirst, shutsDown       bool
	initialWrite                 string
	repeatInitialWrite           int
	unfinishedWrite              bool
	writeSizes                   bool
	readSize                     int
	exportLen                    int
	exportLabel, exportContext   string
	useExportContext             bool
	exportBetweenReads           bool
	exportSecrets                bool
	keyUpdate, keyUpdateFirst    bool
	sendAlert, checkCloseNotify  bool
	resumptionDelay              int
	earlyWriteAfter              int
	failHello, failDDoS          bool
	failCertificate              bool
	verifyFail, verifyResumption bool
	customVerify                 bool
	failOCSP, declineOCSP        bool
	ticketCallback, skipTicket   bool
}

// settings are for the configurations of crypto/tls and the engine.
type settings struct {
	minVersion, maxVersion        uint
	noTLS13                       bool
	trustCert, hostName           string
	curves                        numbers
	advertiseALPN, selectALPN     string
	declineALPN, rejectALPN       bool
	requireClientCert, verifyPeer bool
	clientCAs                     string
	noTicket, earlyData           bool
}

// expectations are held against what the engine tells.
type expectations struct {
	version, curve, peerScheme, cipher uint
	cipherAES, cipherNoAES             uint
	alpn, advertisedALPN               string
	serverName                         string
	noServerName                       bool
	peerVerifyPrefs                    numbers
	peerCertFile                       string
	noPeerCert                         bool
	peerOCSP, peerSCTs                 encoded
	clientCAList                       string
	hrr, noHRR                         bool
	sessionMiss, noSession             bool
	ticketRenewal                      bool
	ticketEarlyData                    bool
	earlyAccepted, earlyRejected       bool
	earlyNotOffered                    bool
	earlyReason                        string
	selectedCredential                 int
}

// numbers is a flag that may be given more than once.
type numbers []uint16

func (n *numbers) String() string { return fmt.Sprint(*n) }

func (n *numbers) Set(s string) error {
	v, err := strconv.ParseInt(s, 10, 32)
	*n = append(*n, uint16(v))
	return err
}

// encoded is a flag in base64.
type encoded []byte

func (b *encoded) String() string { return base64.StdEncoding.EncodeToString(*b) }

func (b *encoded) Set(s string) (err error) {
	*b, err = base64.StdEncoding.DecodeString(s)
	return err
}

// ignored are flags that ask for what the engine does anyway, that change
// nothing for an engine without input and output, or that concern only what a
// test of TLS 1.3 doesn't reach.
var ignored = []string{
	"async", "implicit-handshake", "handshake-twice", "no-op-extra-handshake",
	"partial-write", "expect-verify-result",
	"enable-grease", "server-preference", "permute-extensions", "renew-ticket",
	"expect-no-session-id", "use-ocsp-callback", "set-ocsp-in-callback",
	"no-tls1", "no-tls11", "no-tls12",
	"use-early-callback", "use-old-client-cert-callback", "install-ddos-callback",
	"enable-ocsp-stapling", "enable-signed-cert-timestamps",
	"renegotiate-freely", "renegotiate-ignore", "forbid-renegotiation-after-handshake",
	"expect-extended-master-secret", "expect-secure-renegotiation", "no-legacy-server-connect",
}

// ignoredValues are such flags with a value: what the engine has no setting
// for, or doesn't tell.
var ignoredValues = []string{"verify-prefs", "expect-ticket-age-skew"}

// flagSet binds the runner's flags to o.
func (o *options) flagSet() *flag.FlagSet {
	fs := flag.NewFlagSet("shim", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	for _, name := range ignored {
		fs.Bool(name, false, "")
	}
	for _, name := range ignoredValues {
		fs.Var(new(numbers), name, "")
	}
	o.process.register(fs)
	o.behaviour.register(fs)
	o.settings.register(fs)
	o.expectations.register(fs)
	return fs
}

func (p *process) register(fs *flag.FlagSet) {
	fs.IntVar(&p.port, "port", 0, "")
	fs.BoolVar(&p.ipv6, "ipv6", false, "")
	fs.Uint64Var(&p.shimID, "shim-id", 0, "")
	fs.BoolVar(&p.server, "server", false, "")
	fs.IntVar(&p.resumeCount, "resume-count", 0, "")
	fs.BoolVar(&p.isHandshakerPossible, "is-handshaker-supported", false, "")
	fs.BoolVar(&p.extension, extensionFlag, false, "")
}

func (c *credential) register(fs *flag.FlagSet) {
	fs.StringVar(&c.certFile, "cert-file", "", "")
	fs.StringVar(&c.keyFile, "key-file", "", "")
	fs.Var(&c.signingPrefs, "signing-prefs", "")
	fs.Var(&c.ocsp, "ocsp-response", "")
	fs.Var(&c.scts, "signed-cert-timestamps", "")
	fs.BoolVar(&c.mustMatchIssuer, "must-match-issuer", false, "")
}

func (b *behaviour) register(fs *flag.FlagSet) {
	fs.BoolVar(&b.writesFirst, "shim-writes-first", false, "")
	fs.BoolVar(&b.shutsDown, "shim-shuts-down", false, "")
	fs.StringVar(&b.initialWrite, "shim-initial-write", "hello", "")
	fs.IntVar(&b.repeatInitialWrite, "repeat-shim-initial-write", 1, "")
	fs.BoolVar(&b.unfinishedWrite, "read-with-unfinished-write", false, "")
	fs.BoolVar(&b.writeSizes, "write-different-record-sizes", false, "")
	fs.IntVar(&b.readSize, "read-size", 512, "")
	fs.IntVar(&b.exportLen, "export-keying-material", 0, "")
	fs.StringVar(&b.exportLabel, "export-label", "", "")
	fs.StringVar(&b.exportContext, "export-context", "", "")
	fs.BoolVar(&b.useExportContext, "use-export-context", false, "")
	fs.BoolVar(&b.exportBetweenReads, "use-exporter-between-reads", false, "")
	fs.BoolVar(&b.exportSecrets, "export-traffic-secrets", false, "")
	fs.BoolVar(&b.keyUpdate, "key-update", false, "")
	fs.BoolVar(&b.keyUpdateFirst, "key-update-before-read", false, "")
	fs.BoolVar(&b.sendAlert, "send-alert", false, "")
	fs.BoolVar(&b.checkCloseNotify, "check-close-notify", false, "")
	fs.IntVar(&b.resumptionDelay, "resumption-delay", 0, "")
	fs.IntVar(&b.earlyWriteAfter, "early-write-after-message", 0, "")
	fs.BoolVar(&b.failHello, "fail-early-callback", false, "")
	fs.BoolVar(&b.failDDoS, "fail-ddos-callback", false, "")
	fs.BoolVar(&b.failCertificate, "fail-cert-callback", false, "")
	fs.BoolVar(&b.verifyFail, "verify-fail", false, "")
	fs.BoolVar(&b.customVerify, "use-custom-verify-callback", false, "")
	fs.BoolVar(&b.failOCSP, "fail-ocsp-callback", false, "")
	fs.BoolVar(&b.declineOCSP, "decline-ocsp-callback", false, "")
	fs.BoolVar(&b.ticketCallback, "use-ticket-callback", false, "")
	fs.BoolVar(&b.ticketCallback, "use-ticket-aead-callback", false, "")
	fs.BoolVar(&b.skipTicket, "skip-ticket", false, "")
	fs.BoolVar(&b.verifyResumption, "reverify-on-resume", false, "")
}

func (s *settings) register(fs *flag.FlagSet) {
	fs.UintVar(&s.minVersion, "min-version", 0, "")
	fs.UintVar(&s.maxVersion, "max-version", 0, "")
	fs.BoolVar(&s.noTLS13, "no-tls13", false, "")
	fs.StringVar(&s.trustCert, "trust-cert", "", "")
	fs.StringVar(&s.hostName, "host-name", "", "")
	fs.Var(&s.curves, "curves", "")
	fs.StringVar(&s.advertiseALPN, "advertise-alpn", "", "")
	fs.StringVar(&s.selectALPN, "select-alpn", "", "")
	fs.BoolVar(&s.declineALPN, "decline-alpn", false, "")
	fs.BoolVar(&s.rejectALPN, "reject-alpn", false, "")
	fs.BoolVar(&s.requireClientCert, "require-any-client-certificate", false, "")
	fs.BoolVar(&s.verifyPeer, "verify-peer", false, "")
	fs.StringVar(&s.clientCAs, "use-client-ca-list", "", "")
	fs.BoolVar(&s.noTicket, "no-ticket", false, "")
	fs.BoolVar(&s.earlyData, "enable-early-data", false, "")
}

func (e *expectations) register(fs *flag.FlagSet) {
	fs.UintVar(&e.version, "expect-version", 0, "")
	fs.UintVar(&e.curve, "expect-curve-id", 0, "")
	fs.UintVar(&e.peerScheme, "expect-peer-signature-algorithm", 0, "")
	fs.UintVar(&e.cipher, "expect-cipher", 0, "")
	fs.UintVar(&e.cipherAES, "expect-cipher-aes", 0, "")
	fs.UintVar(&e.cipherNoAES, "expect-cipher-no-aes", 0, "")
	fs.StringVar(&e.alpn, "expect-alpn", "", "")
	fs.StringVar(&e.advertisedALPN, "expect-advertised-alpn", "", "")
	fs.StringVar(&e.serverName, "expect-server-name", "", "")
	fs.BoolVar(&e.noServerName, "expect-no-server-name", false, "")
	fs.Var(&e.peerVerifyPrefs, "expect-peer-verify-pref", "")
	fs.StringVar(&e.peerCertFile, "expect-peer-cert-file", "", "")
	fs.BoolVar(&e.noPeerCert, "expect-no-peer-cert", false, "")
	fs.Var(&e.peerOCSP, "expect-ocsp-response", "")
	fs.Var(&e.peerSCTs, "expect-signed-cert-timestamps", "")
	fs.StringVar(&e.clientCAList, "expect-client-ca-list", "", "")
	fs.BoolVar(&e.hrr, "expect-hrr", false, "")
	fs.BoolVar(&e.noHRR, "expect-no-hrr", false, "")
	fs.BoolVar(&e.sessionMiss, "expect-session-miss", false, "")
	fs.BoolVar(&e.noSession, "expect-no-session", false, "")
	fs.BoolVar(&e.ticketRenewal, "expect-ticket-renewal", false, "")
	fs.BoolVar(&e.ticketEarlyData, "expect-ticket-supports-early-data", false, "")
	fs.BoolVar(&e.earlyAccepted, "expect-accept-early-data", false, "")
	fs.BoolVar(&e.earlyRejected, "expect-reject-early-data", false, "")
	fs.BoolVar(&e.earlyNotOffered, "expect-no-offer-early-data", false, "")
	fs.StringVar(&e.earlyReason, "expect-early-data-reason", "", "")
	fs.IntVar(&e.selectedCredential, "expect-selected-credential", -2, "")
}

// A phase of a test has options of its own, given by flags with its prefix.
type phase int

const (
	initial phase = iota
	resumption
	retry // of a resumption whose early data was refused
	phases
)

var prefixes = [phases]string{"on-initial-", "on-resume-", "on-retry-"}

// parseFlags reads the command line that the runner gives.
func parseFlags(args []string) (all [phases]*options, err error) {
	var parsers [phases]flagParser
	for p := range phases {
		all[p] = new(options)
		parsers[p] = newFlagParser(all[p])
	}
	for len(args) > 0 {
		name, ok := strings.CutPrefix(args[0], "-")
		if !ok {
			return all, fmt.Errorf("argument %q is no flag", args[0])
		}
		name = strings.TrimPrefix(name, "on-shim-")
		first, last := initial, retry
		for p, prefix := range prefixes {
			if rest, ok := strings.CutPrefix(name, prefix); ok {
				name, first, last = rest, phase(p), phase(p)
			}
		}
		used := 0
		for p := first; p <= last; p++ {
			if used, err = parsers[p].set(name, args[1:]); err != nil {
				return all, fmt.Errorf("flag %s: %w", args[0], err)
			}
		}
		args = args[1+used:]
	}
	return all, all[initial].check()
}

// A flagParser sets one phase's options. Flags of credentials are for the one
// begun last.
type flagParser struct {
	options            *options
	flags, credentials *flag.FlagSet
}

func newFlagParser(o *options) flagParser {
	return flagParser{options: o, flags: o.flagSet(), credentials: credentialFlags(&o.credential)}
}

func credentialFlags(c *credential) *flag.FlagSet {
	fs := flag.NewFlagSet("credential", flag.ContinueOnError)
	c.register(fs)
	return fs
}

// set returns how many arguments behind the flag's name belong to it.
func (p *flagParser) set(name string, rest []string) (used int, err error) {
	if name == "new-x509-credential" {
		c := new(credential)
		p.options.credentials = append(p.options.credentials, c)
		p.credentials = credentialFlags(c)
		return 0, nil
	}
	f := p.flags.Lookup(name)
	if f == nil {
		f = p.credentials.Lookup(name)
	}
	if f == nil {
		return 0, errUnimplemented
	}
	if b, ok := f.Value.(interface{ IsBoolFlag() bool }); ok && b.IsBoolFlag() {
		return 0, f.Value.Set("true")
	}
	if len(rest) == 0 {
		return 0, errors.New("no value")
	}
	return 1, f.Value.Set(rest[0])
}

// check refuses what only older versions of TLS could do.
func (o *options) check() error {
	if o.noTLS13 || o.maxVersion != 0 && o.maxVersion < tls.VersionTLS13 {
		return fmt.Errorf("TLS 1.2: %w", errUnimplemented)
	}
	return nil
}
