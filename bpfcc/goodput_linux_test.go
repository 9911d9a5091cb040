package bpfcc_test

import (
	"testing"
	"time"

	"github.com/go-tcpls/tcpls"
	"github.com/go-tcpls/tcpls/bpfcc"
	"github.com/go-tcpls/tcpls/lab"
)

// On a lossy link, a congestion control that arrives in the middle of a transfer
// multiplies its goodput (paper, section 5.8): 100 Mbit/s, 20 ms each way, 1 % of
// the packets lost.
func TestGoodput(t *testing.T) {
	needKernel(t)
	network := lab.Start(t, lab.TwoHosts(lab.Shape{Rate: 100 * lab.Mbit, Delay: 20 * time.Millisecond, Queue: 500 << 10, Loss: 0.01}))
	clientConfig, serverConfig := newTestConfigs(t, new(bpfcc.Host))
	clientConfig.Congestion = "cubic"
	ln, err := network.Host("server").Listen(t.Context(), "tcp", "10.0.0.2:443")
	if err != nil {
		t.Fatal(err)
	}
	d := &tcpls.Dialer{Config: clientConfig, DialContext: network.Host("client").Dial}
	c, s := connect(t, d, ln, serverConfig)
	u := startUpload(t, c, s)

	const window = 5 * time.Second // both with their start
	measure := func() float64 {
		before := u.arrived()
		<-time.After(window)
		return float64(u.arrived()-before) * 8 / window.Seconds() / 1e6
	}
	cubic := measure()
	if err := s.OfferCC(t.Context(), bpfcc.Bandwidth()); err != nil {
		t.Fatal(err)
	}
	bandwidth := measure()
	t.Logf("cubic %.1f Mbit/s, then %s %.1f Mbit/s", cubic, c.Paths()[0].Stats().Congestion, bandwidth)
	if bandwidth < 10*cubic {
		t.Errorf("goodput went from %.1f to %.1f Mbit/s, want 10 times as much", cubic, bandwidth)
	}
	if err := s.WithdrawCC(t.Context()); err != nil {
		t.Fatal(err)
	}
	if name := c.Paths()[0].Stats().Congestion; name != "cubic" {
		t.Errorf("the path uses %q after all", name)
	}
	u.end()
}
