package link

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/nettest"
)

// startNode starts one end of a link on a host.
func startNode(ctx context.Context, h *nettest.Host, side string) *nettest.Process {
	p := h.Start("env", labNodeEnv+"="+side, os.Args[0])
	p.Await(ctx, "^ready")
	return p
}

// talk checks that data passes both ways.
func talk(ctx context.Context, a, b *nettest.Process, word string) {
	a.Say("say " + word + "-from-a")
	b.Await(ctx, "^heard "+word+"-from-a")
	b.Say("say " + word + "-from-b")
	a.Await(ctx, "^heard "+word+"-from-b")
}

// timed fails the test if f takes longer than limit.
func timed(t *testing.T, what string, limit time.Duration, f func()) {
	t.Helper()
	start := time.Now()
	f()
	took := time.Since(start)
	t.Logf("%s: %s", what, took.Round(time.Millisecond))
	if took > limit {
		t.Errorf("%s took %s, at most %s", what, took, limit)
	}
}

func labContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestLabOneLAN(t *testing.T) {
	for name, addrs := range map[string][2][]string{
		"IPv4":               {{"10.1.0.1/24"}, {"10.1.0.2/24"}},
		"IPv6":               {{"fd00:1::1/64"}, {"fd00:1::2/64"}},
		"IPv6 without any":   {{}, {}},
		"both":               {{"10.1.0.1/24", "fd00:1::1/64"}, {"10.1.0.2/24", "fd00:1::2/64"}},
		"one knows no other": {{"10.1.0.1/24"}, {"10.2.0.2/24"}}, // link-local is common
	} {
		t.Run(name, func(t *testing.T) {
			ctx := labContext(t)
			lab := nettest.New(t)
			lan := lab.Bridge("lan")
			a := startNode(ctx, lab.Host("a").Attach(lan, addrs[0]...), "first")
			b := startNode(ctx, lab.Host("b").Attach(lan, addrs[1]...), "second")
			b.Say("local")
			local := strings.Fields(b.Await(ctx, "^local "))[1:]
			timed(t, "up", 2*time.Second, func() {
				a.Say("remote " + strings.Join(local, " "))
				a.Await(ctx, "^(up|changed) lan ")
				b.Await(ctx, "^(up|changed) lan ")
			})
			a.Await(ctx, "^changed lan .* size 1432")
			talk(ctx, a, b, "hello")
		})
	}
}

func TestLabCableIsPulled(t *testing.T) {
	ctx := labContext(t)
	lab := nettest.New(t)
	one, two := lab.Bridge("one"), lab.Bridge("two")
	ha := lab.Host("a").Attach(one, "10.1.0.1/24").Attach(two, "10.2.0.1/24")
	hb := lab.Host("b").Attach(one, "10.1.0.2/24").Attach(two, "10.2.0.2/24")
	a, b := startNode(ctx, ha, "first"), startNode(ctx, hb, "second")
	a.Say("remote 10.1.0.2:41641")
	a.Await(ctx, `^changed lan 10\.1\.0\.2:41641.* size 1432`)
	a.Say("remote 10.1.0.2:41641 10.2.0.2:41641")
	talk(ctx, a, b, "before")
	hb.Nft("table inet f { chain i { type filter hook input priority 0; ip saddr 10.1.0.1 drop; }; }")
	timed(t, "other path, nobody told", 3*time.Second, func() {
		a.Await(ctx, `^changed lan 10\.2\.0\.2:41641`)
	})
	talk(ctx, a, b, "after")
}

func TestLabRouted(t *testing.T) {
	ctx := labContext(t)
	lab := nettest.New(t)
	left, right := lab.Bridge("left"), lab.Bridge("right")
	router := lab.Host("router").Attach(left, "10.1.0.254/24").Attach(right, "10.2.0.254/24").Router()
	ha := lab.Host("a").Attach(left, "10.1.0.1/24").Route("default", "via", "10.1.0.254")
	hb := lab.Host("b").Attach(right, "10.2.0.2/24").Route("default", "via", "10.2.0.254")
	a, b := startNode(ctx, ha, "first"), startNode(ctx, hb, "second")
	router.Nft("table inet f { chain f { type filter hook forward priority 0; meta length > 1300 drop; }; }")
	a.Say("remote 10.2.0.2:41641")
	timed(t, "up", 2*time.Second, func() { a.Await(ctx, `^up direct 10\.2\.0\.2:41641`) })
	b.Await(ctx, "^up ")
	talk(ctx, a, b, "small")
	a.Await(ctx, `^changed direct .* size 1200`) // what the router lets through
	router.Nft("flush ruleset")

	// b moves to another address, and only b knows.
	timed(t, "new address", 3*time.Second, func() {
		hb.IP("addr", "flush", "dev", "eth0", "scope", "global")
		hb.Addr("eth0", "10.2.0.77/24")
		hb.Route("default", "via", "10.2.0.254")
		b.Say("probe")
		a.Await(ctx, `^changed punched 10\.2\.0\.77:41641`)
	})
	talk(ctx, a, b, "moved")

	// Nothing passes: both say so; then they find each other again.
	router.Nft("table inet f { chain f { type filter hook forward priority 0; drop; }; }")
	timed(t, "down", 3500*time.Millisecond, func() { a.Await(ctx, "^down "); b.Await(ctx, "^down ") })
	router.Nft("flush ruleset")
	a.Say("probe")
	timed(t, "again", 2*time.Second, func() { b.Await(ctx, `^changed punched 10\.1\.0\.1.* size 1432`) })
	talk(ctx, a, b, "again")
}
