package lab

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
)

// StripOptions removes TCP options by their kind from all segments, as
// firewalls do: 2 is the maximum segment size, 3 window scale, 4 and 5 selective
// acknowledgements, 8 timestamps, 30 Multipath TCP, 34 Fast Open.
type StripOptions struct{ Kinds []byte }

type optionStripper struct{ kinds []byte }

func (m StripOptions) install(*rand.Rand) box { return optionStripper{m.Kinds} }

func (b optionStripper) pass(p passage) []byte {
	s, ok := parseTCP(p.ip)
	if !ok {
		return p.ip
	}
	changed := false
	s.options(func(kind byte, option []byte) {
		if slices.Contains(b.kinds, kind) {
			const padding = 1
			for i := range option {
				option[i] = padding
			}
			changed = true
		}
	})
	if changed {
		s.fixChecksum()
	}
	return p.ip
}

// ClampMSS lowers the maximum segment size that SYNs tell, as routers before
// tunnels do.
type ClampMSS struct{ MSS uint16 }

type mssClamp struct{ mss uint16 }

func (m ClampMSS) install(*rand.Rand) box { return mssClamp{m.MSS} }

func (b mssClamp) pass(p passage) []byte {
	s, ok := parseTCP(p.ip)
	if !ok || !s.is(flagSYN) {
		return p.ip
	}
	s.options(func(kind byte, option []byte) {
		const mss = 2
		if kind == mss && len(option) == 4 && binary.BigEndian.Uint16(option[2:]) > b.mss {
			binary.BigEndian.PutUint16(option[2:], b.mss)
			s.fixChecksum()
		}
	})
	return p.ip
}
