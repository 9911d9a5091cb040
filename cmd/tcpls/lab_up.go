package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/go-tcpls/tcpls/lab"
)

func (t *tool) labUpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "up FILE",
		Short: "Make the network of a topology's file, until interrupted",
		Long: `Make an emulated network from a file, and keep it until the program is interrupted or told
to quit. The file is JSON, as docs/lab.md says it. Needs Linux and root.

It prints the command that runs something on each host, and takes orders from standard
input, one a line:

` + labOrders,
		Example: `  tcpls lab up two-isps.json
  nsenter --net=/proc/4711/fd/7 tcpls serve photos     # in another terminal`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &usageError{"one topology's file is needed", "docs/lab.md has an example"}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return t.labUp(cmd.Context(), args[0]) },
	}
}

// labOrders tells what labConsole.obey does.
const labOrders = `    set LINK[/HOST] SHAPE     as 'set wifi rate=5Mbit/s loss=1%'; with a HOST, for its packets only
    down LINK[/HOST]          switch off the interfaces at both ends, or at one
    up LINK[/HOST]            switch them on
    reset LINK                reset the TCP connections that cross it
    boxes LINK [BOX, BOX...]  other middleboxes, as 'boxes wifi nat idle=30s, clamp-mss 1200'
    show LINK                 what the link does, and has done
    run HOST COMMAND          run a shell command on a host, to its end
    quit                      take the network down
`

func (t *tool) labUp(ctx context.Context, file string) (err error) {
	topology, err := lab.LoadTopology(file)
	if err != nil {
		return &localError{err}
	}
	network, err := lab.New(topology)
	if err != nil {
		return &localError{err}
	}
	defer func() {
		if closed := network.Close(); closed != nil {
			err = errors.Join(err, &localError{closed})
		}
	}()
	for _, h := range network.Hosts() {
		fmt.Fprintf(t.out, "%s: nsenter --net=%s COMMAND\n", h.Name(), h.Namespace())
	}
	t.say("the network is up; quit or an interrupt takes it down, help tells more")
	lines := make(chan string)
	go func() { // lives as long as the process: nothing else reads the input
		for in := bufio.NewScanner(t.in); in.Scan(); {
			lines <- in.Text()
		}
	}()
	console := &labConsole{t, network}
	for {
		select {
		case <-ctx.Done():
			return nil
		case line := <-lines:
			if strings.TrimSpace(line) == "quit" {
				return nil
			}
			if err := console.obey(ctx, line); err != nil && ctx.Err() == nil {
				t.say("error: %s", strings.TrimPrefix(err.Error(), "lab: "))
			}
		}
	}
}

// A labConsole carries out orders about a network.
type labConsole struct {
	*tool
	network *lab.Network
}

func (c *labConsole) obey(ctx context.Context, line string) error {
	order, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	subject, rest, _ := strings.Cut(strings.TrimSpace(rest), " ")
	rest = strings.TrimSpace(rest)
	switch order {
	case "":
		return nil
	case "help":
		c.say("%s", strings.TrimSuffix(labOrders, "\n"))
		return nil
	case "run":
		if rest == "" {
			return errors.New("run what? as 'run HOST COMMAND'")
		}
		return c.run(ctx, subject, rest)
	case "set", "down", "up", "reset", "boxes", "show":
		if subject == "" {
			return fmt.Errorf("%s which link? %s", order, c.linkNames())
		}
	default:
		return fmt.Errorf("there is no order %q; help lists them", order)
	}
	name, hostName, atHost := strings.Cut(subject, "/")
	link, host, err := c.find(name, hostName)
	switch {
	case err != nil:
		return err
	case order == "set" && rest == "":
		return errors.New("set LINK what? as rate=5Mbit/s")
	case order == "set":
		return setLink(link, hostName, rest)
	case (order == "down" || order == "up") && atHost:
		return host.SetUp(name, order == "up")
	case order == "down" || order == "up":
		return link.SetUp(order == "up")
	case atHost:
		return fmt.Errorf("%s is for both ends of a link", order)
	case order == "reset":
		return link.Reset()
	case order == "boxes":
		return setBoxes(link, rest)
	}
	return c.show(link)
}

// find returns a link and, if it is named, the host at one of its ends.
func (c *labConsole) find(link, host string) (*lab.Link, *lab.Host, error) {
	for _, l := range c.network.Links() {
		if l.Name() != link {
			continue
		}
		for _, h := range l.Hosts() {
			if h.Name() == host {
				return l, h, nil
			}
		}
		if host != "" {
			return nil, nil, fmt.Errorf("link %s doesn't end at a host %q", link, host)
		}
		return l, nil, nil
	}
	return nil, nil, fmt.Errorf("there is no link %q; %s", link, c.linkNames())
}

func (c *labConsole) linkNames() string {
	var names []string
	for _, l := range c.network.Links() {
		names = append(names, l.Name())
	}
	return "the links are: " + strings.Join(names, ", ")
}

// setLink changes what a link does, to a host's packets or to all.
func setLink(l *lab.Link, host, text string) error {
	var wrong error
	change := func(s *lab.Shape) {
		if err := s.UnmarshalText([]byte(text)); err != nil {
			wrong = err
		}
	}
	var err error
	if host == "" {
		err = l.Change(change)
	} else {
		err = l.ChangeFrom(host, change)
	}
	return errors.Join(wrong, err)
}

func setBoxes(l *lab.Link, text string) error {
	var boxes []lab.Middlebox
	for word := range strings.SplitSeq(text, ",") {
		if text == "" {
			break
		}
		box, err := lab.ParseMiddlebox(word)
		if err != nil {
			return err
		}
		boxes = append(boxes, box)
	}
	return l.SetBoxes(boxes...)
}

// show prints a link's shape and counters, a line a direction.
func (c *labConsole) show(l *lab.Link) error {
	hosts := l.Hosts()
	for i, from := range hosts {
		n, err := l.Counters(from.Name())
		if err != nil {
			return err
		}
		fmt.Fprintf(c.out, "%s %s to %s: %d packets, %d delivered, %d lost, %d overflown, %d blackholed, %d too big, %d filtered, %d undelivered; %v\n",
			l.Name(), from.Name(), hosts[1-i].Name(), n.Packets, n.Delivered, n.Lost, n.Overflown, n.Blackholed, n.TooBig, n.Filtered, n.Undelivered,
			l.Shape(from.Name()))
	}
	return nil
}

func (c *labConsole) run(ctx context.Context, host, command string) error {
	for _, h := range c.network.Hosts() {
		if h.Name() == host {
			cmd := h.Command(ctx, "sh", "-c", command)
			cmd.Stdout, cmd.Stderr = c.out, c.err
			return cmd.Run()
		}
	}
	return fmt.Errorf("there is no host %q", host)
}
