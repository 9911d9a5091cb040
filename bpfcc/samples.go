package bpfcc

import (
	_ "embed"
	"slices"

	"github.com/go-tcpls/tcpls"
)

//go:embed samples/bandwidth.o
var bandwidth []byte

//go:embed samples/scalable.o
var scalable []byte

// Bandwidth is a congestion control that keeps one and a half times what fits into
// the path, by the best bandwidth and the shortest round trip that it has seen,
// whatever is lost. It is for links that lose packets for other reasons than
// congestion, and isn't fair to Reno and Cubic. It needs Linux 6.10.
func Bandwidth() tcpls.CCOffer { return sample(bandwidth, "bandwidth", 10) }

// Scalable is Tom Kelly's Scalable TCP: as Reno, but it shrinks by an eighth and
// grows by a hundredth of what is acknowledged, for fast long links. It needs
// Linux 6.4.
func Scalable() tcpls.CCOffer { return sample(scalable, "scalable", 4) }

func sample(object []byte, name string, minor int) tcpls.CCOffer {
	return tcpls.CCOffer{Name: name, Object: slices.Clone(object), MinKernel: [2]int{6, minor}}
}
