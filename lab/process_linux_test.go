package lab_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/go-tcpls/tcpls/lab"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func init() {
	lab.Register("interfaces", printInterfaces)
	lab.Register("fail", func([]string) error { return errors.New("it failed") })
}

func printInterfaces(args []string) error {
	all, err := net.Interfaces()
	if err != nil {
		return err
	}
	fmt.Print(args)
	for _, i := range all {
		fmt.Print(" ", i.Name)
	}
	return nil
}

func TestProgram(t *testing.T) {
	n := lab.Start(t, lab.TwoHosts(lab.Shape{}))
	out, err := n.Host("server").Program(t.Context(), "interfaces", "one", "two").Output()
	if err != nil || string(out) != "[one two] lo path0" {
		t.Errorf("the program printed %q, %v", out, err)
	}
	var exit *exec.ExitError
	_, err = n.Host("server").Program(t.Context(), "fail").Output()
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || string(exit.Stderr) != "fail: it failed\n" {
		t.Errorf("a program that fails: %v", err)
	}
}

// TestMain makes this program the victim of TestNothingRemains, or the nobody of
// TestNeedsRoot, if it asks for it.
func TestMain(m *testing.M) {
	switch os.Getenv("LAB_TEST_AS") {
	case "victim":
		victim()
	case "nobody":
		nobody()
	}
	// Each process of a race build would wait for a second at its end.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=10"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// victim makes a network, with a command that has children on one of its hosts,
// and waits for its end.
func victim() {
	n, err := lab.New(lab.TwoHosts(lab.Shape{}))
	if err == nil {
		err = os.WriteFile(filepath.Join(n.Dir(), "file"), nil, 0o600)
	}
	if err == nil {
		cmd := n.Host("client").Command(context.Background(), "sh", "-c", "sleep 1000 & sleep 1000 & echo $0 `readlink /proc/self/ns/net`; wait", n.Dir())
		cmd.Stdout = os.Stdout
		err = cmd.Start()
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	select {}
}

func TestNothingRemains(t *testing.T) {
	if lab.Supported() != nil {
		lab.Start(t, lab.TwoHosts(lab.Shape{}))
	}
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), "LAB_TEST_AS=victim")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			out, err := cmd.StdoutPipe()
			if err == nil {
				err = cmd.Start()
			}
			if err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatalf("the victim says %q, %v", line, err)
			}
			dir, namespace, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			if _, err := os.Stat(dir); err != nil || !strings.HasPrefix(namespace, "net:[") {
				t.Fatalf("the victim says %q, %v", line, err)
			}
			if holders(t, namespace) == 0 {
				t.Error("nobody has the namespace open")
			}
			began := descendants(t, cmd.Process.Pid)
			if len(began) != 4 { // the emulator, the shell, two sleeps
				t.Errorf("the victim has %d descendants", len(began))
			}
			// As Ctrl-C does, to the whole group.
			if err := unix.Kill(-cmd.Process.Pid, sig); err != nil {
				t.Fatal(err)
			}
			for pid, fd := range began {
				if err := waitPidfd(fd); err != nil {
					t.Errorf("process %d: %v", pid, err)
				}
			}
			if _, err := io.ReadAll(out); err != nil {
				t.Error(err)
			}
			if err := cmd.Wait(); err == nil {
				t.Error("the victim ended by itself")
			}
			if n := holders(t, namespace); n > 0 {
				t.Errorf("the namespace is still there, %d times", n)
			}
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the network's folder: %v", err)
			}
		})
	}
}

// holders counts what keeps a namespace: processes in it, files and mounts.
func holders(t *testing.T, namespace string) (n int) {
	t.Helper()
	for _, pattern := range []string{"/proc/[0-9]*/ns/net", "/proc/[0-9]*/fd/*"} {
		links, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, link := range links {
			if to, err := os.Readlink(link); err == nil && to == namespace { // else it is gone
				n++
			}
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return n + bytes.Count(mounts, []byte(namespace))
}

// nobody gives up root, and tries to make a network.
func nobody() {
	const uid = 65534
	err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(uid), syscall.Setuid(uid))
	if err == nil {
		_, err = lab.New(lab.TwoHosts(lab.Shape{}))
	}
	fmt.Println(errors.Is(err, lab.ErrUnsupported), err)
	os.Exit(0)
}

func TestNeedsRoot(t *testing.T) {
	if os.Getuid() != 0 {
		lab.Start(t, lab.TwoHosts(lab.Shape{}))
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "LAB_TEST_AS=nobody")
	out, err := cmd.Output()
	if text := string(out); err != nil || !strings.HasPrefix(text, "true lab: ") || !strings.Contains(text, "run it as root") {
		t.Errorf("without root: %q, %v", text, err)
	}
}

// descendants returns all processes that a process has started, and they, with
// a file each that tells when it ends.
func descendants(t *testing.T, pid int) map[int]int {
	t.Helper()
	found := make(map[int]int)
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range lists {
		children, err := os.ReadFile(list)
		if err != nil {
			t.Fatal(err)
		}
		for field := range strings.FieldsSeq(string(children)) {
			child, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			if found[child], err = unix.PidfdOpen(child, 0); err != nil {
				t.Fatal(err)
			}
			for grandchild, fd := range descendants(t, child) {
				found[grandchild] = fd
			}
		}
	}
	return found
}

func waitPidfd(fd int) error {
	defer unix.Close(fd)
	const patience = 10000 // ms
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, patience)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return errors.New("still there")
		default:
			return nil
		}
	}
}

// TestCloseLeavesNothingOpen makes and closes networks, and one that can't be made.
func TestCloseLeavesNothingOpen(t *testing.T) {
	wrong := lab.TwoHosts(lab.Shape{})
	wrong.Hosts = []lab.HostSpec{{Name: "client", Sysctls: map[string]string{"net.no.such": "1"}}}
	files := func() int {
		open, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(open)
	}
	var before int
	var goroutines goleak.Option
	for i := range 6 {
		n, err := lab.New(lab.TwoHosts(lab.Shape{}, lab.Shape{}))
		if errors.Is(err, lab.ErrUnsupported) {
			lab.Start(t, lab.TwoHosts(lab.Shape{}))
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(n.Close(), n.Close()); err != nil {
			t.Error(err)
		}
		if _, err := lab.New(wrong); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a kernel parameter that isn't there: %v", err)
		}
		if i == 0 { // by now, the runtime has opened what it needs
			before, goroutines = files(), goleak.IgnoreCurrent()
		}
	}
	if after := files(); after > before {
		t.Errorf("%d files are open, %d were", after, before)
	}
	goleak.VerifyNone(t, goroutines)
}

// TestEmulatorDies kills the emulator alone. What runs on the hosts ends at the
// latest when the network is closed, which says what happened.
func TestEmulatorDies(t *testing.T) {
	if lab.Supported() != nil {
		lab.Start(t, lab.TwoHosts(lab.Shape{}))
	}
	others := descendants(t, os.Getpid())
	n, err := lab.New(lab.TwoHosts(lab.Shape{}))
	if err != nil {
		t.Fatal(err)
	}
	for pid, fd := range descendants(t, os.Getpid()) {
		if _, known := others[pid]; known {
			continue
		}
		if err := unix.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := waitPidfd(fd); err != nil {
			t.Fatal(err)
		}
	}
	cmd := n.Host("client").Command(t.Context(), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := n.Link("path0").SetBlackhole(true); err == nil || n.Link("path0").Shape("client").Blackhole {
		t.Errorf("an order to an emulator that is gone: %v", err)
	}
	if err := n.Close(); err == nil || !strings.Contains(err.Error(), "the emulator: signal: killed") {
		t.Errorf("closing a network whose emulator was killed: %v", err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the command ended by itself")
	}
	if _, err := os.Stat(n.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the network's folder: %v", err)
	}
}
