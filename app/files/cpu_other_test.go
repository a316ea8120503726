//go:build !unix

package files

import "time"

// cpuTime is not known here.
func cpuTime() time.Duration { return 0 }
