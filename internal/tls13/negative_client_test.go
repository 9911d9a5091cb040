package tls13

import (
	"bytes"
	"crypto/tls"
	"errors"
	"testing"

	"github.com/go-tcpls/tcpls/internal/record"
)

// A negative row lets a puppet break one rule and names the alert that is
// due; fine rows are what looks broken and must be taken.
type negative struct {
	name   string
	alert  Alert
	fine   bool
	script func(p *puppet)
}

// runNegative runs every row without the user's extension, with it offered and
// answered, and with it on the puppet's side only.
func runNegative(t *testing.T, rows []negative, start func(t *testing.T, use extensionUse) *puppet) {
	for _, use := range []extensionUse{extensionOff, extensionAnswered, extensionUnasked} {
		t.Run("extension "+use.String(), func(t *testing.T) {
			for _, row := range rows {
				t.Run(row.name, func(t *testing.T) {
					p := start(t, use)
					row.script(p)
					p.feed()
					p.wantRow(row)
				})
			}
		})
	}
}

func puppetServer(t *testing.T, use extensionUse) *puppet {
	client := clientTLS()
	client.NextProtos = []string{"a"}
	return newPuppetServer(t, use.in(&Config{TLS: client}))
}

// helloWith answers with a changed ServerHello.
func helloWith(change func(m *serverHello)) func(p *puppet) {
	return func(p *puppet) { p.serverHello(change) }
}

// shareWith answers with a changed key share of a group.
func shareWith(id tls.CurveID, change func(data []byte) []byte) func(p *puppet) {
	return func(p *puppet) {
		p.group = groupByID(id)
		p.serverHello(func(m *serverHello) {
			share, _ := parseKeyShare(m.extensions[1].body)
			share.data = change(share.data)
			m.extensions[1].body = keyShareBody(share)
		})
	}
}

func TestClientRefusesServerHello(t *testing.T) {
	runNegative(t, []negative{
		{"without supported_versions", AlertProtocolVersion, false, helloWith(func(m *serverHello) {
			m.extensions = dropExtension(m.extensions, extSupportedVersions)
		})},
		{"of TLS 1.2 without any extension", AlertProtocolVersion, false, helloWith(func(m *serverHello) { m.extensions = nil })},
		{"of SSL 3.0", AlertProtocolVersion, false, helloWith(func(m *serverHello) { m.version = versionSSL30 })},
		{"sentinel of a downgrade to TLS 1.2", AlertIllegalParameter, false, helloWith(func(m *serverHello) {
			m.random = append(make([]byte, 24), "DOWNGRD\x01"...)
			m.extensions = nil
		})},
		{"sentinel of a downgrade to TLS 1.0", AlertIllegalParameter, false, helloWith(func(m *serverHello) {
			m.random, m.version = append(make([]byte, 24), "DOWNGRD\x00"...), tls.VersionTLS10
			m.extensions = nil
		})},
		{"sentinel within TLS 1.3", 0, true, func(p *puppet) {
			p.serverHello(func(m *serverHello) { m.random = append(make([]byte, 24), "DOWNGRD\x01"...) })
			p.rest()
		}},
		{"GREASE extension echoed", AlertUnsupportedExtension, false, func(p *puppet) {
			p.serverHello(func(m *serverHello) { m.extensions = append(m.extensions, p.grease()) })
		}},
		{"version not offered", AlertIllegalParameter, false, helloWith(func(m *serverHello) {
			m.extensions[0].body = uint16Body(0x0305)
		})},
		{"TLS 1.2 in supported_versions", AlertIllegalParameter, false, helloWith(func(m *serverHello) {
			m.extensions[0].body = uint16Body(tls.VersionTLS12)
		})},
		{"supported_versions with bytes left over", AlertDecodeError, false, helloWith(func(m *serverHello) {
			m.extensions[0].body = []byte{3, 4, 0}
		})},
		{"legacy version of TLS 1.3", AlertIllegalParameter, false, helloWith(func(m *serverHello) { m.version = tls.VersionTLS13 })},
		{"session id not echoed", AlertIllegalParameter, false, helloWith(func(m *serverHello) { m.sessionID = nil })},
		{"session id of 33 bytes", AlertDecodeError, false, helloWith(func(m *serverHello) { m.sessionID = make([]byte, 33) })},
		{"suite not offered", AlertIllegalParameter, false, helloWith(func(m *serverHello) { m.suite = 0x1304 })},
		{"suite of TLS 1.2", AlertIllegalParameter, false, helloWith(func(m *serverHello) { m.suite = tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 })},
		{"GREASE suite", AlertIllegalParameter, false, func(p *puppet) {
			p.serverHello(func(m *serverHello) { m.suite = p.hello.suites[0] })
		}},
		{"compression", AlertIllegalParameter, false, helloWith(func(m *serverHello) { m.compression = 1 })},
		{"no key_share", AlertMissingExtension, false, helloWith(func(m *serverHello) {
			m.extensions = dropExtension(m.extensions, extKeyShare)
		})},
		{"group without a share", AlertIllegalParameter, false, helloWith(func(m *serverHello) {
			m.extensions[1].body = keyShareBody(keyShare{tls.CurveP256, make([]byte, 65)})
		})},
		{"unknown group", AlertIllegalParameter, false, helloWith(func(m *serverHello) {
			m.extensions[1].body = keyShareBody(keyShare{0x7777, []byte{1}})
		})},
		{"share too short", AlertIllegalParameter, false, shareWith(tls.X25519, func(d []byte) []byte { return d[1:] })},
		{"share too long", AlertIllegalParameter, false, shareWith(tls.X25519, func(d []byte) []byte { return append(d, 0) })},
		{"share empty", AlertDecodeError, false, shareWith(tls.X25519, func([]byte) []byte { return nil })},
		{"all-zero result", AlertIllegalParameter, false, shareWith(tls.X25519, func([]byte) []byte { return make([]byte, 32) })},
		{"hybrid share too short", AlertIllegalParameter, false, shareWith(tls.X25519MLKEM768, func(d []byte) []byte { return d[1:] })},
		{"hybrid with all-zero result", AlertIllegalParameter, false, shareWith(tls.X25519MLKEM768, func(d []byte) []byte {
			return append(d[:1088:1088], make([]byte, 32)...)
		})},
		{"key_share with bytes left over", AlertDecodeError, false, helloWith(func(m *serverHello) {
			m.extensions[1].body = append(m.extensions[1].body, 0)
		})},
		{"extension never asked for", AlertUnsupportedExtension, false, helloWith(func(m *serverHello) {
			m.extensions = append(m.extensions, extension{0x7a7b, nil})
		})},
		{"pre_shared_key never offered", AlertUnsupportedExtension, false, helloWith(func(m *serverHello) {
			m.extensions = append(m.extensions, extension{extPreSharedKey, []byte{0, 0}})
		})},
		{"known extension misplaced", AlertIllegalParameter, false, helloWith(func(m *serverHello) {
			m.extensions = append(m.extensions, extension{extALPN, alpnBody([]string{"a"})})
		})},
		{"cookie outside HelloRetryRequest", AlertIllegalParameter, false, helloWith(func(m *serverHello) {
			m.extensions = append(m.extensions, extension{extCookie, vector16Body([]byte("c"))})
		})},
		{"extension twice", AlertIllegalParameter, false, helloWith(func(m *serverHello) {
			m.extensions = append(m.extensions, m.extensions[0])
		})},
		{"bytes left over", AlertDecodeError, false, func(p *puppet) {
			p.serverHello(nil)
			hello := longer(splitRecords(p.wire)[0][record.HeaderLen:])
			p.wire = nil
			p.plain(record.Handshake, hello)
		}},
		{"another message instead", AlertUnexpectedMessage, false, func(p *puppet) { p.send(&encryptedExtensions{}) }},
		{"a ticket instead", AlertUnexpectedMessage, false, func(p *puppet) { p.send(&newSessionTicket{ticket: []byte("t")}) }},
		{"a message of an unknown type", AlertUnexpectedMessage, false, func(p *puppet) { p.sendRaw([]byte{99, 0, 0, 0}) }},
		{"HelloRequest", AlertUnexpectedMessage, false, func(p *puppet) { p.sendRaw([]byte{0, 0, 0, 0}) }},
		{"cut", AlertDecodeError, false, func(p *puppet) { p.sendRaw([]byte{2, 0, 0, 2, 3, 3}) }},
		{"a ClientHello instead", AlertUnexpectedMessage, false, func(p *puppet) { p.send(p.hello) }},
		{"a message behind it in its record", AlertUnexpectedMessage, false, func(p *puppet) {
			p.serverHello(nil)
			hello := splitRecords(p.wire)[0]
			p.wire = nil
			p.plain(record.Handshake, append(hello[record.HeaderLen:], must(encode(&encryptedExtensions{}))...))
		}},
	}, puppetServer)
}

func TestClientRefusesRetry(t *testing.T) {
	group := func(id tls.CurveID) func(m *serverHello) {
		return func(m *serverHello) { m.extensions[1].body = uint16Body(uint16(id)) }
	}
	more := func(e ...extension) func(m *serverHello) {
		return func(m *serverHello) { m.extensions = append(m.extensions, e...) }
	}
	cookie := extension{extCookie, vector16Body([]byte("cookie"))}
	retry := func(change func(m *serverHello)) func(p *puppet) {
		return func(p *puppet) { p.retry(tls.CurveP384, change) }
	}
	runNegative(t, []negative{
		{"group not offered", AlertIllegalParameter, false, retry(group(0x0100))},
		{"GREASE group", AlertIllegalParameter, false, func(p *puppet) {
			o := must(parseOffer(p.hello.extensions, 0))
			p.retry(o.groups[0], nil)
		}},
		{"group already shared", AlertIllegalParameter, false, retry(group(tls.X25519))},
		{"nothing changed", AlertIllegalParameter, false, retry(func(m *serverHello) {
			m.extensions = dropExtension(m.extensions, extKeyShare)
		})},
		{"unknown extension", AlertUnsupportedExtension, false, retry(more(extension{0x7a7b, nil}))},
		{"GREASE extension echoed", AlertUnsupportedExtension, false, func(p *puppet) {
			p.retry(tls.CurveP384, more(p.grease()))
		}},
		{"misplaced extension", AlertIllegalParameter, false, retry(more(extension{extServerName, nil}))},
		{"repeated extension", AlertIllegalParameter, false, retry(more(cookie, cookie))},
		{"cookie empty", AlertDecodeError, false, retry(more(extension{extCookie, []byte{0, 0}}))},
		{"cookie without length", AlertDecodeError, false, retry(more(extension{extCookie, nil}))},
		{"cookie that can't be echoed", AlertIllegalParameter, false, func(p *puppet) {
			long := vector16Body(make([]byte, maxMessage-200))
			p.retry(tls.CurveP384, more(extension{extCookie, long}))
		}},
		{"compression", AlertIllegalParameter, false, retry(func(m *serverHello) { m.compression = 1 })},
		{"legacy version of TLS 1.3", AlertIllegalParameter, false, retry(func(m *serverHello) { m.version = tls.VersionTLS13 })},
		{"version not offered", AlertIllegalParameter, false, retry(func(m *serverHello) { m.extensions[0].body = uint16Body(0x0305) })},
		{"pre_shared_key misplaced", AlertIllegalParameter, false, retry(more(extension{extPreSharedKey, []byte{0, 0}}))},
		{"share instead of a group", AlertDecodeError, false, retry(func(m *serverHello) {
			m.extensions[1].body = keyShareBody(keyShare{tls.CurveP384, []byte{1}})
		})},
		{"without supported_versions", AlertProtocolVersion, false, retry(func(m *serverHello) {
			m.extensions = dropExtension(m.extensions, extSupportedVersions)
		})},
		{"suite not offered", AlertIllegalParameter, false, retry(func(m *serverHello) { m.suite = 0x1304 })},
		{"session id not echoed", AlertIllegalParameter, false, retry(func(m *serverHello) { m.sessionID = nil })},
		{"a second one", AlertUnexpectedMessage, false, func(p *puppet) {
			p.retry(tls.CurveP384, nil)
			p.retry(tls.CurveP521, nil)
		}},
		{"suite differs in ServerHello", AlertIllegalParameter, false, func(p *puppet) {
			p.retry(tls.CurveP384, nil)
			p.group = groupByID(tls.CurveP384)
			p.serverHello(func(m *serverHello) { m.suite = tls.TLS_AES_256_GCM_SHA384 })
		}},
		{"version differs in ServerHello", AlertIllegalParameter, false, func(p *puppet) {
			p.retry(tls.CurveP384, nil)
			p.group = groupByID(tls.CurveP384)
			p.serverHello(func(m *serverHello) { m.extensions[0].body = uint16Body(0x0305) })
		}},
		{"group differs in ServerHello", AlertIllegalParameter, false, func(p *puppet) {
			p.retry(tls.CurveP384, nil)
			p.group = groupByID(tls.CurveP384)
			p.serverHello(func(m *serverHello) {
				m.extensions[1].body = keyShareBody(keyShare{tls.X25519, make([]byte, 32)})
			})
		}},
		{"a message behind it in its record", AlertUnexpectedMessage, false, func(p *puppet) {
			raw := must(encode(p.newServerHello(retryRandom, extension{extKeyShare, uint16Body(uint16(tls.CurveP384))})))
			p.plain(record.Handshake, append(raw, raw...))
		}},
		{"part of a message behind it in its record", AlertUnexpectedMessage, false, func(p *puppet) {
			raw := must(encode(p.newServerHello(retryRandom, extension{extKeyShare, uint16Body(uint16(tls.CurveP384))})))
			p.plain(record.Handshake, append(raw, byte(typeServerHello)))
		}},
		{"transcript with message_hash", 0, true, func(p *puppet) {
			p.retry(tls.CurveP384, more(cookie))
			body, _ := findExtension(p.hello.extensions, extCookie)
			if !bytes.Equal(body, cookie.body) {
				p.t.Error("cookie not echoed")
			}
			o := must(parseOffer(p.hello.extensions, 0))
			if len(o.shares) != 1 || o.shares[0].group != tls.CurveP384 {
				p.t.Errorf("second ClientHello has %d shares", len(o.shares))
			}
			p.group = groupByID(tls.CurveP384)
			p.connect()
		}},
		{"only a cookie", 0, true, func(p *puppet) {
			p.retry(0, func(m *serverHello) {
				m.extensions = append(dropExtension(m.extensions, extKeyShare), cookie)
			})
			p.connect()
		}},
	}, puppetServer)
}

// errVersion is what a caller looks at before it tries crypto/tls instead.
func TestErrVersion(t *testing.T) {
	old := puppetServer(t, extensionAnswered)
	old.serverHello(func(m *serverHello) { m.extensions = nil })
	old.feed()
	if !errors.Is(old.err, ErrVersion) {
		t.Errorf("ServerHello of TLS 1.2: %v doesn't match ErrVersion", old.err)
	}
	downgraded := puppetServer(t, extensionAnswered)
	downgraded.serverHello(func(m *serverHello) {
		m.random, m.extensions = append(make([]byte, 24), "DOWNGRD\x01"...), nil
	})
	downgraded.feed()
	if downgraded.err == nil || errors.Is(downgraded.err, ErrVersion) {
		t.Errorf("a downgrade: %v matches ErrVersion, as if another try were in order", downgraded.err)
	}
	alert := puppetServer(t, extensionAnswered)
	alert.plain(record.Alert, []byte{levelFatal, byte(AlertProtocolVersion)})
	alert.feed()
	if !errors.Is(alert.err, ErrVersion) {
		t.Errorf("alert protocol_version: %v doesn't match ErrVersion", alert.err)
	}
	other := puppetServer(t, extensionAnswered)
	other.plain(record.Alert, []byte{levelFatal, byte(AlertHandshakeFailure)})
	other.feed()
	if other.err == nil || errors.Is(other.err, ErrVersion) {
		t.Errorf("alert handshake_failure: %v matches ErrVersion", other.err)
	}
	if _, ok := errors.AsType[*AlertError](other.err); !ok {
		t.Errorf("%T is no *AlertError", other.err)
	}
}
