package bpfcc

import "testing"

func TestVersion(t *testing.T) {
	for release, want := range map[string][2]int{
		"6.18.44-fc-v595": {6, 18}, "6.4": {6, 4}, "6.10-rc1": {6, 10}, "7": {7, 0}, "": {}, "x.y": {},
	} {
		if got := version(release); got != want {
			t.Errorf("%q is %v", release, got)
		}
	}
}
