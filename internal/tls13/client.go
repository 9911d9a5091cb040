package tls13

import (
	"bytes"
	"crypto/tls"
	"slices"

	"github.com/go-tcpls/tcpls/internal/record"
)

// clientHandshake is what a client keeps until the handshake is complete. Its
// steps stand in the order of RFC 8446, Figure 1.
type clientHandshake struct {
	c *Conn

	hello    *clientHello
	helloRaw []byte // until the suite is known, and so the transcript's hash
	groups   []tls.CurveID
	pairs    []*keyPair
	retry    *retryRequest // nil: none came
	psk      *psk          // nil: none is offered, or the server selected none

	transcript *transcript
	keys       handshakeSecret
	traffic    trafficSecrets

	request *requestedCertificate // nil: the server wants none
	chain   *peerChain
	peer    *verifiedPeer
}

// requestedCertificate is a CertificateRequest that was read.
type requestedCertificate struct {
	info      *tls.CertificateRequestInfo
	ocsp, sct bool
}

func (h *clientHandshake) start() error {
	h.groups = groupPreference(h.c.tls)
	if err := h.generateShares(); err != nil {
		return err
	}
	h.c.serverName = sniName(h.c.tls.ServerName)
	h.pickPSK()
	g, err := newGrease(randReader(h.c.tls))
	if err != nil {
		return err
	}
	if h.hello, err = h.newHello(g); err != nil {
		return err
	}
	if h.helloRaw, err = h.encodeHello(); err != nil {
		return err
	}
	h.c.queue(h.helloRaw)
	if err := h.c.flush(); err != nil || !h.offersEarly() {
		return err
	}
	return h.startEarly()
}

// pickPSK takes the user's PSK, or else a ticket out of the cache.
func (h *clientHandshake) pickPSK() {
	if own := h.c.cfg.PSK; own != nil {
		h.psk = userPSK(own)
		return
	}
	if !h.c.resumes() {
		return
	}
	if s := h.c.takeTicket(); s != nil {
		h.c.remembered = s.own
		h.psk = sessionPSK(s.ticket, s)
	}
}

// offersEarly tells whether the first ClientHello announces early data: the
// PSK must allow it, and its protocol be offered still.
func (h *clientHandshake) offersEarly() bool {
	p := h.psk
	return p != nil && p.maxEarly > 0 && (p.session == nil || h.c.cfg.MaxEarlyData > 0) &&
		(p.protocol == "" || slices.Contains(h.c.tls.NextProtos, p.protocol))
}

// send adds a message to the transcript and to the flight.
func (h *clientHandshake) send(m outgoing) error {
	raw, err := encode(m)
	if err != nil {
		return err
	}
	h.add(raw)
	return nil
}

func (h *clientHandshake) add(raw []byte) {
	h.transcript.add(raw)
	h.c.queue(raw)
}

// asked tells what the server may answer: what the ClientHello has, but for
// its GREASE, which nobody can know (RFC 8701, section 3.1).
func (h *clientHandshake) asked(id uint16) bool {
	_, ok := findExtension(h.hello.extensions, id)
	return ok && !isGrease(id)
}

func (h *clientHandshake) serverHello(m message) (step, error) {
	sh, err := parseServerHello(m.body(), h.c.cfg.Extension)
	if err != nil {
		return step{}, err
	}
	suite, err := h.checkHello(sh)
	if err != nil {
		return step{}, err
	}
	if sh.isRetry() {
		return h.helloRetryRequest(m, sh, suite)
	}
	if err := unasked(sh.extensions, inServerHello, h.asked); err != nil {
		return step{}, err
	}
	pair, share, err := h.selectedShare(sh)
	if err != nil {
		return step{}, err
	}
	if err := h.selectedPSK(sh, suite); err != nil {
		return step{}, err
	}
	proof, err := h.c.align()
	if err != nil {
		return step{}, err
	}
	shared, err := pair.shared(share)
	if err != nil {
		return step{}, because(AlertIllegalParameter, err, "server's key share is invalid")
	}
	if h.transcript == nil {
		h.transcript = newTranscript(suite)
		h.transcript.add(h.helloRaw)
	}
	h.transcript.add(m.raw)
	h.c.suite, h.c.group = suite, pair.group.id
	h.helloRaw, h.pairs = nil, nil
	return step{want: typeEncryptedExtensions, run: h.encryptedExtensions}, h.handshakeKeys(shared, proof)
}

// checkHello holds a ServerHello or HelloRetryRequest against the rules that
// both obey, version first (section 4.1.3).
func (h *clientHandshake) checkHello(sh *serverHello) (*record.Suite, error) {
	if sh.version == versionSSL30 {
		return nil, because(AlertProtocolVersion, ErrVersion, "server answers with SSL 3.0")
	}
	body, ok := findExtension(sh.extensions, extSupportedVersions)
	switch {
	case !ok && sh.isDowngrade():
		return nil, broken(AlertIllegalParameter, "server speaks TLS 1.3, and somebody between made it answer with %s", tls.VersionName(sh.version))
	case !ok:
		return nil, because(AlertProtocolVersion, ErrVersion, "server answers with %s, not TLS 1.3", tls.VersionName(sh.version))
	}
	version, ok := parseUint16(body)
	if !ok {
		return nil, badExtension(extSupportedVersions)
	}
	suite := record.SuiteByID(sh.suite)
	switch {
	case version != tls.VersionTLS13:
		return nil, broken(AlertIllegalParameter, "server selects version %#04x, which was not offered", version)
	case sh.version != tls.VersionTLS12:
		return nil, broken(AlertIllegalParameter, "ServerHello has legacy version %#04x", sh.version)
	case !bytes.Equal(sh.sessionID, h.hello.sessionID):
		return nil, broken(AlertIllegalParameter, "server doesn't echo the session id")
	case sh.compression != 0:
		return nil, broken(AlertIllegalParameter, "server selects compression %d", sh.compression)
	case suite == nil || !slices.Contains(h.hello.suites, sh.suite):
		return nil, broken(AlertIllegalParameter, "server selects suite %#04x, which was not offered", sh.suite)
	case h.retry != nil && sh.isRetry():
		return nil, broken(AlertUnexpectedMessage, "server sends a second HelloRetryRequest")
	case h.retry != nil && suite != h.transcript.suite:
		return nil, broken(AlertIllegalParameter, "server changes the suite after its HelloRetryRequest")
	}
	return suite, nil
}

// helloRetryRequest answers with a second ClientHello (section 4.1.4).
func (h *clientHandshake) helloRetryRequest(m message, sh *serverHello, suite *record.Suite) (step, error) {
	asked := func(id uint16) bool { return id == extCookie || h.asked(id) }
	if err := unasked(sh.extensions, inHelloRetryRequest, asked); err != nil {
		return step{}, err
	}
	if _, err := h.c.align(); err != nil {
		return step{}, err
	}
	retry, err := parseRetry(sh.extensions)
	if err != nil {
		return step{}, err
	}
	if !retry.hasGroup && retry.cookie == nil {
		return step{}, broken(AlertIllegalParameter, "server's HelloRetryRequest asks for nothing")
	}
	var pairs []*keyPair
	if retry.hasGroup {
		if !slices.Contains(h.groups, retry.group) {
			return step{}, broken(AlertIllegalParameter, "server asks for group %d, which was not offered", retry.group)
		}
		if slices.ContainsFunc(h.pairs, func(k *keyPair) bool { return k.group.id == retry.group }) {
			return step{}, broken(AlertIllegalParameter, "server asks for the key share that it was sent")
		}
		pair, err := groupByID(retry.group).generate(randReader(h.c.tls))
		if err != nil {
			return step{}, err
		}
		pairs = []*keyPair{pair}
		h.pairs = pairs
	}
	ccsDue := h.c.write == nil // else it went before early data
	h.c.write = nil
	h.c.endEarly()
	if h.psk != nil && h.psk.suite.HashLen != suite.HashLen {
		h.dropPSK()
	}
	h.retry, h.c.retried, h.c.suite = retry, true, suite
	h.transcript = newTranscript(suite)
	h.transcript.add(h.helloRaw)
	h.transcript.retry()
	h.transcript.add(m.raw)
	h.secondHello(pairs, retry.cookie)
	if ccsDue {
		h.c.appendChangeCipherSpec()
	}
	raw, err := h.encodeHello()
	if err != nil {
		return step{}, because(AlertIllegalParameter, err, "server's cookie of %d bytes leaves no room for the ClientHello", len(retry.cookie))
	}
	h.add(raw)
	return step{want: typeServerHello, run: h.serverHello}, nil
}

// selectedShare finds our half of the key exchange that the server chose.
func (h *clientHandshake) selectedShare(sh *serverHello) (*keyPair, []byte, error) {
	body, ok := findExtension(sh.extensions, extKeyShare)
	if _, psk := findExtension(sh.extensions, extPreSharedKey); !ok && psk { // section 4.2.11
		return nil, nil, broken(AlertIllegalParameter, "server selects a PSK without key_share, a mode that was not offered")
	}
	if !ok {
		return nil, nil, broken(AlertMissingExtension, "ServerHello has no key_share")
	}
	share, ok := parseKeyShare(body)
	if !ok {
		return nil, nil, badExtension(extKeyShare)
	}
	for _, pair := range h.pairs {
		if pair.group.id == share.group {
			return pair, share.data, nil
		}
	}
	return nil, nil, broken(AlertIllegalParameter, "server's key share is for group %d, for which it was sent none", share.group)
}

// selectedPSK takes the server's decision on our PSK (section 4.2.11).
func (h *clientHandshake) selectedPSK(sh *serverHello, suite *record.Suite) error {
	body, ok := findExtension(sh.extensions, extPreSharedKey)
	if !ok {
		h.dropPSK()
		return nil
	}
	index, ok := parseUint16(body)
	switch {
	case !ok:
		return badExtension(extPreSharedKey)
	case index != 0:
		return broken(AlertIllegalParameter, "server selects PSK %d of one", index)
	case suite.HashLen != h.psk.suite.HashLen:
		return broken(AlertIllegalParameter, "server selects a PSK and a suite with another hash")
	}
	h.c.resumed = true
	if h.psk.session == nil {
		h.c.pskIdentity = h.psk.identity
	}
	return nil
}

// dropPSK goes on without a PSK, and so without early data.
func (h *clientHandshake) dropPSK() {
	h.c.endEarly()
	if h.psk != nil {
		h.psk.early.wipe()
		h.psk = nil
	}
}

// handshakeKeys moves reading to the handshake traffic keys, and writing too
// unless early data may go on.
func (h *clientHandshake) handshakeKeys(shared []byte, proof aligned) error {
	early := earlySecretOf(h.c.suite, h.psk)
	h.keys = early.handshake(shared)
	clear(shared)
	early.wipe()
	var err error
	if h.traffic, err = h.c.handshakeSecrets(h.keys, h.transcript.sum(), h.hello.random); err != nil {
		return err
	}
	h.c.ccsDue = h.retry == nil && h.c.write == nil // else it went before early data
	if err := h.c.readWith(h.traffic.server, proof); err != nil || h.c.early.context != nil {
		return err
	}
	return h.c.writeWith(h.traffic.client)
}

func (h *clientHandshake) encryptedExtensions(m message) (step, error) {
	ee, err := parseEncryptedExtensions(m.body(), h.c.cfg.Extension)
	if err != nil {
		return step{}, err
	}
	if err := unasked(ee.extensions, inEncryptedExtensions, h.asked); err != nil {
		return step{}, err
	}
	h.transcript.add(m.raw)
	for _, e := range ee.extensions {
		if err := h.answered(e); err != nil {
			return step{}, err
		}
	}
	if err := h.earlyAnswered(); err != nil {
		return step{}, err
	}
	if h.psk != nil {
		h.peer = h.psk.peer()
		return step{want: typeFinished, run: h.finished}, h.c.verifyResumed(h.peer)
	}
	return step{want: typeCertificate, or: typeCertificateRequest, run: h.certificateOrRequest}, nil
}

// earlyAnswered takes the server's decision on early data, which stands once
// all of EncryptedExtensions were read.
func (h *clientHandshake) earlyAnswered() error {
	c := h.c
	switch {
	case !c.early.accepted && c.early.context != nil:
		c.endEarly()
		return c.writeWith(h.traffic.client)
	case !c.early.accepted:
		return nil
	case h.psk == nil:
		return broken(AlertIllegalParameter, "server accepts early data without the PSK")
	case c.suite != h.psk.suite:
		return broken(AlertIllegalParameter, "server accepts early data and changes the suite")
	case c.protocol != h.psk.protocol:
		return broken(AlertIllegalParameter, "server accepts early data and selects the protocol %q instead of %q", c.protocol, h.psk.protocol)
	}
	return nil
}

// answered takes one extension of EncryptedExtensions.
func (h *clientHandshake) answered(e extension) error {
	if own := h.c.cfg.Extension; own != 0 && e.id == own {
		if err := h.accept(e.body); err != nil {
			return err
		}
		h.c.ownAnswered = true
		if h.c.resumes() {
			h.c.answer = bytes.Clone(e.body)
		}
		return nil
	}
	switch e.id {
	case extServerName:
		if len(e.body) != 0 {
			return badExtension(e.id)
		}
	case extSupportedGroups: // nothing may be done with it yet
		if _, ok := parseUint16List[tls.CurveID](e.body); !ok {
			return badExtension(e.id)
		}
	case extALPN:
		protocol, ok := oneProtocol(e.body)
		if !ok {
			return badExtension(e.id)
		}
		if !slices.Contains(h.c.tls.NextProtos, protocol) {
			return broken(AlertIllegalParameter, "server selects the protocol %q, which was not offered", protocol)
		}
		h.c.protocol = protocol
	case extEarlyData:
		if len(e.body) != 0 {
			return badExtension(e.id)
		}
		h.c.early.accepted = true
	case extRecordSizeLimit:
		limit, ok := parseUint16(e.body)
		if !ok {
			return badExtension(e.id)
		}
		if limit < minRecordSizeLimit || limit > maxRecordSizeLimit {
			return broken(AlertIllegalParameter, "server's record_size_limit is %d", limit)
		}
		h.c.sendLimit, h.c.recvLimit = int(limit)-1, h.c.cfg.RecordSizeLimit
	}
	return nil
}

func (h *clientHandshake) accept(answer []byte) error {
	if h.c.cfg.Accept == nil {
		return nil
	}
	return extensionError(h.c.cfg.Accept(bytes.Clone(answer)), "server's answer")
}

func (h *clientHandshake) certificateOrRequest(m message) (step, error) {
	if m.typ == typeCertificate {
		return h.certificate(m)
	}
	request, err := parseCertificateRequest(m.body(), h.c.cfg.Extension)
	if err != nil {
		return step{}, err
	}
	if len(request.context) != 0 {
		return step{}, broken(AlertIllegalParameter, "CertificateRequest in the handshake has a context")
	}
	h.transcript.add(m.raw)
	if h.request, err = h.readRequest(request.extensions); err != nil {
		return step{}, err
	}
	return step{want: typeCertificate, run: h.certificate}, nil
}

func (h *clientHandshake) readRequest(list []extension) (*requestedCertificate, error) {
	o, err := parseOffer(slices.DeleteFunc(slices.Clone(list), func(e extension) bool {
		return e.id == extStatusRequest // has a form of its own here
	}), 0)
	if err != nil {
		return nil, err
	}
	if o.schemes == nil {
		return nil, broken(AlertMissingExtension, "CertificateRequest has no signature_algorithms")
	}
	status, ocsp := findExtension(list, extStatusRequest)
	if len(status) != 0 {
		return nil, badExtension(extStatusRequest)
	}
	return &requestedCertificate{
		info: &tls.CertificateRequestInfo{
			AcceptableCAs: o.authorities, SignatureSchemes: o.schemes, Version: tls.VersionTLS13,
		},
		ocsp: ocsp, sct: o.sct,
	}, nil
}

func (h *clientHandshake) certificate(m message) (step, error) {
	cert, err := parseCertificate(m.body(), h.c.cfg.Extension)
	if err != nil {
		return step{}, err
	}
	switch {
	case len(cert.context) != 0:
		return step{}, broken(AlertIllegalParameter, "server's Certificate has a context")
	case len(cert.entries) == 0:
		return step{}, broken(AlertDecodeError, "server's Certificate is empty")
	}
	for _, e := range cert.entries {
		if err := unasked(e.extensions, inCertificate, h.asked); err != nil {
			return step{}, err
		}
	}
	h.transcript.add(m.raw)
	if h.chain, err = parseChain(cert); err != nil {
		return step{}, err
	}
	return step{want: typeCertificateVerify, run: h.certificateVerify}, nil
}

func (h *clientHandshake) certificateVerify(m message) (step, error) {
	verify, err := parseCertificateVerify(m.body())
	if err != nil {
		return step{}, err
	}
	if h.peer, err = h.chain.authenticate(clientPolicy(h.c.tls), verify, false, h.transcript.sum()); err != nil {
		return step{}, err
	}
	h.c.peer = h.peer
	if err := h.c.verifyConnection(); err != nil {
		return step{}, err
	}
	h.transcript.add(m.raw)
	return step{want: typeFinished, run: h.finished}, nil
}

func (h *clientHandshake) finished(m message) (step, error) {
	proof, err := h.c.align()
	if err != nil {
		return step{}, err
	}
	done, err := checkFinished(h.c.suite, m, h.traffic.server, h.transcript.sum())
	if err != nil {
		return step{}, err
	}
	h.transcript.add(m.raw)
	master := h.keys.master()
	secrets, err := h.c.applicationSecrets(master, h.transcript.sum(), h.hello.random)
	if err != nil {
		return step{}, err
	}
	if err := h.endOfEarlyData(); err != nil {
		return step{}, err
	}
	if err := h.sendCertificate(); err != nil {
		return step{}, err
	}
	mac := finishedMAC(h.c.suite, h.traffic.client, h.transcript.sum())
	if err := h.send(&finished{mac}); err != nil {
		return step{}, err
	}
	h.c.resumption = master.resumption(h.transcript.sum())
	if err := h.c.readWith(secrets.server, proof); err != nil {
		return step{}, err
	}
	if err := h.c.writeWith(secrets.client); err != nil {
		return step{}, err
	}
	h.keys.wipe()
	master.wipe()
	h.traffic.wipe()
	h.c.finish(h.peer, done)
	return step{}, nil
}

// endOfEarlyData ends early data that was accepted, under its own keys
// (section 4.5).
func (h *clientHandshake) endOfEarlyData() error {
	if !h.c.early.accepted {
		return nil
	}
	if err := h.send(endOfEarlyData{}); err != nil {
		return err
	}
	err := h.c.writeWith(h.traffic.client)
	h.c.endEarly()
	return err
}

// sendCertificate answers a CertificateRequest; without a suitable
// certificate the message is empty and needs no signature.
func (h *clientHandshake) sendCertificate() error {
	if h.request == nil {
		return nil
	}
	cert, err := clientCertificate(h.c.tls, h.request.info)
	if err != nil {
		return err
	}
	if err := h.send(certificateMessage(cert, h.request.ocsp, h.request.sct)); err != nil {
		return err
	}
	if len(cert.Certificate) == 0 {
		return nil
	}
	scheme, err := selectScheme(cert, h.request.info.SignatureSchemes)
	if err != nil {
		return because(AlertHandshakeFailure, err, "client certificate can't be used with this server")
	}
	verify, err := sign(cert, scheme, true, h.transcript.sum(), randReader(h.c.tls))
	if err != nil {
		return err
	}
	return h.send(verify)
}
