package portmap

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/nettest"
)

// TestLab maps a port of a home router that runs miniupnpd, by each protocol.
func TestLab(t *testing.T) {
	for _, protocol := range []string{"pcp", "nat-pmp", "upnp", "any", "pcp+tcp", "nat-pmp+tcp", "upnp+tcp"} {
		t.Run(protocol, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			in := nettest.New(t).Internet()
			site := in.Site("home", nettest.NATUPnP)
			home, far := site.Host("h"), in.Server("far")
			say := func(text string, to netip.AddrPort) {
				var err error
				network := "udp4"
				if strings.HasSuffix(protocol, "+tcp") {
					network = "tcp4"
				}
				far.Do(func() {
					d := net.Dialer{Timeout: 5 * time.Second}
					var conn net.Conn
					if conn, err = d.DialContext(ctx, network, to.String()); err == nil {
						_, err = conn.Write([]byte(text))
						_ = conn.Close()
					}
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			table := func() string {
				return site.Router.Output(ctx, "nft", "list", "chain", "inet", "miniupnpd", "prerouting_miniupnpd")
			}
			node := home.Start("env", labNodeEnv+"="+protocol, os.Args[0])
			by := strings.TrimSuffix(strings.Replace(protocol, "any", "pcp", 1), "+tcp")
			mapped := func() netip.AddrPort {
				to := netip.AddrPortFrom(site.Public(), ourPort)
				node.Await(ctx, fmt.Sprintf("^mapped true by %s to %v double NAT false", by, to))
				return to
			}
			start := time.Now()
			to := mapped()
			t.Logf("mapped after %v", time.Since(start).Round(time.Millisecond))
			say("invited", to)
			node.Await(ctx, "^heard invited")
			if rules := table(); strings.Count(rules, "dport") != 1 || !strings.Contains(rules, fmt.Sprint(ourPort)) {
				t.Errorf("the router has, instead of one mapping:\n%s", rules)
			}

			site.Reboot(true)
			node.Say("refresh")
			say("invited again", mapped())
			node.Await(ctx, "^heard invited again")

			// A crash; the mapping that is left behind is taken over.
			node.Kill()
			node = home.Start("env", labNodeEnv+"="+protocol, os.Args[0])
			say("after a crash", mapped())
			node.Await(ctx, "^heard after a crash")

			start = time.Now()
			node.Say("stop")
			node.Await(ctx, "^ended true")
			if d := time.Since(start); d > removeIn+500*time.Millisecond {
				t.Errorf("ended after %v", d)
			}
			if rules := table(); strings.Contains(rules, "dport") {
				t.Errorf("left behind:\n%s", rules)
			}
		})
	}
}
