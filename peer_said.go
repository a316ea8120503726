package kith

import (
	"time"

	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/link/punch"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/signaling"
)

// What a device has said of itself in this run, for the doctor.
type said struct {
	at      time.Time // when its last presence came; zero: none did
	left    time.Time // when it said goodbye; zero, or before at: it is not known to be gone
	version string    // its program, clean
	answers bool      // it answers questions
	days    int64     // its clock's day minus ours, in days
	nat     punch.Behaviour
	where   whereabouts
	ended   bool // it has ended the pair
}

// hear notes a presence.
func (p *peer) hear(pr signaling.Presence) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.said.at, p.said.version = time.Now(), pairing.CleanName(pr.Version)
	p.said.answers, p.said.days, p.said.nat = pr.Capabilities&signaling.Answers != 0, pr.Day-wire.Day(time.Now()), p.peerNAT
	p.said.where = whereaboutsOf(pr.Candidates)
	p.signalLocked()
}

// hearGoodbye notes that it stops.
func (p *peer) hearGoodbye() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.said.left = time.Now()
}

// hearEnd notes that the pair is over, and not by this device's user.
func (p *peer) hearEnd() {
	ended := !p.n.kin.removed.has(p.id)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.said.ended = ended
	p.signalLocked()
}
