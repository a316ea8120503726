package relay

import (
	"errors"
	"fmt"
	"time"

	"github.com/pion/stun/v4"
)

// keep refreshes the allocation in time, and finds out when it is gone. See the
// package's documentation for the rules.
func (r *Relay) keep() {
	now := time.Now()
	refreshed, proved := now, now
	var checked time.Time
	proofs, sent := r.proofs.Load(), r.tx.Load()
	doubt := false
	timer := time.NewTimer(r.times.idle)
	defer timer.Stop()
	for {
		select {
		case <-r.done:
			return
		case <-r.woken: // sending after quiet: look sooner
			timer.Reset(min(r.times.tick, r.untilHalf(refreshed)))
			continue
		case <-r.doubts:
			doubt = true
			if wait := r.times.gap - time.Since(checked); wait > 0 {
				timer.Reset(wait)
				continue
			}
		case <-timer.C:
		}
		now = time.Now()
		tx, n := r.tx.Load(), r.proofs.Load()
		active := tx != sent || n != proofs
		if n != proofs {
			proved = now
		}
		sent, proofs = tx, n
		silence := now.Sub(proved)
		unanswered := tx != r.answered.Load()
		if doubt || silence >= r.times.idle || silence >= r.times.busy && unanswered || r.untilHalf(refreshed) <= 0 {
			if r.refresh(refreshed, proofs) {
				refreshed = time.Now()
				proved, proofs = refreshed, r.proofs.Load()
			}
			checked, doubt = time.Now(), false
		}
		wait := r.times.tick
		if !active && !unanswered {
			r.quiet.Store(true)
			wait = time.Until(proved.Add(r.times.idle))
			if r.tx.Load() != sent && r.quiet.Swap(false) { // just before we said so
				wait = r.times.tick
			}
		}
		timer.Reset(max(min(wait, r.untilHalf(refreshed)), r.times.tick))
	}
}

// proved notes that the allocation lives.
func (r *Relay) proved() {
	r.proofs.Add(1)
	r.answered.Store(r.tx.Load())
}

// untilHalf is the time to the middle of the allocation's life.
func (r *Relay) untilHalf(refreshed time.Time) time.Duration {
	return time.Until(refreshed.Add(time.Duration(r.life.Load()) / 2))
}

// refresh asks the server to go on, and ends the Relay if it does not. proofs
// are those from before.
func (r *Relay) refresh(refreshed time.Time, proofs uint64) bool {
	answer, err := r.ask(nil, stun.MethodRefresh, r.times.check)
	switch {
	case err == nil:
		r.setLife(answer)
		return true
	case errors.Is(err, errSilent):
		expired := time.Since(refreshed) >= time.Duration(r.life.Load())
		if r.proofs.Load() != proofs && !expired {
			return false // packets keep coming: only the answer got lost
		}
		r.lost(fmt.Errorf("%s over %s: %w", r.server, r.server.via, err))
	case codeOf(err) != 0:
		r.lost(err)
	}
	return false
}
