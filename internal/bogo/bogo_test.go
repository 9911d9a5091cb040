// Package bogo runs BoGo, the test runner of BoringSSL (ssl/test/runner in its
// tree), against the TLS engine. The test binary is also the shim: the program
// that the runner starts for every connection, tells by flags what to do, and
// judges by what it does on the wire.
package bogo

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	// shimVariable makes the test binary a shim.
	shimVariable = "TCPLS_BOGO_SHIM"
	// checkoutVariable names a checkout of BoringSSL.
	checkoutVariable = "TCPLS_BOGO_DIR"
)

// writeConformance is how docs/conformance.md is brought up to date.
var writeConformance = flag.Bool("write-conformance", false, "write the result of BoringSSL's runner into "+resultFile)

const (
	resultFile  = "../../docs/conformance.md"
	resultTitle = "\n## Result\n\n"
)

func TestMain(m *testing.M) {
	if os.Getenv(shimVariable) != "" {
		os.Exit(shimMain(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// TestBoGo runs every test of the runner, also those that testdata/config.json
// disables: the others must pass, and these must not. Then it does so again
// with an extension of ours and a limit of records in the hellos, which must
// change nothing.
func TestBoGo(t *testing.T) {
	dir := os.Getenv(checkoutVariable)
	if dir == "" {
		t.Skipf("%s names no checkout of https://boringssl.googlesource.com/boringssl", checkoutVariable)
	}
	cfg, err := readConfig(configFile)
	if err != nil {
		t.Fatal(err)
	}
	revision, err := exec.Command("git", "-C", dir, "rev-parse", "HEAD").Output()
	if err != nil {
		t.Fatalf("revision of %s: %v", dir, err)
	}
	runner := buildRunner(t, dir)
	t.Run("bare", func(t *testing.T) {
		result := fmt.Sprintf("BoringSSL %s\n\n%s", bytes.TrimSpace(revision), cfg.run(t, runner))
		t.Log(result)
		if *writeConformance && !t.Failed() {
			writeResult(t, result)
		}
	})
	t.Run("with our extension", func(t *testing.T) {
		if testing.Short() {
			t.Skip("it takes as long as without it, and -short asks for less")
		}
		cfg.run(t, runner, "-shim-extra-flags", "-"+extensionFlag)
	})
}

// run runs the runner and reports what went otherwise than c says.
func (c *config) run(t *testing.T, r *runner, flags ...string) *count {
	t.Helper()
	started := time.Now()
	count, faults := c.judge(r.run(t, flags...))
	for _, fault := range faults {
		t.Error(fault)
	}
	t.Logf("%d of %d tests passed, in %v", count.passed, count.total, time.Since(started).Round(time.Second))
	return count
}

// writeResult replaces what the page says behind its last title.
func writeResult(t *testing.T, result string) {
	t.Helper()
	page, err := os.ReadFile(resultFile)
	if err != nil {
		t.Fatal(err)
	}
	head, _, ok := strings.Cut(string(page), resultTitle)
	if !ok {
		t.Fatalf("%s has no %q", resultFile, strings.TrimSpace(resultTitle))
	}
	if err := os.WriteFile(resultFile, []byte(head+resultTitle+result), 0o644); err != nil {
		t.Fatal(err)
	}
}

// A runner is the program that BoringSSL's tests are, and the shim for it.
type runner struct{ program, dir, shim string }

// buildRunner builds both programs. The shim is this test binary once more,
// since some 15,000 processes with the race detector take far longer, to find
// no race in their one goroutine.
func buildRunner(t *testing.T, checkout string) *runner {
	t.Helper()
	tmp := t.TempDir()
	r := &runner{
		program: filepath.Join(tmp, "runner.test"), dir: filepath.Join(checkout, "ssl", "test", "runner"),
		shim: filepath.Join(tmp, "shim.test"),
	}
	buildTest(t, r.dir, r.program)
	buildTest(t, ".", r.shim)
	return r
}

// buildTest builds the test binary of the package in dir.
func buildTest(t *testing.T, dir, program string) {
	t.Helper()
	build := exec.Command("go", "test", "-c", "-o", program, ".")
	build.Dir = dir
	build.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the tests in %s: %v\n%s", dir, err, out)
	}
}

func (r *runner) run(t *testing.T, flags ...string) map[string]result {
	t.Helper()
	config, err := filepath.Abs(configFile)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if deadline, ok := t.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-5*time.Second))
		defer cancel()
	}
	flags = append([]string{"-pipe", "-allow-unimplemented", "-shim-path", r.shim, "-shim-config", config}, flags...)
	run := exec.CommandContext(ctx, r.program, flags...)
	run.Dir = r.dir
	run.Env = append(os.Environ(), shimVariable+"=1")
	out, err := run.CombinedOutput()
	// Disabled tests fail, and so does the runner.
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok || ctx.Err() != nil {
		t.Fatalf("%v, %v\n%s", err, ctx.Err(), lastLines(out))
	}
	results := parseResults(string(out))
	if len(results) == 0 {
		t.Fatalf("the runner ran no test:\n%s", lastLines(out))
	}
	return results
}

func lastLines(out []byte) string {
	lines := strings.SplitAfter(string(out), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "")
}

// names returns the sorted keys of a map.
func names[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
