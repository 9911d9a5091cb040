package tls13

import "golang.org/x/crypto/cryptobyte"

func pskBody(o *offeredPSKs) []byte {
	return buildBody(func(b *cryptobyte.Builder) {
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, id := range o.identities {
				addBytes16(b, id.identity)
				b.AddUint32(id.age)
			}
		})
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, binder := range o.binders {
				addBytes8(b, binder)
			}
		})
	})
}
