package tls13

import (
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/go-tcpls/tcpls/internal/record"
)

// A Config says how one end behaves. It must not be changed while a Conn uses
// it; many Conns may share one.
type Config struct {
	// TLS is the configuration in the vocabulary of crypto/tls; nil means
	// its zero value. It is never modified. The table tlsFields tells what
	// becomes of each field; what can't be honoured is refused by NewClient
	// and NewServer with an error that names it. Methods of its
	// ClientSessionCache are called under a lock that all Conns share, so that
	// no ticket is used twice.
	//
	// Rand is read for what the hellos carry: randoms, session id and GREASE.
	// Since Go 1.26 the packages beneath make keys and signatures from their
	// own source, whatever Rand is; the same holds for crypto/tls.
	//
	// An error that a callback returns ends the handshake, with the alert of an
	// *Error within it, and else with that of crypto/tls.
	//
	// The Context methods of tls.ClientHelloInfo and
	// tls.CertificateRequestInfo return nil in the callbacks.
	TLS *tls.Config

	// Extension is the codepoint of one extension beside TLS's own, 0 for
	// none. The engine carries its bodies, from ClientHello to
	// EncryptedExtensions, and knows nothing of them.
	Extension uint16
	// Offer is the body that a client sends; nil sends no extension.
	Offer []byte
	// Answer is called on a server whose client sent the extension, once a
	// handshake. A non-nil body goes into EncryptedExtensions. An error ends
	// the handshake, with illegal_parameter unless it is an *Error.
	Answer func(offer []byte) ([]byte, error)
	// Accept is called on a client whose server answered the extension. An
	// error ends the handshake as that of Answer does.
	Accept func(answer []byte) error

	// RecordSizeLimit is the most bytes that the peer may put into the
	// plaintext of one protected record, type and padding included
	// (RFC 8449): 64 to 16385. 0 stands for 16385 on a server; a client then
	// doesn't send the extension.
	RecordSizeLimit int

	// PSK is what a client offers instead of a ticket; nil: a ticket, if it
	// has one. With it selected, which PSKUsed tells, the handshake is
	// authenticated by the PSK alone: there are no certificates, and neither
	// VerifyPeerCertificate nor VerifyConnection is called. A server that
	// doesn't select it is held to its certificate, as without a PSK.
	PSK *PSK
	// LookupPSK is asked on a server for each identity that a client offers,
	// in order and for at most 4, before tickets are tried. It is called
	// before the client has proven that it knows the PSK. nil, nil means that
	// the identity isn't the user's. An error ends the handshake, with
	// handshake_failure unless it is an *Error.
	LookupPSK func(identity []byte) (*PSK, error)

	// TicketCount is how many tickets a server sends once Read or Write is
	// called after the handshake: 0 stands for 2, a negative number for none.
	// Who takes the keys calls NewTicket instead.
	TicketCount int

	// MaxEarlyData makes a client send early data with a ticket that allows
	// it. On a server it is how many bytes the tickets allow, and 0 none.
	// PSKs of the user have a number of their own.
	MaxEarlyData uint32
	// EarlyContext goes into a server's tickets: their early data is accepted
	// only while it is the same. At most 1024 bytes.
	EarlyContext []byte
	// FirstUse is a server's strike register, without which no ticket's early
	// data is accepted (RFC 8446, section 8.2). It returns true if it never
	// saw id, a hash that no other ClientHello has, and must then remember it
	// up to the given time. It is called only for ClientHellos that are
	// fresh; early data with a PSK of the user's is not its business.
	FirstUse func(id []byte, until time.Time) bool
	// EarlyWindow is how far the age that a client states for its ticket may
	// differ from what the server measures, for early data to be accepted
	// (section 8.3). 0 stands for 10 seconds.
	EarlyWindow time.Duration

	// NetConn is handed to callbacks as tls.ClientHelloInfo.Conn, and its
	// remote address names a server without a name in the session cache.
	NetConn net.Conn
}

const (
	minRecordSizeLimit = 64
	maxRecordSizeLimit = record.MaxPlaintext + 1

	maxEarlyContext    = 1024
	defaultEarlyWindow = 10 * time.Second
)

// How a field of tls.Config is treated.
type treatment uint8

const (
	// honoured fields do what crypto/tls documents.
	honoured treatment = iota
	// foreign fields concern older versions of TLS, or the other role, or
	// are documented as having no effect: ignoring them is their meaning.
	foreign
	// delegated fields are honoured by methods of tls.Config that the engine
	// calls.
	delegated
	// refused fields must be zero, for the role that uses them.
	refused
)

// A tlsField is the engine's decision on one field of tls.Config.
type tlsField struct {
	name string
	how  treatment
	// isBad tells that a refused or bounded field has a value that can't be
	// honoured.
	isBad func(c *tls.Config, isClient bool) bool
	why   string
}

// tlsFields has every exported field of tls.Config, in its order; a test
// compares it with the struct.
var tlsFields = []tlsField{
	{name: "Rand", how: honoured},
	{name: "Time", how: honoured},
	{name: "Certificates", how: honoured},
	{name: "NameToCertificate", how: honoured},
	{name: "GetCertificate", how: honoured},
	{name: "GetClientCertificate", how: honoured},
	{name: "GetConfigForClient", how: honoured},
	{name: "VerifyPeerCertificate", how: honoured},
	{name: "VerifyConnection", how: honoured},
	{name: "RootCAs", how: honoured},
	{name: "NextProtos", how: honoured, isBad: badProtocols, why: "each protocol needs 1 to 255 bytes, and all together at most 65535"},
	{name: "ServerName", how: honoured, isBad: badServerName, why: "must be set, or InsecureSkipVerify be true, and have at most 255 bytes"},
	{name: "ClientAuth", how: honoured, isBad: badClientAuth, why: "unknown value"},
	{name: "ClientCAs", how: honoured},
	{name: "InsecureSkipVerify", how: honoured},
	{name: "CipherSuites", how: foreign},
	{name: "PreferServerCipherSuites", how: foreign},
	{name: "SessionTicketsDisabled", how: honoured},
	{name: "SessionTicketKey", how: delegated},
	{name: "ClientSessionCache", how: honoured},
	{name: "UnwrapSession", how: honoured},
	{name: "WrapSession", how: honoured},
	{name: "MinVersion", how: honoured, isBad: badMinVersion, why: "the engine speaks TLS 1.3 only"},
	{name: "MaxVersion", how: honoured, isBad: badMaxVersion, why: "the engine speaks TLS 1.3 only"},
	{name: "CurvePreferences", how: honoured, isBad: badCurves, why: "no key exchange in it is known"},
	{name: "DynamicRecordSizingDisabled", how: honoured},
	{name: "Renegotiation", how: foreign},
	{name: "KeyLogWriter", how: honoured},
	{name: "EncryptedClientHelloConfigList", how: refused, isBad: badECHClient, why: "Encrypted Client Hello is not supported"},
	{name: "EncryptedClientHelloRejectionVerify", how: foreign},
	{name: "GetEncryptedClientHelloKeys", how: refused, isBad: badECHCallback, why: "Encrypted Client Hello is not supported"},
	{name: "EncryptedClientHelloKeys", how: refused, isBad: badECHKeys, why: "Encrypted Client Hello is not supported"},
}

func checkTLS(c *tls.Config, isClient bool) error {
	for _, f := range tlsFields {
		if f.isBad != nil && f.isBad(c, isClient) {
			return fmt.Errorf("tls13: tls.Config.%s: %s", f.name, f.why)
		}
	}
	return nil
}

func badProtocols(c *tls.Config, _ bool) bool {
	total := 0
	for _, p := range c.NextProtos {
		total += 1 + len(p)
		if p == "" || len(p) > 255 {
			return true
		}
	}
	return total > 0xffff
}

func badServerName(c *tls.Config, isClient bool) bool {
	return isClient && (c.ServerName == "" && !c.InsecureSkipVerify || len(c.ServerName) > 255)
}

func badClientAuth(c *tls.Config, isClient bool) bool {
	return !isClient && (c.ClientAuth < tls.NoClientCert || c.ClientAuth > tls.RequireAndVerifyClientCert)
}

func badMinVersion(c *tls.Config, _ bool) bool { return c.MinVersion > tls.VersionTLS13 }

func badMaxVersion(c *tls.Config, _ bool) bool {
	return c.MaxVersion != 0 && c.MaxVersion < tls.VersionTLS13
}

func badCurves(c *tls.Config, _ bool) bool { return len(groupPreference(c)) == 0 }

func badECHClient(c *tls.Config, isClient bool) bool {
	return isClient && c.EncryptedClientHelloConfigList != nil
}

func badECHCallback(c *tls.Config, isClient bool) bool {
	return !isClient && c.GetEncryptedClientHelloKeys != nil
}

func badECHKeys(c *tls.Config, isClient bool) bool {
	return !isClient && len(c.EncryptedClientHelloKeys) > 0
}

// check examines the whole configuration, before anything is sent.
func (cfg *Config) check(isClient bool) error {
	if cfg.TLS != nil {
		if err := checkTLS(cfg.TLS, isClient); err != nil {
			return err
		}
	} else if isClient {
		return checkTLS(&tls.Config{}, isClient)
	}
	if n := cfg.RecordSizeLimit; n != 0 && (n < minRecordSizeLimit || n > maxRecordSizeLimit) {
		return fmt.Errorf("tls13: Config.RecordSizeLimit: %d is not between %d and %d", n, minRecordSizeLimit, maxRecordSizeLimit)
	}
	if _, known := extensionPlaces[cfg.Extension]; known && cfg.Extension != 0 {
		return fmt.Errorf("tls13: Config.Extension: %d is an extension of TLS itself", cfg.Extension)
	}
	if isGrease(cfg.Extension) {
		return fmt.Errorf("tls13: Config.Extension: %#04x is reserved by RFC 8701", cfg.Extension)
	}
	if len(cfg.Offer) > maxOffer {
		return fmt.Errorf("tls13: Config.Offer: %d bytes, more than %d", len(cfg.Offer), maxOffer)
	}
	return cfg.checkPSK(isClient)
}

func (cfg *Config) checkPSK(isClient bool) error {
	if cfg.PSK != nil && isClient {
		if err := cfg.PSK.check("Config.PSK"); err != nil {
			return err
		}
	}
	if len(cfg.EarlyContext) > maxEarlyContext {
		return fmt.Errorf("tls13: Config.EarlyContext: %d bytes, more than %d", len(cfg.EarlyContext), maxEarlyContext)
	}
	if cfg.EarlyWindow < 0 {
		return fmt.Errorf("tls13: Config.EarlyWindow: %v is negative", cfg.EarlyWindow)
	}
	return nil
}

// maxOffer leaves room for the rest of a ClientHello within maxMessage.
const maxOffer = 16 << 10

func (cfg *Config) tlsConfig() *tls.Config {
	if cfg.TLS == nil {
		return &tls.Config{}
	}
	return cfg.TLS
}

// offers and answers tell whether the extension is in use at all.
func (cfg *Config) offers() bool  { return cfg.Extension != 0 && cfg.Offer != nil }
func (cfg *Config) answers() bool { return cfg.Extension != 0 && cfg.Answer != nil }

func randReader(c *tls.Config) io.Reader {
	if c.Rand != nil {
		return c.Rand
	}
	return rand.Reader
}

func timeNow(c *tls.Config) time.Time {
	if c.Time != nil {
		return c.Time()
	}
	return time.Now()
}
