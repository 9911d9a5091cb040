package lab_test

import (
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/go-tcpls/tcpls/lab"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestMachineIsLeftAlone compares the machine's own network before, while and
// after there is an emulated one that is changed in every way.
func TestMachineIsLeftAlone(t *testing.T) {
	if lab.Supported() != nil {
		lab.Start(t, lab.TwoHosts(lab.Shape{}))
	}
	before := machine(t)
	topology, err := lab.LoadTopology("testdata/two-isps.json")
	if err != nil {
		t.Fatal(err)
	}
	topology.Hosts[0].Sysctls = map[string]string{"net.ipv4.tcp_fastopen": "0", "net.ipv6.conf.all.forwarding": "1"}
	n, err := lab.New(topology)
	if err != nil {
		t.Fatal(err)
	}
	laptop, wifi := n.Host("laptop"), n.Link("wifi")
	for _, err := range []error{
		laptop.SetUp("wifi", false), laptop.SetUp("wifi", true), wifi.SetUp(false), wifi.SetUp(true),
		laptop.AddAddr("lte", netip.MustParsePrefix("10.2.0.7/24")), laptop.RemoveAddr("lte", netip.MustParsePrefix("10.2.0.1/24")),
		wifi.SetBlackhole(true), wifi.Reset(), wifi.SetBoxes(lab.Firewall{}),
		laptop.Command(t.Context(), "ip", "link", "set", "lo", "down").Run(),
		laptop.Command(t.Context(), "ip", "route", "add", "blackhole", "192.0.2.0/24").Run(),
		laptop.Command(t.Context(), "nft", "add table ip t").Run(),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	differ(t, "while there is another network", before, machine(t))
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	differ(t, "after there was another network", before, machine(t))
}

func differ(t *testing.T, when string, before, after map[string]string) {
	t.Helper()
	all := maps.Clone(before)
	maps.Copy(all, after)
	for name := range all {
		if before[name] != after[name] {
			t.Errorf("%s, %s is %q; it was %q", when, name, after[name], before[name])
		}
	}
}

// machine returns what there is of links, addresses, routes, rules and kernel
// parameters where this test runs.
func machine(t *testing.T) map[string]string {
	t.Helper()
	found := make(map[string]string)
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	links, err := netlink.LinkList()
	must(err)
	for _, l := range links {
		a := l.Attrs()
		found["link "+a.Name] = fmt.Sprint(a.Index, a.MTU, a.Flags, a.HardwareAddr, a.TxQLen, a.MasterIndex)
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	must(err)
	for _, a := range addrs {
		found[fmt.Sprint("address ", a.IPNet, " of ", a.LinkIndex)] = fmt.Sprint(a.Flags)
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		must(err)
		for _, r := range routes {
			found[fmt.Sprint("route ", r.Dst, " table ", r.Table, " of ", r.LinkIndex)] += fmt.Sprint(r.Gw, r.Type, r.Priority, ";")
		}
		rules, err := netlink.RuleList(family)
		must(err)
		for _, r := range rules {
			found[fmt.Sprint("rule ", family, " ", r.Priority)] += r.String() + ";"
		}
	}
	// Connection tracking counts there what others do.
	for _, dir := range []string{"core", "ipv4", "ipv6", "mptcp"} {
		must(filepath.WalkDir("/proc/sys/net/"+dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				value, err := os.ReadFile(path)
				if err == nil { // some are only written
					found[path] = string(value)
				}
			}
			return nil
		}))
	}
	return found
}
