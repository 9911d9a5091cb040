package lab

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/wire"
)

var trialDecryption = Experiment{
	Name:   "trial",
	Source: "paper §3.4: finding the context of a record",
	Claim:  "announcing the stream of the next record costs the same at any number of streams; finding it by trial decryption costs more with each",
	Run:    runTrial,
}

// A receiver of n streams, as the records see it: each stream's context at the
// peer and here, and the path's own.
type contexts struct {
	sent, received []*record.Context
	path, peerPath *record.Context
	recent         []int // streams, the one of the last record first
	buf            []byte
}

func newContexts(n int) (*contexts, error) {
	suite := record.SuiteByID(tls.TLS_AES_128_GCM_SHA256)
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	sender, err := suite.Keys(secret)
	if err != nil {
		return nil, err
	}
	receiver, err := suite.Keys(secret)
	if err != nil {
		return nil, err
	}
	c := &contexts{path: record.NewContext(receiver, 0), peerPath: record.NewContext(sender, 0), buf: make([]byte, 0, 2*trialRecord)}
	for i := range n {
		id := uint32(2*i + 1)
		c.sent, c.received = append(c.sent, record.NewContext(sender, id)), append(c.received, record.NewContext(receiver, id))
		c.recent = append(c.recent, i)
	}
	return c, nil
}

// trialRecord is how long the records' contents are.
const trialRecord = 1 << 10

// A sealed is what comes for one record: perhaps an announcement before it.
type sealed struct {
	stream    int
	announce  []byte
	announced bool
	data      []byte
}

// seal makes count records that take turns among the streams.
func (c *contexts) seal(count int, announced bool) ([]sealed, error) {
	out := make([]sealed, count)
	content := make([]byte, trialRecord)
	for i := range out {
		s := &out[i]
		s.stream, s.announced = i%len(c.sent), announced && len(c.sent) > 1
		var err error
		if s.announced {
			frame := wire.AppendNext(nil, c.sent[s.stream].ID())
			if s.announce, err = c.peerPath.SealTo(make([]byte, len(frame)+record.Overhead), frame, wire.TypeFrames); err != nil {
				return nil, err
			}
		}
		if s.data, err = c.sent[s.stream].SealTo(make([]byte, trialRecord+record.Overhead), content, record.ApplicationData); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// open finds the context of a record and opens it, as docs/protocol.md, 4.4,
// says: the announced stream, or else the one of the last record, then the
// others, the most recent first.
func (c *contexts) open(s *sealed) error {
	if s.announced {
		if _, _, err := c.path.Open(c.buf, s.announce); err != nil {
			return err
		}
		_, _, err := c.received[s.stream].Open(c.buf, s.data)
		return err
	}
	for i, stream := range c.recent {
		_, _, err := c.received[stream].Open(c.buf, s.data)
		if errors.Is(err, record.ErrAuth) {
			continue
		}
		copy(c.recent[1:i+1], c.recent[:i])
		c.recent[0] = stream
		return err
	}
	return errors.New("no context opens the record")
}

func runTrial(_ context.Context, o Options) (*Result, error) {
	t := Table{Name: "cost", Title: fmt.Sprintf("Records of %d bytes that take turns among streams: µs for each at the receiver", trialRecord),
		Header: []string{"streams", "announced", "by trial", "trial to announced"}}
	lines := []Line{{Name: "announced"}, {Name: "by trial"}}
	r := new(Result)
	counts := pick(o, []int{1, 3, 10, 30, 100, 300, 1000}, []int{1, 10, 100})
	var medians [2][]float64 // announced, by trial
	for _, n := range counts {
		var cost [2][]float64
		for i := range o.reps(9, 3) {
			o.step("streams: %d, round %d", n, i+1)
			for way := range cost {
				us, err := trialRound(n, way == 0, pick(o, 4000, 500))
				if err != nil {
					return nil, err
				}
				cost[way] = append(cost[way], us)
			}
		}
		against := measure(fmt.Sprintf("%d streams: trial to announced", n), "", ratios(cost[1], cost[0]))
		t.add(n, measure("", "", cost[0]), measure("", "", cost[1]), against)
		r.Measures = append(r.Measures, against)
		for way := range cost {
			m := median(cost[way])
			medians[way] = append(medians[way], m)
			lines[way].Points = append(lines[way].Points, Point{float64(n), m})
		}
	}
	last := len(counts) - 1
	flat := slices.Max(medians[0][1:]) / medians[0][1] // one stream needs no announcements
	growth := medians[1][last] / medians[1][0]
	r.Measures = append(r.Measures, measure("trial: most streams to one", "", []float64{growth}), measure("announced: most streams to few", "", []float64{flat}))
	r.Tables, r.Plots = []Table{t}, []Plot{{Name: "cost", Title: "Finding the context of a record", X: "streams", Y: "µs a record", Lines: lines, Log: true}}
	r.Verdict = Verdict{Holds, fmt.Sprintf("With %d streams a record costs %s times as much by trial as with one, and %s times as much as when it is announced.", counts[last], round(growth), r.Measures[last])}
	if flat > 3 || growth < 3 {
		r.Verdict.Outcome = HoldsPartly
	}
	return r, nil
}

// trialRound returns how many µs a record takes.
func trialRound(streams int, announced bool, records int) (float64, error) {
	c, err := newContexts(streams)
	if err != nil {
		return 0, err
	}
	all, err := c.seal(max(records, 2*streams), announced)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	for i := range all {
		if err := c.open(&all[i]); err != nil {
			return 0, err
		}
	}
	return float64(time.Since(began).Microseconds()) / float64(len(all)), nil
}
