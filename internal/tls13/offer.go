package tls13

import (
	"bytes"
	"crypto/tls"
	"net"
	"slices"
)

// versionSSL30 in a hello ends the handshake (RFC 8446, D.5).
const versionSSL30 = 0x0300

// An offer is what the extensions of a ClientHello say. Unknown ones, and
// unknown values in known ones, are ignored (RFC 8446, section 4.2).
type offer struct {
	versions       []uint16
	groups         []tls.CurveID
	shares         []keyShare // nil: no key_share
	schemes        []tls.SignatureScheme
	certSchemes    []tls.SignatureScheme // nil: as schemes
	authorities    [][]byte
	serverName     string
	protocols      []string
	cookie         []byte
	pskModes       []byte
	psk            *offeredPSKs
	earlyData      bool
	ocsp, sct      bool
	recordLimit    int
	hasRecordLimit bool
	ownBody        []byte
	hasOwn         bool
	supportsGroups bool // supported_groups is there, whatever is in it
}

// parseOffer reads the extensions; own is the user's codepoint.
func parseOffer(list []extension, own uint16) (*offer, error) {
	o := new(offer)
	for _, e := range list {
		if own != 0 && e.id == own {
			o.ownBody, o.hasOwn = e.body, true
			continue
		}
		if !o.parseExtension(e) {
			return nil, badExtension(e.id)
		}
	}
	return o, nil
}

func (o *offer) parseExtension(e extension) (ok bool) {
	switch e.id {
	case extSupportedVersions:
		o.versions, ok = parseVersionList(e.body)
	case extSupportedGroups:
		o.groups, ok = parseUint16List[tls.CurveID](e.body)
		o.supportsGroups = true
	case extKeyShare:
		o.shares, ok = parseKeyShareList(e.body)
	case extSignatureAlgorithms:
		o.schemes, ok = parseUint16List[tls.SignatureScheme](e.body)
	case extSignatureAlgsCert:
		o.certSchemes, ok = parseUint16List[tls.SignatureScheme](e.body)
	case extCertificateAuthorities:
		o.authorities, ok = parseVectorList(e.body)
	case extServerName:
		o.serverName, ok = parseServerName(e.body)
	case extALPN:
		o.protocols, ok = parseALPN(e.body)
	case extCookie:
		o.cookie, ok = parseVector16(e.body)
	case extPSKModes:
		o.pskModes, ok = parsePSKModes(e.body)
	case extPreSharedKey:
		o.psk, ok = parsePSK(e.body)
	case extEarlyData:
		o.earlyData, ok = true, len(e.body) == 0
	case extStatusRequest:
		o.ocsp, ok = parseStatusRequest(e.body)
	case extSCT:
		o.sct, ok = true, len(e.body) == 0
	case extPostHandshakeAuth:
		ok = len(e.body) == 0
	case extRecordSizeLimit:
		var limit uint16
		limit, ok = parseUint16(e.body)
		o.recordLimit, o.hasRecordLimit = int(limit), true
	default:
		ok = true
	}
	return ok
}

// checkVersion is RFC 8446, section 4.2.1, and D.5 for SSL 3.0.
func (o *offer) checkVersion(h *clientHello) error {
	if h.version == versionSSL30 {
		return because(AlertProtocolVersion, ErrVersion, "client's legacy version is SSL 3.0")
	}
	if !slices.Contains(o.versions, tls.VersionTLS13) {
		return because(AlertProtocolVersion, ErrVersion, "client doesn't offer TLS 1.3")
	}
	return nil
}

// check holds a ClientHello that offers TLS 1.3 against the rules that need
// no choice of ours.
func (o *offer) check(h *clientHello) error {
	if !bytes.Equal(h.compressions, []byte{0}) {
		return broken(AlertIllegalParameter, "client offers compression in TLS 1.3")
	}
	if err := o.checkPSK(h.extensions); err != nil {
		return err
	}
	switch {
	case o.supportsGroups != (o.shares != nil):
		return broken(AlertMissingExtension, "client sends only one of supported_groups and key_share")
	case o.schemes == nil && o.psk == nil: // RFC 8446, section 9.2
		return broken(AlertMissingExtension, "client sends no signature_algorithms")
	case !o.supportsGroups && o.psk == nil:
		return broken(AlertMissingExtension, "client sends neither supported_groups nor key_share")
	case o.hasRecordLimit && o.recordLimit < minRecordSizeLimit:
		return broken(AlertIllegalParameter, "client's record_size_limit is below %d", minRecordSizeLimit)
	}
	return o.checkShares()
}

// checkShares is RFC 8446, section 4.2.8: shares only of supported groups,
// and at most one of each.
func (o *offer) checkShares() error {
	seen := make(map[tls.CurveID]bool, len(o.shares))
	for _, k := range o.shares {
		if seen[k.group] {
			return broken(AlertIllegalParameter, "client sends two key shares for group %d", k.group)
		}
		seen[k.group] = true
	}
	for _, id := range o.groups {
		delete(seen, id)
	}
	if len(seen) > 0 {
		return broken(AlertIllegalParameter, "client sends a key share for a group that it doesn't list")
	}
	return nil
}

func (o *offer) share(id tls.CurveID) ([]byte, bool) {
	for _, k := range o.shares {
		if k.group == id {
			return k.data, true
		}
	}
	return nil, false
}

// info is what callbacks get to see.
func (o *offer) info(h *clientHello, conn net.Conn, retried bool) *tls.ClientHelloInfo {
	ids := make([]uint16, len(h.extensions))
	for i, e := range h.extensions {
		ids[i] = e.id
	}
	return &tls.ClientHelloInfo{
		CipherSuites:      h.suites,
		ServerName:        o.serverName,
		SupportedCurves:   o.groups,
		SignatureSchemes:  o.schemes,
		SupportedProtos:   o.protocols,
		SupportedVersions: o.versions,
		Extensions:        ids,
		Conn:              conn,
		HelloRetryRequest: retried,
	}
}

// mayChange are the extensions that a second ClientHello may add, drop or
// alter (RFC 8446, section 4.1.2).
func mayChange(id uint16) bool {
	switch id {
	case extKeyShare, extEarlyData, extCookie, extPreSharedKey, extPadding:
		return true
	}
	return false
}

// checkSecond holds the answer to a HelloRetryRequest for group against the
// first ClientHello. own is the user's codepoint.
func checkSecond(first, second *clientHello, o *offer, group tls.CurveID, own uint16) error {
	if second.version != first.version || !bytes.Equal(second.random, first.random) ||
		!bytes.Equal(second.sessionID, first.sessionID) || !slices.Equal(second.suites, first.suites) ||
		!bytes.Equal(second.compressions, first.compressions) {
		return broken(AlertIllegalParameter, "client's second ClientHello differs from the first")
	}
	if err := sameExtensions(first.extensions, second.extensions, own); err != nil {
		return err
	}
	if o.earlyData {
		return broken(AlertIllegalParameter, "client sends early_data after a HelloRetryRequest")
	}
	if o.shares == nil {
		return broken(AlertMissingExtension, "client's second ClientHello has no key_share")
	}
	if len(o.shares) != 1 || o.shares[0].group != group {
		return broken(AlertIllegalParameter, "client's second ClientHello doesn't bring the one key share asked for")
	}
	return nil
}

// sameExtensions compares the extensions that the engine knows. Others are
// not compared: their own rules may let them change.
func sameExtensions(first, second []extension, own uint16) error {
	compared := func(id uint16) bool {
		_, known := extensionPlaces[id]
		return (known || own != 0 && id == own) && !mayChange(id)
	}
	count := 0
	for _, e := range first {
		if compared(e.id) {
			count++
		}
	}
	for _, e := range second {
		if !compared(e.id) {
			continue
		}
		count--
		if before, ok := findExtension(first, e.id); !ok || !bytes.Equal(before, e.body) {
			return broken(AlertIllegalParameter, "extension %d changed in client's second ClientHello", e.id)
		}
	}
	if count != 0 {
		return broken(AlertIllegalParameter, "client's second ClientHello lacks an extension of the first")
	}
	return nil
}

// oneProtocol reads ALPN in EncryptedExtensions: a list of exactly one.
func oneProtocol(p []byte) (string, bool) {
	list, ok := parseALPN(p)
	if !ok || len(list) != 1 {
		return "", false
	}
	return list[0], true
}
