package tcpls

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
)

// addBackup opens a path that is a backup.
func (w *world) addBackup(t testing.TB) *Path {
	t.Helper()
	p, err := w.client.AddPath(t.Context(), PathSpec{Backup: true})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// wantMain checks which paths both ends send on.
func (w *world) wantMain(t testing.TB, why string, id uint32) {
	t.Helper()
	for _, s := range []*Session{w.client, w.server} {
		if got := s.path().ID(); got != id {
			t.Errorf("%s: the %s sends on path %d, want %d", why, role(s), got, id)
		}
	}
}

// The next main path is one that isn't a backup, and then the nearest.
func TestBestPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, wideLink, nil)
		w.addBackup(t)
		w.inner.SetLink(memnet.Link{Delay: 80 * time.Millisecond})
		w.addPath(t)
		w.inner.SetLink(memnet.Link{Delay: 40 * time.Millisecond})
		w.addPath(t)
		for _, want := range []uint32{3, 2, 1} {
			time.Sleep(time.Second)
			w.conn(int(w.client.path().ID())).Reset()
			time.Sleep(time.Second)
			w.wantMain(t, "after the failure of the last one", want)
		}
	})
}

// A path that was lost and comes back takes over from a backup again within a
// second, in both directions, and nothing is lost or sent twice by that.
func TestComeback(t *testing.T) {
	for name, back := range map[string]func(t *testing.T, w *world) uint32{
		"revived": func(t *testing.T, w *world) uint32 {
			w.conn(0).Stall(false)
			return 0
		},
		"joined anew": func(t *testing.T, w *world) uint32 { return w.addPath(t).ID() },
		"declared": func(t *testing.T, w *world) uint32 {
			for _, p := range w.client.Paths() {
				p.SetBackup(p.ID() != 2)
			}
			return 2
		},
	} {
		for _, upload := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { testComeback(t, upload, back) })
			})
		}
	}
}

var longLink = memnet.Link{Rate: 10 << 20, Delay: 40 * time.Millisecond}

func testComeback(t *testing.T, upload bool, back func(t *testing.T, w *world) uint32) {
	w := newWorld(t, wideLink, nil)
	w.addBackup(t)
	w.inner.SetLink(longLink)
	w.addBackup(t)
	w.inner.SetLink(wideLink)
	from, to := w.server, w.client
	if upload {
		from, to = to, from
	}
	want := testBytes(1, 60<<20)
	_, peer, sent := startTransfer(t, from, to, want)
	wantRead(t, "before the cut", peer, want[:5<<20])
	w.conn(0).Stall(true)
	wantRead(t, "over the backup", peer, want[5<<20:15<<20])
	w.wantMain(t, "after the cut", 1)
	resent := from.Paths()[1].Stats().RecordsResent
	began := time.Now()
	id := back(t, w)
	rest, took, gap, last := want[15<<20:], time.Duration(0), time.Duration(0), time.Now()
	for len(rest) > 0 {
		n := min(len(rest), 16<<10)
		wantRead(t, "behind that", peer, rest[:n])
		rest = rest[n:]
		gap, last = max(gap, time.Since(last)), time.Now()
		if took == 0 && w.client.path().ID() == id && w.server.path().ID() == id {
			took = time.Since(began)
		}
	}
	wantEOF(t, "after all", peer)
	if err := <-sent; err != nil {
		t.Error(err)
	}
	t.Logf("used again after %v, longest gap %v", took, gap)
	if took == 0 || took > time.Second {
		t.Errorf("the path is used again after %v", took)
	}
	if gap > 2*longLink.Delay+segmentTime {
		t.Errorf("nothing arrived for %v", gap)
	}
	for _, p := range from.Paths() {
		if p.ID() == 1 && p.Stats().RecordsResent != resent || p.ID() == id && p.Stats().RecordsResent > 0 {
			t.Errorf("records were sent again on path %d though none was lost", p.ID())
		}
	}
}

// A path that comes and goes isn't trusted.
func TestNoComeback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, wideLink, nil)
		w.addBackup(t)
		openStream(t, w.client, w.server) // something is expected
		w.conn(0).Stall(true)
		time.Sleep(time.Second)
		const patience = minPatience // on wideLink
		for range 5 {
			w.conn(0).Stall(false)
			time.Sleep(settleTime - patience)
			w.conn(0).Stall(true)
			time.Sleep(time.Second)
			w.wantMain(t, "while the other comes and goes", 1)
		}
		w.conn(0).Stall(false)
		time.Sleep(time.Second)
		w.wantMain(t, "once it stays", 0)
	})
}

// A path that stays silent is given up by both ends, and takes no place of one
// that works; neither does it end a session that has no other.
func TestSuspectGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, wideLink, nil)
		w.addPath(t)
		openStream(t, w.client, w.server) // something is expected
		began := time.Now()
		w.conn(0).Stall(true)
		time.Sleep(suspectTime - time.Second)
		for _, s := range []*Session{w.client, w.server} {
			if len(s.Paths()) != 2 || s.Paths()[0].State() != PathSuspect {
				t.Errorf("the %s has %d paths, the first %v, after %v", role(s), len(s.Paths()), s.Paths()[0].State(), time.Since(began))
			}
		}
		time.Sleep(2 * time.Second)
		for _, s := range []*Session{w.client, w.server} {
			if len(s.Paths()) != 1 || s.Paths()[0].ID() != 1 {
				t.Errorf("the %s still has the silent path after %v", role(s), time.Since(began))
			}
		}
		w.setDown(true)
		w.conn(1).Stall(true)
		time.Sleep(2 * suspectTime)
		if n := len(w.client.Paths()); n != 0 {
			t.Errorf("%d paths, though none answers", n)
		}
		w.setDown(false)
		time.Sleep(2 * time.Second)
		w.wantMain(t, "after a while without any path", w.client.Paths()[0].ID())
	})
}

// A path that is being closed isn't hurried by one that joins meanwhile.
func TestCloseDuringJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := memnet.Link{Rate: 1 << 20, Delay: 20 * time.Millisecond}
		w := newWorld(t, slow, nil)
		w.addPath(t)
		st, err := w.client.OpenStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, st, testBytes(1, 500<<10)) // half a second
		closed := begun(func() error { return w.client.Paths()[0].Close(t.Context()) })
		synctest.Wait()
		w.addPath(t)
		if err := <-closed; err != nil {
			t.Error(err)
		}
		if n := w.client.path().Stats().RecordsResent; n > 0 {
			t.Errorf("%d records were sent again, so the path failed", n)
		}
	})
}

// Backups aren't aggregated, and a peer's word for that counts too.
func TestBackupNotSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, wideLink, func(client, server *Config) { client.Mode, server.Mode = ModeAggregate, ModeAggregate })
		w.addBackup(t)
		time.Sleep(time.Second)
		opened, accepted := openStream(t, w.client, w.server)
		want := testBytes(1, 10<<20)
		for _, from := range []*Stream{opened, accepted} {
			to := opened
			if from == opened {
				to = accepted
			}
			sent := begun(func() error {
				_, err := from.Write(want)
				return err
			})
			wantRead(t, "beside a backup", to, want)
			if err := <-sent; err != nil {
				t.Error(err)
			}
			if n := from.Session().Paths()[1].Stats().BytesSent; n > 100<<10 {
				t.Errorf("the %s sent %d bytes on a backup", role(from.Session()), n)
			}
		}
	})
}
