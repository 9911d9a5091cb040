//go:build !unix

package lab

import (
	"errors"
	"time"
)

// cpuTime is what this process has used of the processors.
func cpuTime() (time.Duration, error) {
	return 0, errors.New("the processor time of a process is only known on Unix")
}
