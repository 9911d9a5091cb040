// Package canary has a data race on purpose: its test passes, but must fail
// under the race detector, which proves that the detector is at work. The
// directory's name keeps it out of ./... patterns.
package canary

import (
	"sync"
	"testing"
)

func TestRace(t *testing.T) {
	n := 0
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() { n++ })
	}
	both.Wait()
	if n == 0 {
		t.Error("nobody counted")
	}
}
