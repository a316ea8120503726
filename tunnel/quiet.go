package tunnel

import (
	"sync"
	"time"

	gvlog "gvisor.dev/gvisor/pkg/log"
)

// muted drops what the network stack logs. It knows one log for the whole program, which
// writes to standard error, and warns there of what networks do every day.
type muted struct{}

// Emit drops it.
func (muted) Emit(int, gvlog.Level, time.Time, string, ...any) {}

// quiet is once per program, as the stack's log is.
var quiet = sync.OnceFunc(func() { gvlog.SetTarget(muted{}) }) //nolint:gochecknoglobals // the stack's log is global
