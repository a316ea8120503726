package portmap

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/nettest"
)

// pinholeConfig has the name of the router's table of firewall rules.
const pinholeConfig = `ext_ifname=eth0
ext_ifname6=eth0
ext_ip=11.0.0.9
listening_ip=eth1
port=0
enable_natpmp=yes
enable_upnp=yes
secure_mode=yes
system_uptime=no
min_lifetime=20
max_lifetime=86400
notify_interval=900
upnp_table_name=fw
upnp_nat_table_name=fw
upnp_forward_chain=pinholes
upnp_nat_chain=prenat
upnp_nat_postrouting_chain=postnat
uuid=5e2c0c8e-0000-4000-8000-000000000006
allow 1024-65535 192.168.77.0/24 1024-65535
`

// TestLabPinhole opens the IPv6 firewall of a home router that runs miniupnpd, by
// each protocol: what comes from outside without being asked arrives after that,
// and neither before nor in the end.
func TestLabPinhole(t *testing.T) {
	if _, err := exec.LookPath("miniupnpd"); err != nil {
		nettest.Skip(t, "the command miniupnpd is not installed")
	}
	for _, protocol := range []string{"pcp6", "upnp6", "any6"} {
		t.Run(protocol, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			in := nettest.New(t).Internet()
			site := in.Site("home", nettest.NATv6Firewall)
			home, far := site.Host("h"), in.Server("far")
			self := home.Addrs()[0]
			// As a router advertisement says it.
			link := site.Router.Output(ctx, "ip", "-6", "-o", "addr", "show", "dev", "eth1", "scope", "link")
			_, link, _ = strings.Cut(link, "inet6 ")
			link, _, _ = strings.Cut(link, "/")
			home.IP("-6", "route", "replace", "default", "via", link, "dev", "eth0")
			// miniupnpd wants IPv4, too.
			site.Router.Addr("eth0", "11.0.0.9/32")
			site.Router.Addr("eth1", "192.168.77.1/24")
			site.Router.Nft(`table inet fw {
				chain pinholes { }
				chain prenat { }
				chain postnat { }
			}
			insert rule inet fw forward jump pinholes
			`)
			dir := t.TempDir()
			conf := filepath.Join(dir, "miniupnpd.conf")
			if err := os.WriteFile(conf, []byte(pinholeConfig), 0o600); err != nil {
				t.Fatal(err)
			}
			server := site.Router.Start("miniupnpd", "-d", "-f", conf, "-P", filepath.Join(dir, "pid"))
			server.Await(ctx, "(?i)listening .*(nat-pmp|pcp)")

			to := netip.AddrPortFrom(self, ourPort)
			say := func(text string) {
				var err error
				far.Do(func() {
					var conn net.Conn
					if conn, err = net.Dial("udp6", to.String()); err == nil {
						_, err = conn.Write([]byte(text))
						_ = conn.Close()
					}
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			table := func() string {
				return site.Router.Output(ctx, "nft", "list", "chain", "inet", "fw", "pinholes")
			}
			say("uninvited")
			node := home.Start("env", labNodeEnv+"="+protocol, os.Args[0])
			node.Await(ctx, "^listening")
			say("uninvited")
			by := strings.TrimSuffix(strings.Replace(protocol, "any", "pcp", 1), "6")
			node.Say("map")
			node.Await(ctx, fmt.Sprintf("^mapped true by %s to %v double NAT false pinhole true", by, regexpAddr(to)))
			say("invited")
			if first := node.Await(ctx, "^heard "); first != "heard invited" {
				t.Errorf("the first that arrived is %q", first)
			}
			if rules := table(); strings.Count(rules, "dport") != 1 || !strings.Contains(rules, fmt.Sprint(ourPort)) {
				t.Errorf("the router has, instead of one pinhole:\n%s", rules)
			}
			node.Say("stop")
			node.Await(ctx, "^ended true")
			if rules := table(); strings.Contains(rules, "dport") {
				t.Errorf("left behind:\n%s", rules)
			}
		})
	}
}

func regexpAddr(a netip.AddrPort) string {
	return strings.NewReplacer("[", `\[`, "]", `\]`).Replace(a.String())
}
