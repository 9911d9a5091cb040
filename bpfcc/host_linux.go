package bpfcc

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/go-tcpls/tcpls"
)

func unsupported(format string, args ...any) error {
	return &tcpls.CCError{Code: tcpls.CCUnsupported, Reason: fmt.Sprintf(format, args...)}
}

// firstKernel has links of struct_ops, which end with their process.
var firstKernel = [2]int{6, 4}

// checkSystem tells what the kernel or the process lacks.
func checkSystem(kernel [2]int) error {
	if kernel[0] < firstKernel[0] || kernel[0] == firstKernel[0] && kernel[1] < firstKernel[1] {
		kernel = firstKernel
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return unsupported("uname: %v", err)
	}
	release := unix.ByteSliceToString(name.Release[:])
	if has := version(release); has[0] < kernel[0] || has[0] == kernel[0] && has[1] < kernel[1] {
		return unsupported("it needs Linux %d.%d; this is %s", kernel[0], kernel[1], release)
	}
	if missing := missingCapabilities(); len(missing) > 0 {
		return unsupported("the process lacks %s", strings.Join(missing, ", "))
	}
	if _, err := btf.LoadKernelSpec(); err != nil {
		return unsupported("the kernel tells nothing of its types (CONFIG_DEBUG_INFO_BTF)")
	}
	return nil
}

// version reads the first two numbers of a release as "6.18.44-generic".
func version(release string) (v [2]int) {
	for i, part := range strings.SplitN(release, ".", 3)[:min(2, strings.Count(release, ".")+1)] {
		digits := strings.IndexFunc(part+"x", func(r rune) bool { return r < '0' || r > '9' })
		v[i], _ = strconv.Atoi(part[:digits]) // 0 is older than all that will do
	}
	return v
}

// missingCapabilities names those that loading and choosing need, and the
// process hasn't.
func missingCapabilities() (missing []string) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return []string{fmt.Sprintf("the right to know its capabilities (%v)", err)}
	}
	has := func(c int) bool { return data[c/32].Effective&(1<<(c%32)) != 0 }
	for _, c := range []struct {
		number int
		name   string
		covers bool // by CAP_SYS_ADMIN
	}{{unix.CAP_BPF, "CAP_BPF", true}, {unix.CAP_PERFMON, "CAP_PERFMON", true}, {unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", false}} {
		if !has(c.number) && !(c.covers && has(unix.CAP_SYS_ADMIN)) {
			missing = append(missing, c.name)
		}
	}
	return missing
}

// A program is what the kernel holds for us. It goes with the last of its file
// descriptors.
type program struct {
	name       string
	collection *ebpf.Collection
	link       link.Link
}

func (p *program) Name() string { return p.name }

func (p *program) Close() error {
	err := p.link.Close()
	p.collection.Close()
	return err
}

// register loads the object and makes it a congestion control with that name,
// which it has been given.
func (o *object) register(name string) (tcpls.CCProgram, error) {
	c, err := ebpf.NewCollectionWithOptions(o.spec, ebpf.CollectionOptions{
		// By default a refused program would be loaded again, for a log of all that
		// the verifier has looked at, which may be hundreds of megabytes.
		Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats},
	})
	if err != nil {
		return nil, loadError(err)
	}
	l, err := link.AttachStructOps(link.StructOpsOptions{Map: c.Maps[o.ops]})
	if err != nil {
		c.Close()
		return nil, loadError(fmt.Errorf("registering it: %w", err))
	}
	return &program{name, c, l}, nil
}

// loadError tells whose fault it is that the kernel doesn't take an object.
func loadError(err error) error {
	var verifier *ebpf.VerifierError
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, ebpf.ErrNotSupported):
		return unsupported("%v", err)
	case errors.As(err, &verifier):
		return &tcpls.CCError{Code: tcpls.CCVerifier, Reason: fmt.Sprintf("%v: %s", verifier.Cause, verdict(verifier.Log))}
	}
	return &tcpls.CCError{Code: tcpls.CCVerifier, Reason: err.Error()}
}

// verdict is what the verifier says before its statistics.
func verdict(log []string) string {
	end := slices.IndexFunc(log, func(line string) bool {
		return strings.HasPrefix(line, "verification time") || strings.HasPrefix(line, "processed ")
	})
	if end >= 0 {
		log = log[:end]
	}
	if len(log) == 0 {
		return "the verifier says nothing"
	}
	return log[len(log)-1]
}
