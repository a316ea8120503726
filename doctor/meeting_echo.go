package doctor

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/kithproject/kith/rendezvous"
)

const (
	frameWait     = 7 * time.Second         // for the first frame: longer than any broker keeps one
	againPatience = 2500 * time.Millisecond // for the second frame, whose time counts
	againAfter    = 300 * time.Millisecond  // the first frame is published again, then later and later
	openCost      = 12                      // packets of a connection with TLS
	frameCost     = 4                       // packets of a frame
	lookupCost    = 60                      // packets of a lookup in the DHT, for any of these
)

// meetingEcho publishes a frame by the exchange that is in use, and reads it back by one that
// is opened for that: so it has gone through the medium.
func meetingEcho(ctx context.Context, env *Env, subject string) Answer {
	m, ok := env.medium(subject)
	if !ok {
		return Unclear("the medium is gone")
	}
	mailbox := m.Exchange.Name() == dhtDriver
	open, publish := openCost, frameCost
	if mailbox {
		open, publish = lookupCost, lookupCost
	}
	if env.Pacer.Wait(ctx, open) != nil {
		return Unclear()
	}
	other, why := m.fresh()
	if other == nil {
		return Unclear(why)
	}
	defer other.Close()
	ctx, cancel := context.WithDeadline(ctx, deadline(ctx, meetingEchoLimit).Add(-closePatience))
	defer cancel()
	start := time.Now()
	for _, x := range []rendezvous.Exchange{other, m.Exchange} {
		h := untilReady(ctx, x)
		if h.Ready {
			continue
		}
		return notOpened(m, h.Err, x == other, time.Since(start))
	}
	opened := time.Since(start)
	topic, frame := randomTopic(), randomFrame()
	if mailbox && env.Pacer.Wait(ctx, lookupCost) != nil { // it looks there at once
		return Unclear()
	}
	in, err := other.Join(ctx, rendezvous.Point{Topic: topic, Mode: rendezvous.ReceiveOnly})
	if err != nil {
		return Unclear("topic not joined: " + plain(err.Error()))
	}
	defer in.Close()
	out, err := m.Exchange.Join(ctx, rendezvous.Point{Topic: topic, Mode: rendezvous.SendOnly})
	if err != nil {
		return Unclear("topic not joined: " + plain(err.Error()))
	}
	defer out.Close()
	trip := trip{env: env, in: in, out: out, mailbox: mailbox, cost: publish}
	evidence := []string{fmt.Sprintf("second session connected in %v", opened.Round(time.Millisecond))}
	start = time.Now()
	first := ctx
	if !trip.mailbox {
		var enough context.CancelFunc
		first, enough = context.WithTimeout(ctx, frameWait)
		defer enough()
	}
	took, back := trip.make(first, frame, againAfter)
	switch {
	case back && trip.mailbox: // a second frame would wait its turn
		return OK(append(evidence, fmt.Sprintf("frame stored and read back in %v", took.Round(time.Millisecond)))...)
	case back:
		again, cancel := context.WithTimeout(ctx, againPatience)
		defer cancel()
		if once, ok := trip.make(again, randomFrame(), 0); ok {
			took = once
		}
		return OK(append(evidence, fmt.Sprintf("round trip of a frame: %v", took.Round(10*time.Microsecond)))...)
	}
	evidence = append(evidence, fmt.Sprintf("%d frames published in %v, none came back", trip.sent, time.Since(start).Round(time.Millisecond)))
	if trip.mailbox || trip.sent < 3 || time.Since(start) < frameWait || !other.Health().Ready || !m.Exchange.Health().Ready {
		return Unclear(evidence...)
	}
	return Fails("lost", evidence...)
}

// notOpened says why an exchange, the second or the one that is in use, is not ready after a
// while.
func notOpened(m Medium, err error, second bool, after time.Duration) Answer {
	evidence := []string{"not connected: " + plain(fmt.Sprint(err))}
	a := m.explain(err, nil, evidence)
	switch {
	case a.State != No || !second:
		return Unclear(evidence...)
	case m.Exchange.Name() != dhtDriver:
		return Fails("second", evidence...).With(a.Cause, a.Fix)
	case a.Finding == "silent" && after > frameWait: // the one in use counts nodes for a while that are gone
		return Fails("silent", evidence...)
	}
	return Unclear(evidence...)
}

// A trip is the way of a frame through a medium.
type trip struct {
	env     *Env
	in, out rendezvous.Session
	mailbox bool // what comes from an address directly has not gone through the medium
	cost    int  // packets of publishing
	sent    int  // frames that the medium took
}

// make publishes a frame, again after a while if again is not 0, until it comes back. It
// returns how long that took since it was first published.
func (t *trip) make(ctx context.Context, frame []byte, again time.Duration) (time.Duration, bool) {
	arrived := make(chan bool, 1)
	start := time.Now()
	go func() { // ends with ctx, or when the session is closed
		for {
			m, err := t.in.Receive(ctx)
			if err != nil {
				arrived <- false
				return
			}
			if bytes.Equal(m.Frame, frame) && (!t.mailbox || !m.From.IsValid()) {
				arrived <- true
				return
			}
		}
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case ok := <-arrived:
			return time.Since(start), ok
		case <-timer.C:
			if t.env.Pacer.Wait(ctx, t.cost) == nil && t.out.Publish(ctx, frame) == nil {
				t.sent++
			}
			if again > 0 {
				timer.Reset(again)
				again = min(2*again, 2*time.Second)
			}
		}
	}
}

// untilReady waits until a medium can carry something, or ctx ends.
func untilReady(ctx context.Context, x rendezvous.Exchange) rendezvous.Health {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		if h := x.Health(); h.Ready || errorKind(h.Err) != "" {
			return h
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return x.Health()
		}
	}
}

func randomTopic() (t rendezvous.Topic) {
	_, _ = rand.Read(t[:]) // never fails
	return t
}

// randomFrame returns a frame that looks as sealed ones do.
func randomFrame() []byte {
	f := make([]byte, rendezvous.FrameSize)
	_, _ = rand.Read(f) // never fails
	return f
}
