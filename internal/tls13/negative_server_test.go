package tls13

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"slices"
	"testing"

	"github.com/go-tcpls/tcpls/internal/record"
)

func puppetClient(t *testing.T, use extensionUse) *puppet {
	return newPuppetClient(t, use.in(&Config{TLS: serverTLS()}))
}

// helloAs sends a changed ClientHello.
func helloAs(change func(m *clientHello)) func(p *puppet) {
	return func(p *puppet) {
		change(p.hello)
		p.clientHello()
	}
}

// helloHaving sends a ClientHello with one extension set.
func helloHaving(id uint16, body []byte) func(p *puppet) {
	return helloAs(func(m *clientHello) { m.extensions = setExtension(m.extensions, id, body) })
}

func helloLacking(ids ...uint16) func(p *puppet) {
	return helloAs(func(m *clientHello) {
		for _, id := range ids {
			m.extensions = dropExtension(m.extensions, id)
		}
	})
}

func TestServerRefusesClientHello(t *testing.T) {
	runNegative(t, []negative{
		{"without supported_versions", AlertProtocolVersion, false, helloLacking(extSupportedVersions)},
		{"without extensions", AlertProtocolVersion, false, helloAs(func(m *clientHello) { m.extensions = nil })},
		{"without 0x0304", AlertProtocolVersion, false, helloHaving(extSupportedVersions, versionList([]uint16{tls.VersionTLS12, 0x0305}))},
		{"legacy version of SSL 3.0", AlertProtocolVersion, false, helloAs(func(m *clientHello) { m.version = versionSSL30 })},
		{"other legacy versions", 0, true, helloAs(func(m *clientHello) { m.version = 0x0304 })},
		{"session id of 33 bytes", AlertDecodeError, false, helloAs(func(m *clientHello) { m.sessionID = make([]byte, 33) })},
		{"no session id", 0, true, helloAs(func(m *clientHello) { m.sessionID = nil })},
		{"compression other than null", AlertIllegalParameter, false, helloAs(func(m *clientHello) { m.compressions = []byte{1, 0} })},
		{"no null compression", AlertIllegalParameter, false, helloAs(func(m *clientHello) { m.compressions = []byte{1} })},
		{"no compression at all", AlertDecodeError, false, helloAs(func(m *clientHello) { m.compressions = nil })},
		{"no suites", AlertDecodeError, false, helloAs(func(m *clientHello) { m.suites = nil })},
		{"only unknown suites", AlertHandshakeFailure, false, helloAs(func(m *clientHello) { m.suites = []uint16{0x0a0a, 0xc02f} })},
		{"only unknown groups", AlertHandshakeFailure, false, helloAs(func(m *clientHello) {
			m.extensions = setExtension(m.extensions, extSupportedGroups, uint16List([]tls.CurveID{0x0a0a}))
			m.extensions = setExtension(m.extensions, extKeyShare, keyShareList(nil))
		})},
		{"supported_groups without key_share", AlertMissingExtension, false, helloLacking(extKeyShare)},
		{"key_share without supported_groups", AlertMissingExtension, false, helloLacking(extSupportedGroups)},
		{"neither", AlertMissingExtension, false, helloLacking(extSupportedGroups, extKeyShare)},
		{"no signature_algorithms and no PSK", AlertMissingExtension, false, helloLacking(extSignatureAlgorithms)},
		{"no usable signature algorithm", AlertHandshakeFailure, false, helloHaving(extSignatureAlgorithms,
			uint16List([]tls.SignatureScheme{tls.PKCS1WithSHA256, tls.ECDSAWithSHA1, tls.ECDSAWithP384AndSHA384}))},
		{"extension twice", AlertIllegalParameter, false, helloAs(func(m *clientHello) { m.extensions = append(m.extensions, m.extensions[1]) })},
		{"unknown extension twice", AlertIllegalParameter, false, helloAs(func(m *clientHello) {
			m.extensions = append(m.extensions, extension{0x7a7b, nil}, extension{0x7a7b, nil})
		})},
		{"known extension misplaced", AlertIllegalParameter, false, helloHaving(extOIDFilters, []byte{0, 0})},
		{"cookie that it was not given", AlertIllegalParameter, false, helloHaving(extCookie, vector16Body([]byte("c")))},
		{"record_size_limit below 64", AlertIllegalParameter, false, helloHaving(extRecordSizeLimit, uint16Body(63))},
		{"record_size_limit of 0", AlertIllegalParameter, false, helloHaving(extRecordSizeLimit, uint16Body(0))},
		{"record_size_limit beyond TLS's", 0, true, helloHaving(extRecordSizeLimit, uint16Body(0xffff))},
		{"unknown extensions, suites, groups, schemes", 0, true, helloAs(func(m *clientHello) {
			m.extensions = append(m.extensions, extension{0x7a7b, []byte("x")}, extension{0xfe0d, []byte("y")})
			m.suites = append([]uint16{0x3a3a, 0x00ff}, m.suites...)
		})},
		{"status_request_v2, for older versions", 0, true, helloHaving(17, []byte{0, 0})},
		{"max_fragment_length beside record_size_limit", 0, true, helloAs(func(m *clientHello) {
			m.extensions = append(m.extensions, extension{extMaxFragmentLength, []byte{1}}, extension{extRecordSizeLimit, uint16Body(1000)})
		})},
		{"SSL 3.0 and nothing newer", AlertProtocolVersion, false, helloAs(func(m *clientHello) { m.version, m.extensions = versionSSL30, nil })},
		{"cut", AlertDecodeError, false, inClear(record.Handshake, []byte{1, 0, 0, 2, 3, 3})},
		{"an extension cut", AlertDecodeError, false, func(p *puppet) {
			raw := must(encode(p.hello))
			raw[3]--
			p.plain(record.Handshake, raw[:len(raw)-1])
		}},
		{"a message behind it in its record", AlertUnexpectedMessage, false, func(p *puppet) {
			raw := must(encode(p.hello))
			p.plain(record.Handshake, append(raw, raw...))
		}},
		{"another message instead", AlertUnexpectedMessage, false, func(p *puppet) {
			p.plain(record.Handshake, must(encode(&encryptedExtensions{})))
		}},
		{"bytes left over", AlertDecodeError, false, func(p *puppet) {
			raw := must(encode(p.hello))
			raw[3]++
			p.plain(record.Handshake, append(raw, 0))
		}},
	}, puppetClient)
}

// malformedBodies are extension bodies that can't be read, each for its own
// reason.
var malformedBodies = []struct {
	name string
	id   uint16
	body []byte
}{
	{"supported_versions empty", extSupportedVersions, []byte{0}},
	{"supported_versions odd", extSupportedVersions, []byte{3, 3, 4, 3}},
	{"supported_versions with bytes left over", extSupportedVersions, []byte{2, 3, 4, 0}},
	{"supported_groups empty", extSupportedGroups, []byte{0, 0}},
	{"supported_groups odd", extSupportedGroups, []byte{0, 3, 0, 29, 0}},
	{"signature_algorithms empty", extSignatureAlgorithms, []byte{0, 0}},
	{"signature_algorithms_cert empty", extSignatureAlgsCert, []byte{0, 0}},
	{"key_share cut", extKeyShare, []byte{0, 4, 0, 29, 0, 32}},
	{"key_share with an empty share", extKeyShare, []byte{0, 4, 0, 29, 0, 0}},
	{"key_share with bytes left over", extKeyShare, []byte{0, 0, 0}},
	{"server_name empty list", extServerName, []byte{0, 0}},
	{"server_name empty name", extServerName, []byte{0, 3, 0, 0, 0}},
	{"server_name twice", extServerName, []byte{0, 8, 0, 0, 1, 'a', 0, 0, 1, 'b'}},
	{"server_name with a trailing dot", extServerName, []byte{0, 5, 0, 0, 2, 'a', '.'}},
	{"ALPN empty list", extALPN, []byte{0, 0}},
	{"ALPN empty name", extALPN, []byte{0, 1, 0}},
	{"status_request cut", extStatusRequest, []byte{1, 0, 0}},
	{"SCT not empty", extSCT, []byte{0}},
	{"early_data not empty", extEarlyData, []byte{0}},
	{"post_handshake_auth not empty", extPostHandshakeAuth, []byte{0}},
	{"record_size_limit of one byte", extRecordSizeLimit, []byte{64}},
	{"psk_key_exchange_modes empty", extPSKModes, []byte{0}},
	{"cookie empty", extCookie, []byte{0, 0}},
	{"certificate_authorities empty", extCertificateAuthorities, []byte{0, 0}},
	{"pre_shared_key empty", extPreSharedKey, nil},
	{"pre_shared_key without binders", extPreSharedKey, []byte{0, 7, 0, 1, 'x', 0, 0, 0, 0, 0, 0}},
	{"pre_shared_key with a short binder", extPreSharedKey, append([]byte{0, 7, 0, 1, 'x', 0, 0, 0, 0, 0, 32, 31}, make([]byte, 31)...)},
}

func TestServerRefusesMalformedExtensions(t *testing.T) {
	var rows []negative
	for _, m := range malformedBodies {
		rows = append(rows, negative{m.name, AlertDecodeError, false, helloHaving(m.id, m.body)})
	}
	runNegative(t, rows, puppetClient)
}

func TestServerRefusesKeyShare(t *testing.T) {
	share := func(id tls.CurveID, data []byte) func(p *puppet) {
		return helloAs(func(m *clientHello) {
			m.extensions = setExtension(m.extensions, extSupportedGroups, uint16List([]tls.CurveID{id}))
			m.extensions = setExtension(m.extensions, extKeyShare, keyShareList([]keyShare{{id, data}}))
		})
	}
	pair := must(groupByID(tls.CurveP256).generate(rand.Reader))
	point := pair.share
	compressed := append([]byte{2 + point[64]&1}, point[1:33]...)
	off := bytes.Clone(point)
	off[64] ^= 1
	hybrid := must(groupByID(tls.X25519MLKEM768).generate(rand.Reader)).share
	unreduced := bytes.Clone(hybrid)
	unreduced[0], unreduced[1] = 0xff, 0xff // a coefficient of 4095, not below 3329
	runNegative(t, []negative{
		{"wrong length", AlertIllegalParameter, false, share(tls.X25519, make([]byte, 31))},
		{"all-zero result", AlertIllegalParameter, false, share(tls.X25519, make([]byte, 32))},
		{"off the curve", AlertIllegalParameter, false, share(tls.CurveP256, off)},
		{"compressed", AlertIllegalParameter, false, share(tls.CurveP256, compressed)},
		{"point at infinity", AlertIllegalParameter, false, share(tls.CurveP256, []byte{0})},
		{"hybrid too short", AlertIllegalParameter, false, share(tls.X25519MLKEM768, hybrid[1:])},
		{"hybrid with a bad encapsulation key", AlertIllegalParameter, false, share(tls.X25519MLKEM768, unreduced)},
		{"hybrid with all-zero result", AlertIllegalParameter, false, share(tls.X25519MLKEM768, append(hybrid[:1184:1184], make([]byte, 32)...))},
		{"repeated group", AlertIllegalParameter, false, helloAs(func(m *clientHello) {
			m.extensions = setExtension(m.extensions, extKeyShare, keyShareList([]keyShare{{tls.X25519, make([]byte, 32)}, {tls.X25519, make([]byte, 32)}}))
		})},
		{"group that isn't listed", AlertIllegalParameter, false, helloAs(func(m *clientHello) {
			m.extensions = setExtension(m.extensions, extSupportedGroups, uint16List([]tls.CurveID{tls.X25519}))
		})},
		{"good", 0, true, func(p *puppet) {
			p.client.pairs = []*keyPair{pair}
			share(tls.CurveP256, point)(p)
		}},
	}, puppetClient)
}

func goodPSK() *offeredPSKs {
	return &offeredPSKs{
		identities: []pskIdentity{{[]byte("unknown ticket"), 7}},
		binders:    [][]byte{make([]byte, 32)},
	}
}

func TestServerAndPSKs(t *testing.T) {
	modes := extension{extPSKModes, []byte{1, 1}}
	with := func(psk *offeredPSKs, more ...extension) func(p *puppet) {
		return helloAs(func(m *clientHello) {
			m.extensions = append(append(m.extensions, more...), extension{extPreSharedKey, pskBody(psk)})
		})
	}
	two := goodPSK()
	two.binders = append(two.binders, make([]byte, 32))
	runNegative(t, []negative{
		{"without psk_key_exchange_modes", AlertMissingExtension, false, with(goodPSK())},
		{"not the last extension", AlertIllegalParameter, false, helloAs(func(m *clientHello) {
			m.extensions = append(m.extensions, extension{extPreSharedKey, pskBody(goodPSK())}, modes)
		})},
		{"too many binders", AlertIllegalParameter, false, with(two, modes)},
		{"unknown ticket", 0, true, with(goodPSK(), modes)},
		{"psk_ke only", 0, true, with(goodPSK(), extension{extPSKModes, []byte{1, 0}})},
		{"without groups", AlertHandshakeFailure, false, func(p *puppet) {
			p.hello.extensions = dropExtension(dropExtension(p.hello.extensions, extKeyShare), extSupportedGroups)
			with(goodPSK(), modes)(p)
		}},
	}, puppetClient)
}

// TestEarlyDataIsSkipped sends early data to a server that accepts none.
func TestEarlyDataIsSkipped(t *testing.T) {
	early := func(p *puppet, bytes int) {
		keys := must(record.SuiteByID(tls.TLS_AES_128_GCM_SHA256).Keys(make([]byte, 32)))
		for c := record.NewContext(keys, 7); bytes > 0; bytes -= min(bytes, 1000) {
			p.wire = append(p.wire, sealed(c, record.ApplicationData, make([]byte, min(bytes, 1000)))...)
		}
		p.feed()
	}
	hello := func(p *puppet) {
		p.hello.extensions = append(p.hello.extensions, extension{extEarlyData, nil},
			extension{extPSKModes, []byte{1, 1}}, extension{extPreSharedKey, pskBody(goodPSK())})
		p.clientHello()
	}
	again := func(p *puppet) {
		p.receive()
		p.hello.extensions = dropExtension(p.hello.extensions, extEarlyData)
		p.secondHello(tls.CurveP384)
	}
	finish := func(p *puppet) {
		p.serverFlight()
		p.clientFinished()
	}
	runNegative(t, []negative{
		{"within the limit", 0, true, func(p *puppet) { hello(p); early(p, maxEarlyData); finish(p) }},
		{"without a PSK", 0, true, func(p *puppet) {
			p.hello.extensions = append(p.hello.extensions, extension{extEarlyData, nil})
			p.clientHello()
			early(p, maxEarlyData)
			finish(p)
		}},
		{"too short for a tag", 0, true, func(p *puppet) {
			hello(p)
			p.serverFlight()
			p.plain(record.ApplicationData, make([]byte, 4))
			p.clientFinished()
		}},
		{"beyond the limit", AlertUnexpectedMessage, false, func(p *puppet) {
			hello(p)
			p.serverFlight()
			early(p, maxEarlyData+1)
		}},
		{"without the extension", AlertBadRecordMAC, false, func(p *puppet) {
			p.clientHello()
			p.serverFlight()
			early(p, 1)
		}},
		{"after good records", AlertBadRecordMAC, false, func(p *puppet) {
			hello(p)
			p.serverFlight()
			p.record(record.Handshake, []byte{20})
			early(p, 1)
		}},
		{"before the second ClientHello", 0, true, func(p *puppet) {
			p.engine.tls.CurvePreferences = []tls.CurveID{tls.CurveP384}
			hello(p)
			early(p, maxEarlyData)
			again(p)
			finish(p)
		}},
		{"too much before the second ClientHello", AlertUnexpectedMessage, false, func(p *puppet) {
			p.engine.tls.CurvePreferences = []tls.CurveID{tls.CurveP384}
			hello(p)
			early(p, maxEarlyData+1)
		}},
		{"after the second ClientHello", AlertBadRecordMAC, false, func(p *puppet) {
			p.engine.tls.CurvePreferences = []tls.CurveID{tls.CurveP384}
			hello(p)
			again(p)
			p.serverFlight()
			early(p, 1)
		}},
	}, puppetClient)
}

// secondHello changes the ClientHello as a HelloRetryRequest for group wants
// it, and sends it.
func (p *puppet) secondHello(group tls.CurveID) {
	p.client.pairs = []*keyPair{must(groupByID(group).generate(rand.Reader))}
	p.hello.extensions = setExtension(p.hello.extensions, extKeyShare, keySharesOf(p.client.pairs, 0))
	p.clientHello()
}

func TestServerRefusesSecondHello(t *testing.T) {
	with := func(change func(m *clientHello)) func(p *puppet) {
		return func(p *puppet) {
			p.clientHello()
			p.receive()
			pair := must(groupByID(tls.CurveP384).generate(rand.Reader))
			p.client.pairs = []*keyPair{pair}
			p.hello.extensions = setExtension(p.hello.extensions, extKeyShare, keySharesOf(p.client.pairs, 0))
			change(p.hello)
			p.clientHello()
		}
	}
	set := func(id uint16, body []byte) func(p *puppet) {
		return with(func(m *clientHello) { m.extensions = setExtension(m.extensions, id, body) })
	}
	// offering has the second ClientHello bring a PSK, for which the first is ready.
	offering := func(more func(psk extension) []extension) func(p *puppet) {
		return func(p *puppet) {
			p.hello.extensions = append(p.hello.extensions, extension{extPSKModes, []byte{1, 1}})
			with(func(m *clientHello) {
				m.extensions = append(m.extensions, more(extension{extPreSharedKey, pskBody(goodPSK())})...)
			})(p)
		}
	}
	runNegative(t, []negative{
		{"early_data with a PSK", AlertIllegalParameter, false, offering(func(psk extension) []extension {
			return []extension{{extEarlyData, nil}, psk}
		})},
		{"PSK before another extension", AlertIllegalParameter, false, offering(func(psk extension) []extension {
			return []extension{psk, {0x7a7b, nil}}
		})},
		{"PSK", 0, true, offering(func(psk extension) []extension { return []extension{psk} })},
		{"part of a message behind the first", AlertUnexpectedMessage, false, func(p *puppet) {
			p.plain(record.Handshake, append(must(encode(p.hello)), byte(typeClientHello)))
		}},
		{"no key_share", AlertMissingExtension, false, with(func(m *clientHello) { m.extensions = dropExtension(m.extensions, extKeyShare) })},
		{"no share", AlertIllegalParameter, false, set(extKeyShare, keyShareList(nil))},
		{"share of another group", AlertIllegalParameter, false, set(extKeyShare, keyShareList([]keyShare{{tls.X25519, make([]byte, 32)}}))},
		{"two shares", AlertIllegalParameter, false, with(func(m *clientHello) {
			body, _ := findExtension(m.extensions, extKeyShare)
			list, _ := parseKeyShareList(body)
			m.extensions = setExtension(m.extensions, extKeyShare, keyShareList(append(list, keyShare{tls.X25519, make([]byte, 32)})))
		})},
		{"early_data", AlertIllegalParameter, false, set(extEarlyData, nil)},
		{"cookie that it was not given", AlertIllegalParameter, false, set(extCookie, vector16Body([]byte("c")))},
		{"another random", AlertIllegalParameter, false, with(func(m *clientHello) { m.random[0] ^= 1 })},
		{"another session id", AlertIllegalParameter, false, with(func(m *clientHello) { m.sessionID = nil })},
		{"other suites", AlertIllegalParameter, false, with(func(m *clientHello) { m.suites = m.suites[:2] })},
		{"another server_name", AlertIllegalParameter, false, set(extServerName, serverNameBody("other.example"))},
		{"no server_name any more", AlertIllegalParameter, false, with(func(m *clientHello) { m.extensions = dropExtension(m.extensions, extServerName) })},
		{"no supported_versions any more", AlertProtocolVersion, false, with(func(m *clientHello) { m.extensions = dropExtension(m.extensions, extSupportedVersions) })},
		{"a known extension more", AlertIllegalParameter, false, set(extRecordSizeLimit, uint16Body(100))},
		{"an unknown extension more", 0, true, set(0x7a7b, []byte("x"))},
		{"Finished instead", AlertUnexpectedMessage, false, func(p *puppet) {
			p.clientHello()
			p.plain(record.Handshake, must(encode(&finished{make([]byte, 32)})))
		}},
		{"good", 0, true, func(p *puppet) {
			with(func(*clientHello) {})(p)
			p.serverFlight()
			p.clientFinished()
		}},
	}, func(t *testing.T, use extensionUse) *puppet {
		server := serverTLS()
		server.CurvePreferences = []tls.CurveID{tls.CurveP384}
		return newPuppetClient(t, use.in(&Config{TLS: server}))
	})
}

func TestServerRefusesSecondFlight(t *testing.T) {
	answer := func(change func(m *certificate)) func(p *puppet) {
		return func(p *puppet) {
			m := certificateMessage(&p.cert, false, false)
			change(m)
			p.send(m)
			if len(m.entries) > 0 {
				p.send(p.certificateVerify())
			}
			p.clientFinished()
		}
	}
	verify := func(change func(m *certificateVerify)) func(p *puppet) {
		return func(p *puppet) {
			p.send(certificateMessage(&p.cert, false, false))
			m := p.certificateVerify()
			change(m)
			p.send(m)
		}
	}
	runNegative(t, []negative{
		{"Certificate empty where demanded", AlertCertificateRequired, false, answer(func(m *certificate) { m.entries = nil })},
		{"Certificate with a context", AlertIllegalParameter, false, answer(func(m *certificate) { m.context = []byte{1} })},
		{"Certificate with garbage DER", AlertBadCertificate, false, answer(func(m *certificate) { m.entries[0].der = []byte{1} })},
		{"extension never asked for", AlertUnsupportedExtension, false, answer(func(m *certificate) {
			m.entries[0].extensions = []extension{{0x7a7b, nil}}
		})},
		{"known extension misplaced", AlertIllegalParameter, false, answer(func(m *certificate) {
			m.entries[0].extensions = []extension{{extKeyShare, nil}}
		})},
		{"Certificate skipped", AlertUnexpectedMessage, false, func(p *puppet) { p.clientFinished() }},
		{"CertificateVerify skipped", AlertUnexpectedMessage, false, func(p *puppet) {
			p.send(certificateMessage(&p.cert, false, false))
			p.clientFinished()
		}},
		{"CertificateVerify with a wrong signature", AlertDecryptError, false, verify(func(m *certificateVerify) { m.signature[8] ^= 1 })},
		{"CertificateVerify with SHA-1", AlertIllegalParameter, false, verify(func(m *certificateVerify) { m.scheme = tls.ECDSAWithSHA1 })},
		{"Finished wrong", AlertDecryptError, false, func(p *puppet) {
			p.send(certificateMessage(&p.cert, false, false))
			p.send(p.certificateVerify())
			p.send(&finished{make([]byte, 32)})
		}},
		{"Finished short", AlertDecodeError, false, func(p *puppet) {
			p.send(certificateMessage(&p.cert, false, false))
			p.send(p.certificateVerify())
			p.send(&finished{make([]byte, 31)})
		}},
		{"EndOfEarlyData unasked for", AlertUnexpectedMessage, false, func(p *puppet) { p.sendRaw([]byte{5, 0, 0, 0}) }},
		{"KeyUpdate before Finished", AlertUnexpectedMessage, false, func(p *puppet) { p.send(&keyUpdate{}) }},
		{"good", 0, true, answer(func(*certificate) {})},
	}, func(t *testing.T, use extensionUse) *puppet {
		server := serverTLS()
		server.ClientAuth, server.ClientCAs = tls.RequireAndVerifyClientCert, authority().pool
		p := newPuppetClient(t, use.in(&Config{TLS: server}))
		p.clientHello()
		kinds := []messageType{}
		for _, m := range p.serverFlight() {
			kinds = append(kinds, m.typ)
		}
		want := []messageType{typeServerHello, typeEncryptedExtensions, typeCertificateRequest, typeCertificate, typeCertificateVerify, typeFinished}
		if !slices.Equal(kinds, want) {
			t.Fatalf("server's flight is %v", kinds)
		}
		return p
	})
}
