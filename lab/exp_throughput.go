package lab

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/go-tcpls/tcpls"
)

var throughput = Experiment{
	Name:   "throughput",
	Source: "paper §5.3",
	Claim:  "TCPLS moves bytes at least as fast as TLS over TCP and several times faster than QUIC, whatever the MTU",
	Root:   true,
	Run:    runThroughput,
}

// A racer is a transport with its setting.
type racer struct {
	name      string
	transport transport
	standby   bool // TCPLS with a second path, to which it could fail over
	together  bool // TCPLS over two paths at once
}

// The first one is what the others are compared with.
var racers = []racer{
	{name: "TLS/TCP", transport: overTLS},
	{name: "TCPLS", transport: overTCPLS},
	{name: "TCPLS, a path stands by", transport: overTCPLS, standby: true},
	{name: "TCPLS, two paths at once", transport: overTCPLS, together: true},
	{name: "its records, no acks", transport: overRecords},
	{name: "QUIC", transport: overQUIC},
	{name: "TCP, not encrypted", transport: overTCP},
}

// bulkPort is that of servers on a host's loopback.
const bulkAddress = "127.0.0.1:4433"

func runThroughput(ctx context.Context, o Options) (*Result, error) {
	n, err := New(&Topology{Hosts: []HostSpec{{Name: "host"}}})
	if err != nil {
		return nil, err
	}
	defer n.Close()
	b, err := newBench()
	if err != nil {
		return nil, err
	}
	b.congestion = "cubic"
	size := pick(o, int64(512<<20), 64<<20)
	t := Table{Name: "ratios", Title: fmt.Sprintf("%d MiB over loopback, both ends on one machine; time and CPU time of both ends to those of TLS/TCP (less is better)", size>>20),
		Header: []string{"MTU", "protocol", "Gbit/s", "time", "CPU"}}
	raw := Table{Name: "runs", Title: "All rounds", Header: []string{"MTU", "protocol", "round", "seconds", "CPU seconds"}, DataOnly: true}
	r := new(Result)
	plot := Plot{Name: "time", Title: "Time to that of TLS/TCP, MTU 1500", Y: "ratio (less is better)"}
	times := make(map[string]Measure) // at an MTU of 1500
	holds := true
	for _, mtu := range pick(o, []int{1500, 9000, 65536}, []int{1500}) {
		if out, err := n.Host("host").Command(ctx, "ip", "link", "set", "dev", "lo", "mtu", strconv.Itoa(mtu)).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("the MTU of lo: %w: %s", err, out)
		}
		walls, cpus, err := b.race(ctx, o, n.Host("host"), size, mtu, &raw)
		if err != nil {
			return nil, err
		}
		for i, racer := range racers {
			wall, cpu := measure("", "", ratios(walls[i], walls[0])), measure("", "", ratios(cpus[i], cpus[0]))
			gbits := measure("", "", mapped(walls[i], func(s float64) float64 { return float64(size) * 8 / 1e9 / s }))
			t.add(mtu, racer.name, gbits, wall, cpu)
			if i == 0 {
				continue
			}
			wall.Name, cpu.Name = fmt.Sprintf("MTU %d: time of %s", mtu, racer.name), fmt.Sprintf("MTU %d: CPU of %s", mtu, racer.name)
			r.Measures = append(r.Measures, wall, cpu)
			if mtu == 1500 {
				times[racer.name] = wall
				plot.Bars = append(plot.Bars, Bar{racer.name, wall})
			}
			switch racer.name {
			case "TCPLS":
				holds = holds && wall.Median < 1.05
			case "QUIC":
				holds = holds && wall.Median > 2
			}
		}
	}
	r.Tables, r.Plots = []Table{t, raw}, []Plot{plot}
	r.Verdict = Verdict{Holds, fmt.Sprintf("At an MTU of 1500 bytes TCPLS needs %s of the time of TLS/TCP, its records without acknowledgements %s, and QUIC %s.",
		times["TCPLS"], times["its records, no acks"], times["QUIC"])}
	if !holds {
		r.Verdict.Outcome = HoldsPartly
	}
	return r, nil
}

// race lets the racers run in turns, and returns the seconds of each of their
// rounds, and of the processors.
func (b *bench) race(ctx context.Context, o Options, h *Host, size int64, mtu int, raw *Table) (walls, cpus [][]float64, err error) {
	walls, cpus = make([][]float64, len(racers)), make([][]float64, len(racers))
	for round := range o.reps(7, 1) + 1 {
		for i, r := range racers {
			o.step("MTU %d: round %d: %s", mtu, round, r.name)
			wall, cpu, err := b.lap(ctx, h, r, size)
			if err != nil {
				return nil, nil, fmt.Errorf("%s: %w", r.name, err)
			}
			if round == 0 {
				continue // warms up
			}
			walls[i], cpus[i] = append(walls[i], wall.Seconds()), append(cpus[i], cpu.Seconds())
			raw.add(mtu, r.name, round, wall.Seconds(), cpu.Seconds())
		}
	}
	return walls, cpus, nil
}

// lap moves size bytes from a server to a client.
func (b *bench) lap(ctx context.Context, h *Host, r racer, size int64) (wall, cpu time.Duration, err error) {
	server, client := b.server(), b.client()
	server.host, client.host = h, h
	if r.together {
		server.tcpls.Mode, client.tcpls.Mode = tcpls.ModeAggregate, tcpls.ModeAggregate
	}
	l, err := r.transport.listen(ctx, bulkAddress, server)
	if err != nil {
		return 0, 0, err
	}
	defer l.Close()
	go serve(l)
	sess, err := r.transport.dial(ctx, bulkAddress, client)
	if err != nil {
		return 0, 0, err
	}
	defer sess.Close()
	if r.standby || r.together {
		if _, err := sess.(tcplsSession).AddPath(ctx, tcpls.PathSpec{Backup: r.standby}); err != nil {
			return 0, 0, err
		}
	}
	st, err := sess.open(ctx)
	if err != nil {
		return 0, 0, err
	}
	before, err := cpuTime()
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	if err := bulk(st, size); err != nil {
		return 0, 0, err
	}
	wall = time.Since(began)
	after, err := cpuTime()
	return wall, after - before, err
}
