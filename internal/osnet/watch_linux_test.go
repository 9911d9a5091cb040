package osnet

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/go-tcpls/tcpls/internal/netns"
)

// wantEvent passes over other events until the wanted one comes.
func wantEvent(t *testing.T, events <-chan Event, kind EventKind, addr string) {
	t.Helper()
	for e := range events {
		if e.Kind == kind && (addr == "" || e.Addr == netip.MustParseAddr(addr)) {
			if e.Link != "lo" || e.Index != 1 {
				t.Errorf("%v of interface %d, %q", kind, e.Index, e.Link)
			}
			return
		}
	}
	t.Fatalf("the watch ended without %v %s", kind, addr)
}

func TestWatch(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		events := Watch(t.Context())
		addr := netip.MustParseAddr("192.0.2.1")
		for _, step := range []struct {
			do   func() error
			want EventKind
			addr string
		}{
			{func() error { return netns.AddAddr("lo:1", addr) }, AddrAdded, addr.String()},
			{func() error { return netns.DelAddr("lo:1") }, AddrRemoved, addr.String()},
			{func() error { return netns.SetLink("lo", false) }, LinkDown, ""},
			{func() error { return netns.SetLink("lo", true) }, LinkUp, ""},
		} {
			began := time.Now()
			if err := step.do(); err != nil {
				t.Fatal(err)
			}
			wantEvent(t, events, step.want, step.addr)
			t.Logf("%v: done and heard of within %v", step.want, time.Since(began))
		}
	})
}

// Somebody who doesn't receive costs a channel and the socket's buffer, is told
// that events were lost, and hears of the next ones.
func TestWatchOverrun(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		events := Watch(t.Context())
		const addr, last = "192.0.2.1", "192.0.2.2"
		for range 3000 {
			if err := netns.AddAddr("lo:1", netip.MustParseAddr(addr)); err != nil {
				t.Fatal(err)
			}
			if err := netns.DelAddr("lo:1"); err != nil {
				t.Fatal(err)
			}
		}
		resynced := false
		for e := range events {
			switch {
			case e.Kind == Resync: // there may be several
				resynced = true
				_ = netns.DelAddr("lo:2") // not there the first time
				if err := netns.AddAddr("lo:2", netip.MustParseAddr(last)); err != nil {
					t.Fatal(err)
				}
			case resynced && e.Kind == AddrAdded && e.Addr == netip.MustParseAddr(last):
				return
			}
		}
	})
}

// message builds one message of rtnetlink.
func message(kind uint16, head []byte, attrs ...[]byte) []byte {
	e := binary.NativeEndian
	b := make([]byte, unix.SizeofNlMsghdr)
	e.PutUint16(b[4:], kind)
	b = append(b, head...)
	for i := 0; i+1 < len(attrs); i += 2 {
		b = e.AppendUint16(b, uint16(unix.SizeofRtAttr+len(attrs[i+1])))
		b = append(b, attrs[i]...)
		b = append(b, attrs[i+1]...)
		for len(b)%unix.NLMSG_ALIGNTO != 0 {
			b = append(b, 0)
		}
	}
	e.PutUint32(b, uint32(len(b)))
	return b
}

func attr(kind uint16) []byte { return binary.NativeEndian.AppendUint16(nil, kind) }

func linkHead(family byte, index, flags uint32) []byte {
	b := []byte{family, 0, 0, 0}
	b = binary.NativeEndian.AppendUint32(b, index)
	b = binary.NativeEndian.AppendUint32(b, flags)
	return binary.NativeEndian.AppendUint32(b, 0)
}

func addrHead(family, flags byte, index uint32) []byte {
	return binary.NativeEndian.AppendUint32([]byte{family, 64, flags, 0}, index)
}

func newLink(family byte, flags uint32) []byte {
	return message(unix.RTM_NEWLINK, linkHead(family, 2, flags), attr(unix.IFLA_IFNAME), []byte("eth0\x00"))
}

func v6Message(kind uint16, flags byte) []byte {
	return message(kind, addrHead(unix.AF_INET6, flags, 2), attr(unix.IFA_ADDRESS), otherAddr.addr.AsSlice())
}

const running = unix.IFF_UP | unix.IFF_RUNNING

// Messages in the order in which a kernel sends them, and what they mean.
func TestRouteMessages(t *testing.T) {
	n := newNetwork()
	for _, step := range []struct {
		name    string
		message []byte
		want    string
	}{
		{"new interface, off", newLink(unix.AF_UNSPEC, 0), ""},
		{"on without a carrier", newLink(unix.AF_UNSPEC, unix.IFF_UP), ""},
		{"carrier", newLink(unix.AF_UNSPEC, running), "link up eth0"},
		{"another setting of it", newLink(unix.AF_UNSPEC, running|unix.IFF_PROMISC), ""},
		{"address under test", v6Message(unix.RTM_NEWADDR, unix.IFA_F_TENTATIVE), ""},
		{"address that passed", v6Message(unix.RTM_NEWADDR, 0), "address added eth0 2001:db8::2"},
		{"its lifetime renewed", v6Message(unix.RTM_NEWADDR, unix.IFA_F_DEPRECATED), ""},
		{"somebody else has it", v6Message(unix.RTM_NEWADDR, unix.IFA_F_DADFAILED), "address removed eth0 2001:db8::2"},
		{"optimistic", v6Message(unix.RTM_NEWADDR, unix.IFA_F_TENTATIVE|unix.IFA_F_OPTIMISTIC), "address added eth0 2001:db8::2"},
		{"removed", v6Message(unix.RTM_DELADDR, 0), "address removed eth0 2001:db8::2"},
		{"removed again", v6Message(unix.RTM_DELADDR, 0), ""},
		{"point to point", message(unix.RTM_NEWADDR, addrHead(unix.AF_INET, 0, 2),
			attr(unix.IFA_ADDRESS), []byte{198, 51, 100, 1}, attr(unix.IFA_LOCAL), []byte{192, 0, 2, 1}), "address added eth0 192.0.2.1"},
		{"flags of 32 bits", message(unix.RTM_NEWADDR, addrHead(unix.AF_INET6, 0, 2), attr(unix.IFA_ADDRESS), localAddr.addr.AsSlice(),
			attr(unix.IFA_FLAGS), binary.NativeEndian.AppendUint32(nil, unix.IFA_F_TENTATIVE)), ""},
		{"left a bridge", message(unix.RTM_DELLINK, linkHead(unix.AF_BRIDGE, 2, 0)), ""},
		{"cable pulled", newLink(unix.AF_UNSPEC, unix.IFF_UP), "link down eth0"},
		{"plugged in", newLink(unix.AF_UNSPEC, running), "link up eth0"},
		{"deleted", message(unix.RTM_DELLINK, linkHead(unix.AF_UNSPEC, 2, 0)), "address removed eth0 192.0.2.1; link down eth0"},
		{"two at once", append(newLink(unix.AF_UNSPEC, running), v6Message(unix.RTM_NEWADDR, 0)...),
			"address added eth0 2001:db8::2; link up eth0"},
		{"something else", message(unix.RTM_NEWROUTE, make([]byte, 12)), ""},
		{"cut", newLink(unix.AF_UNSPEC, 0)[:20], ""},
	} {
		var got []Event
		n.apply(step.message, func(e Event) { got = append(got, e) })
		if listed(got) != step.want {
			t.Errorf("%s: got %q, want %q", step.name, listed(got), step.want)
		}
	}
}

func FuzzRouteMessages(f *testing.F) {
	f.Add(newLink(unix.AF_UNSPEC, running))
	f.Add(v6Message(unix.RTM_NEWADDR, 0))
	f.Add(message(unix.RTM_DELLINK, linkHead(unix.AF_UNSPEC, 2, 0)))
	f.Add(message(unix.RTM_NEWADDR, addrHead(unix.AF_INET, 0, 2), attr(unix.IFA_LOCAL), []byte{1, 2, 3}))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := newNetwork()
		n.apply(b, func(e Event) {
			if e.Kind < AddrAdded || e.Kind > LinkDown {
				t.Errorf("%v out of a message", e.Kind)
			}
		})
	})
}
