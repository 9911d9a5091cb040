package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/go-tcpls/tcpls/bpfcc"
	"github.com/go-tcpls/tcpls/lab"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"tcpls": main})
}

// TestScripts runs the tool as a user does: real processes, real sockets.
// Beside testscript's commands there are:
//
//	start NAME STREAM [<FILE] CMD...  run in the background; once it has written a first
//	                                  line to STREAM (stdout or stderr), and if that is a
//	                                  URL, set $NAME, $NAME_ADDR and $NAME_PIN
//	end NAME STATUS                   wait until it ends; see NAME.out and NAME.err
//	interrupt NAME STATUS             the same, after an interrupt
//	exits STATUS CMD...               exec, and check the exit status
//	server NAME KIND                  a server of the test's own at $NAME (servers_test.go)
//	plainclient ADDR SENT RECEIVED    a crypto/tls client that moves a file each way
//	arrived NAME                      wait until that server is at its decisive moment
//	same FILE FILE                    compare what isn't text
//	make FILE SIZE                    a file that can't be compressed
//	part VERB FILE BYTES SAVED        the first bytes of FILE as the part of SAVED that get or
//	                                  put leaves, here or at the server, when it is cut off
//	spoil FILE                        change the first byte
//	certificate CERT KEY NAME...      a certificate and its key
func TestScripts(t *testing.T) {
	objects, err := filepath.Abs("../../bpfcc") // $OBJECTS
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Values[processesKey{}] = make(processes)
			env.Values[serversKey{}] = make(map[string]*testServer)
			env.Setenv("SSLKEYLOGFILE", "")
			env.Setenv("OBJECTS", objects)
			env.Setenv("GORACE", quickExit)
			return nil
		},
		Condition: condition,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"start":       cmdStart,
			"end":         func(ts *testscript.TestScript, _ bool, args []string) { cmdEnd(ts, args, nil) },
			"interrupt":   func(ts *testscript.TestScript, _ bool, args []string) { cmdEnd(ts, args, os.Interrupt) },
			"exits":       cmdExits,
			"server":      cmdServer,
			"plainclient": cmdPlainClient,
			"arrived":     cmdArrived,
			"same":        cmdSame,
			"make":        cmdMake,
			"part":        cmdPart,
			"spoil":       cmdSpoil,
			"certificate": cmdCertificate,
		},
	})
}

// condition is for [program:NAME], for [bpf], where the kernel takes
// congestion controls, and for [lab], where it makes networks. Where everything is supposed to be there, what is missing is
// a failure.
func condition(condition string) (bool, error) {
	if supported, ok := map[string]func() error{"bpf": bpfcc.Supported, "lab": lab.Supported}[condition]; ok {
		err := supported()
		if err != nil && os.Getenv("CI") == "true" {
			return false, err
		}
		return err == nil, nil
	}
	name, ok := strings.CutPrefix(condition, "program:")
	if !ok {
		return false, fmt.Errorf("unknown condition %q", condition)
	}
	_, err := exec.LookPath(name)
	if err != nil && os.Getenv("CI") == "true" {
		return false, err
	}
	return err == nil, nil
}

// quickExit spares each process of a race build its second of waiting.
const quickExit = "atexit_sleep_ms=10"

type (
	processesKey struct{}
	processes    map[string]*process
)

// A process runs in the background of a script.
type process struct {
	cmd      *exec.Cmd
	out, err bytes.Buffer
	readers  sync.WaitGroup
}

func cmdStart(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 3 || args[1] != "stdout" && args[1] != "stderr" {
		ts.Fatalf("usage: start NAME stdout|stderr [<FILE] CMD...")
	}
	name, stream, args := args[0], args[1], args[2:]
	p := new(process)
	var stdin io.Reader
	if file, ok := strings.CutPrefix(args[0], "<"); ok {
		f, err := os.Open(ts.MkAbs(file))
		ts.Check(err)
		defer f.Close()
		stdin, args = f, args[1:]
	}
	var program string
	var err error
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		if program, err = exec.LookPath(filepath.Join(dir, args[0])); err == nil {
			break
		}
	}
	ts.Check(err)
	p.cmd = exec.Command(program, args[1:]...)
	p.cmd.Dir = ts.MkAbs(".")
	p.cmd.Env = append(os.Environ(), "PATH="+ts.Getenv("PATH"), "SSLKEYLOGFILE=", "GORACE="+quickExit)
	p.cmd.Stdin = stdin
	first := make(chan string, 1)
	for _, pipe := range []struct {
		open func() (io.ReadCloser, error)
		to   *bytes.Buffer
		tell bool
	}{{p.cmd.StdoutPipe, &p.out, stream == "stdout"}, {p.cmd.StderrPipe, &p.err, stream == "stderr"}} {
		r, err := pipe.open()
		ts.Check(err)
		p.readers.Go(func() {
			buffered := bufio.NewReader(io.TeeReader(r, pipe.to))
			if pipe.tell {
				line, _ := buffered.ReadString('\n')
				first <- strings.TrimSuffix(line, "\n")
			}
			io.Copy(io.Discard, buffered)
		})
	}
	ts.Check(p.cmd.Start())
	ts.Defer(func() { p.cmd.Process.Kill() })
	ts.Value(processesKey{}).(processes)[name] = p
	line := <-first
	if u, err := url.Parse(line); err == nil && u.Host != "" {
		ts.Setenv(name, line)
		ts.Setenv(name+"_ADDR", u.Host)
		ts.Setenv(name+"_PIN", u.Query().Get("pin"))
	}
}

func cmdEnd(ts *testscript.TestScript, args []string, signal os.Signal) {
	name, want := args[0], args[1]
	p := ts.Value(processesKey{}).(processes)[name]
	if p == nil {
		ts.Fatalf("no process %s", name)
	}
	if signal != nil {
		ts.Check(p.cmd.Process.Signal(signal))
	}
	p.readers.Wait()
	p.cmd.Wait() // the status is looked at below
	ts.Check(os.WriteFile(ts.MkAbs(name+".out"), p.out.Bytes(), 0o644))
	ts.Check(os.WriteFile(ts.MkAbs(name+".err"), p.err.Bytes(), 0o644))
	if got := strconv.Itoa(p.cmd.ProcessState.ExitCode()); got != want {
		ts.Fatalf("%s exited with %s (%v), not %s\n%s", name, got, p.cmd.ProcessState, want, p.err.Bytes())
	}
}

func cmdExits(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	status := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		status = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got := strconv.Itoa(status); got != args[0] {
		ts.Fatalf("exit status %s, not %s", got, args[0])
	}
}

func cmdSame(ts *testscript.TestScript, _ bool, args []string) {
	a, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	b, err := os.ReadFile(ts.MkAbs(args[1]))
	ts.Check(err)
	if !bytes.Equal(a, b) {
		ts.Fatalf("%s (%d bytes) and %s (%d bytes) differ", args[0], len(a), args[1], len(b))
	}
}

func cmdMake(ts *testscript.TestScript, _ bool, args []string) {
	var n size
	ts.Check(n.Set(args[1]))
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	_, err = io.Copy(f, madeData(int64(n)))
	ts.Check(errors.Join(err, f.Close()))
}

func cmdPart(ts *testscript.TestScript, _ bool, args []string) {
	var n size
	ts.Check(n.Set(args[2]))
	file := ts.MkAbs(args[1])
	info, err := os.Stat(file)
	ts.Check(err)
	content, err := os.ReadFile(file)
	ts.Check(err)
	mark := fmt.Sprintf("%s %d", versionOf("", info).tag(), info.Size())
	if args[0] == "put" {
		mark = digest(sha256.Sum256(content)).String()
	}
	ts.Check(os.WriteFile(partName(ts.MkAbs(args[3]), mark), content[:n], 0o644))
}

func cmdSpoil(ts *testscript.TestScript, _ bool, args []string) {
	matches, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(matches) != 1 {
		ts.Fatalf("%s matches %q", args[0], matches)
	}
	content, err := os.ReadFile(matches[0])
	ts.Check(err)
	content[0] ^= 1
	ts.Check(os.WriteFile(matches[0], content, 0o644))
}
