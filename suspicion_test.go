package kith

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kithproject/kith/doctor"
	"github.com/kithproject/kith/pairing"
)

// found is a report with a cause, and answers as "code yes" or "code no".
func found(cause string, severity doctor.Severity, answers ...string) doctor.Report {
	var r doctor.Report
	for _, a := range answers {
		code, state, _ := strings.Cut(a, " ")
		r.Results = append(r.Results, doctor.Result{Code: doctor.Code(code), State: doctor.State(state)})
	}
	if cause != "" {
		code, id, _ := strings.Cut(cause, "/")
		r.Causes = []doctor.Result{{Code: doctor.Code(code), Finding: id, Severity: severity, State: doctor.No, Cause: "It is " + id + ".", Fix: "Mend it."}}
	}
	return r
}

// TestMostLikely: only what keeps this device from all others is named as the reason why
// one of them is not connected.
func TestMostLikely(t *testing.T) {
	none := "meeting.broker no"
	for _, test := range []struct {
		report doctor.Report
		policy RelayPolicy
		named  bool
	}{
		{found("nat.mapping/hard", doctor.Limit, none), RelayAuto, false},
		{found("nat.carrier/shared", doctor.Limit, none), RelayAuto, false},
		{found("device.state/low", doctor.Limit, none), RelayAuto, false},
		{found("device.state/full", doctor.Fault, "meeting.broker yes"), RelayAuto, true},
		{found("device.clock/wrong", doctor.Fault, "meeting.broker yes"), RelayAuto, true},
		{found("device.interfaces/none", doctor.Fault), RelayAuto, true},
		// UDP stops connections where no relay carries them.
		{found("nat.udp/blocked", doctor.Limit, "meeting.broker yes", "relays.tls yes"), RelayAuto, false},
		{found("nat.udp/blocked", doctor.Limit, "meeting.broker yes", "relays.tls yes"), RelayNever, true},
		{found("nat.udp/blocked", doctor.Limit, "meeting.broker yes", "relays.tls no"), RelayAuto, true},
		// One server of two is no reason, nor the internet where it is not used.
		{found("meeting.broker/silent", doctor.Limit, none, "meeting.broker yes"), RelayAuto, false},
		{found("meeting.broker/silent", doctor.Limit, none, "meeting.dht no"), RelayAuto, true},
		{found("meeting.dht/silent", doctor.Limit, "meeting.dht no", "meeting.broker yes"), RelayAuto, false},
		{found("relays.tcp/hub-silent", doctor.Limit, none), RelayAuto, true},
		{found("device.dns/silent", doctor.Fault, none), RelayAuto, true},
		{found("device.dns/silent", doctor.Fault, "meeting.broker yes"), RelayAuto, false},
		{found("device.routes/none", doctor.Fault), RelayAuto, false},
		{found("device.routes/none", doctor.Fault, "meeting.broker skipped"), RelayAuto, true},
		{found("device.dns/idle", doctor.Note, none), RelayAuto, false},
		{found("", doctor.Fine, none), RelayAuto, false},
	} {
		got := mostLikely(test.report, test.policy)
		if (got.Cause != "") != test.named {
			t.Errorf("%+v: named %q", test, got.Name())
		}
	}
	two := found("nat.mapping/hard", doctor.Limit, none)
	two.Causes = append(two.Causes, found("meeting.broker/silent", doctor.Limit).Causes...)
	if got := mostLikely(two, RelayAuto).Name(); got != "meeting.broker/silent" {
		t.Errorf("of two causes %q is named", got)
	}
}

// suspiciousNode is one that finds what look says, and counts how often it looks.
func suspiciousNode(t *testing.T, look func(context.Context) (doctor.Report, error)) (n *Node, looks *atomic.Int64) {
	t.Helper()
	n, looks = new(Node), new(atomic.Int64)
	n.ctx, n.cancel = context.WithCancel(t.Context())
	n.suspicion.look = func(ctx context.Context) (doctor.Report, error) {
		looks.Add(1)
		return look(ctx)
	}
	return n, looks
}

// TestFailuresNameTheCause: the errors of having waited in vain for a device, and for
// somebody to pair with, say what the doctor found while they waited.
func TestFailuresNameTheCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const takes = 9 * time.Second // as long as UDP is asked for in vain
		n, looks := suspiciousNode(t, func(context.Context) (doctor.Report, error) {
			time.Sleep(takes)
			return found("device.dns/silent", doctor.Fault, "meeting.broker no"), nil
		})
		failures := func() (NotConnectedError, PairError) {
			var notConnected *NotConnectedError
			if !errors.As(n.notConnected(Device{Name: "laptop"}, context.DeadlineExceeded), &notConnected) {
				t.Fatal("no NotConnectedError")
			}
			p := &Pairing{n: n, events: make(chan PairEvent, 1), settled: make(chan struct{}), done: make(chan struct{})}
			p.report(pairing.Event{Kind: pairing.EventFailed, Reason: pairing.NobodyThere})
			var failed *PairError
			if !errors.As(p.err, &failed) {
				t.Fatalf("no PairError: %v", p.err)
			}
			return *notConnected, *failed
		}
		stop := n.suspect()
		time.Sleep(suspectAfter + takes - time.Second)
		if c, f := failures(); c.Cause.Cause != "" || f.Cause.Cause != "" || strings.Contains(c.Error()+f.Error(), "most likely") {
			t.Errorf("before anything is known: %v, %v", &c, &f)
		}
		time.Sleep(2 * time.Second)
		stop()
		c, f := failures()
		for _, err := range []error{&c, &f} {
			if !strings.HasSuffix(err.Error(), "(most likely: It is silent.)") {
				t.Errorf("the error is %q", err)
			}
		}
		if c.Cause.Name() != "device.dns/silent" || f.Cause.Name() != "device.dns/silent" || c.Cause.Fix != "Mend it." {
			t.Errorf("causes %+v and %+v", c.Cause, f.Cause)
		}
		p := &Pairing{n: n, events: make(chan PairEvent, 1), settled: make(chan struct{}), done: make(chan struct{})}
		p.report(pairing.Event{Kind: pairing.EventFailed, Reason: pairing.Refused})
		if strings.Contains(p.err.Error(), "most likely") {
			t.Errorf("somebody was there: %v", p.err)
		}
		time.Sleep(2*suspectEvery + time.Second)
		if c, _ := failures(); c.Cause.Cause != "" {
			t.Errorf("what was found long ago is named: %v", &c)
		}
		if looks.Load() != 1 {
			t.Errorf("looked %d times", looks.Load())
		}
		n.cancel()
		n.wg.Wait()
	})
}

// TestImpatience: many that wait, give up and try again have the doctor look no more often
// than one does, and a look that hangs holds none of them up.
func TestImpatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, looks := suspiciousNode(t, func(context.Context) (doctor.Report, error) { return doctor.Report{}, nil })
		for range 120 {
			var stops []func()
			for range 10 {
				stops = append(stops, n.suspect())
			}
			time.Sleep(suspectAfter + time.Second)
			for _, stop := range stops {
				stop()
			}
		}
		if most, got := int64(240*time.Second/suspectEvery)+1, looks.Load(); got > most || got < most-2 {
			t.Errorf("looked %d times in four minutes", got)
		}
		n.cancel()
		n.wg.Wait()
	})
	synctest.Test(t, func(t *testing.T) {
		mended := make(chan struct{})
		n, looks := suspiciousNode(t, func(context.Context) (doctor.Report, error) {
			<-mended
			return doctor.Report{}, nil
		})
		for range 3 {
			stop := n.suspect()
			time.Sleep(2 * suspectEvery)
			stop()
		}
		synctest.Wait()
		if looks.Load() != 1 {
			t.Errorf("%d looks at once", looks.Load())
		}
		close(mended)
		n.cancel()
		n.wg.Wait()
	})
}

// TestOwnCausesAreKept: however many ask, this device looks at itself at most twice a
// minute for them: once briefly and once thoroughly.
func TestOwnCausesAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var looks []time.Duration
		n := &Node{cfg: Config{Relay: RelayNever}}
		n.own.look = func(_ context.Context, total time.Duration) (doctor.Report, error) {
			looks = append(looks, total)
			r := found("nat.udp/blocked", doctor.Limit)
			r.Causes = append(r.Causes, found("nat.preserve/changed", doctor.Note).Causes...)
			return r, nil
		}
		over, cancel := context.WithCancel(t.Context())
		cancel()
		n.ownCauses(over, ownTime) // what is not looked at to the end is not kept
		for range 59 {
			for _, total := range []time.Duration{doctor.QuickTotal, ownTime} {
				got := n.ownCauses(t.Context(), total)
				if strings.Join(got, " ") != relayNeverName+" nat.udp/blocked" {
					t.Fatalf("it tells %v", got)
				}
			}
			time.Sleep(time.Second)
		}
		if len(looks) != 3 || looks[1] != doctor.QuickTotal || looks[2] != ownTime {
			t.Errorf("looked for %v", looks)
		}
		time.Sleep(2 * time.Second)
		n.ownCauses(t.Context(), ownTime)
		n.ownCauses(t.Context(), doctor.QuickTotal)
		if len(looks) != 4 {
			t.Errorf("looked for %v", looks)
		}
	})
}
