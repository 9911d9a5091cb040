package tcpls

import (
	"time"

	"github.com/go-tcpls/tcpls/internal/osnet"
	"github.com/go-tcpls/tcpls/internal/record"
)

// Record length. A receiver can use nothing of a record before its last byte is
// there. So while TCP finds out how much the path takes, at its beginning and
// after it was idle, records are as long as a segment; and they grow with what is on
// its way until they are full ones, which cost the least. A write that fits
// into one segment is one record in any case.

// A sizing chooses the length of a path's records; guarded by its outMu.
type sizing struct {
	// maxContent is how many stream bytes a record takes, less than TLS
	// allows only if the peer asked for it (RFC 8449).
	maxContent int

	segment int           // bytes in a full segment of TCP; 0: nothing was sent
	window  int           // what TCP let pass in one go when the burst began, in bytes
	burst   int           // stream bytes since
	last    time.Duration // when some were sealed last, since the session began
}

const (
	// lengthShare is what part of what is on its way one record may be: nobody
	// waits for it longer than that part of a round trip.
	lengthShare = 8
	// someSegment is a segment where the system doesn't tell, small enough for
	// the tunnels of most paths.
	someSegment = 1400
	// leastContent is how many stream bytes each record of a turn at the gate
	// takes but the last, however short the segments are (maxAhead).
	leastContent = 256
	// minIdle is the shortest time after which TCP may count as idle: Linux's
	// least retransmission timeout (RFC 5681, 4.1).
	minIdle = 200 * time.Millisecond
)

// next is how many stream bytes the next record takes, where unsent bytes wait
// for the socket. Short records end with a segment.
func (z *sizing) next(unsent int) int {
	most := max(z.window, z.burst) / lengthShare
	if z.segment == 0 || most >= z.maxContent {
		return z.maxContent
	}
	n := max(most/z.segment, 1)*z.segment - unsent%z.segment - record.Overhead
	for n < max(z.segment/2, leastContent) {
		n += z.segment
	}
	return min(n, z.maxContent)
}

// begin starts a burst: TCP lets window bytes pass in one go.
func (z *sizing) begin(segment, window int) { z.segment, z.window, z.burst = segment, window, 0 }

// size readies the path's sizing for n stream bytes. The caller holds outMu.
func (p *Path) size(n int) {
	z := &p.sizing
	if n <= someSegment-record.Overhead || p.sess.cfg.TLS.DynamicRecordSizingDisabled {
		return
	}
	now := time.Since(p.sess.began)
	quiet := now - z.last
	z.last = now
	if z.segment > 0 && (quiet < minIdle || p.unsent.Load() > 0) {
		return
	}
	segment, window := someSegment, 0
	if p.raw != nil {
		if info, err := osnet.TCPInfo(p.raw); err == nil && info.RTT > 0 { // else it isn't connected yet
			if z.segment > 0 && info.SinceSent < info.RTO {
				return // what was sealed before is still on its way
			}
			segment, window = info.SendMSS, info.SendMSS*info.CWnd
		}
	}
	z.begin(segment, window)
}

// cut takes the first record's worth off data. The caller holds outMu.
func (p *Path) cut(data []byte) []byte {
	n := min(len(data), p.sizing.next(int(p.unsent.Load())))
	p.sizing.burst += n
	return data[:n]
}
