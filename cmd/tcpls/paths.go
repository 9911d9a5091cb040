package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/go-tcpls/tcpls"
	"github.com/go-tcpls/tcpls/sched"
)

// pathSpecs are the values of --path: between which addresses further paths of
// a session run.
type pathSpecs []tcpls.PathSpec

func (p *pathSpecs) register(cmd *cobra.Command, mode *pathMode) {
	*mode = pathMode(tcpls.ModeFailover)
	cmd.Flags().Var(mode, "mode", "how several paths are used: failover, aggregate, redundant or pinned")
	cmd.Flags().Var(p, "path", "open another path: from if:NAME or src:ADDR, to dst:ADDR:PORT, as a backup, with weight=N; several of these with commas; repeatable")
}

// pathMode is the value of --mode.
type pathMode tcpls.Mode

// Set parses the name of a mode.
func (m *pathMode) Set(text string) error {
	for mode := tcpls.ModeFailover; mode <= tcpls.ModePinned; mode++ {
		if text == mode.String() {
			*m = pathMode(mode)
			return nil
		}
	}
	return fmt.Errorf("%q isn't failover, aggregate, redundant or pinned", text)
}

func (m *pathMode) String() string { return tcpls.Mode(*m).String() }

// Type names the flag's value in help texts.
func (m *pathMode) Type() string { return "mode" }

// Set parses one more path.
func (p *pathSpecs) Set(text string) error {
	var spec tcpls.PathSpec
	for part := range strings.SplitSeq(text, ",") {
		end, address, _ := strings.Cut(part, ":")
		weight, weighted := strings.CutPrefix(part, "weight=")
		if weighted {
			end = "weight"
		}
		var err error
		switch end {
		case "weight":
			if spec.Weight, err = strconv.Atoi(weight); err != nil || spec.Weight < 1 || spec.Weight > sched.MaxWeight {
				return fmt.Errorf("%q isn't a weight: it goes from 1 to %d", weight, sched.MaxWeight)
			}
		case "if":
			if spec.Interface = address; address == "" {
				err = errors.New("no name")
			}
		case "backup":
			if spec.Backup = true; address != "" {
				err = errors.New("backup has no value")
			}
		case "src":
			var local netip.Addr
			local, err = netip.ParseAddr(strings.Trim(address, "[]"))
			spec.Local = netip.AddrPortFrom(local, 0)
		case "dst":
			spec.Remote, err = netip.ParseAddrPort(address)
		default:
			err = errors.New("none of if, src, dst, backup, weight")
		}
		if err != nil {
			return fmt.Errorf("%q isn't a path such as if:wlan0,backup or src:192.0.2.7 or dst:198.51.100.1:4433", text)
		}
	}
	*p = append(*p, spec)
	return nil
}

// String lists the paths as Set takes them.
func (p *pathSpecs) String() string {
	var texts []string
	for _, spec := range *p {
		texts = append(texts, specText(spec))
	}
	return strings.Join(texts, " ")
}

func specText(spec tcpls.PathSpec) string {
	var parts []string
	if spec.Interface != "" {
		parts = append(parts, "if:"+spec.Interface)
	}
	if spec.Local.IsValid() {
		parts = append(parts, "src:"+spec.Local.Addr().String())
	}
	if spec.Remote.IsValid() {
		parts = append(parts, "dst:"+spec.Remote.String())
	}
	if spec.Backup {
		parts = append(parts, "backup")
	}
	if spec.Weight > 0 {
		parts = append(parts, fmt.Sprintf("weight=%d", spec.Weight))
	}
	return strings.Join(parts, ",")
}

// Type names the flag's value in help texts.
func (p *pathSpecs) Type() string { return "path" }

// A pathKeeper opens the further paths of a client's sessions, and says what
// happens to all of them. Its goroutines end with the sessions.
type pathKeeper struct {
	tool    *tool
	specs   pathSpecs
	options peerOptions

	mu       sync.Mutex
	sessions map[*tcpls.Session]map[*tcpls.Path]*meter
	plain    bool // a session over plain TLS was told of
}

// meet looks after a session that it doesn't know yet.
func (k *pathKeeper) meet(s *tcpls.Session) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !s.ConnectionState().TCPLS {
		k.meetPlain()
		return
	}
	if _, known := k.sessions[s]; known {
		return
	}
	if k.sessions == nil {
		k.sessions = make(map[*tcpls.Session]map[*tcpls.Path]*meter)
	}
	k.sessions[s] = nil
	k.findPaths(s, time.Now())
	context.AfterFunc(s.Context(), func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.sessions, s)
	})
	go k.observe(s)
	if len(k.options) > 0 {
		go k.ask(s)
	}
	for _, spec := range k.specs {
		go k.open(s, spec)
	}
}

// meetPlain says, once, what a server that speaks plain TLS can't give.
func (k *pathKeeper) meetPlain() {
	if k.plain {
		return
	}
	k.plain = true
	for _, spec := range k.specs {
		k.tool.say("warning: no path %s: %s", specText(spec), overPlainTLS)
	}
	if len(k.options) > 0 {
		k.tool.say("warning: no TCP options are set: %s", overPlainTLS)
	}
}

// overPlainTLS is why neither paths nor TCP options are to be had.
const overPlainTLS = "the server speaks plain TLS"

// joinPatience is how long a further path may take.
const joinPatience = 10 * time.Second

func (k *pathKeeper) open(s *tcpls.Session, spec tcpls.PathSpec) {
	ctx, cancel := context.WithTimeout(s.Context(), joinPatience)
	defer cancel()
	_, err := s.Ping(ctx) // behind it the server's tokens have come
	if err == nil {
		_, err = s.AddPath(ctx, spec)
	}
	if err != nil && s.Context().Err() == nil {
		k.tool.say("warning: no path %s: %s", specText(spec), cause(err))
	}
}

// ask has TCP options set, and says what isn't as it was asked for.
func (k *pathKeeper) ask(s *tcpls.Session) {
	results, err := k.options.ask(s.Context(), s)
	for _, r := range results {
		if r.Set != r.Asked {
			k.tool.say("warning: the server: %v", r)
		}
	}
	if err != nil && s.Context().Err() == nil {
		k.tool.say("warning: no TCP options are set: %s", cause(err))
	}
}

// observe says what happens to the paths of a session.
func (k *pathKeeper) observe(s *tcpls.Session) {
	for e := range s.Events(s.Context()) {
		if e.Kind == tcpls.EventPathJoined {
			k.mu.Lock()
			k.findPaths(s, time.Now())
			k.mu.Unlock()
		}
		if text := eventText(e); text != "" {
			k.tool.say("%s", text)
		}
	}
}

// eventText words an event for a person.
func eventText(e tcpls.Event) string {
	// What the server asks for is between it and the policy, and streams are the
	// tool's own business.
	if e.Kind == tcpls.EventTCPOption || e.Stream != nil {
		return ""
	}
	if e.Path == nil {
		switch e.Kind {
		case tcpls.EventNoPath:
			return "no path is left, looking for another one: " + cause(e.Err)
		case tcpls.EventCCLoaded:
			return "a congestion control of the server is in use"
		case tcpls.EventCCEnded:
			if e.Err == nil {
				return "the server has taken its congestion control back"
			}
			return "the server's congestion control was switched back: " + ccReason(e.Err)
		case tcpls.EventMissed:
			return "more has happened to the paths than can be told"
		}
		return ""
	}
	text := fmt.Sprintf("path %d: ", e.Path.ID())
	switch e.Kind {
	case tcpls.EventPathJoined:
		return text + fmt.Sprintf("joined, from %v to %v", e.Path.LocalAddr(), e.Path.RemoteAddr())
	case tcpls.EventMainPath:
		return text + "in use from now on"
	default:
		text += strings.TrimPrefix(e.Kind.String(), "path ")
	}
	if e.Err != nil {
		text += ": " + cause(e.Err)
	}
	return text
}
