package kith_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
)

// TestNetworkNearby finds a device in pairing mode on a LAN and pairs with it, in
// both directions: without daemons, and then with them.
func TestNetworkNearby(t *testing.T) {
	for _, lan := range []struct{ name, a, b, rules string }{
		{"IPv4", "10.0.0.1/24", "10.0.0.2/24", ""},
		{"link-local IPv6 only", "", "", ""},
		{"own groups blocked, mDNS passes", "10.0.0.1/24", "10.0.0.2/24", onlyMDNS},
	} {
		t.Run(lan.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
			defer cancel()
			a, b := stationsOn(t, lan.a, lan.b, lan.rules)
			nearbyShown(ctx, t, a, b)
			a.daemon(ctx)
			b.daemon(ctx)
			a.run(ctx, "unpair", "laptop")
			b.up.Await(ctx, `"event":"unpaired"`)
			nearbyWaits(ctx, t, a, b)
		})
	}
}

// nearbyShown: a shows a code, and b finds it and enters the code.
func nearbyShown(ctx context.Context, t *testing.T, a, b *station) {
	t.Helper()
	words, p := a.offer(ctx, "words")
	cmd := b.host.Command(ctx, b.kith, b.args("nearby", "--choose", "desk", "--wait", "20s", "--yes")...)
	cmd.Stdin = strings.NewReader(words + "\n")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "Paired with desk") {
		t.Fatalf("nearby: %v: %s", err, out)
	}
	if status := p.Wait(ctx); status != 0 {
		t.Fatalf("pair: exit status %d", status)
	}
}

// nearbyWaits: b waits for a code, and a finds it and shows one.
func nearbyWaits(ctx context.Context, t *testing.T, a, b *station) {
	t.Helper()
	join := b.start("join", "--yes", "--json")
	show := a.start("nearby", "--choose", "laptop", "--wait", "20s", "--yes", "--json")
	var ev struct{ Words string }
	if err := json.Unmarshal([]byte(show.Await(ctx, `"event":"code"`)), &ev); err != nil {
		t.Fatal(err)
	}
	join.Say(ev.Words)
	join.Await(ctx, `"event":"paired"`)
	if status := show.Wait(ctx); status != 0 {
		t.Fatalf("nearby: exit status %d", status)
	}
}
