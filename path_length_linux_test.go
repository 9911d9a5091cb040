package tcpls

import (
	"context"
	"testing"

	"github.com/go-tcpls/tcpls/internal/netns"
	"github.com/go-tcpls/tcpls/internal/record"
)

// The length follows what the kernel says of the connection.
func TestRecordLengthOfTCP(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		for _, test := range []struct {
			name  string
			mtu   uint32
			fixed bool
			short bool
		}{
			{"Ethernet", 1500, false, true},
			{"Ethernet, full records wanted", 1500, true, false},
			{"loopback", 65536, false, false},
		} {
			t.Run(test.name, func(t *testing.T) {
				if err := netns.SetMTU("lo", test.mtu); err != nil {
					t.Fatal(err)
				}
				client, server := newTestConfigs()
				client.TLS.DynamicRecordSizingDisabled = test.fixed
				c, s := newTCPPair(t, client, server)
				out, in := openStream(t, c, s)
				p := c.path()
				before := p.Stats().RecordsSent
				data := testBytes(1, 8*record.MaxPlaintext)
				go func() { mustWrite(t, out, data) }()
				wantRead(t, "the burst", in, data)
				if err := out.Flush(context.Background()); err != nil {
					t.Fatal(err)
				}
				records, segment := p.Stats().RecordsSent-before, p.sizing.segment
				t.Logf("%d records, segments of %d bytes, a window of %d", records, segment, p.sizing.window)
				if short := records > 16; short != test.short {
					t.Errorf("%d bytes went out in %d records", len(data), records)
				}
				if !test.fixed && (segment < int(test.mtu)/2 || segment > int(test.mtu)) {
					t.Errorf("segments of %d bytes with an MTU of %d", segment, test.mtu)
				}
			})
		}
	})
}
