//go:build !linux

package bpfcc

import "github.com/go-tcpls/tcpls"

var errNoLinux = &tcpls.CCError{Code: tcpls.CCUnsupported, Reason: "it needs Linux"}

func checkSystem([2]int) error { return errNoLinux }

func (o *object) register(string) (tcpls.CCProgram, error) { return nil, errNoLinux }
