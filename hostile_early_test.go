package tcpls

import (
	"encoding/binary"
	"testing"
	"testing/synctest"
	"time"
)

// The register of one process takes each key once while early data with it can
// be fresh, and holds no more than its bound.
func TestStrikeRegister(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r strikeRegister
		once := func(n uint32) bool {
			var key [32]byte
			binary.BigEndian.PutUint32(key[:], n)
			first, err := r.Once(t.Context(), key, time.Now().Add(strikeWindow))
			if err != nil {
				t.Fatal(err)
			}
			return first
		}
		// A key comes at any moment of a generation, and again at any later one.
		for offset := time.Duration(0); offset <= strikeWindow; offset += strikeWindow / 4 {
			for delay := time.Duration(0); delay <= strikeWindow; delay += strikeWindow / 8 {
				time.Sleep(3 * strikeWindow)
				once(1) // begins a generation
				time.Sleep(offset)
				if !once(2) {
					t.Fatalf("a new key %v after the generation's begin is refused", offset)
				}
				time.Sleep(delay)
				if once(2) {
					t.Errorf("a key %v after the generation's begin is taken again %v later", offset, delay)
				}
			}
		}
		time.Sleep(3 * strikeWindow)
		for n := range uint32(2 * maxStrikes) {
			if first := once(n); first != (n < maxStrikes) {
				t.Fatalf("key %d: taken is %v, with a bound of %d", n, first, maxStrikes)
			}
		}
		if once(0) {
			t.Error("a full register takes a key that it has seen")
		}
		time.Sleep(strikeWindow + time.Second)
		if !once(2*maxStrikes) || len(r.now)+len(r.old) > 2*maxStrikes {
			t.Errorf("after a window the register has %d and %d keys", len(r.now), len(r.old))
		}
	})
}
