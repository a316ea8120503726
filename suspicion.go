package kith

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/kithproject/kith/doctor"
)

const (
	// suspectAfter is how long something is waited for before the doctor has a look.
	suspectAfter = time.Second
	// suspectEvery is how often it looks, however many wait and try again.
	suspectEvery = 30 * time.Second
	// suspectFor is how long a look takes at most: with suspectAfter, less than the 15 s
	// that most commands wait.
	suspectFor = 12 * time.Second
)

// A suspicion is what the doctor thinks that is in the way, found while something
// is waited for: so that the failure, when it comes, can name its cause at once.
type suspicion struct {
	looking sync.Mutex // held during a look

	mu    sync.Mutex // guards the fields below
	began time.Time  // the last look
	at    time.Time  // when cause was found, or that there is none
	cause doctor.Result

	look func(context.Context) (doctor.Report, error) // of tests; default Node.glance
}

// suspect has the doctor look if what the caller waits for does not come soon. The
// caller calls stop when it has stopped waiting.
func (n *Node) suspect() (stop func()) {
	ctx, stop := context.WithCancel(n.ctx)
	_ = n.start(func() { // errs only when the node is closed
		for wait := suspectAfter; ; wait = suspectEvery {
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
				n.lookAround()
			}
		}
	})
	return stop
}

// lookAround makes the small run of the doctor, unless there is one or was one lately. It
// goes on when nobody waits any more: who tries again wants to know.
func (n *Node) lookAround() {
	s := &n.suspicion
	if !s.looking.TryLock() {
		return
	}
	defer s.looking.Unlock()
	s.mu.Lock()
	look, lately := s.look, time.Since(s.began) < suspectEvery
	if !lately {
		s.began = time.Now()
	}
	s.mu.Unlock()
	if lately {
		return
	}
	if look == nil {
		look = func(ctx context.Context) (doctor.Report, error) { return n.glance(ctx, suspectFor) }
	}
	report, err := look(n.ctx)
	if err != nil || n.ctx.Err() != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at, s.cause = time.Now(), mostLikely(report, n.cfg.Relay)
}

// glance is a small run of the doctor, for total at most, that the user has not asked for.
func (n *Node) glance(ctx context.Context, total time.Duration) (doctor.Report, error) {
	env, err := n.doctorEnv(DiagnoseConfig{Quick: true})
	if err != nil {
		return doctor.Report{}, err
	}
	env.Peers = nil
	return doctor.Run(ctx, doctor.Config{Table: doctor.Table(), Env: env, Quick: true, Total: total}), nil
}

// mostLikely is the first cause of a report that keeps this device from all others, or the
// zero Result. What makes connections slower, or fails with some devices alone, is no
// reason to give for a device that may be switched off.
func mostLikely(r doctor.Report, policy RelayPolicy) doctor.Result {
	yes := func(codes ...doctor.Code) bool {
		return slices.ContainsFunc(r.Results, func(x doctor.Result) bool {
			return slices.Contains(codes, x.Code) && x.State == doctor.Yes
		})
	}
	afar := []doctor.Code{"meeting.broker", "meeting.waku", "meeting.dht"}
	uses := slices.ContainsFunc(r.Results, func(x doctor.Result) bool { return slices.Contains(afar, x.Code) })
	apart := uses && !yes(afar...)
	carried := policy != RelayNever && yes("relays.tls", "relays.tcp")
	for _, c := range r.Causes {
		switch c.Code {
		case "nat.udp", "nat.web":
			if c.Severity > doctor.Note && !carried {
				return c
			}
		case "device.addresses", "device.routes", "device.gateway", "device.outside", "device.portal", "device.dns",
			"address.outbound", "nat.tcp", "meeting.broker", "meeting.waku", "meeting.dht", "relays.resolve", "relays.tcp", "relays.tls":
			if c.Severity > doctor.Note && apart {
				return c
			}
		default:
			if c.Severity == doctor.Fault {
				return c
			}
		}
	}
	return doctor.Result{}
}

// suspected is what is most likely in the way, or the zero Result.
func (n *Node) suspected() doctor.Result {
	n.suspicion.mu.Lock()
	defer n.suspicion.mu.Unlock()
	if time.Since(n.suspicion.at) > 2*suspectEvery {
		return doctor.Result{}
	}
	return n.suspicion.cause
}

// notConnected is the error of having waited for a device in vain.
func (n *Node) notConnected(d Device, err error) error {
	return &NotConnectedError{Device: d, Err: err, Cause: n.suspected()}
}

// because adds a suspected cause to the text of an error.
func because(text string, cause doctor.Result) string {
	if cause.Cause == "" {
		return text
	}
	return text + " (most likely: " + cause.Cause + ")"
}
