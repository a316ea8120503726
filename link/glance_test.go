package link

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/stun/v4"
)

// TestGlance looks again and again while servers are silent, say the same, or not.
func TestGlance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mapped atomic.Pointer[string]
		a := onAir(t, map[string]func(*stun.Message) []airPacket{goodSTUN: func(m *stun.Message) []airPacket {
			if at := mapped.Load(); at != nil {
				return []airPacket{{after: 10 * time.Millisecond, raw: success(m, *at)}}
			}
			return nil
		}})
		defer a.close()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- a.Run(ctx) }()
		defer func() { cancel(); <-ended }()
		step := func(what string, asked int, news bool) {
			t.Helper()
			before, told := len(a.requests(goodSTUN)), len(a.told())
			a.Glance()
			a.Glance() // two links want it at once
			time.Sleep(25 * time.Second)
			synctest.Wait()
			if got := len(a.requests(goodSTUN)) - before; got != asked {
				t.Errorf("%s: asked %d times, want %d", what, got, asked)
			}
			if got := len(a.told()) > told; got != news {
				t.Errorf("%s: told %v, want %v", what, got, news)
			}
		}
		step("no servers", 0, false)
		if seen, inVain := a.Outside(); len(seen) > 0 || inVain {
			t.Errorf("seen at %v, in vain %v, and nobody was asked", seen, inVain)
		}
		a.SetServers(addrPorts(goodSTUN))
		time.Sleep(25 * time.Second)
		if seen, inVain := a.Outside(); len(seen) > 0 || !inVain {
			t.Errorf("seen at %v, in vain %v", seen, inVain)
		}
		step("UDP is blocked", glanceTries, false)
		first, second := usOutside, usElse
		mapped.Store(&first)
		step("UDP gets out", 2, true)
		if seen, inVain := a.Outside(); !slices.Equal(seen, addrPorts(usOutside)) || inVain {
			t.Errorf("seen at %v, in vain %v", seen, inVain)
		}
		step("the same", 1, false)
		time.Sleep(portNews)
		mapped.Store(&second)
		step("another port", 2, true)
		mapped.Store(&first)
		step("a port again, soon", 1, false)
		mapped.Store(&second)
		elsewhere := "203.0.113.99:41641"
		mapped.Store(&elsewhere)
		step("another address", 2, true)
		mapped.Store(nil)
		for range 5 {
			step("silent for a while", glanceTries, false)
		}
		step("silent for long", glanceTries, true)
		if seen, inVain := a.Outside(); len(seen) > 0 || !inVain {
			t.Errorf("seen at %v, in vain %v", seen, inVain)
		}
	})
}

// TestGlanceAtAHardNAT: other ports are its nature, and no news.
func TestGlanceAtAHardNAT(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		port := func(m *stun.Message) []airPacket {
			n++
			return []airPacket{{after: 10 * time.Millisecond, raw: success(m, []string{usOutside, usElse, "203.0.113.7:50001", "203.0.113.7:50002", "203.0.113.7:50003"}[n%5])}}
		}
		a := onAir(t, map[string]func(*stun.Message) []airPacket{goodSTUN: port, otherSTUN: port})
		defer a.close()
		a.ask(t, goodSTUN, otherSTUN)
		if !a.NAT().Hard() {
			t.Fatalf("NAT %+v", a.NAT())
		}
		for range 5 {
			time.Sleep(portNews)
			if a.stun.glance(t.Context()) {
				t.Fatal("a round is called for")
			}
		}
	})
}
