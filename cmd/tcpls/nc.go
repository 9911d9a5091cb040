package main

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/go-tcpls/tcpls"
)

// ncFlags are the flags of nc.
type ncFlags struct {
	clientFlags
	identityFlags
	listen bool
}

func (t *tool) ncCommand() *cobra.Command {
	f := new(ncFlags)
	cmd := &cobra.Command{
		Use:   "nc HOST:PORT | nc -l ADDR",
		Short: "Join stdin and stdout to one stream",
		Long: `Join standard input and output to one stream, of a server or, with -l, of the first
client that opens one. The end of the input ends that direction only; nc ends when
both have. With -l the URL for the other end is the first line on standard error.`,
		Example: "  tcpls nc -l :4433 < backup.tar\n  tcpls nc 'tcpls://192.0.2.7:4433/?pin=sha256:5f0c...' < /dev/null > backup.tar",
		Args:    atLeast(1, "an address is needed"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := atMost(1)(cmd, args); err != nil {
				return err
			}
			if f.listen {
				return t.ncListen(cmd.Context(), f, args[0])
			}
			return t.ncDial(cmd.Context(), f, args[0])
		},
	}
	f.clientFlags.register(cmd)
	f.paths.register(cmd, &f.mode)
	f.identityFlags.register(cmd)
	cmd.Flags().BoolVarP(&f.listen, "listen", "l", false, "listen on ADDR and serve one stream")
	return cmd
}

func (t *tool) ncDial(ctx context.Context, f *ncFlags, peer string) error {
	if f.cert != "" || f.key != "" {
		return &usageError{"--cert and --key go with -l", ""}
	}
	to, err := parsePeer(peer)
	if err != nil {
		return err
	}
	config, err := f.config(t, to)
	if err != nil {
		return err
	}
	config.IdleTimeout = 0 // silence is normal here
	config.Logger = t.pathLogger()
	d := f.dialer(config)
	session, err := d.Dial(ctx, "tcp", to.address)
	if err != nil {
		return err
	}
	defer session.Close()
	keeper := &pathKeeper{tool: t, specs: f.paths, options: f.options}
	keeper.meet(session)
	stream, err := session.OpenStream(ctx)
	if err != nil {
		return err
	}
	return t.join(ctx, stream)
}

func (t *tool) ncListen(ctx context.Context, f *ncFlags, address string) error {
	ln, here, err := t.listen(ctx, address, &f.identityFlags, f.requireTCPLS)
	if err != nil {
		return err
	}
	defer ln.Close()
	t.say("%s", here.share("/"))
	streams := ln.Streams()
	unblock := context.AfterFunc(ctx, func() { streams.Close() })
	defer unblock()
	conn, err := streams.Accept()
	if err != nil {
		return err
	}
	stream := conn.(*tcpls.Stream)
	defer stream.Session().Close()
	t.logger.Info("connected", "peer", stream.RemoteAddr())
	return t.join(ctx, stream)
}

// join copies both ways until both have ended, and the peer has all. A read
// from standard input can't be interrupted: after an error on the stream it is
// left to the end of the process.
func (t *tool) join(ctx context.Context, stream *tcpls.Stream) error {
	unblock := context.AfterFunc(ctx, func() { stream.SetDeadline(time.Unix(1, 0)) })
	defer unblock()
	sent := make(chan error, 1)
	inputEnded := make(chan struct{})
	go func() {
		_, err := io.Copy(stream, t.in)
		if err == nil {
			close(inputEnded) // before the peer can know
			err = stream.CloseWrite()
		}
		sent <- err
	}()
	if _, err := io.Copy(t.out, stream); err != nil {
		return err
	}
	// The peer may close the session as soon as it has all: what was sent counts.
	var err error
	select {
	case err = <-sent:
	case <-stream.Session().Context().Done():
		select {
		case err = <-sent:
		case <-inputEnded:
			err = <-sent
		default:
			err = context.Cause(stream.Session().Context())
		}
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	return stream.Flush(ctx)
}
