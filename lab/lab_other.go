//go:build !linux

package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
)

const onLinux = false

// Supported returns nil if networks can be made here, and otherwise an error
// that wraps ErrUnsupported and says what is missing.
func Supported() error {
	return fmt.Errorf("%w: it needs Linux, this is %s", ErrUnsupported, runtime.GOOS)
}

// A namespace is never made here, since New fails first.
type namespace struct{}

func newNamespace() (*namespace, error) { return nil, Supported() }

func (*namespace) do(func() error) error                 { return Supported() }
func (*namespace) shut() error                           { return nil }
func (*namespace) close() error                          { return nil }
func (*namespace) path() string                          { return "" }
func (*namespace) configure(*HostSpec) error             { return Supported() }
func (*namespace) setUp(string, bool) error              { return Supported() }
func (*namespace) addAddr(string, netip.Prefix) error    { return Supported() }
func (*namespace) removeAddr(string, netip.Prefix) error { return Supported() }
func (*namespace) addRoute(Route, int) error             { return Supported() }

func (*namespace) newTUN(string, int, []netip.Prefix) (*os.File, error) { return nil, Supported() }

func (*namespace) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Err = Supported()
	return cmd
}

func (ns *namespace) program(ctx context.Context, name string, args ...string) *exec.Cmd {
	return ns.command(ctx, name, args...)
}

func becomeProgram(string, func([]string) error) {}

type emulatorProcess struct{ dir string }

func startEmulator(*Network, []*os.File) (*emulatorProcess, error) { return nil, Supported() }

func (*emulatorProcess) call(any) (report, error) { return report{}, Supported() }
func (*emulatorProcess) close() error             { return nil }
