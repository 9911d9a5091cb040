package tls13

import (
	"crypto/tls"
	"io"
	"net"
	"slices"
	"strings"

	"golang.org/x/crypto/cryptobyte"
)

// grease are the values that a ClientHello of ours mixes in, so that peers
// keep ignoring what they don't know (RFC 8701).
type grease struct {
	suite, group, version, scheme, first, last uint16
}

func newGrease(random io.Reader) (g grease, err error) {
	var b [6]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return g, err
	}
	g = grease{greaseValue(b[0]), greaseValue(b[1]), greaseValue(b[2]), greaseValue(b[3]), greaseValue(b[4]), greaseValue(b[5])}
	if g.first == g.last { // no extension twice
		g.last ^= 0x1010
	}
	return g, nil
}

// greaseValue is one of the values that isGrease knows, by a random byte.
func greaseValue(b byte) uint16 { return uint16(b&0xf0|0x0a) * 0x0101 }

// isGrease tells the values that RFC 8701 reserves: 0x0a0a, 0x1a1a and so on.
func isGrease(v uint16) bool { return v&0x0f0f == 0x0a0a && v>>8 == v&0xff }

// newHello fills in all of a ClientHello but what a HelloRetryRequest adds.
func (h *clientHandshake) newHello(g grease) (*clientHello, error) {
	t := h.c.tls
	m := &clientHello{
		version:      tls.VersionTLS12,
		random:       make([]byte, randomLen),
		sessionID:    make([]byte, 32), // middlebox compatibility: RFC 8446, D.4
		suites:       append([]uint16{g.suite}, suitePreference(aesIsFast)...),
		compressions: []byte{0},
	}
	random := randReader(t)
	if _, err := io.ReadFull(random, m.random); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(random, m.sessionID); err != nil {
		return nil, err
	}
	var x clientExtensions
	x.add(g.first, nil)
	if name := sniName(t.ServerName); name != "" {
		x.add(extServerName, serverNameBody(name))
	}
	x.add(extStatusRequest, statusRequestBody())
	x.add(extSupportedGroups, uint16List(append([]tls.CurveID{tls.CurveID(g.group)}, h.groups...)))
	if len(t.NextProtos) > 0 {
		x.add(extALPN, alpnBody(t.NextProtos))
	}
	x.add(extSCT, nil)
	x.add(extSignatureAlgorithms, uint16List(append(slices.Clone(schemesOffered), tls.SignatureScheme(g.scheme))))
	if h.c.cfg.RecordSizeLimit != 0 {
		x.add(extRecordSizeLimit, uint16Body(uint16(h.c.cfg.RecordSizeLimit)))
	}
	x.add(extSupportedVersions, versionList([]uint16{g.version, tls.VersionTLS13}))
	if h.psk != nil || h.c.resumes() {
		x.add(extPSKModes, pskModesBody())
	}
	x.add(extKeyShare, keySharesOf(h.pairs, tls.CurveID(g.group)))
	if h.c.cfg.offers() {
		x.add(h.c.cfg.Extension, h.c.cfg.Offer)
	}
	if h.offersEarly() {
		x.add(extEarlyData, nil)
	}
	x.add(g.last, []byte{0})
	if h.psk != nil { // has to be the last
		x.add(extPreSharedKey, h.pskBody())
	}
	m.extensions = x
	return m, nil
}

// pskBody is pre_shared_key with zeros for the binder.
func (h *clientHandshake) pskBody() []byte {
	return pskBody(&offeredPSKs{
		identities: []pskIdentity{{h.psk.identity, h.psk.obfuscatedAge(timeNow(h.c.tls))}},
		binders:    [][]byte{make([]byte, h.psk.suite.HashLen)},
	})
}

// encodeHello writes the ClientHello, and the binder at its end.
func (h *clientHandshake) encodeHello() ([]byte, error) {
	raw, err := encode(h.hello)
	if err != nil || h.psk == nil {
		return raw, err
	}
	binder := raw[len(raw)-h.psk.suite.HashLen:]
	covered := raw[:len(raw)-len(binder)-bindersHeadLen]
	sum := digest(h.psk.suite, covered)
	if h.transcript != nil { // a HelloRetryRequest came
		if sum, err = h.transcript.sumWith(covered); err != nil {
			return nil, err
		}
	}
	copy(binder, h.psk.binder(sum))
	return raw, nil
}

// bindersHeadLen is what stands before a single binder: the length of the
// list, and its own.
const bindersHeadLen = 3

// clientExtensions collects what a ClientHello of ours carries.
type clientExtensions []extension

func (x *clientExtensions) add(id uint16, body []byte) {
	*x = append(*x, extension{id, body})
}

// keySharesOf writes key_share, behind a GREASE share if grease is not 0.
func keySharesOf(pairs []*keyPair, grease tls.CurveID) []byte {
	var list []keyShare
	if grease != 0 {
		list = append(list, keyShare{grease, []byte{0}})
	}
	for _, k := range pairs {
		list = append(list, keyShare{k.group.id, k.share})
	}
	return keyShareList(list)
}

// generateShares makes the key pairs of the first ClientHello: one for the
// favourite group, and for a hybrid on X25519 that curve alone as well, with
// the same key, since a server that lacks the hybrid nearly always has it.
func (h *clientHandshake) generateShares() error {
	random := randReader(h.c.tls)
	pair, err := groupByID(h.groups[0]).generate(random)
	if err != nil {
		return err
	}
	h.pairs = []*keyPair{pair}
	if pair.group.id != tls.X25519MLKEM768 || !slices.Contains(h.groups, tls.X25519) {
		return nil
	}
	alone, err := groupByID(tls.X25519).withPoint(pair.point)
	if err != nil {
		return err
	}
	h.pairs = append(h.pairs, alone)
	return nil
}

// sniName is the name for server_name: no address, no trailing dot
// (RFC 6066, section 3).
func sniName(name string) string {
	host := strings.TrimSuffix(strings.TrimPrefix(name, "["), "]")
	if i := strings.LastIndexByte(host, '%'); i > 0 {
		host = host[:i]
	}
	if net.ParseIP(host) != nil {
		return ""
	}
	return strings.TrimRight(name, ".")
}

// secondHello turns the ClientHello into the answer to a HelloRetryRequest
// (section 4.1.2): the one key share that was asked for, and the cookie. Early
// data is over, and so is a PSK that doesn't fit the server's suite.
func (h *clientHandshake) secondHello(pairs []*keyPair, cookie []byte) {
	list := slices.DeleteFunc(slices.Clone(h.hello.extensions), func(e extension) bool {
		return e.id == extEarlyData || e.id == extPreSharedKey && h.psk == nil
	})
	for i, e := range list {
		switch {
		case e.id == extKeyShare && pairs != nil:
			list[i].body = keySharesOf(pairs, 0)
		case e.id == extPreSharedKey:
			list[i].body = h.pskBody()
		}
	}
	if cookie != nil {
		// Not at the end, where pre_shared_key would have to be.
		list = slices.Insert(list, 1, extension{extCookie, vector16Body(cookie)})
	}
	h.hello.extensions = list
}

// A retryRequest is what a HelloRetryRequest asks for.
type retryRequest struct {
	group    tls.CurveID
	hasGroup bool
	cookie   []byte
}

func parseRetry(list []extension) (*retryRequest, error) {
	r := new(retryRequest)
	if body, ok := findExtension(list, extKeyShare); ok {
		s := cryptobyte.String(body)
		if !s.ReadUint16((*uint16)(&r.group)) || !s.Empty() {
			return nil, badExtension(extKeyShare)
		}
		r.hasGroup = true
	}
	if body, ok := findExtension(list, extCookie); ok {
		if r.cookie, ok = parseVector16(body); !ok {
			return nil, badExtension(extCookie)
		}
	}
	return r, nil
}
