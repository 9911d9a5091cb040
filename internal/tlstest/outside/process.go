// Package outside lets tests use other TLS programs: it runs them, and makes
// certificates that they can read. Everything it starts ends with the test.
package outside

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// debianPackage says for each program where it comes from.
var debianPackage = map[string]string{
	"certutil":    "libnss3-tools",
	"curl":        "curl",
	"gnutls-cli":  "gnutls-bin",
	"gnutls-serv": "gnutls-bin",
	"node":        "nodejs",
	"openssl":     "openssl",
	"pk12util":    "libnss3-tools",
	"selfserv":    "libnss3-tools",
	"tstclnt":     "libnss3-tools",
}

// Need skips the test where a program isn't installed. With CI=true in the
// environment that is a failure.
func Need(t testing.TB, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s isn't installed; install Debian's package %s", program, debianPackage[program])
	}
	t.Skipf("%s isn't installed; install Debian's package %s to run this test", program, debianPackage[program])
}

// patience is how long a program may take for everything.
const patience = 5 * time.Minute

// A Process is a running program. Its methods may be called from several
// goroutines, but those that fail the test only from the test's own.
type Process struct {
	t       testing.TB
	command string
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	ended   chan struct{} // closed when cmd.Wait has returned err
	err     error

	mu      sync.Mutex
	changed sync.Cond
	out     []byte // stdout
	all     []byte // stdout and stderr, as they came
	seen    int    // how much of all WaitFor has passed
	over    bool
}

// Start runs a program until it ends, the test does, or five minutes are over.
func Start(t testing.TB, program string, args ...string) *Process {
	t.Helper()
	Need(t, program)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	p := &Process{
		t: t, command: program + " " + strings.Join(args, " "),
		cmd: exec.CommandContext(ctx, program, args...), ended: make(chan struct{}),
	}
	p.changed.L = &p.mu
	p.cmd.Env = append(os.Environ(), "LC_ALL=C")
	p.cmd.Stdout, p.cmd.Stderr = output{p, true}, output{p, false}
	// What a killed program's children hold open isn't waited for.
	p.cmd.WaitDelay = time.Second
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		err := p.cmd.Wait()
		p.mu.Lock()
		p.err, p.over = err, true
		p.changed.Broadcast()
		p.mu.Unlock()
		close(p.ended)
	}()
	t.Cleanup(func() {
		cancel()
		<-p.ended
		if t.Failed() {
			out := p.Output()
			t.Logf("%s: %v\n%s", p.command, p.err, out[max(0, len(out)-8<<10):])
		}
	})
	return p
}

type output struct {
	p      *Process
	stdout bool
}

func (o output) Write(b []byte) (int, error) {
	o.p.mu.Lock()
	defer o.p.mu.Unlock()
	o.p.all = append(o.p.all, b...)
	if o.stdout {
		o.p.out = append(o.p.out, b...)
	}
	o.p.changed.Broadcast()
	return len(b), nil
}

// For makes t, a subtest of the one that started the program, the test that
// fails when a method does.
func (p *Process) For(t testing.TB) *Process {
	p.t = t
	return p
}

// Output returns what the program has written so far, stdout and stderr.
func (p *Process) Output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return string(p.all)
}

// WaitFor waits until the program has written text, behind what the WaitFor
// before has found, and returns the rest of that line. The test fails if the
// program ends before.
func (p *Process) WaitFor(text string) string {
	p.t.Helper()
	var rest string
	p.wait("text "+text, func() bool {
		_, after, found := bytes.Cut(p.all[p.seen:], []byte(text))
		line, _, whole := bytes.Cut(after, []byte("\n"))
		if !found || !whole {
			return false
		}
		rest = strings.TrimSpace(string(line))
		p.seen = len(p.all) - len(after)
		return true
	})
	return rest
}

// WaitStdout waits until the program has written n bytes to stdout, and
// returns all of it.
func (p *Process) WaitStdout(n int) []byte {
	p.t.Helper()
	var out []byte
	p.wait("output", func() bool {
		out = bytes.Clone(p.out[:min(n, len(p.out))])
		return len(out) == n
	})
	return out
}

func (p *Process) wait(what string, done func() bool) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for !done() {
		if p.over {
			p.t.Fatalf("%s ended (%v) without the expected %s", p.command, p.err, what)
		}
		p.changed.Wait()
	}
}

// Write writes to the program's stdin.
func (p *Process) Write(b []byte) (int, error) { return p.stdin.Write(b) }

// Say writes a line to the program's stdin.
func (p *Process) Say(line string) {
	p.t.Helper()
	if _, err := io.WriteString(p.stdin, line+"\n"); err != nil {
		p.t.Fatalf("%s: stdin: %v", p.command, err)
	}
}

// Finish closes stdin and waits for the program's end. The error is that of
// exec.Cmd.Wait.
func (p *Process) Finish() (output string, err error) {
	p.t.Helper()
	if err := p.stdin.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		p.t.Errorf("%s: stdin: %v", p.command, err)
	}
	<-p.ended
	return p.Output(), p.err
}

// Run runs a program with arguments, which must succeed, and returns what it
// has written.
func Run(t testing.TB, program string, args ...string) (output string) {
	t.Helper()
	output, err := Start(t, program, args...).Finish()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, output)
	}
	return output
}

// Interrupt asks the program to end.
func (p *Process) Interrupt() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		p.t.Error(err)
	}
}

// Kill ends the program at once, without a goodbye.
func (p *Process) Kill() {
	p.t.Helper()
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Error(err)
	}
	<-p.ended
}

// OpenSSLServer starts openssl s_server with arguments and returns where it
// listens.
func OpenSSLServer(t testing.TB, args ...string) (p *Process, addr string) {
	t.Helper()
	p = Start(t, "openssl", append([]string{"s_server", "-accept", "127.0.0.1:0"}, args...)...)
	return p, p.WaitFor("ACCEPT ")
}

// GnuTLSServer starts gnutls-serv with arguments and returns where it listens.
func GnuTLSServer(t testing.TB, args ...string) (p *Process, addr string) {
	t.Helper()
	return startOnPort(t, "gnutls-serv", "IPv4 0.0.0.0 port PORT...done", append([]string{"--port", "PORT"}, args...))
}

// NSSServer starts selfserv with arguments and returns where it listens.
func NSSServer(t testing.TB, args ...string) (p *Process, addr string) {
	t.Helper()
	return startOnPort(t, "selfserv", "About to call accept", append([]string{"-v", "-p", "PORT"}, args...))
}

// startOnPort starts a server that listens on all addresses and can't choose
// its port by itself: PORT stands for it in ready, what the server says when it
// listens, and in args. If another program was there first, it gets another one.
func startOnPort(t testing.TB, program, ready string, args []string) (p *Process, addr string) {
	t.Helper()
	i := slices.Index(args, "PORT")
	for range 5 {
		addr = freeAddr(t)
		_, args[i], _ = net.SplitHostPort(addr)
		p = Start(t, program, args...)
		if p.comesTo(strings.ReplaceAll(ready, "PORT", args[i])) {
			return p, addr
		}
	}
	t.Fatalf("%s didn't start:\n%s", program, p.Output())
	return nil, ""
}

// comesTo waits until the program has written text, or has ended.
func (p *Process) comesTo(text string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !bytes.Contains(p.all, []byte(text)) {
		if p.over {
			return false
		}
		p.changed.Wait()
	}
	return true
}

// freeAddr returns an address on which nobody listened a moment ago.
func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
