// Command tcpls moves files and bytes over TCPLS, looks at servers, and
// demonstrates the protocol. docs/tool.md is its manual.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const usage = `Usage:
    tcpls serve [DIR|FILE] [--listen ADDR] [--cert F --key F] [--allow-put]
    tcpls get URL... [-o FILE|DIR] [--path src:ADDR]...
    tcpls put FILE... URL [--path src:ADDR]...
    tcpls nc HOST:PORT
    tcpls nc -l ADDR
    tcpls check HOST[:PORT] [--json]
    tcpls demo [--mode failover|migrate] [--cut blackhole|rst|close] [--report F]
    tcpls lab list|run NAME...|all [--quick] [--out DIR]
    tcpls lab up FILE
    tcpls version
    tcpls completion bash|zsh|fish|powershell

    serve       share a folder or a file; prints its URL
    get         download files, verified and resumable
    put         upload files
    nc          join stdin and stdout to one stream
    check       say in words what a server speaks
    demo        download over TCPLS and over TLS while a link is cut
    lab         measure the protocol's claims against TLS, QUIC and Multipath TCP; emulate a network

Everywhere:
    --keylog F          append the TLS secrets to F, for Wireshark (also SSLKEYLOGFILE)
    --log-level LEVEL   debug, info, warn (default) or error
    -h, --help          more about a command

A URL is tcpls://HOST:PORT/PATH?pin=sha256:HEX as printed by serve, or https://...
Without a pin the system's certificate roots decide.

Exit status: 0 ok, 1 usage or a local file, 2 can't connect or listen, or no answer,
3 the peer isn't TCPLS where that was required, 4 verification failed, 5 interrupted.

Example:
    $ tcpls serve photos
    tcpls://192.0.2.7:4433/?pin=sha256:5f0c...
    $ tcpls get 'tcpls://192.0.2.7:4433/trip.zip?pin=sha256:5f0c...'
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal asks for an orderly end; a second one kills.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, newUI(os.Stdin, os.Stdout, os.Stderr), os.Args[1:]))
}

// A tool is one run of the program: what all commands share.
type tool struct {
	*ui
	keylog   string
	logLevel string

	logger *slog.Logger
	secret io.Writer // the key log, or nil

	opened       bool // the command line was understood
	insecureOnce sync.Once
}

// run executes one command line and returns the exit status.
func run(ctx context.Context, u *ui, args []string) int {
	t := &tool{ui: u}
	root := t.command()
	root.SetArgs(args)
	root.SetIn(u.in)
	root.SetOut(u.out)
	root.SetErr(u.err)
	err := root.ExecuteContext(ctx)
	if closer, ok := t.secret.(io.Closer); ok {
		closer.Close()
	}
	if err == nil {
		return exitOK
	}
	if usage := (*usageError)(nil); !t.opened && !errors.As(err, &usage) {
		err = &usageError{err.Error(), "run 'tcpls --help'"} // cobra's own
	}
	f := explain(ctx, err)
	u.fail(f)
	return f.status
}

// command builds the tree of commands.
func (t *tool) command() *cobra.Command {
	root := &cobra.Command{
		Use:               "tcpls",
		Args:              cobra.ArbitraryArgs,
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: func(*cobra.Command, []string) error { return t.open() },
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return &usageError{fmt.Sprintf("there is no command %q", args[0]), "run 'tcpls --help' for the list"}
			}
			return &usageError{"a command is needed", "run 'tcpls --help' for the list"}
		},
	}
	flags := root.PersistentFlags()
	flags.StringVar(&t.keylog, "keylog", "", "append the TLS secrets to `file`")
	flags.StringVar(&t.logLevel, "log-level", "warn", "debug, info, warn or error")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{flagText(err), fmt.Sprintf("run '%s --help'", cmd.CommandPath())}
	})
	help := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		if cmd == root {
			fmt.Fprint(t.out, usage)
			return
		}
		help(cmd, args)
	})
	root.AddCommand(t.serveCommand(), t.getCommand(), t.putCommand(), t.ncCommand(),
		t.checkCommand(), t.demoCommand(), t.labCommand(), t.versionCommand())
	refuseOtherShells(root)
	return root
}

// flagText says what is wrong with a flag, where package flag's words are Go's.
func flagText(err error) string {
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		return err.Error()
	}
	flag := invalid.GetFlag()
	what, ours := map[string]string{"int": "a number", "duration": "a time such as 10s or 500ms", "bool": "true or false"}[flag.Value.Type()]
	if !ours {
		return err.Error()
	}
	return fmt.Sprintf("--%s %q isn't %s", flag.Name, invalid.GetValue(), what)
}

// refuseOtherShells makes an error of what cobra answers with a page of help.
func refuseOtherShells(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() != "completion" {
			continue
		}
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(_ *cobra.Command, args []string) error {
			const shells = "there are scripts for bash, zsh, fish and powershell"
			if len(args) == 0 {
				return &usageError{"the name of a shell is needed", shells}
			}
			return &usageError{fmt.Sprintf("there is no completion script for %q", args[0]), shells}
		}
	}
}

// open prepares what the global flags ask for.
func (t *tool) open() error {
	t.opened = true
	var level slog.Level
	if err := level.UnmarshalText([]byte(t.logLevel)); err != nil || strings.ContainsAny(t.logLevel, "+-") {
		return &usageError{fmt.Sprintf("--log-level %q isn't debug, info, warn or error", t.logLevel), ""}
	}
	t.logger = slog.New(slog.NewTextHandler(t.logWriter(), &slog.HandlerOptions{Level: level}))
	name := t.keylog
	if name == "" {
		name = os.Getenv("SSLKEYLOGFILE")
	}
	if name == "" {
		return nil
	}
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return &localError{fmt.Errorf("key log: %w", err)}
	}
	t.secret = f
	t.say("warning: the secrets of all sessions go to %s; who has that file can read them", name)
	return nil
}

// pathLogger is for sessions whose events are told to the person anyway: it is
// silent at the default level.
func (t *tool) pathLogger() *slog.Logger {
	if t.logLevel == "warn" {
		return nil
	}
	return t.logger
}

// atLeast refuses fewer arguments, and says what is needed.
func atLeast(n int, need string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < n {
			return &usageError{need, fmt.Sprintf("run '%s --help'", cmd.CommandPath())}
		}
		return nil
	}
}

// atMost refuses more arguments.
func atMost(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > n {
			return &usageError{fmt.Sprintf("%q is one argument too many", args[n]), fmt.Sprintf("run '%s --help'", cmd.CommandPath())}
		}
		return nil
	}
}
