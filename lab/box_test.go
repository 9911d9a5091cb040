package lab

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// A SYN of a Linux kernel from 10.0.0.1:43210 to 10.0.0.2:443 with the options
// MSS, SACK permitted, timestamps and window scale, and one over IPv6.
var (
	synV4 = unhex("4500003c1c4640004006" + "0a78" + "0a0000010a000002" +
		"a8ca01bb01020304" + "00000000" + "a002faf0" + "1c72" + "0000" + "020405b40402080a001122330000000001030307")
	synV6 = unhex("600000000028" + "0640" + "fd000000000000000000000000000001" + "fd000000000000000000000000000002" +
		"a8ca01bb01020304" + "00000000" + "a002faf0" + "0000" + "0000" + "020405a00402080a001122330000000001030307")
)

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

// checksums reports whether those of a segment are right: then they and all
// else add up to 0 (RFC 1071).
func checksums(s segment) bool {
	if s.ip[0]>>4 == 4 && fold(sum(s.ip[:int(s.ip[0]&15)*4])) != 0 {
		return false
	}
	from, to := s.addresses()
	return fold(sum(from)+sum(to)+protocolTCP+uint64(len(s.tcp))+sum(s.tcp)) == 0
}

func TestSegment(t *testing.T) {
	for _, packet := range [][]byte{synV4, synV6} {
		s, ok := parseTCP(slices.Clone(packet))
		if !ok {
			t.Fatalf("not taken for TCP: %x", packet)
		}
		if !s.is(flagSYN) || s.is(flagACK) || s.seq() != 0x01020304 || len(s.payload()) != 0 {
			t.Errorf("flags %x, sequence number %x, %d bytes of payload", s.flags(), s.seq(), len(s.payload()))
		}
		var kinds []byte
		s.options(func(kind byte, option []byte) { kinds = append(kinds, kind) })
		if want := []byte{2, 4, 8, 3}; !bytes.Equal(kinds, want) {
			t.Errorf("options %d, want %d", kinds, want)
		}
		s.fixChecksum()
		if !checksums(s) {
			t.Error("wrong checksums")
		}
		if f := s.flow(); f.fromPort != 43210 || f.toPort != 443 || f.reverse().reverse() != f || f.reverse().fromPort != 443 {
			t.Errorf("flow %+v", f)
		}
	}
}

// TestResetSegments checks what RFC 5961 asks of a RST: exactly the next sequence
// number that its receiver expects.
func TestResetSegments(t *testing.T) {
	for _, packet := range [][]byte{synV4, synV6} {
		s, _ := parseTCP(append(slices.Clone(packet), "payload"...))
		s.tcp[13] = flagACK | flagPSH
		s.setAck(0x0a0b0c0d)
		forward, back := s.reset()
		to, ok1 := parseTCP(forward)
		from, ok2 := parseTCP(back)
		if !ok1 || !ok2 || !checksums(to) || !checksums(from) {
			t.Fatal("not TCP, or wrong checksums")
		}
		if to.seq() != 0x01020304 || from.seq() != 0x0a0b0c0d || to.flags() != flagRST || from.flags() != flagRST {
			t.Errorf("the sequence numbers are %x and %x, the flags %x and %x", to.seq(), from.seq(), to.flags(), from.flags())
		}
		if to.flow() != from.flow().reverse() || len(to.payload())+len(from.payload()) != 0 {
			t.Error("the two don't belong together, or have payload")
		}
	}
}

func TestTableIsBounded(t *testing.T) {
	b := NAT{}.install(rand.New(rand.NewPCG(1, 2))).(*nat)
	for i := range 3 * mostRemembered {
		packet := slices.Clone(synV4)
		packet[12], packet[13], packet[14], packet[15] = 10, byte(i>>16), byte(i>>8), byte(i)
		b.pass(passage{ip: packet, to: sideB})
	}
	if len(b.out) > mostRemembered || len(b.in) > mostRemembered {
		t.Errorf("the NAT remembers %d and %d flows", len(b.out), len(b.in))
	}
}

// FuzzBoxes gives packets of any kind to every middlebox, from both sides.
func FuzzBoxes(f *testing.F) {
	for _, packet := range [][]byte{synV4, synV6} {
		f.Add(packet, true)
		f.Add(packet[:len(packet)-1], false)
		data := append(slices.Clone(packet), 22, 3, 1, 0, 5, 1, 0, 0, 1, 0)
		data[len(packet)-27] = flagACK
		f.Add(data, true)
	}
	f.Fuzz(func(t *testing.T, packet []byte, toB bool) {
		rng := rand.New(rand.NewPCG(1, 2))
		to := sideA
		if toB {
			to = sideB
		}
		for _, m := range []Middlebox{
			StripOptions{Kinds: []byte{2, 4, 8}}, ClampMSS{MSS: 500}, CutAfter{}, HelloFilter{}, HelloFilter{Swallow: true},
			NAT{}, Firewall{}, RewriteSequence{},
		} {
			b := m.install(rng)
			send := func(_ int, _ side, ip []byte, _ time.Duration) {
				if s, ok := parseTCP(ip); !ok || !checksums(s) {
					t.Errorf("%T sends %x", m, ip)
				}
			}
			for range 2 {
				ip := slices.Clone(packet)
				if out := b.pass(passage{ip: ip, to: to, send: send}); len(out) > len(packet) {
					t.Errorf("%T makes %d bytes of %d", m, len(out), len(packet))
				}
			}
		}
	})
}
