package lab

// What a network and its emulator say to each other, by package gob: first a
// setup, then orders. Each is answered by a report.

type setup struct {
	Seed  uint64
	Hosts int // how many namespaces it is given, in files from firstFile on
	Links []linkSetup
}

type linkSetup struct {
	MTU    int
	Shapes [2]Shape // from A to B, from B to A
	Boxes  []Middlebox
}

type orderKind int

const (
	orderShape orderKind = iota
	orderBoxes
	orderReset
	orderCounters
)

type order struct {
	Kind   orderKind
	Link   int
	Shapes [2]Shape
	Boxes  []Middlebox
}

type report struct {
	Dir      string      // the network's folder; with the first report only
	Counters [2]Counters // from A to B, from B to A
}
