package tls13

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"runtime"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"

	"github.com/go-tcpls/tcpls/internal/record"
)

// A session is what resumption needs to know of an earlier handshake: on a
// client beside its ticket, on a server inside it.
type session struct {
	isClient   bool
	suite      *record.Suite
	secret     []byte    // the PSK
	since      time.Time // when the peer last proved who it is by a certificate
	created    time.Time // when the ticket was made, or came
	lifetime   time.Duration
	ageAdd     uint32
	maxEarly   uint32
	protocol   string
	serverName string
	chain      *peerChain
	chains     [][]*x509.Certificate

	// own is, on a client, the answer to the Config's extension, and on a
	// server its EarlyContext. nil: none.
	own []byte

	ticket    []byte // client
	sendLimit int    // client: what records of early data may hold
}

const (
	// maxLifetime of a ticket, and on a server of all tickets in a row that
	// go back to one certificate (RFC 8446, section 4.6.1).
	maxLifetime = 7 * 24 * time.Hour
	// maxTicketState and maxClientState bound what is kept for one ticket;
	// certificates can make it large.
	maxTicketState = 15 << 10 // fits maxIdentity when sealed
	maxClientState = 128 << 10
)

// sessionPrefix tells our entries in tls.SessionState.Extra from those of
// others, and the version of their form.
const sessionPrefix = "go-tcpls session 1\n"

// encode writes the session as one entry of tls.SessionState.Extra.
func (s *session) encode() []byte {
	b := make([]byte, 0, 512)
	b = append(b, sessionPrefix...)
	b = appendBool(b, s.isClient)
	b = appendVector(b, 2, s.ticket)
	b = binary.BigEndian.AppendUint16(b, s.suite.ID)
	b = appendVector(b, 1, s.secret)
	b = binary.BigEndian.AppendUint64(b, uint64(s.since.UnixNano()))
	// Rounded down, it would let a client state an age above the server's own.
	b = binary.BigEndian.AppendUint64(b, uint64(s.created.UnixNano()))
	b = binary.BigEndian.AppendUint32(b, uint32(s.lifetime/time.Second))
	b = binary.BigEndian.AppendUint32(b, s.ageAdd)
	b = binary.BigEndian.AppendUint32(b, s.maxEarly)
	b = binary.BigEndian.AppendUint16(b, uint16(s.sendLimit))
	b = appendVector(b, 1, []byte(s.protocol))
	b = appendVector(b, 2, []byte(s.serverName))
	b = appendBool(b, s.own != nil)
	b = appendVector(b, 2, s.own)
	b = appendVector(b, 3, s.chain.ocsp)
	b = appendVectors(b, s.chain.scts)
	b = appendVectors(b, s.chain.raw)
	var chains []byte
	for _, chain := range s.chains {
		chains = appendVectors(chains, rawCertificates(chain[1:])) // the leaf is the peer's
	}
	return appendVector(b, 3, chains)
}

var errSession = errors.New("tls13: malformed session")

// parseSession reads what encode wrote. It came through a cache or a seal of
// the user's, who may have changed it. The session keeps the entry, and wipes
// the secret in it.
func parseSession(entry []byte) (*session, error) {
	s, v := cryptobyte.String(entry), &session{chain: new(peerChain)}
	var prefix, protocol, serverName, own []byte
	var suite, sendLimit uint16
	var since, created uint64
	var lifetime uint32
	var hasOwn bool
	var chains cryptobyte.String
	if !s.ReadBytes(&prefix, len(sessionPrefix)) || string(prefix) != sessionPrefix ||
		!readBool(&s, &v.isClient) || !readBytes16(&s, &v.ticket) ||
		!s.ReadUint16(&suite) || !readBytes8(&s, &v.secret) ||
		!s.ReadUint64(&since) || !s.ReadUint64(&created) || !s.ReadUint32(&lifetime) ||
		!s.ReadUint32(&v.ageAdd) || !s.ReadUint32(&v.maxEarly) || !s.ReadUint16(&sendLimit) ||
		!readBytes8(&s, &protocol) || !readBytes16(&s, &serverName) ||
		!readBool(&s, &hasOwn) || !readBytes16(&s, &own) ||
		!s.ReadUint24LengthPrefixed((*cryptobyte.String)(&v.chain.ocsp)) ||
		!readVectors24(&s, &v.chain.scts) || !readVectors24(&s, &v.chain.raw) ||
		!s.ReadUint24LengthPrefixed(&chains) || !s.Empty() {
		return nil, errSession
	}
	v.suite = record.SuiteByID(suite)
	if v.suite == nil || len(v.secret) != v.suite.HashLen ||
		v.isClient && (sendLimit < minRecordSizeLimit-1 || sendLimit > record.MaxPlaintext) ||
		!hasOwn && len(own) > 0 {
		return nil, errSession
	}
	v.since, v.created = time.Unix(0, int64(since)), time.Unix(0, int64(created))
	v.lifetime, v.sendLimit = time.Duration(lifetime)*time.Second, int(sendLimit)
	v.protocol, v.serverName = string(protocol), string(serverName)
	if hasOwn {
		v.own = own
	}
	return v, v.parseCertificates(chains)
}

func (s *session) parseCertificates(chains cryptobyte.String) error {
	known := map[string]*x509.Certificate{}
	parse := func(der []byte) (*x509.Certificate, error) {
		if cert, ok := known[string(der)]; ok {
			return cert, nil
		}
		cert, err := x509.ParseCertificate(der)
		if err == nil {
			known[string(der)] = cert
		}
		return cert, err
	}
	for _, der := range s.chain.raw {
		cert, err := parse(der)
		if err != nil {
			return err
		}
		s.chain.x509 = append(s.chain.x509, cert)
	}
	for !chains.Empty() {
		var list [][]byte
		if !readVectors24(&chains, &list) || len(s.chain.x509) == 0 {
			return errSession
		}
		chain := []*x509.Certificate{s.chain.x509[0]}
		for _, der := range list {
			cert, err := parse(der)
			if err != nil {
				return err
			}
			chain = append(chain, cert)
		}
		s.chains = append(s.chains, chain)
	}
	return nil
}

// fresh tells whether the ticket may be used at all. A clock that was set back
// makes its age unknown.
func (s *session) fresh(now time.Time) bool {
	age := now.Sub(s.created)
	return age >= 0 && age < s.lifetime && s.lifetime <= maxLifetime
}

// suitsClient tells whether a client may resume the session under its
// configuration of now: the certificate is not verified again, so it must
// have been, and still hold (crypto/tls does the same).
func (s *session) suitsClient(t *tls.Config, now time.Time) bool {
	if !s.isClient || len(s.ticket) == 0 || len(s.ticket) > maxIdentity || len(s.chain.x509) == 0 ||
		!s.fresh(now) || s.serverName != sniName(t.ServerName) || now.After(s.chain.x509[0].NotAfter) {
		return false
	}
	if t.InsecureSkipVerify {
		return true
	}
	return s.chain.x509[0].VerifyHostname(t.ServerName) == nil &&
		s.chainHolds(x509.VerifyOptions{Roots: t.RootCAs, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
}

// suitsServer is the same for a server, whose client's certificate is in the
// ticket.
func (s *session) suitsServer(t *tls.Config, serverName string, now time.Time) bool {
	has, by := len(s.chain.x509) > 0, serverPolicy(t)
	switch {
	case s.isClient || !s.fresh(now) || s.serverName != serverName:
		return false
	case has && t.ClientAuth == tls.NoClientCert:
		return false
	case !has:
		return !by.required
	case now.After(s.chain.x509[0].NotAfter):
		return false
	}
	return !by.verify || s.chainHolds(x509.VerifyOptions{Roots: by.roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{by.usage}})
}

// chainHolds tells whether a chain that was verified is still valid and ends
// at a root that is still trusted. Where the system verifies chains, only it
// can tell, and the whole chain is verified again.
func (s *session) chainHolds(opts x509.VerifyOptions) bool {
	return slices.ContainsFunc(s.chains, func(chain []*x509.Certificate) bool {
		for _, cert := range chain {
			if opts.CurrentTime.Before(cert.NotBefore) || opts.CurrentTime.After(cert.NotAfter) {
				return false
			}
		}
		cert := chain[len(chain)-1]
		switch runtime.GOOS {
		case "windows", "darwin", "ios":
			opts.Intermediates = x509.NewCertPool()
			for _, between := range chain[1:max(1, len(chain)-1)] {
				opts.Intermediates.AddCert(between)
			}
			cert = chain[0]
		}
		_, err := cert.Verify(opts)
		return err == nil
	})
}

// sealable puts entries into a tls.SessionState, which crypto/tls can seal as
// a ticket and caches can store. crypto/tls only parses whole states, so this
// one is written in its form: of no version, which makes it useless to
// crypto/tls, without certificates, and with a secret of one zero byte, since
// there has to be one.
func sealable(entries ...[]byte) (*tls.SessionState, error) {
	b := make([]byte, 0, 512)
	b = append(b, 0, 0)                   // version
	b = append(b, 1)                      // of a server; a client's needs a certificate
	b = append(b, 0, 0)                   // cipher suite
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // created at
	b = append(b, 1, 0)                   // secret
	b = appendVectors(b, entries)
	b = append(b, 0, 0)    // extended master secret, early data
	b = append(b, 0, 0, 0) // certificates
	b = append(b, 0, 0, 0) // verified chains
	b = append(b, 0, 0)    // curve
	return tls.ParseSessionState(b)
}

// ownEntries are those of Extra that are ours, newest first.
func ownEntries(state *tls.SessionState) [][]byte {
	if state == nil {
		return nil
	}
	var list [][]byte
	for _, entry := range state.Extra {
		if bytes.HasPrefix(entry, []byte(sessionPrefix)) {
			list = append(list, entry)
		}
	}
	return list
}

func rawCertificates(chain []*x509.Certificate) [][]byte {
	list := make([][]byte, len(chain))
	for i, cert := range chain {
		list[i] = cert.Raw
	}
	return list
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func readBool(s *cryptobyte.String, v *bool) bool {
	var n uint8
	ok := s.ReadUint8(&n) && n <= 1
	*v = n == 1
	return ok
}

// appendVector writes a vector with a length of so many bytes, which it must
// fit: what goes into a session came out of one of the same size, or is smaller.
func appendVector(b []byte, lengthLen int, v []byte) []byte {
	for i := range lengthLen {
		b = append(b, byte(len(v)>>(8*(lengthLen-1-i))))
	}
	return append(b, v...)
}

// appendVectors writes a list of vectors, all lengths of 24 bits.
func appendVectors(b []byte, list [][]byte) []byte {
	size := 0
	for _, v := range list {
		size += 3 + len(v)
	}
	b = append(b, byte(size>>16), byte(size>>8), byte(size))
	for _, v := range list {
		b = appendVector(b, 3, v)
	}
	return b
}

func readVectors24(s *cryptobyte.String, list *[][]byte) bool {
	var block cryptobyte.String
	if !s.ReadUint24LengthPrefixed(&block) {
		return false
	}
	for !block.Empty() {
		var v cryptobyte.String
		if !block.ReadUint24LengthPrefixed(&v) {
			return false
		}
		*list = append(*list, v)
	}
	return true
}
