package kith_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/nettest"
)

// onlyMulticast drops all unicast but what IPv6 needs to resolve neighbours.
const onlyMulticast = `table inet blocked { chain in { type filter hook input priority 0;
	iifname "lo" accept
	ip daddr != 224.0.0.0/4 drop
	icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
	ip6 daddr != ff00::/8 drop
}; }`

// TestNetworkChatByMulticast pairs two devices between which no unicast passes,
// neither then nor later, and has them chat. The tunnel stays down throughout.
func TestNetworkChatByMulticast(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, a, b string }{
		{"IPv4 and IPv6", "10.0.0.1/24", "10.0.0.2/24"},
		{"IPv4 of different networks", "10.0.0.1/24", "172.16.9.2/24"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
			defer cancel()
			lab := nettest.New(t)
			sw := lab.Bridge("lan")
			ha, hb := lab.Host("desk").Attach(sw, c.a), lab.Host("laptop").Attach(sw, c.b)
			ha.Nft(onlyMulticast)
			hb.Nft(onlyMulticast)
			a, b := newStation(t, ha), newStation(t, hb)
			a.daemon(ctx)
			b.daemon(ctx)
			pairStations(ctx, t, a, b, "words")

			for _, way := range []struct{ from, to *station }{{a, b}, {b, a}} {
				if status, out := way.from.try(ctx, "", "ping", "--wait", "2s", "-c", "1", way.to.host.Name); status == 0 {
					t.Fatalf("ping passes, so that nothing is shown: %s", out)
				}
				long := strings.Repeat("a line of several notes; ", 150)
				var lines strings.Builder
				for i := range 20 {
					fmt.Fprintf(&lines, "line %d of %s\n", i, way.from.host.Name)
				}
				start := time.Now()
				if status, out := way.from.try(ctx, lines.String()+long+"\n", "chat", "--via", "multicast", way.to.host.Name); status != 0 {
					t.Fatalf("chat: exit status %d: %s", status, out)
				}
				t.Logf("21 lines in %v", time.Since(start).Round(time.Millisecond))
				got := way.to.run(ctx, "chat", way.from.host.Name)
				var texts []string
				for line := range strings.Lines(got) {
					_, text, _ := strings.Cut(strings.TrimSpace(line), ": ")
					texts = append(texts, text)
				}
				if want := lines.String() + strings.TrimSpace(long); strings.Join(texts, "\n") != want {
					t.Errorf("got %q, want %q", texts, want)
				}
			}

			// The other device restarts: it is found again.
			b.up.Kill()
			b.daemon(ctx)
			if status, out := a.try(ctx, "after the restart\n", "chat", "--via", "multicast", "laptop"); status != 0 {
				t.Fatalf("after a restart: exit status %d: %s", status, out)
			}
			if out := b.run(ctx, "chat", "desk"); strings.Count(out, "after the restart") != 1 {
				t.Errorf("after a restart: %q", out)
			}

			// The other device stops: that is said, and when.
			b.up.Kill()
			start := time.Now()
			status, out := a.try(ctx, "is there anybody\n", "chat", "--via", "multicast", "laptop")
			if took := time.Since(start); status != 5 || !strings.Contains(out, "laptop does not answer by multicast") || took > 12*time.Second {
				t.Errorf("nobody there: exit status %d after %v: %s", status, took, out)
			}
		})
	}
}

// try runs a command with some input and returns its exit status and all it says.
func (s *station) try(ctx context.Context, input string, args ...string) (int, string) {
	s.t.Helper()
	cmd := s.host.Command(ctx, s.kith, s.args(args...)...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		s.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}
