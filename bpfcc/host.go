package bpfcc

import (
	"crypto/rand"
	"fmt"
	"sync"

	"github.com/go-tcpls/tcpls"
)

// A Host loads congestion controls into the kernel: it is a tcpls.CCHost. The
// zero value is ready to use. It may be shared by many sessions, and its
// methods may be called from many goroutines at once.
type Host struct {
	// MaxObject is the size in bytes of the largest object that is taken. Default,
	// and most: 64 KiB.
	MaxObject int
	// MaxLoaded is how many are loaded at once, for all sessions together.
	// Default 4; further ones are refused with CCTooMany.
	MaxLoaded int

	mu     sync.Mutex
	loaded int
}

var _ tcpls.CCHost = (*Host)(nil)

const maxLoaded = 4

// MaxSize is the size in bytes of the largest object that is taken.
func (h *Host) MaxSize() int {
	if h.MaxObject <= 0 {
		return maxObject
	}
	return min(h.MaxObject, maxObject)
}

// Check tells why an offer can't be taken now: CCUnsupported on an older
// kernel than it needs, or without the privileges; CCTooMany.
func (h *Host) Check(o tcpls.CCOffer) error {
	if err := checkSystem(o.MinKernel); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.room()
}

// room reports whether one more may be loaded. The caller holds mu.
func (h *Host) room() error {
	most := h.MaxLoaded
	if most <= 0 {
		most = maxLoaded
	}
	if h.loaded >= most {
		return &tcpls.CCError{Code: tcpls.CCTooMany, Reason: fmt.Sprintf("%d are loaded, and no more at once", h.loaded)}
	}
	return nil
}

// Load checks an object and loads it, under a name of its own. The error is a
// *tcpls.CCError.
func (h *Host) Load(o tcpls.CCOffer) (tcpls.CCProgram, error) {
	if len(o.Object) > h.MaxSize() {
		return nil, &tcpls.CCError{Code: tcpls.CCTooLarge, Reason: fmt.Sprintf("the object has %d bytes; at most %d are taken", len(o.Object), h.MaxSize())}
	}
	h.mu.Lock()
	err := h.room()
	if err == nil {
		h.loaded++
	}
	h.mu.Unlock()
	if err != nil {
		return nil, err
	}
	p, err := shielded(func() (tcpls.CCProgram, error) { return load(o.Object) })
	if err != nil {
		h.release()
		return nil, err
	}
	return &hosted{CCProgram: p, host: h}, nil
}

func (h *Host) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.loaded--
}

// hosted is a program that counts for its host.
type hosted struct {
	tcpls.CCProgram
	host *Host
	once sync.Once
	err  error
}

// Close unloads the program. Further calls return what the first one did.
func (p *hosted) Close() error {
	p.once.Do(func() {
		p.err = p.CCProgram.Close()
		p.host.release()
	})
	return p.err
}

// load checks an object and loads it.
func load(b []byte) (tcpls.CCProgram, error) {
	o, err := parse(b)
	if err != nil {
		return nil, err
	}
	var id [4]byte
	_, _ = rand.Read(id[:]) // never fails
	name := fmt.Sprintf("tcpls_%x", id)
	if err := o.rename(name); err != nil {
		return nil, err
	}
	return o.register(name)
}

// Supported tells what this machine, or this process, lacks to take a congestion
// control; nil if it could. It loads one for a moment.
func Supported() error {
	o := Scalable()
	if err := checkSystem(o.MinKernel); err != nil {
		return err
	}
	p, err := load(o.Object)
	if err != nil {
		return err
	}
	return p.Close()
}
