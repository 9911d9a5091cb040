package tlstest_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/go-tcpls/tcpls/internal/tlstest/outside"
)

// build builds both programs.
func build(t *testing.T) (server, client string) {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.Command("go", "build", "-o", dir, "./server", "./client").CombinedOutput()
	if err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	server, client = filepath.Join(dir, "server"), filepath.Join(dir, "client")
	if runtime.GOOS == "windows" {
		server, client = server+".exe", client+".exe"
	}
	return server, client
}

func exitCode(err error) int {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	return 0
}

func TestPrograms(t *testing.T) {
	server, client := build(t)
	authority := outside.NewAuthority(t)
	leaf := authority.Issue(t, outside.P256, nil)
	keylog := filepath.Join(t.TempDir(), "keylog")
	p := outside.Start(t, server, "-addr", "127.0.0.1:0", "-cert", leaf.CertFile, "-key", leaf.KeyFile,
		"-client-auth", "verify", "-ca", authority.File, "-alpn", "b,a", "-groups", "P-384", "-tcpls", "-key-update", "-early-data", "1000", "-record-size", "1000")
	addr := p.WaitFor("")
	own := []string{"-addr", addr, "-ca", authority.File, "-cert", leaf.CertFile, "-key", leaf.KeyFile}

	for _, test := range []struct {
		name  string
		args  []string
		in    string
		code  int
		texts []string
	}{
		{"lines", []string{"-alpn", "a,b", "-groups", "X25519,P-384", "-tcpls", "-keylog", keylog}, "one line", 0, []string{"one line\n", "CurveP384", "alpn=b", "retried=yes", "tcpls=yes"}},
		{"page", []string{"-get", "/", "-key-update"}, "", 0, []string{"HTTP/1.0 200 OK", "<title>tlstest</title>"}},
		{"resumed page", []string{"-get", "/", "-resume", "1", "-groups", "P-384"}, "", 0, []string{"resumed=yes"}},
		{"early page", []string{"-get", "/", "-resume", "2", "-early", "-groups", "P-384", "-record-size", "64"}, "", 0, []string{"resumed=yes early="}},
		{"wrong name", []string{"-name", "other.example"}, "", 1, []string{"valid for localhost, not other.example"}},
		{"wrong name, insecure", []string{"-name", "other.example", "-insecure", "-get", "/"}, "", 0, []string{"name=other.example"}},
		{"no group in common", []string{"-groups", "P-521"}, "", 1, []string{"handshake_failure"}},
		{"unknown group", []string{"-groups", "P-1"}, "", 1, []string{`"P-1" isn't one of`}},
		{"unknown flag", []string{"-nonsense"}, "", 2, []string{"flag provided but not defined"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := outside.Start(t, client, append(own, test.args...)...)
			if test.in != "" {
				c.Say(test.in)
			}
			out, err := c.Finish()
			if exitCode(err) != test.code {
				t.Errorf("exit code %d, want %d", exitCode(err), test.code)
			}
			mustContain(t, "client", out, test.texts...)
		})
	}
	if log, err := os.ReadFile(keylog); err != nil {
		t.Error(err)
	} else {
		mustContain(t, "key log", string(log), "CLIENT_TRAFFIC_SECRET_0 ", "SERVER_TRAFFIC_SECRET_0 ")
	}
	if runtime.GOOS == "windows" {
		return // has no interrupt that could be sent
	}
	idle := outside.Start(t, client, own...)
	idle.Say("idle from here")
	idle.WaitFor("idle from here")
	p.Interrupt()
	if _, err := p.Finish(); err != nil {
		t.Errorf("the interrupted server ends with %v", err)
	}
	if out, err := idle.Finish(); err != nil {
		t.Errorf("the client of the interrupted server ends with %v; want its close_notify\n%s", err, out)
	}
}
