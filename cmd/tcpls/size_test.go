package main

import (
	"strings"
	"testing"
	"time"
)

func TestSizeSet(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "1000": 1000, "60MB": 60e6, "60mb": 60e6, "1GiB": 1 << 30, "1.5 KiB": 1536, "2k": 2000, "3T": 3e12, " 7 B ": 7,
	} {
		var s size
		if err := s.Set(text); err != nil || int64(s) != want {
			t.Errorf("Set(%q) = %d, %v; want %d", text, int64(s), err, want)
		}
	}
	for _, text := range []string{"", "MB", "-1", "1e3", "0x10", "1_000", "1.2.3", "1 MB 2", "5 parsecs", "inf", "nan", "9300000TB"} {
		var s size
		if err := s.Set(text); err == nil {
			t.Errorf("Set(%q) = %d; want an error", text, int64(s))
		}
	}
}

func TestSizeString(t *testing.T) {
	for n, want := range map[size]string{
		0: "0 B", 999: "999 B", 1000: "1.00 kB", 9994: "9.99 kB", 9996: "10.0 kB", 99960: "100 kB", 999_600: "1.00 MB",
		60e6: "60.0 MB", 1 << 30: "1.07 GB", 5e12: "5.00 TB", 5e15: "5000 TB",
	} {
		if got := n.String(); got != want {
			t.Errorf("size(%d) = %q, want %q", int64(n), got, want)
		}
	}
}

func TestRateAndBrief(t *testing.T) {
	if got := rate(310e6, time.Second); got != "310 MB/s" {
		t.Error(got)
	}
	if got := rate(1, 0); got != "-" {
		t.Error(got)
	}
	for d, want := range map[time.Duration]string{
		1234 * time.Nanosecond: "1µs", 12_345 * time.Microsecond: "12.3ms", 1_234 * time.Millisecond: "1.23s", 61_234 * time.Millisecond: "1m1s",
	} {
		if got := brief(d); got != want {
			t.Errorf("brief(%d) = %q, want %q", d, got, want)
		}
	}
}

// A peer's idea of a size, or a fast clock, must not break the display.
func TestProgressDisplay(t *testing.T) {
	for _, test := range []struct {
		name  string
		state progressState
		line  string
	}{
		{"half", progressState{done: 50e6, total: 100e6, files: 1, elapsed: time.Second}, "50.0 MB of 100 MB  50%  50.0 MB/s  1s left"},
		{"resumed", progressState{done: 60e6, total: 100e6, skipped: 50e6, files: 1, elapsed: time.Second}, "60.0 MB of 100 MB  60%  10.0 MB/s  4s left"},
		{"size unknown", progressState{done: 5e6, files: 1, elapsed: time.Second}, "5.00 MB  5.00 MB/s"},
		{"more than announced", progressState{done: 5e6, total: 1e6, files: 1, elapsed: time.Second}, "5.00 MB  5.00 MB/s"},
		{"several", progressState{done: 1e6, total: 1e6, files: 3, ended: 2, elapsed: time.Second}, "2/3 files  1.00 MB of 1.00 MB  100%  1.00 MB/s"},
		{"nothing yet", progressState{total: 1e6, files: 1}, "0 B of 1.00 MB  0%  -"},
	} {
		if got := test.state.line(); got != test.line {
			t.Errorf("%s: %q, want %q", test.name, got, test.line)
		}
		for width := range 200 {
			if bar := test.state.bar(width); len(bar) > max(0, width-1) {
				t.Errorf("%s: the bar has %d columns of %d: %q", test.name, len(bar), width, bar)
			}
		}
	}
	two := progressState{done: 1e6, files: 1, elapsed: time.Second, paths: []pathRow{
		{id: 0, state: "suspect", rate: 0, rtt: 20100 * time.Microsecond, from: "192.0.2.9:1", to: "192.0.2.7:443"},
		{id: 12, state: "active", rate: -1, from: "[2001:db8::9]:2", to: "[2001:db8::7]:443"},
	}}
	want := "1.00 MB  1.00 MB/s\n" +
		"  path 0  suspect      0 B/s  rtt 20.1ms  192.0.2.9:1 to 192.0.2.7:443\n" +
		"  path 12 active                          [2001:db8::9]:2 to [2001:db8::7]:443"
	if got := two.picture(120); got != want {
		t.Errorf("two paths\n got %q\nwant %q", got, want)
	}
	for width := range 100 {
		for _, line := range strings.Split(two.picture(width), "\n") {
			if len(line) > max(0, width-1) {
				t.Errorf("a line has %d columns of %d: %q", len(line), width, line)
			}
		}
	}
	if got, want := (progressState{done: 1e6, total: 2e6, files: 1, elapsed: time.Second}).bar(80), "[===============               ]  1.00 MB of 2.00 MB  50%  1.00 MB/s  1s left"; got != want {
		t.Errorf("bar\n got %q\nwant %q", got, want)
	}
}
