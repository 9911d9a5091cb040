package netns

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// inside names the test that a process is to run in its namespace.
const inside = "TCPLS_TEST_IN_NAMESPACE"

// Run runs f, the body of the top-level test t, in a process of its own whose
// network namespace is new: it has nothing but a loopback interface, which is
// up, and the process may change everything in it. The namespace ends with the
// process.
//
// It needs root, or user namespaces; where neither is to be had, the test is
// skipped, or fails if CI=true.
func Run(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	if os.Getenv(inside) == t.Name() {
		if err := SetLink("lo", true); err != nil {
			t.Fatal(err)
		}
		f(t)
		return
	}
	args := []string{"-test.run=^" + regexp.QuoteMeta(t.Name()) + "$", "-test.v"}
	if end, ok := t.Deadline(); ok {
		left := time.Until(end)
		args = append(args, "-test.timeout="+(left-left/10).String()) // so that what hangs is shown
	}
	out, err := start(t, args)
	var exit *exec.ExitError
	switch {
	case err != nil && !errors.As(err, &exit) && os.Getenv("CI") != "true":
		t.Skipf("a network namespace needs root or user namespaces: %v", err)
	case err != nil:
		t.Fatalf("in a namespace of its own: %v\n%s", err, out)
	case strings.Contains(out, "--- SKIP: "+t.Name()):
		t.Skip(out)
	case !strings.Contains(out, "--- PASS: "+t.Name()):
		t.Fatalf("the test didn't run in its namespace:\n%s", out)
	}
	t.Log(out)
}

// start runs the test binary in new namespaces.
func start(t *testing.T, args []string) (string, error) {
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), inside+"="+t.Name(), "GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=10")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if uid := os.Getuid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// SetSysctl sets a kernel parameter of the namespace, as
// "net.ipv4.tcp_fastopen".
func SetSysctl(name string, value int) error {
	file := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
	return os.WriteFile(file, fmt.Append(nil, value), 0)
}
