// Package lab makes emulated networks, for experiments with TCPLS and for
// tests that need a network with properties: rate, delay, jitter, loss,
// queues, outages and middleboxes.
//
// A host is a network namespace of its own, a link joins two of them. The
// kernel's real TCP runs on the hosts; what a link does to packets is done by
// an emulator, in a process of its own, between two TUN devices. Everything
// about a link can be changed while traffic flows.
//
//	network, err := lab.New(lab.TwoHosts(
//		lab.Shape{Rate: 100 * lab.Mbit, Delay: 20 * time.Millisecond},
//		lab.Shape{Rate: 30 * lab.Mbit, Delay: 10 * time.Millisecond, Loss: 0.01},
//	))
//	...
//	defer network.Close()
//	ln, err := network.Host("server").Listen(ctx, "tcp", "10.0.0.2:443")
//	conn, err := network.Host("client").Dial(ctx, "tcp", "10.0.0.2:443")
//	network.Link("path0").SetBlackhole(true)
//
// Topologies are such values, or files: see [LoadTopology]. Tests call [Start],
// which also closes the network, and says why where there can be none.
//
// # What it needs and touches
//
// It needs Linux, root and /dev/net/tun; [Supported] tells. The namespaces have
// no name, no file and no connection to the machine's own interfaces and
// routes, which are never touched. They go with the process that made
// them, however it ends: the emulator notices, ends what still runs in them, and
// ends too.
//
// # Processes of its own
//
// The emulator, [Host.Command] and [Host.Program] start this very program again,
// under a name that begins with "tcpls-lab-". The package's initialisation
// recognises it, and goes another way, before main or a test begins. So every
// program that imports package lab can make networks.
package lab
