package tcpls

import (
	"syscall"
	"time"
)

// cpuTime is what this process has used so far, both ends of every connection.
func cpuTime() time.Duration {
	var created, exited, kernel, user syscall.Filetime
	process, err := syscall.GetCurrentProcess()
	if err == nil {
		err = syscall.GetProcessTimes(process, &created, &exited, &kernel, &user)
	}
	if err != nil {
		panic(err)
	}
	// The two are lengths and not moments: Nanoseconds would shift them.
	units := func(f syscall.Filetime) int64 { return int64(f.HighDateTime)<<32 | int64(f.LowDateTime) }
	return time.Duration(100 * (units(kernel) + units(user)))
}
