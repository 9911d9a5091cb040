package tls13

import (
	"bytes"
	"crypto/ecdh"
	"crypto/tls"
	"io"
	"slices"

	"github.com/go-tcpls/tcpls/internal/record"
)

// serverHandshake is what a server keeps until the handshake is complete. Its
// steps stand in the order of RFC 8446, Figure 1.
type serverHandshake struct {
	c *Conn

	hello *clientHello // the one in force
	offer *offer
	first *clientHello // before a HelloRetryRequest
	suite *record.Suite
	group *group

	psk      *psk // nil: a full handshake
	selected int  // its place among those offered

	transcript *transcript
	traffic    trafficSecrets // of the handshake
	clientApp  []byte         // application traffic secret
	master     masterSecret

	chain *peerChain
	peer  *verifiedPeer
}

// send adds a message to the transcript and to the flight.
func (h *serverHandshake) send(m outgoing) error {
	raw, err := encode(m)
	if err != nil {
		return err
	}
	h.transcript.add(raw)
	h.c.queue(raw)
	return nil
}

// readHello reads either ClientHello. Whatever follows it in the same record
// would cross a change of keys.
func (h *serverHandshake) readHello(m message) error {
	own := h.c.cfg.Extension
	hello, err := parseClientHello(m.body(), own)
	if err != nil {
		return err
	}
	o, err := parseOffer(hello.extensions, own)
	if err != nil {
		return err
	}
	if err := o.checkVersion(hello); err != nil {
		return err
	}
	h.hello, h.offer = hello, o
	h.c.input.hello = true
	_, err = h.c.align()
	return err
}

func (h *serverHandshake) firstHello(m message) (step, error) {
	if err := h.readHello(m); err != nil {
		return step{}, err
	}
	h.c.serverName = h.offer.serverName
	if err := h.configForClient(); err != nil {
		return step{}, err
	}
	if err := h.offer.check(h.hello); err != nil {
		return step{}, err
	}
	if h.offer.cookie != nil {
		return step{}, broken(AlertIllegalParameter, "client sends a cookie that it was not given")
	}
	if h.offer.earlyData { // skipped unless accepted
		h.c.input.skipping, h.c.input.earlySkip = true, max(maxEarlyData, int(h.c.cfg.MaxEarlyData))
	}
	if err := h.choose(); err != nil {
		return step{}, err
	}
	if err := h.choosePSK(m); err != nil {
		return step{}, err
	}
	h.transcript = newTranscript(h.suite)
	h.transcript.add(m.raw)
	if _, ok := h.offer.share(h.group.id); !ok {
		return h.helloRetryRequest()
	}
	return h.respond()
}

// configForClient lets GetConfigForClient replace the configuration.
func (h *serverHandshake) configForClient() error {
	c := h.c
	if c.tls.GetConfigForClient == nil {
		return nil
	}
	chosen, err := c.tls.GetConfigForClient(h.info())
	if err != nil {
		return refusal(AlertInternalError, err, "GetConfigForClient")
	}
	if chosen == nil {
		return nil
	}
	if badMaxVersion(chosen, c.isClient) { // a client may come back with what it permits
		return broken(AlertProtocolVersion, "GetConfigForClient doesn't permit TLS 1.3 to this client")
	}
	if err := checkTLS(chosen, c.isClient); err != nil {
		return because(AlertInternalError, err, "GetConfigForClient")
	}
	c.tls = chosen
	return nil
}

func (h *serverHandshake) info() *tls.ClientHelloInfo {
	return h.offer.info(h.hello, h.c.cfg.NetConn, h.c.retried)
}

// choose negotiates suite and group.
func (h *serverHandshake) choose() error {
	if h.suite = selectSuite(h.hello.suites); h.suite == nil {
		return broken(AlertHandshakeFailure, "client offers no cipher suite of TLS 1.3 that is supported")
	}
	if h.group = selectGroup(groupPreference(h.c.tls), h.offer); h.group == nil {
		return broken(AlertHandshakeFailure, "client offers no key exchange that is supported")
	}
	return nil
}

// selectGroup prefers, in this order, hybrids, groups that the client sent a
// share for, and our own order.
func selectGroup(preferred []tls.CurveID, o *offer) *group {
	var best *group
	bestRank := -1
	for _, id := range preferred {
		if !slices.Contains(o.groups, id) {
			continue
		}
		g, rank := groupByID(id), 0
		if g.kem != nil {
			rank += 2
		}
		if _, ok := o.share(id); ok {
			rank++
		}
		if rank > bestRank {
			best, bestRank = g, rank
		}
	}
	return best
}

// helloRetryRequest asks for a share of the chosen group.
func (h *serverHandshake) helloRetryRequest() (step, error) {
	h.transcript.retry()
	h.first, h.c.retried = h.hello, true
	h.c.suite = h.suite
	err := h.send(h.serverHello(retryRandom, extension{extKeyShare, uint16Body(uint16(h.group.id))}))
	if err != nil {
		return step{}, err
	}
	if err := h.changeCipherSpec(); err != nil {
		return step{}, err
	}
	return step{want: typeClientHello, run: h.secondHello}, nil
}

// serverHello is also the shape of a HelloRetryRequest.
func (h *serverHandshake) serverHello(random []byte, share extension) *serverHello {
	return &serverHello{
		version: tls.VersionTLS12, random: random, sessionID: h.hello.sessionID, suite: h.suite.ID,
		extensions: []extension{{extSupportedVersions, uint16Body(tls.VersionTLS13)}, share},
	}
}

// changeCipherSpec follows our first message, for middleboxes (D.4), even if
// the client doesn't play along: every client drops it (section 5).
func (h *serverHandshake) changeCipherSpec() error {
	if err := h.c.flush(); err != nil {
		return err
	}
	h.c.appendChangeCipherSpec()
	return nil
}

func (h *serverHandshake) secondHello(m message) (step, error) {
	if err := h.readHello(m); err != nil {
		return step{}, err
	}
	if err := checkSecond(h.first, h.hello, h.offer, h.group.id, h.c.cfg.Extension); err != nil {
		return step{}, err
	}
	if h.offer.cookie != nil {
		return step{}, broken(AlertIllegalParameter, "client sends a cookie that it was not given")
	}
	if err := h.offer.check(h.hello); err != nil {
		return step{}, err
	}
	h.c.input.skipping = false // early data came before, or never
	if err := h.confirmPSK(m); err != nil {
		return step{}, err
	}
	h.transcript.add(m.raw)
	return h.respond()
}

// respond sends everything from ServerHello to Finished. All that can be
// refused is decided before the first byte.
func (h *serverHandshake) respond() (step, error) {
	c := h.c
	share, _ := h.offer.share(h.group.id)
	ee, err := h.encryptedExtensions()
	if err != nil {
		return step{}, err
	}
	cert, scheme, err := h.certificate()
	if err != nil {
		return step{}, err
	}
	random, own, err := h.fresh()
	if err != nil {
		return step{}, because(AlertInternalError, err, "Config.Rand")
	}
	answer, shared, err := h.group.respond(own, share)
	if err != nil {
		return step{}, because(AlertIllegalParameter, err, "client's key share is invalid")
	}
	sh := h.serverHello(random, extension{extKeyShare, keyShareBody(keyShare{h.group.id, answer})})
	if h.psk != nil {
		sh.extensions = append(sh.extensions, extension{extPreSharedKey, uint16Body(uint16(h.selected))})
	}
	if err := h.send(sh); err != nil {
		return step{}, err
	}
	c.suite, c.group = h.suite, h.group.id
	early := earlySecretOf(h.suite, h.psk)
	keys := early.handshake(shared)
	clear(shared)
	early.wipe()
	if err := h.handshakeKeys(keys); err != nil {
		return step{}, err
	}
	if err := h.sendFlight(ee, cert, scheme); err != nil {
		return step{}, err
	}
	if err := h.applicationKeys(keys); err != nil {
		return step{}, err
	}
	return h.awaitClient()
}

// awaitClient tells what the client's second flight begins with.
func (h *serverHandshake) awaitClient() (step, error) {
	switch {
	case h.psk != nil:
		h.peer = h.psk.peer()
		if h.c.EarlyData() {
			return step{want: typeEndOfEarlyData, run: h.endOfEarlyData}, nil
		}
		return step{want: typeFinished, run: h.clientFinished}, nil
	case h.c.tls.ClientAuth != tls.NoClientCert:
		return step{want: typeCertificate, run: h.clientCertificate}, nil
	}
	return h.withoutCertificate(&peerChain{})
}

// fresh makes what is new in each ServerHello: its random and our key.
func (h *serverHandshake) fresh() (random []byte, own *ecdh.PrivateKey, err error) {
	random = make([]byte, randomLen)
	if _, err = io.ReadFull(randReader(h.c.tls), random); err == nil {
		own, err = h.group.curve.GenerateKey(randReader(h.c.tls))
	}
	return random, own, err
}

// handshakeKeys moves both directions to the handshake traffic keys, but for
// reading where early data comes first.
func (h *serverHandshake) handshakeKeys(keys handshakeSecret) error {
	proof, err := h.c.align()
	if err != nil {
		return err
	}
	if !h.c.retried { // then it went already
		err = h.changeCipherSpec()
	} else {
		err = h.c.flush()
	}
	if err != nil {
		return err
	}
	if h.traffic, err = h.c.handshakeSecrets(keys, h.transcript.sum(), h.hello.random); err != nil {
		return err
	}
	if h.c.EarlyData() {
		h.c.read = h.c.early.context
	} else if err := h.c.readWith(h.traffic.client, proof); err != nil {
		return err
	}
	return h.c.writeWith(h.traffic.server)
}

// applicationKeys moves sending to the application keys. Receiving follows
// with the client's Finished.
func (h *serverHandshake) applicationKeys(keys handshakeSecret) error {
	h.master = keys.master()
	secrets, err := h.c.applicationSecrets(h.master, h.transcript.sum(), h.hello.random)
	if err != nil {
		return err
	}
	h.clientApp = secrets.client
	keys.wipe()
	return h.c.writeWith(secrets.server)
}

// encryptedExtensions decides what the server answers.
func (h *serverHandshake) encryptedExtensions() (*encryptedExtensions, error) {
	c, m := h.c, new(encryptedExtensions)
	add := func(id uint16, body []byte) { m.extensions = append(m.extensions, extension{id, body}) }
	if h.offer.serverName != "" && h.psk == nil { // RFC 6066, section 3: not when resuming
		add(extServerName, nil)
	}
	protocol, err := selectProtocol(c.tls.NextProtos, h.offer.protocols)
	if err != nil {
		return nil, err
	}
	if c.protocol = protocol; protocol != "" {
		add(extALPN, alpnBody([]string{protocol}))
	}
	if h.offer.hasRecordLimit {
		c.sendLimit = min(h.offer.recordLimit, maxRecordSizeLimit) - 1
		if c.cfg.RecordSizeLimit != 0 {
			c.recvLimit = c.cfg.RecordSizeLimit
		}
		add(extRecordSizeLimit, uint16Body(uint16(c.recvLimit)))
	}
	if h.acceptsEarly() {
		c.early.accepted, c.input.skipping = true, false
		if err := c.earlyKeys(h.psk, h.transcript.sum(), h.hello.random); err != nil {
			return nil, err
		}
		add(extEarlyData, nil)
	}
	if h.offer.hasOwn && c.cfg.answers() {
		answer, err := c.cfg.Answer(bytes.Clone(h.offer.ownBody))
		if err != nil {
			return nil, extensionError(err, "client's offer")
		}
		if answer != nil {
			add(c.cfg.Extension, answer)
			c.ownAnswered = true
		}
	}
	return m, nil
}

// selectProtocol is ALPN (RFC 7301). As in crypto/tls, a client that only
// has http/1.1 may talk to a server that only has h2, without ALPN.
func selectProtocol(own, offered []string) (string, error) {
	if len(own) == 0 || len(offered) == 0 {
		return "", nil
	}
	for _, p := range own {
		if slices.Contains(offered, p) {
			return p, nil
		}
	}
	if slices.Contains(own, "h2") && slices.Contains(offered, "http/1.1") {
		return "", nil
	}
	return "", broken(AlertNoApplicationProtocol, "client offers only the protocols %q, none of them configured", offered)
}

// certificate decides what the server proves its identity with: nil for a PSK.
func (h *serverHandshake) certificate() (*tls.Certificate, tls.SignatureScheme, error) {
	if h.psk != nil {
		return nil, 0, nil
	}
	if h.offer.schemes == nil { // RFC 8446, section 4.2.3
		return nil, 0, broken(AlertMissingExtension, "client sends no signature_algorithms, and no PSK that can be used")
	}
	cert, err := serverCertificate(h.c.tls, h.info(), h.offer.certSchemes)
	if err != nil {
		return nil, 0, err
	}
	if len(cert.Certificate) == 0 {
		return nil, 0, broken(AlertInternalError, "the server's tls.Certificate has no certificate in it")
	}
	scheme, err := selectScheme(cert, h.offer.schemes)
	if err != nil {
		return nil, 0, because(AlertHandshakeFailure, err, "server certificate can't be used with this client")
	}
	return cert, scheme, nil
}

// sendFlight sends what is under the handshake keys.
func (h *serverHandshake) sendFlight(ee *encryptedExtensions, cert *tls.Certificate, scheme tls.SignatureScheme) error {
	if err := h.send(ee); err != nil {
		return err
	}
	if err := h.sendCertificate(cert, scheme); err != nil {
		return err
	}
	return h.send(&finished{finishedMAC(h.suite, h.traffic.server, h.transcript.sum())})
}

func (h *serverHandshake) sendCertificate(cert *tls.Certificate, scheme tls.SignatureScheme) error {
	if cert == nil {
		return nil
	}
	if h.c.tls.ClientAuth != tls.NoClientCert {
		if err := h.send(certificateRequestFor(h.c.tls)); err != nil {
			return err
		}
	}
	if err := h.send(certificateMessage(cert, h.offer.ocsp, h.offer.sct)); err != nil {
		return err
	}
	verify, err := sign(cert, scheme, false, h.transcript.sum(), randReader(h.c.tls))
	if err != nil {
		return err
	}
	return h.send(verify)
}

// certificateRequestFor asks for what ClientAuth wants, and names the
// authorities if all of them fit.
func certificateRequestFor(t *tls.Config) *certificateRequest {
	m := &certificateRequest{extensions: []extension{
		{extStatusRequest, nil},
		{extSCT, nil},
		{extSignatureAlgorithms, uint16List(schemesOffered)},
	}}
	if t.ClientCAs == nil {
		return m
	}
	//lint:ignore SA1019 what it leaves out, the system's roots, is nobody's choice of client CAs
	subjects := t.ClientCAs.Subjects()
	size := 0
	for _, s := range subjects {
		size += 2 + len(s)
	}
	if size > 0 && size < maxAuthorities {
		m.extensions = append(m.extensions, extension{extCertificateAuthorities, vectorList(subjects)})
	}
	return m
}

// maxAuthorities leaves room for the rest of a CertificateRequest within what
// peers are ready to take.
const maxAuthorities = 32 << 10

// asked tells which extensions our CertificateRequest permits in a client's
// Certificate.
func (h *serverHandshake) asked(id uint16) bool { return id == extStatusRequest || id == extSCT }

func (h *serverHandshake) clientCertificate(m message) (step, error) {
	cert, err := parseCertificate(m.body(), h.c.cfg.Extension)
	if err != nil {
		return step{}, err
	}
	if len(cert.context) != 0 {
		return step{}, broken(AlertIllegalParameter, "client's Certificate has another context than the request")
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
	if len(h.chain.x509) == 0 {
		return h.withoutCertificate(h.chain)
	}
	return step{want: typeCertificateVerify, run: h.certificateVerify}, nil
}

// withoutCertificate goes on with a client that has none, if that is allowed.
func (h *serverHandshake) withoutCertificate(none *peerChain) (step, error) {
	var err error
	if h.peer, err = none.authenticate(serverPolicy(h.c.tls), nil, true, nil); err != nil {
		return step{}, err
	}
	return step{want: typeFinished, run: h.clientFinished}, nil
}

func (h *serverHandshake) certificateVerify(m message) (step, error) {
	verify, err := parseCertificateVerify(m.body())
	if err != nil {
		return step{}, err
	}
	h.peer, err = h.chain.authenticate(serverPolicy(h.c.tls), verify, true, h.transcript.sum())
	if err != nil {
		return step{}, err
	}
	h.transcript.add(m.raw)
	return step{want: typeFinished, run: h.clientFinished}, nil
}

func (h *serverHandshake) clientFinished(m message) (step, error) {
	proof, err := h.c.align()
	if err != nil {
		return step{}, err
	}
	done, err := checkFinished(h.suite, m, h.traffic.client, h.transcript.sum())
	if err != nil {
		return step{}, err
	}
	if err := h.c.verifyResumed(h.peer); err != nil {
		return step{}, err
	}
	h.transcript.add(m.raw)
	h.c.resumption = h.master.resumption(h.transcript.sum())
	if err := h.c.readWith(h.clientApp, proof); err != nil {
		return step{}, err
	}
	h.master.wipe()
	h.traffic.wipe()
	h.prepareTickets()
	h.c.finish(h.peer, done)
	return step{}, nil
}
