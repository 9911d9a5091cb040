package bpfcc_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/go-tcpls/tcpls"
	"github.com/go-tcpls/tcpls/bpfcc"
)

// No goroutine outlives the tests.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newTestObject reads one of the compiled files.
func newTestObject(t testing.TB, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// needKernel skips a test where no congestion control can be loaded, and says
// why; with CI=true that is a failure.
func needKernel(t *testing.T) {
	t.Helper()
	switch err := bpfcc.Supported(); {
	case err != nil && os.Getenv("CI") == "true":
		t.Fatal(err)
	case err != nil:
		t.Skipf("this test loads programs into the kernel: %v", err)
	}
}

// available are the congestion controls of ours that the kernel knows.
func available(t *testing.T) (names []string) {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(string(b)) {
		if strings.HasPrefix(name, "tcpls_") {
			names = append(names, name)
		}
	}
	return names
}

// What is loaded is there by its name, and gone when it is closed.
func TestLoad(t *testing.T) {
	needKernel(t)
	h := &bpfcc.Host{MaxLoaded: 1}
	for _, o := range []tcpls.CCOffer{bpfcc.Bandwidth(), bpfcc.Scalable(), {Name: "stall", Object: newTestObject(t, "testdata/stall.o")}, {Name: "zero", Object: newTestObject(t, "testdata/zero.o")}} {
		p, err := h.Load(o)
		if err != nil {
			t.Errorf("%s: %v", o.Name, err)
			continue
		}
		if !slices.Contains(available(t), p.Name()) {
			t.Errorf("%s: the kernel doesn't know %s, but %v", o.Name, p.Name(), available(t))
		}
		for range 2 {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
		if slices.Contains(available(t), p.Name()) {
			t.Errorf("%s: the kernel still knows %s", o.Name, p.Name())
		}
	}
	if err := h.Check(bpfcc.Scalable()); err != nil {
		t.Errorf("one still counts as loaded: %v", err)
	}
}

// What the kernel doesn't take leaves nothing behind, and costs little memory
// however long the verifier has looked at it.
func TestKernelRefuses(t *testing.T) {
	needKernel(t)
	h := &bpfcc.Host{MaxLoaded: 1}
	for _, test := range []struct{ name, reason string }{
		{"forbidden", "no write support to tcp_sock"},
		{"incomplete", "invalid argument"},
		{"endless", "too large. Processed 1000001 insn"},
	} {
		object, marked := mark(t, newTestObject(t, "testdata/"+test.name+".o"), test.name)
		before := held(t)
		var start, end runtime.MemStats
		runtime.ReadMemStats(&start)
		_, err := h.Load(tcpls.CCOffer{Object: object})
		runtime.ReadMemStats(&end)
		var coded *tcpls.CCError
		if !errors.As(err, &coded) || coded.Code != tcpls.CCVerifier || !strings.Contains(coded.Reason, test.reason) {
			t.Errorf("%s: %v", test.name, err)
		}
		if took := end.TotalAlloc - start.TotalAlloc; took > 32<<20 {
			t.Errorf("%s: its refusal took %d bytes of memory", test.name, took)
		}
		wantNothingLeft(t, test.name, marked, before)
	}
	if err := h.Check(bpfcc.Scalable()); err != nil {
		t.Errorf("one still counts as loaded: %v", err)
	}
}

func TestMaxLoaded(t *testing.T) {
	needKernel(t)
	h := &bpfcc.Host{MaxLoaded: 2, MaxObject: 7000}
	var loaded []tcpls.CCProgram
	for range 2 {
		if err := h.Check(bpfcc.Scalable()); err != nil {
			t.Fatal(err)
		}
		p, err := h.Load(bpfcc.Scalable())
		if err != nil {
			t.Fatal(err)
		}
		loaded = append(loaded, p)
	}
	if _, err := h.Load(bpfcc.Scalable()); !errors.Is(err, &tcpls.CCError{Code: tcpls.CCTooMany}) || !errors.Is(h.Check(bpfcc.Scalable()), &tcpls.CCError{Code: tcpls.CCTooMany}) {
		t.Errorf("a third one: %v", err)
	}
	for _, p := range loaded {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := h.Load(bpfcc.Bandwidth()); h.MaxSize() != 7000 || !errors.Is(err, &tcpls.CCError{Code: tcpls.CCTooLarge}) {
		t.Errorf("one of %d bytes: %v", len(bpfcc.Bandwidth().Object), err)
	}
}

// A process without the capabilities says which it lacks.
func TestWithoutPrivileges(t *testing.T) {
	needKernel(t)
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // which ends with the goroutine, and with it the loss of its capabilities
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		err := unix.Capset(&header, &none[0])
		if err == nil {
			err = bpfcc.Supported()
		}
		result <- err
	}()
	err := <-result
	if !errors.Is(err, &tcpls.CCError{Code: tcpls.CCUnsupported}) || !strings.Contains(err.Error(), "CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN") {
		t.Errorf("without capabilities: %v", err)
	}
}

// A kernel that is too old is told before the object is sent.
func TestOldKernel(t *testing.T) {
	needKernel(t)
	o := bpfcc.Scalable()
	o.MinKernel = [2]int{200, 0}
	if err := new(bpfcc.Host).Check(o); !errors.Is(err, &tcpls.CCError{Code: tcpls.CCUnsupported}) || !strings.Contains(err.Error(), "Linux 200.0") {
		t.Errorf("%v", err)
	}
}

// loaderVariable names the test whose child process is to load something.
const loaderVariable = "BPFCC_TEST_LOADER"

// A process that is killed leaves nothing behind.
func TestKilled(t *testing.T) {
	needKernel(t)
	if os.Getenv(loaderVariable) != "" {
		p, err := new(bpfcc.Host).Load(bpfcc.Scalable())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println(p.Name())
		select {} // until it is killed
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilled$", "-test.timeout=1m")
	cmd.Env = append(os.Environ(), loaderVariable+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	name, err := bufio.NewReader(out).ReadString('\n')
	name = strings.TrimSpace(name)
	if err != nil || !slices.Contains(available(t), name) {
		t.Errorf("the process has loaded %q, %v; the kernel knows %v", name, err, available(t))
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	if slices.Contains(available(t), name) {
		t.Errorf("the kernel still knows %s", name)
	}
}
