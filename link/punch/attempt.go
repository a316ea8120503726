package punch

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

const (
	// AttemptTime is how long an attempt lasts.
	AttemptTime = 5 * time.Second
	// AttemptProbes is the most packets an attempt sends.
	AttemptProbes = 2048
	// MainSocket is the index in a [Shot] of the link's own socket, the one that
	// the peer knows the address of.
	MainSocket = -1

	// refresh is the least time between two packets of one socket to one port:
	// the repetition is for what was lost.
	refresh = 1200 * time.Millisecond
	// jitterLow and jitterSpan are how far off the expected place in a sequence
	// the aims are: others take ports in between, never fewer.
	jitterLow, jitterSpan = -8, 32
)

// A Shot is one packet to send.
type Shot struct {
	// Socket is the index of the socket in the pool, or [MainSocket].
	Socket int
	// To is where the packet goes.
	To netip.AddrPort
	// Opening is true for a packet whose only use is to open our own NAT, an
	// opener's first from each socket: it may have a low TTL.
	Opening bool
}

// An Attempt is the schedule of one attempt by one side: what to send, and when.
// It has no clock and no sockets. What comes in is not its business: when the
// peer is found, it is dropped. Not safe for concurrent use.
type Attempt struct {
	plan  Plan
	ports *Ports
	aims  ring // for RoleBoth into a block
	seed  uint64
	end   time.Time
	sent  int
	turn  int // how often all sockets, or all flows, have had a packet
	step  int // in this turn
	again time.Time
}

// NewAttempt returns the attempt that begins now. A prober needs ports, with
// [Ports.Resume] called if they were used before; others may give nil. The seed
// is best random. It returns an error for a role that sends nothing, a target
// that is not known, or missing ports.
func NewAttempt(plan Plan, ports *Ports, seed uint64, now time.Time) (*Attempt, error) {
	a := &Attempt{plan: plan, ports: ports, seed: seed, end: now.Add(AttemptTime), again: now}
	addr := plan.Target.Addr()
	switch plan.Role {
	case RoleOpener:
		if plan.Sockets < 1 || plan.Target.Port() == 0 {
			return nil, errors.New("punch: an opener needs sockets and the peer's address and port")
		}
	case RoleProber:
		if ports == nil {
			return nil, errors.New("punch: a prober needs ports")
		}
	case RoleBoth:
		if plan.Sockets < 1 || plan.Flows < 1 {
			return nil, errors.New("punch: two hard sides need sockets and flows")
		}
		a.aims = newRing(uint32(plan.peer.block()), seed)
	default:
		return nil, fmt.Errorf("punch: there is nothing to send for role %s: %s", plan.Role, plan.Reason)
	}
	if !addr.Is4() {
		return nil, fmt.Errorf("punch: the peer's IPv4 address is not known, but %q", addr)
	}
	return a, nil
}

// Sent returns how many packets the attempt has given out.
func (a *Attempt) Sent() int { return a.sent }

// Next returns the next packet to send, if ok. If not, it returns when to ask
// again; the zero time says that the attempt is over. When there is nothing left
// to send, it still waits for the end: the peer may be about to hit.
func (a *Attempt) Next(now time.Time, pacer *Pacer) (shot Shot, at time.Time, ok bool) {
	if !now.Before(a.end) {
		return Shot{}, time.Time{}, false
	}
	if a.sent >= AttemptProbes {
		return Shot{}, a.end, false
	}
	if a.step == 0 && now.Before(a.again) {
		return Shot{}, earlier(a.again, a.end), false
	}
	if at, ok := pacer.Take(now); !ok {
		return Shot{}, earlier(at, a.end), false
	}
	if a.plan.Role == RoleProber {
		port, ok := a.ports.Next()
		if !ok {
			a.sent = AttemptProbes // all ports there are, which only continued attempts can reach
			return Shot{}, a.end, false
		}
		a.sent++
		return Shot{Socket: MainSocket, To: netip.AddrPortFrom(a.plan.Target.Addr(), port)}, time.Time{}, true
	}
	return a.cycle(now), time.Time{}, true
}

// cycle returns the next packet of those who send the same ones again and again.
func (a *Attempt) cycle(now time.Time) (shot Shot) {
	if a.step == 0 {
		a.again = now.Add(refresh)
	}
	n := a.plan.Sockets
	if a.plan.Role == RoleOpener {
		shot = Shot{Socket: a.step, To: a.plan.Target, Opening: a.turn == 0}
	} else {
		shot = Shot{Socket: a.step % n, To: netip.AddrPortFrom(a.plan.Target.Addr(), a.aim(a.step))}
		n = a.plan.Flows
	}
	a.sent++
	if a.step++; a.step == n {
		a.step = 0
		a.turn++
	}
	return shot
}

// aim returns the port of the peer that our k-th flow goes to. The peer's k-th
// flow has, in a sequence, about the k-th port, if it sends as fast as we do; a
// peer with one mapping per socket has only as many as it has sockets.
func (a *Attempt) aim(k int) uint16 {
	peer := a.plan.peer
	if !peer.predictable() {
		return peer.BlockLow + uint16(a.aims.value(uint32(k)%a.aims.n))
	}
	h := newRing(1, a.seed+uint64(k)).keys[0]
	if peer.Mapping == AddressDependent {
		return peer.step(1 + int(h%uint32(a.plan.Sockets+jitterSpan)))
	}
	return peer.step(1 + k + jitterLow + int(h%jitterSpan))
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// Run carries an attempt out: it waits for each moment and calls send. A send
// that fails counts like a packet lost on the way. It returns nil when the
// attempt is over, the context's error when that ends first, which is how to
// stop it when the peer is found, and the last error of send if not one packet
// could be sent.
func Run(ctx context.Context, a *Attempt, pacer *Pacer, send func(Shot) error) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	var worked bool
	var last error
	for ctx.Err() == nil {
		shot, at, ok := a.Next(time.Now(), pacer)
		if ok {
			if err := send(shot); err != nil {
				last = err
			} else {
				worked = true
			}
			continue
		}
		if at.IsZero() {
			if worked || last == nil {
				return nil
			}
			return fmt.Errorf("punch: no packet could be sent: %w", last)
		}
		timer.Reset(time.Until(at))
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}
