package tls13

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"hash"
	"io"
	"strings"
	"testing"
	"testing/cryptotest"

	"github.com/go-tcpls/tcpls/internal/record"
)

// A hostile peer has keys and a good certificate, keeps its transcript in
// step with whatever it says, and says what a script makes of the handshake.
type hostile struct {
	*puppet
	script *script
	joined []byte
	proof  []byte    // the messages that authenticate it, as they were sent
	before hash.Hash // the transcript up to there
	early  int       // bytes of early data that the engine took
}

// say changes an item and sends what comes of it.
func (h *hostile) say(it item) {
	if h.write != nil {
		it.epoch = underHandshakeKeys
	}
	for _, changed := range h.script.change(it) {
		h.sendItem(changed)
	}
}

func (h *hostile) message(m outgoing) {
	h.say(item{typ: record.Handshake, content: must(encode(m))})
}

func (h *hostile) sendItem(it item) {
	if it.back {
		return // nobody is behind us
	}
	if it.typ == record.Handshake && !it.stray && h.transcript != nil {
		h.transcript.add(it.content)
		if h.before != nil {
			h.proof = append(h.proof, it.content...)
		}
	}
	if it.joined {
		h.joined = append(h.joined, it.content...)
		return
	}
	content := append(h.joined, it.content...)
	h.joined = nil
	for again := true; again; again = len(content) > 0 {
		piece := content[:min(len(content), record.MaxPlaintext)]
		content = content[len(piece):]
		start := len(h.wire)
		if it.stray || it.typ == record.ChangeCipherSpec {
			h.plain(it.typ, piece)
		} else {
			h.record(it.typ, piece)
		}
		if it.damaged && len(h.wire) > start {
			h.wire[len(h.wire)-1] ^= 1
		}
	}
	h.feedAll()
}

// feedAll gives the engine what is on the wire, and looks at what it keeps.
func (h *hostile) feedAll() {
	done := h.engine.HandshakeComplete()
	for n := 1; n > 0 && h.err == nil; h.wire = h.wire[n:] {
		switch {
		case h.engine.HandshakeComplete():
			_, n, h.err = h.engine.Read(nil, h.wire)
		case h.engine.EarlyData():
			var data []byte
			data, n, h.err = h.engine.ReadEarly(nil, h.wire)
			h.early += len(data)
		default:
			n, h.err = h.engine.Feed(h.wire)
		}
	}
	switch {
	case h.early > maxEarlyOfFuzz:
		h.t.Fatalf("%d bytes of early data, %d are allowed", h.early, maxEarlyOfFuzz)
	case len(h.engine.hand) > messageHeadLen+maxCertificate+record.MaxPlaintext || h.err == nil && len(h.wire) > record.HeaderLen+record.MaxCiphertext:
		h.t.Fatalf("the engine keeps %d and leaves %d bytes", len(h.engine.hand), len(h.wire))
	case !done && h.engine.HandshakeComplete():
		h.checkProof()
	}
}

// authenticates begins the part of the conversation that proves who we are.
func (h *hostile) authenticates() {
	h.before = must(h.transcript.hash.(hash.Cloner).Clone())
}

// checkProof looks, with code of its own, for what must have been sent before
// an engine is complete: our certificate, a signature by its key over all that
// went before, and the right Finished.
func (h *hostile) checkProof() {
	if h.before == nil {
		h.t.Fatal("complete before the peer could authenticate itself")
	}
	var cert, verify, last []byte
	var kinds []messageType
	for list := h.proof; len(list) >= messageHeadLen; {
		n := messageHeadLen + int(list[1])<<16 + int(list[2])<<8 + int(list[3])
		if n > len(list) {
			h.t.Fatal("complete within a message")
		}
		m := list[:n]
		list = list[n:]
		switch kinds = append(kinds, messageType(m[0])); messageType(m[0]) {
		case typeCertificate:
			cert = m
		case typeCertificateVerify:
			verify = m
			h.checkSignature(verify[messageHeadLen:])
		case typeFinished:
			if last = m; !bytes.Equal(m[messageHeadLen:], finishedMAC(h.suite, h.base(), h.before.Sum(nil))) {
				h.t.Fatal("complete after a wrong Finished")
			}
		}
		h.before.Write(m)
	}
	usesPSK := h.engine.PSKUsed() != nil
	wantCertificate := !usesPSK && (!h.isClient || h.engine.tls.ClientAuth == tls.RequireAndVerifyClientCert)
	switch {
	case usesPSK && h.psk == nil:
		h.t.Fatal("complete by a PSK that the peer doesn't use")
	case last == nil:
		h.t.Fatalf("complete without Finished, after %v", kinds)
	case wantCertificate && (verify == nil || !bytes.Contains(cert, h.cert.Certificate[0])):
		h.t.Fatalf("complete without a certificate and its proof, after %v", kinds)
	case wantCertificate && !bytes.Equal(h.engine.ConnectionState().PeerCertificates[0].Raw, h.cert.Certificate[0]):
		h.t.Fatal("complete with another certificate than the peer has proven")
	}
}

func (h *hostile) base() []byte {
	if h.isClient {
		return h.traffic.client
	}
	return h.traffic.server
}

func (h *hostile) checkSignature(body []byte) {
	context := "TLS 1.3, server CertificateVerify"
	if h.isClient {
		context = "TLS 1.3, client CertificateVerify"
	}
	sum := sha256.Sum256(append([]byte(strings.Repeat(" ", 64)+context+"\x00"), h.before.Sum(nil)...))
	key := testKeys()["P-256"].Public().(*ecdsa.PublicKey)
	if !bytes.HasPrefix(body, []byte{4, 3}) || !ecdsa.VerifyASN1(key, sum[:], body[4:]) {
		h.t.Fatal("complete after a signature that doesn't fit")
	}
}

// hears reads what the engine says, as far as our keys fit, and tells whether
// the conversation can go on.
func (h *hostile) hears() []message {
	list := h.receive()
	if h.err != nil || h.deafened {
		return nil
	}
	return list
}

// ends judges how the engine ended.
func (h *hostile) ends() {
	if h.err == nil || h.err == io.EOF {
		return
	}
	h.hears()
	own, isOwn := alertOf(h.err)
	switch {
	case isOwn && own == AlertInternalError:
		h.t.Fatalf("%v, which is nobody's fault but ours", h.err)
	case isOwn && !h.deafened && (len(h.alerts) != 1 || h.alerts[0] != own):
		h.t.Fatalf("%v, and alerts %v", h.err, h.alerts)
	case !isOwn && len(h.alerts) > 0:
		h.t.Fatalf("%v is the peer's, and was answered by %v", h.err, h.alerts)
	}
	h.engine.Fail(errTest)
	h.engine.CloseNotify()
	if out := h.engine.Output(); len(out) > 0 {
		h.t.Fatalf("%d more bytes after %v", len(out), h.err)
	}
	if h.engine.read != nil || h.engine.hand != nil || h.engine.next.run != nil {
		h.t.Fatalf("the engine keeps a handshake that failed with %v", h.err)
	}
}

// afterwards is what is said once the handshake is complete.
func (h *hostile) afterwards(list ...outgoing) {
	if !h.engine.HandshakeComplete() || h.err != nil {
		return
	}
	for _, m := range list {
		h.message(m)
		if _, ok := m.(*keyUpdate); ok && h.err == nil {
			h.write.Restart(must(h.write.Keys().Next()))
		}
	}
	h.say(item{typ: record.ApplicationData, content: []byte("data")})
	h.say(item{typ: record.Alert, content: []byte{levelWarning, byte(AlertCloseNotify)}})
}

// FuzzHostileServer is a server with a good certificate, or a PSK, that says
// anything.
func FuzzHostileServer(f *testing.F) {
	addScripts(f)
	f.Fuzz(func(t *testing.T, setting byte, input []byte) {
		cryptotest.SetGlobalRandom(t, uint64(setting))
		w := fuzzWorld(setting &^ withTicket)
		w.client.RecordSizeLimit *= 25 // small ones are the middle's business
		h := &hostile{puppet: newPuppetServer(t, w.client), script: parseScript(input)}
		h.tolerant = true
		if w.client.PSK != nil {
			h.suite, h.psk = w.client.PSK.Suite, w.client.PSK.Secret
		}
		h.serve(setting)
		h.ends()
		if h.err != io.EOF && len(h.script.list) == 0 {
			t.Fatal(h.err)
		}
	})
}

func (h *hostile) serve(setting byte) {
	if setting&withRetry != 0 {
		h.transcript.retry()
		h.group = groupByID(tls.CurveP256)
		h.message(h.newServerHello(retryRandom, extension{extKeyShare, uint16Body(uint16(tls.CurveP256))}))
		list := h.hears()
		if len(list) != 1 {
			return
		}
		h.transcript.add(list[0].raw)
		h.hello = must(parseClientHello(list[0].body(), h.engine.cfg.Extension))
	}
	share, ok := must(parseOffer(h.hello.extensions, h.engine.cfg.Extension)).share(h.group.id)
	if !ok {
		return
	}
	answer, shared, err := h.group.respond(must(h.group.curve.GenerateKey(nil)), share)
	if err != nil {
		h.t.Fatal("the client's share can't be used:", err)
	}
	m := h.newServerHello(bytes.Repeat([]byte{7}, randomLen), extension{extKeyShare, keyShareBody(keyShare{h.group.id, answer})})
	if h.psk != nil {
		m.extensions = append(m.extensions, extension{extPreSharedKey, uint16Body(0)})
	}
	h.message(m)
	h.keys(shared)
	h.authenticates()
	ee := &encryptedExtensions{[]extension{{extServerName, nil}}}
	if h.engine.cfg.offers() {
		ee.extensions = append(ee.extensions, extension{testExtension, []byte("answer")})
	}
	if setting&withProtocols != 0 {
		ee.extensions = append(ee.extensions, extension{extALPN, alpnBody([]string{"b"})})
	}
	if h.psk != nil && setting&withEarlyData != 0 && setting&withRetry == 0 {
		ee.extensions = append(ee.extensions, extension{extEarlyData, nil})
	}
	h.message(ee)
	if h.psk == nil {
		if setting&withClientCertificate != 0 {
			h.message(goodRequest())
		}
		h.message(certificateMessage(&h.cert, false, false))
		h.message(h.certificateVerify())
	}
	h.message(&finished{finishedMAC(h.suite, h.traffic.server, h.transcript.sum())})
	h.application()
	if h.engine.HandshakeComplete() && h.err == nil {
		h.hears()
		h.setKeys(h.app)
	}
	h.afterwards(&newSessionTicket{lifetime: 1, nonce: []byte{1}, ticket: []byte("ticket")}, &keyUpdate{}, &keyUpdate{requested: true})
}

// FuzzHostileClient is a client with a good certificate, or a PSK, that says
// anything.
func FuzzHostileClient(f *testing.F) {
	addScripts(f)
	f.Fuzz(func(t *testing.T, setting byte, input []byte) {
		cryptotest.SetGlobalRandom(t, uint64(setting))
		w := fuzzWorld(setting &^ withTicket)
		if setting&withClientCertificate == 0 {
			w.server.TLS.ClientAuth, w.server.TLS.ClientCAs = tls.VerifyClientCertIfGiven, authority().pool
		}
		w.server.RecordSizeLimit *= 20 // small ones are the middle's business
		h := &hostile{puppet: newPuppetClient(t, w.server), script: parseScript(input)}
		h.tolerant = true
		if w.client.PSK != nil {
			h.suite, h.psk = w.client.PSK.Suite, w.client.PSK.Secret
		}
		h.call(setting)
		h.ends()
		if h.err != io.EOF && len(h.script.list) == 0 {
			t.Fatal(h.err)
		}
	})
}

// sayHello sends a ClientHello. The first is kept for the transcript, whose
// hash isn't known before the answer.
func (h *hostile) sayHello() {
	it := item{typ: record.Handshake, content: must(encode(h.hello))}
	for _, changed := range h.script.change(it) {
		if h.psk != nil && changed.typ == record.Handshake {
			h.bind(changed.content)
		}
		if h.transcript == nil {
			h.client.helloRaw = append(h.client.helloRaw, changed.content...)
		} else {
			h.transcript.add(changed.content)
		}
		h.record(changed.typ, changed.content)
	}
	h.feedAll()
}

// bind makes the binder at the end of a ClientHello fit whatever is before it.
func (h *hostile) bind(hello []byte) {
	n := len(hello) - 2 - 1 - h.suite.HashLen
	if n < 0 {
		return
	}
	before := newTranscript(h.suite)
	if h.transcript != nil {
		before.hash = must(h.transcript.hash.(hash.Cloner).Clone())
	}
	before.add(hello[:n])
	early := newEarlySecret(h.suite, h.psk)
	copy(hello[n+3:], finishedMAC(h.suite, early.binderKey(), before.sum()))
}

// offerPSK adds the PSK to the hello, which comes last.
func (h *hostile) offerPSK(early bool) {
	more := []extension{{extPSKModes, pskModesBody()}}
	if early {
		more = append(more, extension{extEarlyData, nil})
	}
	offered := &offeredPSKs{[]pskIdentity{{identity: []byte("token")}}, [][]byte{make([]byte, h.suite.HashLen)}}
	h.hello.extensions = append(dropExtension(h.hello.extensions, extPSKModes), append(more, extension{extPreSharedKey, pskBody(offered)})...)
}

// sayEarly sends early data, and returns what else is sent under its keys.
func (h *hostile) sayEarly() *record.Context {
	secret := newEarlySecret(h.suite, h.psk).clientTraffic(digest(h.suite, h.client.helloRaw))
	h.write = record.NewContext(must(h.suite.Keys(secret)), 0)
	early := h.write
	for range 3 {
		h.say(item{typ: record.ApplicationData, content: []byte("early data")})
	}
	h.write = nil
	return early
}

func (h *hostile) call(setting byte) {
	early := h.psk != nil && setting&withEarlyData != 0
	if setting&withProtocols != 0 {
		h.hello.extensions = setExtension(h.hello.extensions, extALPN, alpnBody([]string{"a", "b"}))
	}
	if h.psk != nil {
		h.offerPSK(early)
	}
	h.client.helloRaw = nil
	h.sayHello()
	var earlyKeys *record.Context
	if early {
		earlyKeys = h.sayEarly()
	}
	list := h.hears()
	if setting&withRetry != 0 && len(list) == 1 && h.err == nil {
		h.client.pairs = []*keyPair{must(groupByID(tls.CurveP256).generate(nil))}
		h.hello.extensions = setExtension(h.hello.extensions, extKeyShare, keySharesOf(h.client.pairs, 0))
		h.hello.extensions = dropExtension(h.hello.extensions, extEarlyData)
		h.sayHello()
		list = h.hears()
	}
	if len(list) < 2 || h.write == nil {
		return
	}
	for _, m := range list[1:] {
		h.transcript.add(m.raw)
	}
	h.application()
	h.read = record.NewContext(must(h.suite.Keys(bytes.Clone(h.app.server))), 0)
	h.authenticates()
	if h.engine.EarlyDataAccepted() {
		under := h.write
		h.write = earlyKeys
		h.say(item{typ: record.Handshake, content: []byte{byte(typeEndOfEarlyData), 0, 0, 0}})
		h.write = under
	}
	if h.psk == nil {
		h.message(certificateMessage(&h.cert, false, false))
		h.message(h.certificateVerify())
	}
	h.message(&finished{finishedMAC(h.suite, h.traffic.client, h.transcript.sum())})
	if h.engine.HandshakeComplete() {
		h.write = record.NewContext(must(h.suite.Keys(bytes.Clone(h.app.client))), 0)
	}
	h.afterwards(&keyUpdate{}, &keyUpdate{requested: true})
}
