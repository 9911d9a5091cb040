package tcpls

import (
	"fmt"
	"time"

	"github.com/go-tcpls/tcpls/internal/osnet"
)

// The kernel's verifier makes sure that a congestion control ends and touches
// nothing else. It lets pass one that never sends, or that floods the network.
// Those are found by what becomes of the connection. The rules are to be broken
// by harm only: a bad network must not look like a bad congestion control, so
// nothing is a stall while TCP sends again what was lost.

const (
	// ccMaxWindow is the largest congestion window, in segments: some 90 MB, ten
	// times what a link of 1 Gbit/s and 70 ms takes.
	ccMaxWindow = 1 << 16
	// A path is stalled that has brought less than ccTrickle segments in
	// ccPatience and three retransmission timeouts, with at most one on its way.
	// TCP's own probes of a path that doesn't send bring some five in a second.
	ccTrickle  = 10
	ccPatience = time.Second
	// ccMaxLoss is the part of what it sends that may be lost, in percent, of
	// ccMinSent segments at least.
	ccMaxLoss = 40
	ccMinSent = 500
)

// A ccJudge looks at one path that uses a congestion control of the peer. The
// zero value has seen nothing.
type ccJudge struct {
	waits time.Time  // since when data waits and nothing holds it back; zero: it doesn't
	then  osnet.Info // at that time
	count osnet.Info // where the losses are counted from
}

// look takes in what the kernel measures at a time, and tells what is wrong;
// "" if nothing is.
func (j *ccJudge) look(at time.Time, info osnet.Info) string {
	switch {
	case info.CWnd == 0:
		return "its congestion window is 0"
	case info.CWnd > ccMaxWindow:
		return fmt.Sprintf("its congestion window is %d segments; at most %d are allowed", info.CWnd, ccMaxWindow)
	}
	if why := j.stalled(at, info); why != "" {
		return why
	}
	return j.floods(info)
}

// stalled finds a path that could send and doesn't.
func (j *ccJudge) stalled(at time.Time, info osnet.Info) string {
	held := info.NotSent == 0 || info.Unacked > 1 || info.Timeouts > 0 || info.SendWindow < info.SendMSS
	if held || j.waits.IsZero() || info.Retrans != j.then.Retrans || info.BytesAcked-j.then.BytesAcked >= ccTrickle*int64(info.SendMSS) {
		j.waits, j.then = at, info
		if held {
			j.waits = time.Time{}
		}
		return ""
	}
	if lasts := at.Sub(j.waits); lasts >= ccPatience+3*info.RTO {
		return fmt.Sprintf("it has sent %d bytes in %v, and %d wait", info.BytesAcked-j.then.BytesAcked, lasts.Round(time.Millisecond), info.NotSent)
	}
	return ""
}

// floods finds a path that sends more than arrives.
func (j *ccJudge) floods(info osnet.Info) string {
	if j.count == (osnet.Info{}) {
		j.count = info
	}
	sent := info.Sent - j.count.Sent
	if sent < ccMinSent {
		return ""
	}
	lost := 100 * (info.Retrans - j.count.Retrans) / sent
	j.count = info
	if lost > ccMaxLoss {
		return fmt.Sprintf("%d %% of %d segments were lost", lost, sent)
	}
	return ""
}
