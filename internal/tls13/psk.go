package tls13

import "golang.org/x/crypto/cryptobyte"

// A pskIdentity is one that a client offers (RFC 8446, section 4.2.11).
type pskIdentity struct {
	identity []byte
	age      uint32 // milliseconds, obfuscated
}

// offeredPSKs is pre_shared_key in a ClientHello.
type offeredPSKs struct {
	identities []pskIdentity
	binders    [][]byte
}

// minBinderLen is the size of the shortest hash that a binder may be.
const minBinderLen = 32

func parsePSK(p []byte) (*offeredPSKs, bool) {
	s, o := cryptobyte.String(p), new(offeredPSKs)
	var identities, binders cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&identities) || identities.Empty() ||
		!s.ReadUint16LengthPrefixed(&binders) || binders.Empty() || !s.Empty() {
		return nil, false
	}
	for !identities.Empty() {
		var id pskIdentity
		if !readBytes16(&identities, &id.identity) || len(id.identity) == 0 || !identities.ReadUint32(&id.age) {
			return nil, false
		}
		o.identities = append(o.identities, id)
	}
	for !binders.Empty() {
		var binder []byte
		if !readBytes8(&binders, &binder) || len(binder) < minBinderLen {
			return nil, false
		}
		o.binders = append(o.binders, binder)
	}
	return o, true
}

func parsePSKModes(p []byte) (modes []byte, ok bool) {
	s := cryptobyte.String(p)
	ok = readBytes8(&s, &modes) && len(modes) > 0 && s.Empty()
	return modes, ok
}

// checkPSK holds the PSK extensions of a ClientHello against the rules that
// don't depend on any PSK. The engine selects none.
func (o *offer) checkPSK(extensions []extension) error {
	if o.psk == nil {
		return nil // early_data alone says nothing, and what follows it is skipped
	}
	if extensions[len(extensions)-1].id != extPreSharedKey {
		return broken(AlertIllegalParameter, "client's pre_shared_key is not the last extension")
	}
	if o.pskModes == nil {
		return broken(AlertMissingExtension, "client sends pre_shared_key without psk_key_exchange_modes")
	}
	if len(o.psk.binders) != len(o.psk.identities) {
		return broken(AlertIllegalParameter, "client sends %d PSK identities and %d binders", len(o.psk.identities), len(o.psk.binders))
	}
	return nil
}
