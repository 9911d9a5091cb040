package lab_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-tcpls/tcpls/lab"
)

// run runs an experiment as short as its verdict allows, and writes everything
// that it gives.
func run(t *testing.T, name string) *lab.Result {
	t.Helper()
	if testing.Short() {
		t.Skip("measures for a while")
	}
	for _, e := range lab.Experiments() {
		if e.Name != name {
			continue
		}
		result, err := e.Run(t.Context(), lab.Options{Quick: true, Progress: func(step string) { t.Log(step) }})
		if errors.Is(err, lab.ErrUnsupported) && e.Root && os.Getenv("CI") != "true" {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		report := &lab.Report{Experiment: e, Options: lab.Options{Quick: true}, Result: result}
		checkReport(t, report)
		return result
	}
	t.Fatalf("there is no experiment %q", name)
	return nil
}

// checkReport looks at what a report writes.
func checkReport(t *testing.T, r *lab.Report) {
	t.Helper()
	var text strings.Builder
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + text.String())
	if b, err := json.Marshal(r); err != nil || !json.Valid(b) {
		t.Errorf("JSON: %s, %v", b, err)
	}
	if r.Result.Verdict.Outcome == lab.Fails {
		t.Errorf("the claim %s", r.Result.Verdict.Outcome)
	}
	dir := t.TempDir()
	if err := r.Save(dir); err != nil {
		t.Fatal(err)
	}
	want := 1 + len(r.Result.Tables) + 2*len(r.Result.Plots)
	if files, _ := filepath.Glob(filepath.Join(dir, "*")); len(files) != want {
		t.Errorf("%d files were written, not %d: %v", len(files), want, files)
	}
}

// table returns the rows of a table by its name.
func table(t *testing.T, r *lab.Result, name string) [][]string {
	t.Helper()
	for _, table := range r.Tables {
		if table.Name == name {
			return table.Rows
		}
	}
	t.Fatalf("there is no table %q", name)
	return nil
}

// value returns the median of a measure by its name.
func value(t *testing.T, r *lab.Result, name string) float64 {
	t.Helper()
	return find(t, r, name).Median
}

func find(t *testing.T, r *lab.Result, name string) lab.Measure {
	t.Helper()
	for _, m := range r.Measures {
		if m.Name == name {
			return m
		}
	}
	t.Fatalf("there is no measure %q", name)
	return lab.Measure{}
}

func TestExperimentNames(t *testing.T) {
	seen := make(map[string]bool)
	for _, e := range lab.Experiments() {
		if seen[e.Name] || e.Name == "all" || e.Source == "" || e.Claim == "" || e.Run == nil {
			t.Errorf("%q isn't complete, or is there twice", e.Name)
		}
		seen[e.Name] = true
	}
}

// Bytes arrived whole over both paths; how smoothly is a matter of the machine.
func TestMigration(t *testing.T) {
	r := run(t, "migration")
	if got := value(t, r, "whole download"); got > 10 {
		t.Errorf("9 MB took %.1f s", got)
	}
}

// Everything arrived whole, over both paths. The floor is far below what two
// equal paths bring.
func TestAggregation(t *testing.T) {
	if got := value(t, run(t, "aggregation"), "30+30 Mbit/s, 15 ms: TCPLS, both paths to one"); got < 1.1 {
		t.Errorf("two equal paths brought %.2f times the goodput of one", got)
	}
}

// Every transfer went on, whatever broke its path.
func TestFailover(t *testing.T) {
	r := run(t, "failover")
	for _, name := range []string{"RST", "FIN", "blackhole", "link down", "address removed"} {
		if got := value(t, r, name+": TCPLS, standby path"); got > 5000 {
			t.Errorf("%s: nothing arrived for %.0f ms", name, got)
		}
	}
}

// How fast is a matter of the machine; that QUIC in user space is slower than
// records of 16 KiB isn't.
func TestThroughput(t *testing.T) {
	if got := value(t, run(t, "throughput"), "MTU 1500: time of QUIC"); got < 1.2 {
		t.Errorf("QUIC needed %.2f times what TLS did", got)
	}
}

// Round trips of 200 ms are counted whole, which leaves the machine one of them,
// in the best of three visits.
func TestLatency(t *testing.T) {
	r := run(t, "latency")
	for name, most := range map[string]float64{
		"TCPLS": 4, "TCPLS, early data": 3, "TCPLS, early data and Fast Open": 2, "join": 3, "join with Fast Open": 2,
	} {
		if got := find(t, r, name).Least; got >= most {
			t.Errorf("%s: %.2f round trips, not less than %g", name, got, most)
		}
	}
}

// All objects arrived whole, however their streams travelled.
func TestStreams(t *testing.T) {
	if rows := table(t, run(t, "streams"), "times"); len(rows) != 3*24 {
		t.Errorf("%d objects arrived, not %d", len(rows), 3*24)
	}
}

// The client gets its answer however IPv6 is broken.
func TestEyeballs(t *testing.T) { run(t, "eyeballs") }

func TestUserTimeout(t *testing.T) { run(t, "user-timeout") }

// The floor is far below the tenfold gain that there is on a machine at rest.
func TestInjection(t *testing.T) {
	if got := value(t, run(t, "injection"), "the server's to cubic"); got < 3 {
		t.Errorf("the goodput became %.1f times as high", got)
	}
}

// 100 streams cost some 50 times as much by trial.
func TestTrial(t *testing.T) {
	if got := value(t, run(t, "trial"), "trial: most streams to one"); got < 5 {
		t.Errorf("trial decryption among 100 streams costs %.1f times as much as with one", got)
	}
}

func TestFeatures(t *testing.T) {
	want := map[string]string{
		"transport reliability":               "yes yes yes yes",
		"confidentiality and authentication":  "no yes yes yes",
		"connection reliability":              "no no yes yes",
		"0-RTT":                               "yes (no) yes yes",
		"session resumption":                  "no yes yes yes",
		"connection migration":                "no no yes yes",
		"streams":                             "no no yes yes",
		"happy eyeballs":                      "no no no yes",
		"explicit multipath":                  "no no no yes",
		"application-level migration":         "no no (yes) yes",
		"pluginization":                       "no no no (yes)",
		"resilience to head-of-line blocking": "no no yes (yes)",
		"secure connection closing":           "no no yes yes",
	}
	if lab.Supported() != nil {
		want["0-RTT"] = "no (no) yes yes" // TCP's takes root
	}
	rows := table(t, run(t, "features"), "table1")
	if len(rows) != len(want) {
		t.Errorf("%d features, not %d", len(rows), len(want))
	}
	for _, row := range rows {
		var marks []string
		for _, cell := range row[1:] {
			marks = append(marks, strings.Fields(cell)[0]) // without the paper's
		}
		if got := strings.Join(marks, " "); got != want[row[0]] {
			t.Errorf("%s: %s, not %s", row[0], got, want[row[0]])
		}
	}
}
