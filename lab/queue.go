package lab

// A queue holds packets under way, in the order of their arrival: a ring that
// grows.
type queue struct {
	ring    []queued
	head, n int
}

type queued struct {
	at   int64
	data []byte
}

func (q *queue) push(at int64, data []byte) {
	if q.n == len(q.ring) {
		ring := make([]queued, max(64, 2*q.n))
		copied := copy(ring, q.ring[q.head:])
		copy(ring[copied:], q.ring[:q.head])
		q.ring, q.head = ring, 0
	}
	q.ring[(q.head+q.n)%len(q.ring)] = queued{at, data}
	q.n++
}

// first returns the next packet, or nil.
func (q *queue) first() *queued {
	if q.n == 0 {
		return nil
	}
	return &q.ring[q.head]
}

func (q *queue) pop() {
	q.ring[q.head] = queued{}
	q.head = (q.head + 1) % len(q.ring)
	q.n--
}
