package tls13

import (
	"crypto/tls"
	"io"
	"reflect"
	"strings"
	"testing"
)

// TestEveryTLSField fails when a release of Go adds a field to tls.Config that
// nobody has decided on.
func TestEveryTLSField(t *testing.T) {
	var names []string
	for _, f := range reflect.VisibleFields(reflect.TypeFor[tls.Config]()) {
		if f.IsExported() {
			names = append(names, f.Name)
		}
	}
	for i, name := range names {
		if i >= len(tlsFields) || tlsFields[i].name != name {
			t.Fatalf("tlsFields lacks %s at place %d", name, i)
		}
	}
	if len(tlsFields) != len(names) {
		t.Errorf("tlsFields has %d entries, tls.Config %d fields", len(tlsFields), len(names))
	}
}

// TestFieldsAreHonoured sees to it that an honoured field's name occurs in the
// engine, so that the table can't promise what no code does.
func TestFieldsAreHonoured(t *testing.T) {
	source := engineSource(t)
	for _, f := range tlsFields {
		used := strings.Contains(source, "."+f.name)
		switch f.how {
		case honoured, refused:
			if !used {
				t.Errorf("%s is in the table, and no code looks at it", f.name)
			}
		case foreign, delegated:
			if used || f.isBad != nil {
				t.Errorf("%s is said to have no effect, and code looks at it", f.name)
			}
		}
	}
}

func TestRefusedConfigs(t *testing.T) {
	long := strings.Repeat("x", 256)
	for _, test := range []struct {
		field  string
		client bool
		tls    *tls.Config
	}{
		{"ServerName", true, nil},
		{"ServerName", true, &tls.Config{}},
		{"ServerName", true, &tls.Config{ServerName: long}},
		{"MaxVersion", true, &tls.Config{ServerName: "a", MaxVersion: tls.VersionTLS12}},
		{"MaxVersion", false, &tls.Config{MaxVersion: tls.VersionTLS12}},
		{"MinVersion", false, &tls.Config{MinVersion: tls.VersionTLS13 + 1}},
		{"NextProtos", false, &tls.Config{NextProtos: []string{""}}},
		{"NextProtos", true, &tls.Config{ServerName: "a", NextProtos: []string{long}}},
		{"NextProtos", false, &tls.Config{NextProtos: strings.Split(strings.Repeat("abcd ", 1<<14), " ")[:1<<14]}},
		{"ClientAuth", false, &tls.Config{ClientAuth: 17}},
		{"CurvePreferences", false, &tls.Config{CurvePreferences: []tls.CurveID{1}}},
		{"EncryptedClientHelloConfigList", true, &tls.Config{ServerName: "a", EncryptedClientHelloConfigList: []byte{}}},
		{"EncryptedClientHelloKeys", false, &tls.Config{EncryptedClientHelloKeys: make([]tls.EncryptedClientHelloKey, 1)}},
		{"GetEncryptedClientHelloKeys", false, &tls.Config{
			GetEncryptedClientHelloKeys: func(*tls.ClientHelloInfo) ([]tls.EncryptedClientHelloKey, error) { return nil, nil },
		}},
	} {
		err := (&Config{TLS: test.tls}).check(test.client)
		if err == nil || !strings.Contains(err.Error(), "tls.Config."+test.field+":") {
			t.Errorf("%s (client %v): error %v doesn't name it", test.field, test.client, err)
		}
	}
	for _, test := range []struct {
		field string
		cfg   Config
	}{
		{"RecordSizeLimit", Config{RecordSizeLimit: 63}},
		{"RecordSizeLimit", Config{RecordSizeLimit: 16386}},
		{"Extension", Config{Extension: extALPN}},
		{"Extension", Config{Extension: 0xfafa}},
		{"Offer", Config{Extension: 0xff00, Offer: make([]byte, maxOffer+1)}},
	} {
		if _, err := NewServer(&test.cfg); err == nil || !strings.Contains(err.Error(), "Config."+test.field+":") {
			t.Errorf("%s: error %v doesn't name it", test.field, err)
		}
	}
}

// TestAcceptedConfigs has settings that mean nothing to TLS 1.3 or to the
// other role.
func TestAcceptedConfigs(t *testing.T) {
	cfg := &tls.Config{
		InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS13,
		CipherSuites: []uint16{1}, Renegotiation: tls.RenegotiateFreelyAsClient,
		ClientSessionCache: tls.NewLRUClientSessionCache(1), Rand: io.Reader(nil),
	}
	for _, isClient := range []bool{true, false} {
		if err := (&Config{TLS: cfg}).check(isClient); err != nil {
			t.Error(err)
		}
	}
}
