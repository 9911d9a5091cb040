package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls/internal/linkemu"
)

// testOutcome is a run that went well.
func testOutcome() *outcome {
	bins := make([]int64, 40)
	for i := range bins {
		bins[i] = 375e3
	}
	return &outcome{
		What: "made data", Size: 15e6, Mode: modeFailover, Cut: "blackhole", MaxGap: 2,
		Links: []linkOutcome{
			{Name: "link 1", Rate: 30e6, Delay: 0.02, samples: bins[:15], Changes: []changeOutcome{{1.5, "blackhole"}, {3, "up"}}},
			{Name: "link 2", Rate: 30e6, Delay: 0.06, samples: bins},
		},
		TCPLS: transferOutcome{Name: "TCPLS", Received: 15e6, Seconds: 4, Gap: 0.25, OK: true, bins: bins},
		TLS:   transferOutcome{Name: "plain TLS", Received: 15e6, Seconds: 5.5, Gap: 1.5, OK: true, bins: bins},
	}
}

func TestVerdict(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*outcome)
		pass   bool
		want   string
	}{
		{"all well", func(*outcome) {}, true, "15.0 MB arrived whole over TCPLS, sha256 verified, longest gap 0.25 s; plain TLS stood still for 1.50 s"},
		{"TLS broke", func(r *outcome) { r.TLS.Error, r.TLS.OK, r.TLS.Received = "reset", false, 5e6 }, true,
			"15.0 MB arrived whole over TCPLS, sha256 verified, longest gap 0.25 s; plain TLS broke after 5.00 MB: reset"},
		{"no cut", func(r *outcome) { r.TLS.Gap = 0.1 }, true,
			"15.0 MB arrived whole over TCPLS, sha256 verified, longest gap 0.25 s; plain TLS arrived too, longest gap 0.10 s"},
		{"too long a gap", func(r *outcome) { r.TCPLS.Gap = 2.1 }, false, "TCPLS stood still for 2.10 s, which is more than 2.00 s"},
		{"cut by hand", func(r *outcome) { r.TCPLS.Gap, r.MaxGap = 9, 0 }, true,
			"15.0 MB arrived whole over TCPLS, sha256 verified, longest gap 9.00 s; plain TLS stood still for 1.50 s"},
		{"another content", func(r *outcome) { r.TCPLS.OK = false }, false, "what arrived over TCPLS isn't what was sent"},
		{"TCPLS broke", func(r *outcome) { r.TCPLS.Error, r.TCPLS.Received = "no", 1e6 }, false, "TCPLS broke after 1.00 MB: no"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := testOutcome()
			test.change(r)
			if r.judge(); r.Pass != test.pass || r.Verdict != test.want {
				t.Errorf("%t %q\nwant %t %q", r.Pass, r.Verdict, test.pass, test.want)
			}
		})
	}
}

// wantXML reports what isn't well-formed.
func wantXML(t *testing.T, text string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(text))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
	}
}

func TestPlot(t *testing.T) {
	for name, change := range map[string]func(*outcome){
		"a cut and its repair":    func(*outcome) {},
		"never restored":          func(r *outcome) { r.Links[0].Changes = r.Links[0].Changes[:1] },
		"nothing arrived":         func(r *outcome) { r.TCPLS, r.TLS = transferOutcome{}, transferOutcome{} },
		"a migration":             func(r *outcome) { r.Mode, r.Cut, r.MigratedAt = modeMigrate, "none", 1.5 },
		"both links":              func(r *outcome) { r.Mode, r.Cut = modeAggregate, "none" },
		"an error with an & in <": func(r *outcome) { r.TLS.Error = "a & b < c" },
		"very slow, very long":    func(r *outcome) { r.Links[0].Rate, r.Links[1].Rate, r.TLS.bins = 1e5, 1e5, make([]int64, 1e5) },
	} {
		t.Run(name, func(t *testing.T) {
			r := testOutcome()
			change(r)
			plot := r.plot()
			wantXML(t, plot)
			if strings.Contains(plot, "NaN") || strings.Contains(plot, "Inf") {
				t.Error(plot)
			}
			if labels := strings.Count(plot, "text-anchor"); labels > 40 {
				t.Errorf("%d labels", labels)
			}
		})
	}
}

// The page needs nothing from elsewhere, and shows names of files as they are.
func TestPage(t *testing.T) {
	r := testOutcome()
	r.What = "<script>.iso"
	r.Events = []eventOutcome{{1.5, "link 1  cut"}}
	r.judge()
	name := filepath.Join(t.TempDir(), "page.html")
	if err := r.save(name); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{
		"PASS": true, "<svg ": true, "&lt;script&gt;.iso": true, "link 1  cut": true,
		"<script": false, "src=": false, "href=": false, "url(": false,
	} {
		if strings.Contains(string(page), text) != want {
			t.Errorf("%q in the page: %t, want %t", text, !want, want)
		}
	}
}

func TestLinkShapes(t *testing.T) {
	var l linkShapes
	if err := l.Set("1.5Mbit/0s, 800kbit/1.5s"); err != nil {
		t.Fatal(err)
	}
	want := linkShapes{{Rate: 187500}, {Rate: 100000, Delay: 1500 * time.Millisecond}}
	if l != want || l.String() != "1.5mbit/0s,0.8mbit/1.5s" {
		t.Errorf("%v, %v", l, l.String())
	}
	for _, text := range []string{"", "30mbit", "30mbit/", "/20ms", "mbit/1ms", "-1mbit/1ms", "1e3mbit/1ms", "30mb/1ms", "30mbit/-1ms", "30mbit/6s", "99kbit/1ms", "11gbit/1ms"} {
		if err := l.Set("30mbit/1ms," + text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
	if l.Set("30mbit/1ms,30mbit/1ms,30mbit/1ms") == nil {
		t.Error("three links were taken")
	}
}

// A transfer counts its longest silence, also the one that doesn't end.
func TestTransferGaps(t *testing.T) {
	tr := newTransfer("TCPLS", &content{size: 100}, nil, nil)
	tr.began = time.Now().Add(-10 * time.Second)
	tr.count(10)
	o := tr.outcome(15 * time.Second)
	if o.Gap < 4.9 || o.Gap > 5.1 || o.Error == "" || o.OK || o.Received != 10 {
		t.Errorf("%+v", o)
	}
	if s := tr.state(15 * time.Second); !strings.HasPrefix(s.words(), "STALLED for 5.0 s") || s.share != 0.1 {
		t.Errorf("%+v: %s", s, s.words())
	}
}

// Sparks are as high as the rate, and no wider than the terminal.
func TestSparkline(t *testing.T) {
	full := int64(float64(1e6) * sampleInterval.Seconds())
	bins := []int64{0, 1, full / 2, full, 9 * full}
	if got := sparkline(bins, 7*sampleInterval, 1e6, 80); got != " ▁▄██  " {
		t.Errorf("%q", got)
	}
	if got := sparkline(bins, 7*sampleInterval, 1e6, 3); got != "█  " {
		t.Errorf("%q", got)
	}
	if got := clip("12345█", 5); got != "12345" {
		t.Errorf("%q", got)
	}
	if len(conditionWords) != 4 || conditionWords[linkemu.Closed] == "" {
		t.Error("a condition has no words")
	}
}
