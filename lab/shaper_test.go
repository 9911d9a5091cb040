package lab

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

func newTestShaper(s Shape) *shaper {
	return &shaper{shape: s, rng: rand.New(rand.NewPCG(1, 2))}
}

func TestShaperRate(t *testing.T) {
	// 1250 bytes at 10 Mbit/s take 1 ms.
	s := newTestShaper(Shape{Rate: 10 * Mbit, Delay: 5 * time.Millisecond, Queue: 5000})
	for i := range 4 {
		at, f := s.admit(0, 1250)
		if want := int64(time.Duration(i+6) * time.Millisecond); f != delivered || at != want {
			t.Errorf("packet %d arrives at %d (fate %d), want %d", i, at, f, want)
		}
	}
	if _, f := s.admit(0, 1250); f != overflown {
		t.Errorf("a packet that finds no room in the queue has fate %d", f)
	}
	if got := s.backlog(int64(time.Millisecond)); got != 3750 {
		t.Errorf("%d bytes wait after 1 ms, want 3750", got)
	}
	if at, f := s.admit(int64(time.Millisecond), 1250); f != delivered || at != int64(10*time.Millisecond) {
		t.Errorf("after 1 ms there is room: arrives at %d (fate %d)", at, f)
	}
	if at, _ := s.admit(int64(time.Second), 1250); at != int64(time.Second+6*time.Millisecond) {
		t.Errorf("an idle link doesn't save up: arrives at %d", at)
	}
}

func TestShaperFates(t *testing.T) {
	tests := []struct {
		name  string
		shape Shape
		want  fate
	}{
		{"zero shape", Shape{}, delivered},
		{"black hole", Shape{Blackhole: true, MaxPacket: 1}, swallowed},
		{"too big", Shape{MaxPacket: 999}, tooBig},
		{"just not too big", Shape{MaxPacket: 1000}, delivered},
		{"all lost", Shape{Loss: 1}, lost},
		{"all lost in bursts", Shape{Loss: 1, LossBurst: 3}, lost},
		{"queue smaller than a packet", Shape{Rate: Mbit, Queue: 999}, overflown},
		{"queue as large as a packet", Shape{Rate: Mbit, Queue: 1000}, delivered},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if _, f := newTestShaper(test.shape).admit(0, 1000); f != test.want {
				t.Errorf("fate %d, want %d", f, test.want)
			}
		})
	}
}

// TestShaperLoss checks the fraction of packets lost, and how many are lost
// in a row, against what the model says.
func TestShaperLoss(t *testing.T) {
	for _, shape := range []Shape{
		{Loss: 0.01}, {Loss: 0.3}, {Loss: 0.01, LossBurst: 4}, {Loss: 0.1, LossBurst: 20}, {Loss: 0.9, LossBurst: 9},
	} {
		const packets = 2e6
		s := newTestShaper(shape)
		var gone, bursts int
		before := delivered
		for range int(packets) {
			_, f := s.admit(0, 100)
			if f == lost {
				gone++
				if before != lost {
					bursts++
				}
			}
			before = f
		}
		if got := float64(gone) / packets; math.Abs(got/shape.Loss-1) > 0.05 {
			t.Errorf("%+v: lost %g", shape, got)
		}
		want := shape.LossBurst
		if want == 0 {
			want = 1 / (1 - shape.Loss)
		}
		if got := float64(gone) / float64(bursts); math.Abs(got/want-1) > 0.05 {
			t.Errorf("%+v: %g packets lost in a row, want %g", shape, got, want)
		}
	}
}

func TestShaperJitterKeepsOrder(t *testing.T) {
	s := newTestShaper(Shape{Delay: 10 * time.Millisecond, Jitter: 5 * time.Millisecond})
	var last, least, most time.Duration
	least = time.Hour
	for i := range 10000 {
		now := time.Duration(i) * 20 * time.Millisecond // so far apart that none waits for another
		if i%2 == 1 {
			now -= 19 * time.Millisecond // and some near
		}
		at, _ := s.admit(int64(now), 100)
		arrival := time.Duration(at)
		if arrival < last {
			t.Fatalf("packet %d arrives at %v, the one before at %v", i, arrival, last)
		}
		last = arrival
		least, most = min(least, arrival-now), max(most, arrival-now)
	}
	if least < 10*time.Millisecond || least > 10100*time.Microsecond || most > 15*time.Millisecond || most < 14900*time.Microsecond {
		t.Errorf("delays of %v to %v, want 10 to 15 ms", least, most)
	}
}

// TestShaperChange makes a link faster under packets that are under way.
func TestShaperChange(t *testing.T) {
	s := newTestShaper(Shape{Rate: Mbit, Delay: 50 * time.Millisecond})
	first, _ := s.admit(0, 1250)
	s.set(Shape{})
	if at, _ := s.admit(0, 1250); at < first {
		t.Errorf("a packet arrives at %v, before the one that was sent before it, at %v", time.Duration(at), time.Duration(first))
	}
	if at, _ := s.admit(int64(time.Second), 1250); at != int64(time.Second) {
		t.Errorf("a packet is delayed by %v", time.Duration(at)-time.Second)
	}
}

func TestQueue(t *testing.T) {
	var q queue
	var in, out int64
	for round := range 200 {
		for range round {
			q.push(in, nil)
			in++
		}
		for range round / 2 {
			if p := q.first(); p.at != out {
				t.Fatalf("got packet %d, want %d", p.at, out)
			}
			q.pop()
			out++
		}
	}
	if q.n != int(in-out) {
		t.Errorf("%d packets queued, want %d", q.n, in-out)
	}
}
