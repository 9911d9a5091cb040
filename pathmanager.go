package tcpls

import (
	"context"
	"net"
	"net/netip"
	"slices"

	"github.com/go-tcpls/tcpls/internal/osnet"
)

// A PathManager opens and closes the paths of a client's session. It needs no
// more than the public methods, above all Session.Events, AddPath and Paths, and
// Path.Close, SetBackup and Use, so that an application can have its own. What
// it leaves alone the session does by itself: when a path fails, another takes
// over, and when none is left, it joins again as it was dialed.
type PathManager interface {
	// Run is called once a session, on a goroutine of its own. ctx ends with the
	// session. An error that isn't due to that is logged, and the session goes on.
	Run(ctx context.Context, s *Session) error
}

// A PathManagerFunc is a PathManager that is one function.
type PathManagerFunc func(ctx context.Context, s *Session) error

// Run calls f.
func (f PathManagerFunc) Run(ctx context.Context, s *Session) error { return f(ctx, s) }

// NoPaths leaves all further paths to the application. It is the default.
func NoPaths() PathManager {
	return PathManagerFunc(func(context.Context, *Session) error { return nil })
}

// StandbyPaths keeps n backup paths beside the path that is in use: where the
// machine has several addresses on links that are up, or the server is reached
// at several, over those that are used least, else over the same. A path that
// was lost is opened again, the one that isn't a backup too, as the session was
// dialed: at once, then after 50 ms, doubling to 1 s, or to 30 s where it never
// worked. The session then comes back to it, see Path.SetBackup.
func StandbyPaths(n int) PathManager {
	return PathManagerFunc(func(ctx context.Context, s *Session) error {
		return newKeeper(s, func(k *keeper, have []*Path) []PathSpec { return standbys(s, n, have) }).run(ctx)
	})
}

// InterfacePaths keeps one path from each network interface that is up, except
// loopback, to each address of the server that the session knows, up to
// Config.MaxPaths; with Config.Mode they carry data all at once. New
// interfaces are used as soon as EventNetwork tells of them, and lost paths are
// opened again as StandbyPaths does. Packets leave by the interface only where
// the system routes by source address, see PathSpec.Interface.
func InterfacePaths() PathManager {
	return PathManagerFunc(func(ctx context.Context, s *Session) error {
		return newKeeper(s, func(k *keeper, have []*Path) (missing []PathSpec) {
			for _, spec := range routes(s) {
				if !k.has(spec, have) {
					missing = append(missing, spec)
				}
			}
			return missing
		}).run(ctx)
	})
}

// manage runs the session's path manager.
func (s *Session) manage() {
	ctx := s.Context()
	if err := s.cfg.PathManager.Run(ctx, s); err != nil && ctx.Err() == nil {
		s.log.Warn("path manager has ended", "error", err)
	}
}

// standbys is what is missing to one path and n backups.
func standbys(s *Session, n int, have []*Path) (missing []PathSpec) {
	var used []PathSpec
	backups := 0
	for _, p := range have {
		used = append(used, p.route())
		if p.rank.own.Load() {
			backups++
		}
	}
	if backups == len(have) {
		missing = append(missing, PathSpec{})
		used = append(used, PathSpec{})
	}
	for ; backups < n; backups++ {
		spec := leastUsed(routes(s), used)
		used = append(used, spec)
		spec.Backup = true
		missing = append(missing, spec)
	}
	return missing
}

// leastUsed returns the route that shares addresses with the fewest of those in
// use. A local address tells more: it stands for a link.
func leastUsed(all, used []PathSpec) PathSpec {
	cost := func(r PathSpec) (n int) {
		for _, u := range used {
			if u.Local.Addr() == r.Local.Addr() {
				n += 2
			}
			if u.Remote == r.Remote {
				n++
			}
		}
		return n
	}
	return slices.MinFunc(all, func(a, b PathSpec) int { return cost(a) - cost(b) })
}

// routes are the ways that paths could go, at least one: from each interface to
// each of the server's addresses. Where the session isn't on a network of the
// machine, or is on loopback, its local addresses are left to the system.
func routes(s *Session) (all []PathSpec) {
	remotes := servers(s)
	if own := s.path().local(); own.IsValid() {
		interfaces, err := osnet.Interfaces()
		if err != nil {
			interfaces = nil // the system's choice will do
		}
		for _, remote := range remotes {
			for _, i := range interfaces {
				if local := startOf(i, own, remote.Addr()); local.IsValid() {
					all = append(all, PathSpec{Local: netip.AddrPortFrom(local, 0), Remote: remote})
				}
			}
		}
	}
	if len(all) == 0 && len(remotes) > 1 {
		for _, remote := range remotes {
			all = append(all, PathSpec{Remote: remote})
		}
	}
	if len(all) == 0 {
		return []PathSpec{{}}
	}
	return all
}

// servers are the addresses at which the session may look for its server: those
// of its paths, and those that the server tells.
func servers(s *Session) (all []netip.AddrPort) {
	add := func(a netip.AddrPort) {
		if a.IsValid() && !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	for _, p := range append([]*Path{s.path()}, s.livePaths()...) {
		add(p.route().Remote)
	}
	for _, a := range s.PeerAddresses() {
		if mayDial(a.Addr(), s.server.Addr()) {
			add(a)
		}
	}
	return all
}

// startOf is the address from which paths of an interface to remote start: own,
// that of the main path, if it has that, and else the fittest.
func startOf(i osnet.Interface, own, remote netip.Addr) (local netip.Addr) {
	if !i.Up {
		return local
	}
	if slices.Contains(i.Addrs, own) && own.Is4() == remote.Is4() {
		return own
	}
	if local = localFor(i.Addrs, remote); local.IsLoopback() {
		return netip.Addr{}
	}
	return local
}

// route is between which addresses the path runs, as a PathSpec has it.
func (p *Path) route() (r PathSpec) {
	if own := p.local(); own.IsValid() {
		r.Local = netip.AddrPortFrom(own, 0)
	}
	if tcp, ok := p.conn.RemoteAddr().(*net.TCPAddr); ok {
		r.Remote = unmapped(tcp.AddrPort())
	}
	return r
}
