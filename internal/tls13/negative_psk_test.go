package tls13

import (
	"bytes"
	"crypto/tls"
	"slices"
	"testing"

	"github.com/go-tcpls/tcpls/internal/record"
)

// pskServer is a puppet server whose client offers testPSK and early data in
// the protocol "a".
func pskServer(t *testing.T, use extensionUse) *puppet {
	client, key := clientTLS(), testPSK()
	client.NextProtos, key.ALPN = []string{"a", "b"}, "a"
	p := newPuppetServer(t, use.in(&Config{TLS: client, PSK: key}))
	p.psk = bytes.Clone(key.Secret)
	p.suite = key.Suite
	p.transcript = newTranscript(p.suite)
	p.transcript.add(must(encode(p.hello)))
	p.early = record.NewContext(p.engine.EarlyContextSend().Keys(), 0)
	return p
}

func selecting(index uint16) extension { return extension{extPreSharedKey, uint16Body(index)} }

// resuming answers with a ServerHello that selects the PSK, changed.
func resuming(change func(m *serverHello)) func(p *puppet) {
	return func(p *puppet) {
		p.serverHello(func(m *serverHello) {
			m.extensions = append(m.extensions, selecting(0))
			if change != nil {
				change(m)
			}
		})
	}
}

// TestClientRefusesPSKs has what a server may do wrong with a PSK and with
// early data.
func TestClientRefusesPSKs(t *testing.T) {
	alpn := extension{extALPN, alpnBody([]string{"a"})}
	early := extension{extEarlyData, nil}
	answered := func(list ...extension) func(p *puppet) {
		return func(p *puppet) {
			resuming(nil)(p)
			p.encryptedExtensions(list...)
		}
	}
	refused := func(p *puppet) { p.psk = nil; p.serverHello(nil) }
	runNegative(t, []negative{
		{"selected", 0, true, func(p *puppet) { answered(alpn)(p); p.serverFinished() }},
		{"selected, with early data", 0, true, func(p *puppet) {
			answered(alpn, early)(p)
			p.earlyFinished()
		}},
		{"ServerHello of TLS 1.2", AlertProtocolVersion, false, helloWith(func(m *serverHello) { m.extensions = nil })},
		{"not selected", 0, true, func(p *puppet) { refused(p); p.rest() }},
		{"index out of range", AlertIllegalParameter, false, func(p *puppet) {
			p.serverHello(func(m *serverHello) { m.extensions = append(m.extensions, selecting(1)) })
		}},
		{"index malformed", AlertDecodeError, false, func(p *puppet) {
			p.serverHello(func(m *serverHello) { m.extensions = append(m.extensions, extension{extPreSharedKey, []byte{0}}) })
		}},
		{"index twice", AlertIllegalParameter, false, resuming(func(m *serverHello) { m.extensions = append(m.extensions, selecting(0)) })},
		{"suite of another hash", AlertIllegalParameter, false, resuming(func(m *serverHello) { m.suite = tls.TLS_AES_256_GCM_SHA384 })},
		{"no key_share", AlertIllegalParameter, false, resuming(func(m *serverHello) { m.extensions = dropExtension(m.extensions, extKeyShare) })},
		{"early_data in ServerHello", AlertIllegalParameter, false, resuming(func(m *serverHello) { m.extensions = append(m.extensions, early) })},
		{"pre_shared_key in EncryptedExtensions", AlertIllegalParameter, false, answered(selecting(0))},
		{"psk_key_exchange_modes in EncryptedExtensions", AlertIllegalParameter, false, answered(extension{extPSKModes, pskModesBody()})},
		{"early_data not empty", AlertDecodeError, false, answered(alpn, extension{extEarlyData, []byte{0}})},
		{"early data and another protocol", AlertIllegalParameter, false, answered(extension{extALPN, alpnBody([]string{"b"})}, early)},
		{"early data and no protocol", AlertIllegalParameter, false, answered(early)},
		{"early data without the PSK", AlertIllegalParameter, false, func(p *puppet) { refused(p); p.encryptedExtensions(early) }},
		{"early data after a HelloRetryRequest", AlertUnsupportedExtension, false, func(p *puppet) {
			p.group = groupByID(tls.CurveP256)
			p.retry(tls.CurveP256, nil)
			answered(alpn, early)(p)
		}},
		{"PSK after a HelloRetryRequest", 0, true, func(p *puppet) {
			p.group = groupByID(tls.CurveP256)
			p.retry(tls.CurveP256, nil)
			answered(alpn)(p)
			p.serverFinished()
		}},
		{"PSK of another hash after a HelloRetryRequest", AlertUnsupportedExtension, false, func(p *puppet) {
			p.suite = record.SuiteByID(tls.TLS_AES_256_GCM_SHA384)
			p.transcript = newTranscript(p.suite)
			p.transcript.add(must(encode(p.hello)))
			p.group = groupByID(tls.CurveP256)
			p.retry(tls.CurveP256, nil)
			resuming(nil)(p)
		}},
		{"Certificate", AlertUnexpectedMessage, false, func(p *puppet) { answered(alpn)(p); p.proof() }},
		{"CertificateRequest", AlertUnexpectedMessage, false, func(p *puppet) { answered(alpn)(p); p.send(goodRequest()) }},
		{"no Certificate without the PSK", AlertUnexpectedMessage, false, func(p *puppet) {
			refused(p)
			p.encryptedExtensions()
			p.serverFinished()
		}},
		{"EndOfEarlyData", AlertUnexpectedMessage, false, func(p *puppet) { answered(alpn, early)(p); p.send(endOfEarlyData{}) }},
		{"wrong Finished", AlertDecryptError, false, func(p *puppet) {
			answered(alpn)(p)
			p.send(&finished{make([]byte, p.suite.HashLen)})
		}},
	}, pskServer)

	runNegative(t, []negative{
		{"PSK never offered", AlertUnsupportedExtension, false, resuming(nil)},
	}, puppetServer)
}

// earlyFinished is serverFinished for a client whose early data was accepted:
// EndOfEarlyData, under the early keys, comes before its Finished.
func (p *puppet) earlyFinished() {
	p.send(&finished{finishedMAC(p.suite, p.traffic.server, p.transcript.sum())})
	p.application()
	p.feed()
	if p.err != nil {
		return
	}
	early, list := p.early.Seq(), p.receive()
	if len(list) != 2 || list[0].typ != typeEndOfEarlyData || list[1].typ != typeFinished || p.early.Seq() != early+1 {
		p.t.Errorf("second flight %v, %d records of it under the early keys", list, p.early.Seq()-early)
	}
	p.setKeys(p.app)
}

// TestEarlySuiteChanged: with early data accepted, the suite has to be the
// PSK's, not only the hash.
func TestEarlySuiteChanged(t *testing.T) {
	for _, early := range []bool{false, true} {
		p := pskServer(t, extensionOff)
		p.suite = record.SuiteByID(tls.TLS_CHACHA20_POLY1305_SHA256)
		if p.suite == testPSK().Suite {
			p.suite = record.SuiteByID(tls.TLS_AES_128_GCM_SHA256)
		}
		resuming(nil)(p)
		list := []extension{{extALPN, alpnBody([]string{"a"})}}
		if early {
			list = append(list, extension{extEarlyData, nil})
		}
		p.encryptedExtensions(list...)
		p.feed()
		p.wantAlert(AlertIllegalParameter, !early)
	}
}

// pskClient is a puppet client with a PSK and early data that the server
// knows.
func pskClient(t *testing.T, use extensionUse) *puppet {
	key := testPSK()
	return pskClientOf(t, use.in(&Config{TLS: serverTLS(), LookupPSK: func(id []byte) (*PSK, error) {
		if string(id) != string(key.Identity) {
			return nil, nil
		}
		return testPSK(), nil
	}}))
}

func pskClientOf(t *testing.T, server *Config) *puppet {
	p := newPuppetClient(t, server)
	p.psk = bytes.Clone(testPSK().Secret)
	p.suite = testPSK().Suite
	p.hello.extensions = append(p.hello.extensions, extension{extPSKModes, pskModesBody()}, extension{extEarlyData, nil})
	return p
}

// offerPSKs ends the ClientHello with PSKs of these identities, changed, whose
// binders are right for testPSK, and sends it.
func (p *puppet) offerPSKs(change func(o *offeredPSKs), identities ...string) {
	o := new(offeredPSKs)
	for _, id := range identities {
		o.identities = append(o.identities, pskIdentity{identity: []byte(id)})
		o.binders = append(o.binders, make([]byte, p.suite.HashLen))
	}
	p.hello.extensions = append(dropExtension(p.hello.extensions, extPreSharedKey), extension{extPreSharedKey, pskBody(o)})
	raw := must(encode(p.hello))
	covered := raw[:len(raw)-o.bindersLen()]
	sum := digest(p.suite, covered)
	if p.transcript != nil {
		sum = must(p.transcript.sumWith(covered))
	}
	binder := userPSK(testPSK()).binder(sum)
	for i := range o.binders {
		o.binders[i] = binder
	}
	if change != nil {
		change(o)
	}
	p.hello.extensions = append(dropExtension(p.hello.extensions, extPreSharedKey), extension{extPreSharedKey, pskBody(o)})
	p.clientHello()
}

// earlyContext is what a puppet client sends early data by.
func (p *puppet) earlyContext() *record.Context {
	sum := digest(p.suite, p.client.helloRaw)
	return record.NewContext(must(p.suite.Keys(userPSK(testPSK()).early.clientTraffic(sum))), 0)
}

// flow gives the server what is on the wire, early data too.
func (p *puppet) flow() {
	p.feed()
	if p.err == nil && p.engine.EarlyData() {
		var n int
		_, n, p.err = p.engine.ReadEarly(nil, p.wire)
		p.wire = p.wire[n:]
		p.feed()
	}
}

// TestServerRefusesPSKs has what a client may do wrong with a PSK.
func TestServerRefusesPSKs(t *testing.T) {
	offering := func(change func(o *offeredPSKs), identities ...string) func(p *puppet) {
		return func(p *puppet) {
			p.hello.extensions = dropExtension(p.hello.extensions, extEarlyData)
			p.offerPSKs(change, identities...)
		}
	}
	retried := func(second func(p *puppet)) func(p *puppet) {
		return func(p *puppet) {
			p.engine.tls.CurvePreferences = []tls.CurveID{tls.CurveP384}
			offering(nil, "token")(p)
			p.receive()
			p.client.pairs = []*keyPair{must(groupByID(tls.CurveP384).generate(nil))}
			p.hello.extensions = setExtension(p.hello.extensions, extKeyShare, keySharesOf(p.client.pairs, 0))
			second(p)
		}
	}
	finish := func(p *puppet) { p.serverFlight(); p.clientFinished() }
	runNegative(t, []negative{
		{"good", 0, true, func(p *puppet) { offering(nil, "token")(p); finish(p) }},
		{"fourth of five", 0, true, func(p *puppet) { offering(nil, "a", "b", "c", "token", "e")(p); finish(p) }},
		{"fifth of five", 0, true, func(p *puppet) {
			p.psk = nil // four identities are looked at
			offering(nil, "a", "b", "c", "d", "token")(p)
			finish(p)
		}},
		{"wrong binder", AlertDecryptError, false, offering(func(o *offeredPSKs) { o.binders[0] = make([]byte, 32) }, "token")},
		{"wrong binder of the second", AlertDecryptError, false, offering(func(o *offeredPSKs) { o.binders[1] = make([]byte, 32) }, "a", "token")},
		{"wrong binder of one that isn't chosen", 0, true, func(p *puppet) {
			offering(func(o *offeredPSKs) { o.binders[0] = make([]byte, 32) }, "a", "token")(p)
			finish(p)
		}},
		{"binder of another length", AlertDecryptError, false, func(p *puppet) {
			// The server takes the length as given, so the hash covers less.
			offering(func(o *offeredPSKs) { o.binders[0] = make([]byte, 48) }, "token")(p)
		}},
		{"binder too short", AlertDecodeError, false, offering(func(o *offeredPSKs) { o.binders[0] = make([]byte, 31) }, "token")},
		{"binder missing", AlertIllegalParameter, false, offering(func(o *offeredPSKs) { o.binders = o.binders[:1] }, "token", "b")},
		{"binder too many", AlertIllegalParameter, false, offering(func(o *offeredPSKs) { o.binders = append(o.binders, o.binders[0]) }, "token")},
		{"psk_ke only", 0, true, func(p *puppet) {
			p.psk = nil
			p.hello.extensions = setExtension(p.hello.extensions, extPSKModes, []byte{1, 0})
			offering(nil, "token")(p)
			finish(p)
		}},
		{"without psk_key_exchange_modes", AlertMissingExtension, false, func(p *puppet) {
			p.hello.extensions = dropExtension(p.hello.extensions, extPSKModes)
			offering(nil, "token")(p)
		}},
		{"suites of another hash only", 0, true, func(p *puppet) {
			p.psk = nil
			p.hello.suites = []uint16{tls.TLS_AES_256_GCM_SHA384}
			offering(nil, "token")(p)
			finish(p)
		}},
		{"without key_share", AlertMissingExtension, false, func(p *puppet) {
			p.hello.extensions = dropExtension(p.hello.extensions, extKeyShare)
			offering(nil, "token")(p)
		}},
		{"early_data after a HelloRetryRequest", AlertIllegalParameter, false, retried(func(p *puppet) {
			p.hello.extensions = setExtension(dropExtension(p.hello.extensions, extPreSharedKey), extEarlyData, nil)
			p.offerPSKs(nil, "token")
		})},
		{"empty identity", AlertDecodeError, false, offering(nil, "token", "")},
		{"after a HelloRetryRequest", 0, true, retried(func(p *puppet) { p.offerPSKs(nil, "token"); finish(p) })},
		{"in another place after a HelloRetryRequest", 0, true, retried(func(p *puppet) { p.offerPSKs(nil, "a", "token"); finish(p) })},
		{"missing after a HelloRetryRequest", AlertMissingExtension, false, retried(func(p *puppet) {
			p.hello.extensions = dropExtension(p.hello.extensions, extPreSharedKey)
			p.clientHello()
		})},
		{"another after a HelloRetryRequest", AlertIllegalParameter, false, retried(func(p *puppet) { p.offerPSKs(nil, "b") })},
		{"old binder after a HelloRetryRequest", AlertDecryptError, false, retried(func(p *puppet) { p.clientHello() })},
		{"no signature_algorithms", 0, true, func(p *puppet) {
			p.hello.extensions = dropExtension(p.hello.extensions, extSignatureAlgorithms)
			offering(nil, "token")(p)
			finish(p)
		}},
		{"no signature_algorithms, unknown PSK", AlertMissingExtension, false, func(p *puppet) {
			p.hello.extensions = dropExtension(p.hello.extensions, extSignatureAlgorithms)
			offering(nil, "unknown")(p)
		}},
		{"Certificate", AlertUnexpectedMessage, false, func(p *puppet) {
			offering(nil, "token")(p)
			p.serverFlight()
			p.send(certificateMessage(&p.cert, false, false))
		}},
		{"EndOfEarlyData unasked for", AlertUnexpectedMessage, false, func(p *puppet) {
			offering(nil, "token")(p)
			p.serverFlight()
			p.send(endOfEarlyData{})
		}},
	}, pskClient)
}

// TestServerRefusesEarlyData has what a client may do wrong with early data
// that was accepted.
func TestServerRefusesEarlyData(t *testing.T) {
	type step func(p *puppet, early *record.Context)
	sending := func(typ record.Type, content []byte) step {
		return func(p *puppet, early *record.Context) { p.wire = append(p.wire, sealed(early, typ, content)...) }
	}
	end := func(p *puppet, early *record.Context) {
		raw := must(encode(endOfEarlyData{}))
		p.transcript.add(raw)
		p.wire = append(p.wire, sealed(early, record.Handshake, raw)...)
		p.flow()
	}
	data := sending(record.ApplicationData, []byte("early"))
	finish := func(p *puppet, _ *record.Context) { p.clientFinished() }
	steps := func(list ...step) func(p *puppet) {
		return func(p *puppet) {
			p.offerPSKs(nil, "token")
			p.serverFlight()
			early := p.earlyContext()
			for _, s := range list {
				s(p, early)
			}
			p.flow()
		}
	}
	times := func(n int, s step) step {
		return func(p *puppet, early *record.Context) {
			for range n {
				s(p, early)
			}
		}
	}
	plain := func(typ record.Type, content []byte) step {
		return func(p *puppet, _ *record.Context) { p.plain(typ, content) }
	}
	runNegative(t, []negative{
		{"good", 0, true, steps(data, data, end, finish)},
		{"none", 0, true, steps(end, finish)},
		{"with ChangeCipherSpec", 0, true, steps(plain(record.ChangeCipherSpec, []byte{1}), data, end, finish)},
		{"ChangeCipherSpec malformed", AlertUnexpectedMessage, false, steps(plain(record.ChangeCipherSpec, []byte{2}))},
		{"EndOfEarlyData with a body", AlertDecodeError, false, steps(data, sending(record.Handshake, []byte{5, 0, 0, 1, 0}))},
		{"EndOfEarlyData missing", AlertBadRecordMAC, false, steps(data, finish, func(p *puppet, _ *record.Context) { p.flow() })},
		{"EndOfEarlyData twice", AlertUnexpectedMessage, false, steps(end, func(p *puppet, _ *record.Context) { p.send(endOfEarlyData{}) })},
		{"KeyUpdate", AlertUnexpectedMessage, false, steps(sending(record.Handshake, []byte{24, 0, 0, 1, 0}))},
		{"a message of 16 MiB announced", AlertIllegalParameter, false, steps(sending(record.Handshake, []byte{5, 0xff, 0xff, 0xff}))},
		{"Finished instead", AlertUnexpectedMessage, false, steps(sending(record.Handshake, append([]byte{20, 0, 0, 32}, make([]byte, 32)...)))},
		{"a message behind EndOfEarlyData in its record", AlertUnexpectedMessage, false, steps(sending(record.Handshake, []byte{5, 0, 0, 0, 20}))},
		{"EndOfEarlyData cut in two", 0, true, steps(sending(record.Handshake, []byte{5, 0}), func(p *puppet, early *record.Context) {
			p.transcript.add([]byte{5, 0, 0, 0})
			sending(record.Handshake, []byte{0, 0})(p, early)
			p.flow()
		}, finish)},
		{"data within EndOfEarlyData", AlertUnexpectedMessage, false, steps(sending(record.Handshake, []byte{5, 0}), data)},
		{"ChangeCipherSpec within EndOfEarlyData", AlertUnexpectedMessage, false, steps(sending(record.Handshake, []byte{5, 0}), plain(record.ChangeCipherSpec, []byte{1}))},
		{"data after EndOfEarlyData", AlertBadRecordMAC, false, steps(end, data)},
		{"data under the handshake keys", AlertUnexpectedMessage, false, steps(end, func(p *puppet, _ *record.Context) {
			p.record(record.ApplicationData, []byte("late"))
		})},
		{"damaged record", AlertBadRecordMAC, false, steps(data, func(p *puppet, _ *record.Context) { p.wire[len(p.wire)-1] ^= 1 })},
		{"repeated record", AlertBadRecordMAC, false, steps(data, func(p *puppet, _ *record.Context) { p.wire = slices.Concat(p.wire, p.wire) })},
		{"record without a type", AlertUnexpectedMessage, false, steps(sending(0, nil))},
		{"record of unknown type", AlertUnexpectedMessage, false, steps(sending(25, []byte{1}))},
		{"ChangeCipherSpec protected", AlertUnexpectedMessage, false, steps(sending(record.ChangeCipherSpec, []byte{1}))},
		{"empty Handshake record", AlertUnexpectedMessage, false, steps(sending(record.Handshake, nil))},
		{"record too short", AlertBadRecordMAC, false, steps(plain(record.ApplicationData, make([]byte, 8)))},
		{"record too long", AlertRecordOverflow, false, steps(plain(record.ApplicationData, make([]byte, record.MaxPlaintext)), func(p *puppet, _ *record.Context) {
			p.wire[len(p.wire)-record.MaxPlaintext-2] = 0x42
		})},
		{"handshake message in the clear", AlertUnexpectedMessage, false, steps(plain(record.Handshake, []byte{5, 0, 0, 0}))},
		{"empty records", 0, true, steps(times(maxIdle, sending(record.ApplicationData, nil)), end, finish)},
		{"empty records without end", AlertUnexpectedMessage, false, steps(times(maxIdle+1, sending(record.ApplicationData, nil)))},
		{"as much as allowed", 0, true, steps(sending(record.ApplicationData, make([]byte, 100)), end, finish)},
		{"more than allowed", AlertUnexpectedMessage, false, steps(sending(record.ApplicationData, make([]byte, 101)))},
		{"more than allowed in many records", AlertUnexpectedMessage, false, steps(times(21, data))},
		{"user_canceled without end", AlertUnexpectedMessage, false, steps(times(maxCancels+1, sending(record.Alert, []byte{1, 90})))},
	}, pskClient)
}

// TestAlertWithEarlyData: the client may give up at any time.
func TestAlertWithEarlyData(t *testing.T) {
	p := pskClient(t, extensionOff)
	p.offerPSKs(nil, "token")
	p.serverFlight()
	p.wire = append(p.wire, sealed(p.earlyContext(), record.Alert, []byte{1, 0})...)
	p.flow()
	if e, ok := p.err.(*AlertError); !ok || e.Alert != AlertCloseNotify || len(p.engine.Output()) > 0 {
		t.Errorf("after the client's close_notify: %v", p.err)
	}
}

// TestPSKLast: pre_shared_key is the last extension of both ClientHellos, and
// psk_key_exchange_modes goes with it.
func TestPSKLast(t *testing.T) {
	p := pskServer(t, extensionAnswered)
	check := func() {
		t.Helper()
		last := p.hello.extensions[len(p.hello.extensions)-1]
		modes, _ := findExtension(p.hello.extensions, extPSKModes)
		if last.id != extPreSharedKey || !bytes.Equal(modes, pskModesBody()) {
			t.Errorf("the last extension is %d; modes %v", last.id, modes)
		}
	}
	check()
	p.retry(tls.CurveP384, func(m *serverHello) {
		m.extensions = append(m.extensions, extension{extCookie, vector16Body([]byte("c"))})
	})
	check()
	if o := must(parseOffer(p.hello.extensions, testExtension)); o.earlyData {
		t.Error("the second ClientHello has early_data")
	}
}

// TestSecondIdentity: early data goes with the first identity only.
func TestSecondIdentity(t *testing.T) {
	p := pskClient(t, extensionOff)
	p.offerPSKs(nil, "unknown", "token")
	if p.err != nil || p.engine.EarlyData() || string(p.engine.PSKUsed()) != "token" {
		t.Fatalf("early data %v, PSK %q, %v", p.engine.EarlyData(), p.engine.PSKUsed(), p.err)
	}
	p.wire = append(p.wire, sealed(p.earlyContext(), record.ApplicationData, []byte("early"))...)
	p.serverFlight()
	p.clientFinished()
	if p.err != nil || !p.engine.HandshakeComplete() {
		t.Error(p.err)
	}
}
