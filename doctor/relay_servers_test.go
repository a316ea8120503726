package doctor

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/link/relay"
)

// TestRelayFamily: a network of IPv6 alone and a hub of IPv4 alone.
func TestRelayFamily(t *testing.T) {
	four, six := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("2001:db8::2")
	with := func(own ...netip.Addr) *Env {
		env := turnEnv(relay.Config{URL: "turn:192.0.2.1"}, relay.Config{URL: "turn:[2001:db8::1]"}, relay.Config{URL: "turn:old.example"}, relay.Config{URL: "turn:both.example"})
		env.Hubs = []hubaddr.Address{{Host: "192.0.2.1", Port: 443}}
		env.lookup = zone(map[string][]string{"old.example": {"192.0.2.9"}, "both.example": {"192.0.2.9", "2001:db8::9"}})
		env.Remember(factOutbound, own)
		return env
	}
	for subject, cases := range map[string]map[string]answerCase{
		"hub 192.0.2.1:443": {
			"IPv6 alone": {with(six), "family", "The hub 192.0.2.1:443 has only an IPv4 address, and this network has only IPv6."},
			"IPv4 alone": {with(four), "yes", "192.0.2.1"}, "both": {with(four, six), "yes", ""}, "not known": {with(), "yes", ""},
		},
		"turn:[2001:db8::1]": {"IPv4 alone": {with(four), "family", "has only an IPv6 address, and this network has only IPv4."}, "IPv6 alone": {with(six), "yes", ""}},
		"turn:old.example":   {"IPv6 alone": {with(six), "family", "only an IPv4 address"}},
		"turn:both.example":  {"IPv6 alone": {with(six), "yes", ""}, "IPv4 alone": {with(four), "yes", ""}},
	} {
		runCases(t, "relays.resolve", subject, cases)
	}
	// An address cannot be translated, a name can; and one that was not needs an address.
	for subject, fix := range map[string]string{"hub 192.0.2.1:443": "kith hub address --host NAME", "turn:192.0.2.1": "Put its name", "turn:old.example": "an IPv6 address"} {
		if a := checkRelayResolve(t.Context(), with(six), subject); !strings.Contains(a.Fix, fix) {
			t.Errorf("%s: %q", subject, a.Fix)
		}
	}
}

// TestRelayHalf: a hub that does not answer at the second of its addresses.
func TestRelayHalf(t *testing.T) {
	const name = "hub.example:443"
	with := func(silent ...string) *Env {
		env := &Env{Hubs: []hubaddr.Address{{Host: "hub.example", Port: 443}}}
		x := sees("192.0.2.1:443", "10.0.0.2:7", "203.0.113.7:7")
		x.Server.Name = name
		env.Remember(factSeen, []sighting{x})
		var list []stunServer
		for _, s := range silent {
			list = append(list, stunServer{Name: name, Addr: place(s), Hub: true})
		}
		env.Remember(factSilent, list)
		return env
	}
	other := with()
	other.Remember(factSilent, []stunServer{{Name: "other.example:443", Addr: place("[2001:db8::1]:443")}})
	runCases(t, "relays.udp", "hub "+name, map[string]answerCase{
		"whole": {with(), "yes", ""}, "half": {with("[2001:db8::1]:443"), "half", "[2001:db8::1]:443 does not answer"}, "another is": {other, "yes", ""},
	})
}

// TestDialHedged: each attempt at a connection keeps to the run's rate, not the first alone.
func TestDialHedged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		env := &Env{Pacer: NewPacer()}
		ctx, cancel := context.WithTimeout(t.Context(), tcpPatience)
		defer cancel()
		began := time.Now()
		var mu sync.Mutex
		var at []time.Duration
		_, _, err := dialHedged(ctx, env, func(ctx context.Context) (net.Conn, error) {
			mu.Lock()
			at = append(at, time.Since(began))
			first := len(at) == 1
			mu.Unlock()
			if first { // others of the run take all that two seconds give
				gone, cancel := context.WithCancel(ctx)
				cancel()
				_ = env.Pacer.Wait(gone, 2*Rate)
			}
			<-ctx.Done()
			return nil, ctx.Err()
		})
		if err == nil || len(at) != hedges || at[1] < 1800*time.Millisecond {
			t.Errorf("attempts at %v, %v", at, err)
		}
	})
	// How long the rate held it back is no part of what the server took.
	synctest.Test(t, func(t *testing.T) {
		env := &Env{Pacer: NewPacer()}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		_ = env.Pacer.Wait(gone, 2*Rate)
		here, there := net.Pipe()
		defer there.Close()
		conn, took, err := dialHedged(t.Context(), env, func(context.Context) (net.Conn, error) {
			time.Sleep(30 * time.Millisecond)
			return here, nil
		})
		if err != nil || took != 30*time.Millisecond {
			t.Errorf("it took %v, %v", took, err)
		} else {
			conn.Close()
		}
	})
}
