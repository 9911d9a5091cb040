package tls13

import (
	"bytes"
	"slices"
	"testing"

	"github.com/go-tcpls/tcpls/internal/record"
)

// An item is what the fuzzers of whole handshakes change: a handshake message,
// or the content of any other record, before it is sealed.
type item struct {
	typ     record.Type
	content []byte
	epoch   int  // of the keys that it belongs under
	stray   bool // goes under other keys than those
	damaged bool // a bit of the sealed record is flipped
	joined  bool // shares its record with what follows
	back    bool // goes to who has sent it
}

// The epochs of a direction.
const (
	inTheClear = iota
	underEarlyKeys
	underHandshakeKeys
	underApplicationKeys
	epochs
)

// A mutation changes the item at one place of a conversation.
type mutation struct{ place, action, a, b byte }

// A script is a list of mutations and where it stands. Its form, as the
// fuzzer's input, is four bytes a mutation.
type script struct {
	list []mutation
	next int    // place of the next item
	held []item // to be sent after the next one
	past []item // sent before, for splicing
}

const (
	maxMutations = 16
	places       = 24 // more than any conversation of the fuzzers has
)

func parseScript(input []byte) *script {
	s := new(script)
	for m := range slices.Chunk(input, 4) {
		if len(m) == 4 && len(s.list) < maxMutations {
			s.list = append(s.list, mutation{m[0] % places, m[1] % byte(len(actions)), m[2], m[3]})
		}
	}
	return s
}

// change returns what is sent in the place of an item.
func (s *script) change(it item) []item {
	list, held := []item{it}, s.held
	s.held = nil
	for _, m := range s.list {
		if int(m.place) == s.next && len(list) > 0 {
			last := len(list) - 1
			list = append(list[:last], actions[m.action](s, list[last], m)...)
		}
	}
	s.next++
	s.past = append(s.past, it)
	return append(list, held...)
}

// addScripts seeds a fuzzer with every setting unchanged, and every action at
// several places.
func addScripts(f *testing.F) {
	for setting := range 256 {
		f.Add(byte(setting), []byte{})
	}
	for action := range byte(len(actions)) {
		for place := range byte(8) {
			f.Add(37*(action+place), []byte{place, action, 3 * place, 5*action + place})
		}
	}
}

// at is a place within n bytes.
func (m mutation) at(n int) int { return (int(m.a)<<8 | int(m.b)) % max(n, 1) }

// actions are what a mutation can do. They never write to an item's content,
// which may be shared.
var actions = []func(s *script, it item, m mutation) []item{
	func(*script, item, mutation) []item { return nil }, // drop
	func(_ *script, it item, m mutation) []item { // repeat, a flood at most
		return slices.Repeat([]item{it}, 2+int(m.a)%(2*maxIdle))
	},
	func(s *script, it item, _ mutation) []item { // swap with the next
		s.held = append(s.held, it)
		return nil
	},
	func(_ *script, it item, m mutation) []item { // flip a bit
		return []item{it.edited(func(b []byte) []byte {
			if len(b) > 0 {
				b[m.at(8*len(b))/8] ^= 1 << (m.b % 8)
			}
			return b
		})}
	},
	func(_ *script, it item, m mutation) []item { // cut, as a lost end would be
		return []item{it.edited(func(b []byte) []byte { return b[:m.at(len(b)+1)] })}
	},
	func(_ *script, it item, m mutation) []item { // cut, and say so in the message's head
		return []item{it.edited(func(b []byte) []byte { return relength(b[:m.at(len(b)+1)]) })}
	},
	func(_ *script, it item, m mutation) []item { // retype the message
		return []item{it.edited(func(b []byte) []byte {
			if len(b) > 0 {
				b[0] = m.b
			}
			return b
		})}
	},
	func(_ *script, it item, m mutation) []item { // retype the record
		it.typ = record.Type(m.b)
		return []item{it}
	},
	func(s *script, it item, m mutation) []item { // splice with an earlier item
		if len(s.past) == 0 {
			return []item{it}
		}
		other := s.past[int(m.a)%len(s.past)].content
		return []item{it.edited(func(b []byte) []byte {
			return append(b[:int(m.b)%(len(b)+1)], other[int(m.b)%(len(other)+1):]...)
		})}
	},
	func(s *script, it item, m mutation) []item { // say an earlier item again
		if len(s.past) == 0 {
			return []item{it}
		}
		again := s.past[int(m.a)%len(s.past)]
		again.epoch = it.epoch
		return []item{again, it}
	},
	func(_ *script, it item, m mutation) []item { // spread over records
		n := max(1, int(m.a))
		var list []item
		for piece := range slices.Chunk(it.content, n) {
			one := it
			one.content = piece
			if list = append(list, one); len(list) == 2*maxIdle {
				break
			}
		}
		return list
	},
	func(_ *script, it item, _ mutation) []item { // share a record with the next
		it.joined = true
		return []item{it}
	},
	func(_ *script, it item, _ mutation) []item { // seal under other keys
		it.stray = true
		return []item{it}
	},
	func(_ *script, it item, _ mutation) []item { // damage the sealed record
		it.damaged = true
		return []item{it}
	},
	func(_ *script, it item, m mutation) []item { // put a record before it
		return []item{{typ: record.Type(20 + m.a%5), content: bytes.Repeat([]byte{m.b}, int(m.a)/5), epoch: it.epoch}, it}
	},
	func(_ *script, it item, m mutation) []item { // put an alert before it
		return []item{{typ: record.Alert, content: []byte{m.a, m.b}, epoch: it.epoch}, it}
	},
	func(_ *script, it item, m mutation) []item { // put a ChangeCipherSpec before it, or a flood
		ccs := item{typ: record.ChangeCipherSpec, content: []byte{1}}
		return append(slices.Repeat([]item{ccs}, 1+int(m.a)%(2*maxIdle)), it)
	},
	func(_ *script, it item, m mutation) []item { // announce more than comes
		return []item{it.edited(func(b []byte) []byte {
			if len(b) >= messageHeadLen {
				b[1], b[2] = m.a, m.b
			}
			return b
		})}
	},
	func(_ *script, it item, m mutation) []item { // overwrite two bytes
		return []item{it.edited(func(b []byte) []byte {
			at := int(m.a) % max(len(b)-1, 1)
			copy(b[at:], []byte{0, m.b})
			return b
		})}
	},
	func(_ *script, it item, m mutation) []item { // put bytes into it, and say so in its head
		return []item{it.edited(func(b []byte) []byte {
			return relength(slices.Insert(b, int(m.a)%(len(b)+1), m.b, m.a, 0, 1))
		})}
	},
	func(_ *script, it item, _ mutation) []item { // send it back too
		mirrored := it
		mirrored.back = true
		return []item{it, mirrored}
	},
	func(_ *script, it item, _ mutation) []item { // empty it
		it.content = nil
		return []item{it}
	},
}

func (it item) edited(change func(b []byte) []byte) item {
	it.content = change(bytes.Clone(it.content))
	return it
}

// relength makes the head of a message fit what follows.
func relength(b []byte) []byte {
	if n := len(b) - messageHeadLen; n >= 0 {
		b[1], b[2], b[3] = byte(n>>16), byte(n>>8), byte(n)
	}
	return b
}
