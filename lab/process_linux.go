package lab

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The names under which this program is started again.
const (
	emulatorName = "tcpls-lab-emulator"
	enterName    = "tcpls-lab-enter"
	programName  = "tcpls-lab-program"
)

const thisProgram = "/proc/self/exe"

// The files of an emulator: the connection to its network, the namespaces, and
// the TUN devices, two a link.
const (
	controlFile = 3
	firstFile   = 4
)

// Neither returns.
func init() {
	switch os.Args[0] {
	case emulatorName:
		emulatorMain()
	case enterName:
		enterMain()
	}
}

// enterMain enters a namespace and becomes a command. Until main begins, the
// main goroutine stays on the main thread, whose namespace the command inherits.
func enterMain() {
	if len(os.Args) < 5 {
		fatalf("for this program's own use only")
	}
	fd, err := unix.Open(os.Args[1], unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Setns(fd, unix.CLONE_NEWNET)
	}
	// The name goes, or means another one, before the network's end looks for
	// processes: either that finds this one, or this one finds that out.
	var named, entered string
	if err == nil {
		named, err = os.Readlink(os.Args[1])
	}
	if err == nil {
		entered, err = os.Readlink(threadNetns)
	}
	if err != nil || named != entered || entered != os.Args[2] {
		fatalf("the host's network is gone: %v", err)
	}
	err = syscall.Exec(os.Args[3], os.Args[4:], os.Environ())
	fatalf("%s: %v", os.Args[3], err)
}

// becomeProgram is called by Register. It runs the program, and doesn't return,
// if this process was started for it.
func becomeProgram(name string, f func(args []string) error) {
	if os.Args[0] != programName || len(os.Args) < 2 || os.Args[1] != name {
		return
	}
	args := os.Args[2:]
	os.Args = os.Args[1:]
	done := make(chan error)
	go func() { done <- f(args) }() // this goroutine is bound to the main thread
	if err := <-done; err != nil {
		fatalf("%v", err)
	}
	os.Exit(0)
}

func fatalf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, os.Args[0]+": "+format+"\n", args...)
	os.Exit(1)
}

// An emulatorProcess is the process that moves a network's packets.
type emulatorProcess struct {
	cmd   *exec.Cmd
	hosts []string // as in /proc/PID/ns/net
	dir   string   // the emulator's, which removes it

	mu   sync.Mutex
	conn *os.File
	enc  *gob.Encoder
	dec  *gob.Decoder
}

func startEmulator(n *Network, tuns []*os.File) (*emulatorProcess, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "emulator"), os.NewFile(uintptr(pair[1]), "network")
	defer theirs.Close()
	e := &emulatorProcess{conn: ours, enc: gob.NewEncoder(ours), dec: gob.NewDecoder(ours)}
	// The garbage collector would stop the emulator's loop, and so would the
	// scheduler's signals. What it keeps is bounded without it.
	e.cmd = exec.Command(thisProgram)
	e.cmd.Args = []string{emulatorName}
	e.cmd.Env = append(os.Environ(), "GOMAXPROCS=4", "GOGC=off", "GOMEMLIMIT=1GiB",
		"GODEBUG=asyncpreemptoff=1,"+os.Getenv("GODEBUG"))
	e.cmd.Stderr = os.Stderr
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for us; it sees us end
	e.cmd.ExtraFiles = []*os.File{theirs}
	begin := setup{Seed: n.topology.Seed, Hosts: len(n.hosts)}
	for _, h := range n.Hosts() {
		e.cmd.ExtraFiles = append(e.cmd.ExtraFiles, h.ns.file)
		e.hosts = append(e.hosts, h.ns.id)
	}
	e.cmd.ExtraFiles = append(e.cmd.ExtraFiles, tuns...)
	for i := range n.topology.Links {
		l := &n.topology.Links[i]
		begin.Links = append(begin.Links, linkSetup{l.mtu(), l.shapes(), l.Boxes})
	}
	if err := e.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("starting the emulator: %w", err), ours.Close())
	}
	first, err := e.call(begin)
	if err != nil {
		return nil, errors.Join(err, e.close())
	}
	e.dir = first.Dir
	return e, nil
}

// call gives the setup or an order, and waits until it is carried out.
func (e *emulatorProcess) call(v any) (r report, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err = e.enc.Encode(v); err == nil {
		err = e.dec.Decode(&r)
	}
	if err != nil {
		return r, fmt.Errorf("the network's emulator doesn't answer: %w", err)
	}
	return r, nil
}

// closePatience is how long an emulator may take to end all on its hosts.
const closePatience = 10 * time.Second

// close ends the emulator, and what runs on the hosts.
func (e *emulatorProcess) close() error {
	err := e.conn.Close()                                                       // which ends the emulator
	stuck := time.AfterFunc(closePatience, func() { _ = e.cmd.Process.Kill() }) // or it has just ended
	waited := e.cmd.Wait()
	stuck.Stop()
	endProcesses(e.hosts, os.Getpid(), os.Getpid()) // this and the next if the emulator was killed
	if e.dir != "" {
		err = errors.Join(err, os.RemoveAll(e.dir))
	}
	if waited != nil {
		return errors.Join(fmt.Errorf("the emulator: %w", waited), err)
	}
	return err
}

// endProcesses kills all processes in network namespaces but two, until there are none
// or some don't die. It must hold the namespaces open, else their numbers might
// mean others.
func endProcesses(namespaces []string, but ...int) {
	for range 100 {
		found := false
		dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is good
		for _, dir := range dirs {
			pid, err := strconv.Atoi(strings.TrimPrefix(dir, "/proc/"))
			if err != nil {
				continue
			}
			if !slices.Contains(but, pid) && endProcess(pid, namespaces) {
				found = true
			}
		}
		if !found {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// endProcess kills a process if it is in one of the namespaces, and reports that.
// The file makes sure that it isn't another one with the same number.
func endProcess(pid int, namespaces []string) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	id, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil || !slices.Contains(namespaces, id) {
		return false
	}
	return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil
}

// emulatorMain is the emulator's main. It ends when its network does.
func emulatorMain() {
	conn := os.NewFile(controlFile, "network")
	dec, enc := gob.NewDecoder(conn), gob.NewEncoder(conn)
	var begin setup
	if err := dec.Decode(&begin); err != nil {
		if err == io.EOF {
			os.Exit(0)
		}
		fatalf("for this program's own use only: %v", err)
	}
	parent := os.Getppid()
	var hosts []string
	for i := range begin.Hosts {
		id, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", firstFile+i))
		if err != nil {
			fatalf("%v", err)
		}
		hosts = append(hosts, id)
	}
	e, err := newEmulator(&begin)
	if err != nil {
		fatalf("%v", err)
	}
	dir, err := os.MkdirTemp("", "tcpls-lab-")
	if err == nil {
		err = os.Chmod(dir, 0o755) // for programs that give up root
	}
	if err != nil {
		fatalf("%v", err)
	}
	go func() {
		r := report{Dir: dir}
		for {
			if err := enc.Encode(r); err != nil {
				break
			}
			var o order
			if err := dec.Decode(&o); err != nil {
				break
			}
			r = e.carryOut(o)
		}
		endProcesses(hosts, os.Getpid(), parent)
		if err := os.RemoveAll(dir); err != nil {
			fatalf("%v", err)
		}
		os.Exit(0)
	}()
	e.run()
}
