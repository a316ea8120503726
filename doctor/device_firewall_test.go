package doctor

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/kithproject/kith/hub/hubaddr"
)

// As nft -j list ruleset prints it: a workstation's, with chains that others jump to.
const deviceNftRules = `{"nftables": [{"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
{"table": {"family": "inet", "name": "f", "handle": 1}},
{"set": {"family": "inet", "name": "empty", "table": "f", "type": "ipv4_addr", "handle": 10}},
{"set": {"family": "inet", "name": "block", "table": "f", "type": "ipv4_addr", "handle": 11, "flags": ["interval", "timeout"], "elem": ["11.0.0.9", {"prefix": {"addr": "10.0.0.0", "len": 8}}, {"elem": {"val": {"range": ["192.168.1.5", "192.168.1.8"]}, "timeout": 600, "expires": 599}}]}},
{"chain": {"family": "inet", "table": "f", "name": "lan", "handle": 2}},
{"chain": {"family": "inet", "table": "f", "name": "in", "handle": 1, "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
{"chain": {"family": "inet", "table": "f", "name": "out", "handle": 3, "type": "filter", "hook": "output", "prio": 0, "policy": "accept"}},
{"chain": {"family": "inet", "table": "f", "name": "nat", "handle": 9, "type": "nat", "hook": "output", "prio": -100, "policy": "drop"}},
{"rule": {"family": "inet", "table": "f", "chain": "in", "handle": 4, "expr": [{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["established", {"accept": null}], ["related", {"accept": null}], ["invalid", {"drop": null}]]}}}]}},
{"rule": {"family": "inet", "table": "f", "chain": "in", "handle": 5, "expr": [{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "lo"}}, {"accept": null}]}},
{"rule": {"family": "inet", "table": "f", "chain": "in", "handle": 6, "expr": [{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": {"prefix": {"addr": "192.168.1.0", "len": 24}}}}, {"jump": {"target": "lan"}}]}},
{"rule": {"family": "inet", "table": "f", "chain": "in", "handle": 7, "expr": [{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 22}}, {"counter": {"packets": 0, "bytes": 0}}, {"accept": null}]}},
{"rule": {"family": "inet", "table": "f", "chain": "lan", "handle": 8, "expr": [LAN]}}]}`

func TestDeviceNft(t *testing.T) {
	neighbour := fwPacket{proto: "udp", ifi: "eth0"}.got("new", netip.MustParseAddrPort("192.168.1.7:27491"), netip.MustParseAddrPort("239.255.107.105:27491"))
	other := neighbour
	other.source = netip.MustParseAddr("11.0.0.2")
	six := neighbour
	six.source = netip.MustParseAddr("fe80::7")
	answer := other
	answer.state = "established"
	out := neighbour
	out.hook = "output"
	udp := func(right string) string {
		return `{"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": ` + right + `}}, {"accept": null}`
	}
	for name, test := range map[string]struct {
		lan    string
		packet fwPacket
		want   fwSays
	}{
		"answers come in":          {udp("1"), answer, fwAccept},
		"all goes out":             {udp("1"), out, fwAccept},
		"strangers do not":         {udp("27491"), other, fwDrop},
		"nor neighbours of IPv6":   {udp("27491"), six, fwDrop},
		"neighbours do":            {udp("27491"), neighbour, fwAccept},
		"neighbours to other port": {udp("5353"), neighbour, fwDrop},
		"in a set":                 {udp(`{"set": [5353, {"range": [27000, 28000]}]}`), neighbour, fwAccept},
		"not in a set":             {udp(`{"set": [5353, {"range": [28000, 29000]}]}`), neighbour, fwDrop},
		"in a set by name":         {udp(`"@ports"`), neighbour, fwMaybe},
		"not":                      {`{"match": {"op": "!=", "left": {"meta": {"key": "l4proto"}}, "right": "udp"}}, {"accept": null}`, neighbour, fwDrop},
		"reject":                   {`{"reject": {"type": "icmp"}}`, neighbour, fwDrop},
		"return":                   {`{"return": null}`, neighbour, fwDrop},
		"from elsewhere":           {`{"match": {"op": "in", "left": {"ct": {"key": "status"}}, "right": "dnat"}}, {"accept": null}`, neighbour, fwDrop},
		"another status":           {`{"match": {"op": "in", "left": {"ct": {"key": "status"}}, "right": "assured"}}, {"accept": null}`, neighbour, fwMaybe},
		"to the group":             {`{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": {"prefix": {"addr": "224.0.0.0", "len": 4}}}}, {"accept": null}`, neighbour, fwAccept},
		"multicast":                {`{"match": {"op": "==", "left": {"fib": {"result": "type", "flags": ["daddr"]}}, "right": "multicast"}}, {"accept": null}`, neighbour, fwAccept},
		"no multicast":             {`{"match": {"op": "!=", "left": {"meta": {"key": "pkttype"}}, "right": "multicast"}}, {"accept": null}`, neighbour, fwDrop},
		"part of a header":         {`{"match": {"op": "==", "left": {"payload": {"base": "th", "offset": 16, "len": 16}}, "right": 1}}, {"accept": null}`, neighbour, fwMaybe},
		"a quota":                  {`{"quota": {"val": 1, "val_unit": "mbytes"}}, {"accept": null}`, neighbour, fwMaybe},
		"counts and says":          {`{"counter": {"packets": 0, "bytes": 0}}, {"log": {"prefix": "x"}}, {"accept": null}`, neighbour, fwAccept},
		"a queue":                  {`{"queue": null}`, neighbour, fwMaybe},
		"to another for good":      {`{"goto": {"target": "none"}}`, neighbour, fwMaybe},
		"a comment of iptables":    {`{"xt": {"type": "match", "name": "comment"}}, {"accept": null}`, neighbour, fwAccept},
		"a log of iptables":        {`{"xt": {"type": "target", "name": "LOG"}}`, neighbour, fwDrop},
		"a rejection of iptables":  {`{"xt": {"type": "target", "name": "REJECT"}}`, neighbour, fwMaybe},
		"by interface":             {`{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "eth*"}}, {"accept": null}`, neighbour, fwAccept},
		"in a list":                {`{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "@block"}}, {"accept": null}`, neighbour, fwAccept},
		"not in a list":            {`{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "@empty"}}, {"accept": null}`, neighbour, fwDrop},
		"anywhere but in a list":   {`{"match": {"op": "!=", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "@block"}}, {"accept": null}`, neighbour, fwDrop},
		"from iptables":            {`{"xt": {"type": "match", "name": "addrtype"}}, {"accept": null}`, neighbour, fwMaybe},
		"not understood":           {`{"match": {"op": "==", "left": {"fib": {"result": "type"}}, "right": "local"}}, {"accept": null}`, neighbour, fwMaybe},
		"a circle":                 {`{"jump": {"target": "lan"}}`, neighbour, fwMaybe},
	} {
		t.Run(name, func(t *testing.T) {
			rules, err := parseNft([]byte(strings.Replace(deviceNftRules, "LAN", test.lan, 1)))
			if err != nil {
				t.Fatal(err)
			}
			if got, _ := rules.judge(test.packet); got != test.want {
				t.Errorf("%d, want %d", got, test.want)
			}
		})
	}
	if _, err := parseNft([]byte("nft: not found")); err == nil {
		t.Error("it takes any text")
	}
}

// As iptables-save -t filter prints it.
const deviceIptablesRules = `# Generated by iptables-save
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [12:999]
:lan - [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -m comment --comment "remote login" -j ACCEPT
-A INPUT -s 192.168.1.0/24 ! -i wlan+ -j lan
-A lan LAN
COMMIT
`

func TestDeviceIptables(t *testing.T) {
	neighbour := fwPacket{proto: "udp", ifi: "eth0"}.got("new", netip.MustParseAddrPort("192.168.1.7:27491"), netip.MustParseAddrPort("239.255.107.105:27491"))
	wlan := neighbour
	wlan.ifi = "wlan0"
	answer := wlan
	answer.state = "established"
	out := wlan
	out.hook = "output"
	for name, test := range map[string]struct {
		lan    string
		packet fwPacket
		want   fwSays
	}{
		"answers come in":       {"-j DROP", answer, fwAccept},
		"all goes out":          {"-j DROP", out, fwAccept},
		"neighbours do":         {"-p udp -m udp --dport 27491 -j ACCEPT", neighbour, fwAccept},
		"but not by Wi-Fi":      {"-p udp -m udp --dport 27491 -j ACCEPT", wlan, fwDrop},
		"ports":                 {"-p udp -m multiport --dports 53,27000:28000 -j ACCEPT", neighbour, fwAccept},
		"other ports":           {"-p udp -m multiport --dports 53,28000:29000 -j ACCEPT", neighbour, fwDrop},
		"TCP":                   {"-p tcp -m tcp --dport 27491 -j ACCEPT", neighbour, fwDrop},
		"rejects":               {"-j REJECT --reject-with icmp-port-unreachable", neighbour, fwDrop},
		"to this device":        {"-m addrtype --dst-type LOCAL -j ACCEPT", neighbour, fwDrop},
		"to a group":            {"-m addrtype --dst-type MULTICAST,LOCAL -j ACCEPT", neighbour, fwAccept},
		"to that group":         {"-d 239.255.107.105/32 -j ACCEPT", neighbour, fwAccept},
		"to another group":      {"-d 224.0.0.251/32 -j ACCEPT", neighbour, fwDrop},
		"not understood":        {"-m u32 --u32 0 -j ACCEPT", neighbour, fwMaybe},
		"now and then":          {"-m limit --limit 3/min -j ACCEPT", neighbour, fwMaybe},
		"an unknown target":     {"-j NFQUEUE --queue-num 0", neighbour, fwMaybe},
		"words in quotes":       {`-m comment --comment "x -j DROP" -j ACCEPT`, neighbour, fwAccept},
		"a limited log":         {`-m limit --limit 3/min -j LOG --log-prefix "[UFW BLOCK] "`, neighbour, fwDrop},
		"a log, and then again": {"-j LOG --log-prefix \"x \"", neighbour, fwDrop},
	} {
		rules, err := parseIptables([]byte(strings.Replace(deviceIptablesRules, "LAN", test.lan, 1)), "ip")
		if got, _ := rules.judge(test.packet); err != nil || got != test.want {
			t.Errorf("%s: %d, want %d; %v", name, got, test.want, err)
		}
	}
}

// A firewallRun is a device with a firewall, whose rules these commands show.
type firewallRun struct {
	user     bool // without the rights of root
	commands map[string]string
	sent     map[string]error // what the system says to packets to an address
	vpn      string           // what is reached through wg0 beside eth0: an address, or all
	six      bool             // it has IPv6, too
	servers  []string
	hub      uint16 // its port
	lookup   error
	resolver string
}

// run returns the answer in a word.
func (f firewallRun) run(t *testing.T) (string, Answer) {
	t.Helper()
	d, env := testDevice(), deviceEnv()
	if f.six {
		env = deviceEnv(deviceIface("eth0", "192.168.1.20/24", "2001:db8::20/64"))
		d.outbound = deviceWays(testSelf4, testSelf6)
	}
	if f.vpn != "" {
		inside := netip.MustParseAddr("10.8.0.2")
		wg := deviceIface("wg0", "10.8.0.2/24")
		wg.Multicast, wg.PointToPoint = false, true
		env = deviceEnv(deviceIface("eth0", "192.168.1.20/24"), wg)
		d.outbound = func(to netip.Addr) (netip.Addr, error) {
			if f.vpn == "all" || f.vpn == to.String() {
				return inside, nil
			}
			return testSelf4, nil
		}
	}
	env.Root, env.Port, env.STUN = !f.user, 5555, f.servers
	if f.hub != 0 {
		env.Hubs = []hubaddr.Address{{Host: "hub.example", Port: f.hub}}
		env.lookup = func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("11.0.0.2")}, f.lookup
		}
	}
	if f.resolver != "" {
		d.read = deviceFiles(map[string]string{"/etc/resolv.conf": "nameserver " + f.resolver + "\n"})
	}
	d.ask = func(_ context.Context, _ *Env, to netip.AddrPort, _ []byte, how deviceAsk) deviceAnswer {
		if how.ttl != 1 {
			t.Errorf("it really sends to %v", to)
		}
		return deviceAnswer{Err: f.sent[to.String()]}
	}
	d.command = func(_ context.Context, name string, args ...string) ([]byte, error) {
		if text := f.commands[name]; text != "" {
			return []byte(text), nil
		}
		return nil, errDeviceNone
	}
	return deviceWord(t, d.firewallCheck(), env)
}

func TestDeviceFirewall(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has these rules")
	}
	one := func(name, text string) map[string]string { return map[string]string{name: text} }
	nft := func(lan string) map[string]string {
		return one("nft", strings.Replace(deviceNftRules, "LAN", lan, 1))
	}
	old := func(lan string) map[string]string {
		return one("iptables-save", strings.Replace(deviceIptablesRules, "LAN", lan, 1))
	}
	const server, alt = "11.0.0.2:443", "11.0.0.3:443"
	eperm := os.NewSyscallError("write", syscall.EPERM)
	forbidden := func(list ...string) map[string]error {
		out := make(map[string]error)
		for _, x := range list {
			out[x] = eperm
		}
		return out
	}
	for name, test := range map[string]struct {
		run  firewallRun
		want string
	}{
		"not root":                      {firewallRun{user: true, commands: nft(`{"drop": null}`), servers: []string{server}}, "ok"},
		"forbidden":                     {firewallRun{user: true, sent: forbidden(server), servers: []string{server}}, "out"},
		"all that there is a way to":    {firewallRun{user: true, sent: map[string]error{server: eperm, "[2001:db8:1::2]:443": syscall.ENETUNREACH}, servers: []string{server, "[2001:db8:1::2]:443"}}, "out"},
		"no way":                        {firewallRun{user: true, sent: map[string]error{server: syscall.ENETUNREACH}, servers: []string{server}}, "unclear"},
		"one of two":                    {firewallRun{user: true, sent: forbidden(alt), servers: []string{server, alt}}, "ok"},
		"only what kith needs":          {firewallRun{user: true, sent: forbidden("9.9.9.9:33434"), servers: []string{server}}, "ok"},
		"nothing is needed":             {firewallRun{user: true, sent: forbidden("9.9.9.9:33434")}, "unclear"},
		"not even DNS":                  {firewallRun{user: true, sent: forbidden("192.168.1.1:53"), servers: []string{"hub.example:443"}, resolver: "192.168.1.1"}, "out"},
		"DNS of this device itself":     {firewallRun{user: true, servers: []string{"hub.example:443"}, resolver: "127.0.0.53"}, "ok"},
		"opened":                        {firewallRun{commands: nft(`{"accept": null}`)}, "ok"},
		"closed to neighbours":          {firewallRun{commands: nft(`{"drop": null}`)}, "lan"},
		"not for all neighbours":        {firewallRun{commands: nft(`{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "@some"}}, {"accept": null}`)}, "unclear"},
		"iptables of IPv4":              {firewallRun{commands: old("-j DROP")}, "lan"},
		"iptables of IPv4 alone":        {firewallRun{six: true, commands: old("-j DROP")}, "ok"},
		"iptables of both":              {firewallRun{six: true, commands: map[string]string{"iptables-save": old("-j DROP")["iptables-save"], "ip6tables-save": "*filter\n:INPUT DROP [0:0]\n"}}, "lan"},
		"drops answers":                 {firewallRun{commands: one("iptables-save", "*filter\n:INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\n"), servers: []string{server}}, "answers"},
		"drops the answers of IPv4":     {firewallRun{six: true, commands: one("iptables-save", "*filter\n:INPUT DROP [0:0]\n"), servers: []string{server, "[2001:db8:1::2]:443"}}, "ok"},
		"lets nothing out":              {firewallRun{commands: one("iptables-save", "*filter\n:OUTPUT DROP [0:0]\n"), sent: forbidden(server), servers: []string{server}}, "out"},
		"lets nothing unknown out":      {firewallRun{commands: one("iptables-save", "*filter\n:OUTPUT DROP [0:0]\n")}, "unclear"},
		"lets the hub out":              {firewallRun{commands: one("iptables-save", "*filter\n:OUTPUT DROP [0:0]\n-A OUTPUT -d 11.0.0.2/32 -p udp -m udp --dport 443 -j ACCEPT\n"), servers: []string{server}}, "ok"},
		"lets no TCP out":               {firewallRun{commands: one("iptables-save", "*filter\n:OUTPUT DROP [0:0]\n-A OUTPUT -p udp -j ACCEPT\n"), hub: 443}, "hub"},
		"lets TCP out to the hub":       {firewallRun{commands: one("iptables-save", "*filter\n:OUTPUT DROP [0:0]\n-A OUTPUT -d 11.0.0.2/32 -j ACCEPT\n"), hub: 443}, "ok"},
		"a hub without an address":      {firewallRun{commands: one("iptables-save", "*filter\n:OUTPUT DROP [0:0]\n-A OUTPUT -d 11.0.0.2/32 -j ACCEPT\n"), hub: 443, lookup: errDeviceNone}, "unclear"},
		"lets TCP out":                  {firewallRun{commands: one("iptables-save", "*filter\n:OUTPUT DROP [0:0]\n-A OUTPUT -p udp -j ACCEPT\n-A OUTPUT -p tcp -m tcp --dport 443 -j ACCEPT\n"), hub: 443}, "ok"},
		"allows what it could send":     {firewallRun{commands: one("iptables-save", "*filter\n:OUTPUT DROP [0:0]\n"), servers: []string{server}}, "unclear"},
		"nor TCP there":                 {firewallRun{commands: one("iptables-save", "*filter\n:OUTPUT DROP [0:0]\n"), hub: 443}, "unclear"},
		"the hub behind a VPN":          {firewallRun{vpn: "11.0.0.2", commands: one("iptables-save", "*filter\n:INPUT DROP [0:0]\n:OUTPUT DROP [0:0]\n-A INPUT -i wg0 -j ACCEPT\n-A INPUT -p udp -m udp --dport 27491 -j ACCEPT\n-A OUTPUT -o wg0 -j ACCEPT\n"), hub: 443}, "ok"},
		"no TCP into the VPN":           {firewallRun{vpn: "11.0.0.2", commands: one("iptables-save", "*filter\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -o wg0 -p tcp -j DROP\n"), hub: 443}, "hub"},
		"no answers from the VPN":       {firewallRun{vpn: "11.0.0.2", commands: one("iptables-save", "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -i wg0 -j DROP\n"), hub: 443}, "answers"},
		"nothing new from the VPN":      {firewallRun{vpn: "all", commands: one("iptables-save", "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -i wg0 -m conntrack --ctstate NEW -j DROP\n"), servers: []string{server}}, "ok"},
		"the LAN beside a VPN":          {firewallRun{vpn: "all", commands: one("iptables-save", "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -i eth0 -j DROP\n"), servers: []string{server}}, "lan"},
		"the hub on this device":        {firewallRun{commands: one("iptables-save", "*filter\n:INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -p udp -m udp --dport 27491 -j ACCEPT\n"), servers: []string{"192.168.1.20:443"}}, "ok"},
		"nothing is known":              {firewallRun{}, "unclear"},
		"no rules at all":               {firewallRun{commands: one("nft", `{"nftables": []}`)}, "ok"},
		"a rule that is not understood": {firewallRun{commands: one("iptables-save", "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m u32 --u32 0 -j DROP\n"), servers: []string{server}}, "unclear"},
		"address translation says no":   {firewallRun{commands: one("iptables-save", "*nat\n:INPUT DROP [0:0]\nCOMMIT\n"), servers: []string{server}}, "ok"},
		"before the filter":             {firewallRun{commands: one("iptables-save", "*raw\n:OUTPUT DROP [0:0]\nCOMMIT\n"), sent: forbidden(server), servers: []string{server}}, "out"},
	} {
		t.Run(name, func(t *testing.T) {
			if got, a := test.run.run(t); got != test.want {
				t.Errorf("%s, want %s: %q", got, test.want, a.Evidence)
			}
		})
	}
}

// TestDeviceFirewallNames: who may read the rules is told which chain drops what.
func TestDeviceFirewallNames(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has these rules")
	}
	const server = "11.0.0.2:443"
	tables := func(text string) map[string]string { return map[string]string{"iptables-save": text} }
	eperm := map[string]error{server: os.NewSyscallError("write", syscall.EPERM)}
	for line, run := range map[string]firewallRun{
		"what others send to find it is dropped by the chain inet f in": {commands: map[string]string{"nft": strings.Replace(deviceNftRules, "LAN", `{"drop": null}`, 1)}},
		"what comes back is dropped by the chain ip filter INPUT":       {commands: tables("*filter\n:INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\n"), servers: []string{server}},
		"what kith sends is dropped by the chain ip raw OUTPUT":         {commands: tables("*raw\n:OUTPUT DROP [0:0]\nCOMMIT\n"), sent: eperm, servers: []string{server}},
		"TCP to the hub is dropped by the chain ip filter OUTPUT":       {commands: tables("*filter\n:OUTPUT DROP [0:0]\n-A OUTPUT -p udp -j ACCEPT\n"), hub: 443},
	} {
		if _, a := run.run(t); !slices.Contains(a.Evidence, line) {
			t.Errorf("%q is not among %q", line, a.Evidence)
		}
		run.user = true
		if _, a := run.run(t); slices.Contains(a.Evidence, line) {
			t.Errorf("without root: %q", a.Evidence)
		}
	}
}

// TestDeviceFirewallPrograms has rules that firewalld 1.3, ufw 0.36 and Docker 20.10 have
// made on Debian 12, each alone on a device with eth0.
func TestDeviceFirewallPrograms(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has these rules")
	}
	file := func(name string) string {
		raw, err := os.ReadFile("testdata/firewall/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	firewalld, ufw := file("firewalld-public.json"), file("ufw-default.json")
	const ssh = `{"rule": {"family": "inet", "table": "firewalld", "chain": "filter_IN_public_allow",`
	opened := strings.Replace(firewalld, ssh, ssh+` "handle": 999, "expr": [{"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": 27491}}, {"accept": null}]}}, `+ssh, 1)
	for name, test := range map[string]struct {
		commands map[string]string
		want     string // "out": the system says so, too
		says     string // in the evidence or the fix
	}{
		"firewalld":                {map[string]string{"nft": firewalld}, "lan", "firewall-cmd --permanent --add-port=27491/udp"},
		"firewalld, opened":        {map[string]string{"nft": opened}, "ok", "chains"},
		"ufw":                      {map[string]string{"nft": ufw, "iptables-save": file("ufw-default.iptables"), "ip6tables-save": file("ufw-default.ip6tables")}, "ok", "enough to find them"},
		"ufw without mDNS":         {map[string]string{"nft": ufw, "iptables-save": linesWithout(file("ufw-default.iptables"), "--dport 5353"), "ip6tables-save": linesWithout(file("ufw-default.ip6tables"), "--dport 5353")}, "lan", "ufw allow 27491/udp"},
		"ufw, opened":              {map[string]string{"nft": ufw, "iptables-save": file("ufw-opened.iptables"), "ip6tables-save": file("ufw-default.ip6tables")}, "ok", "chains"},
		"ufw without its texts":    {map[string]string{"nft": ufw}, "unclear", "not understood"},
		"ufw that denies outgoing": {map[string]string{"nft": ufw, "iptables-save": strings.NewReplacer(":OUTPUT ACCEPT", ":OUTPUT DROP", "-A ufw-track-output -p tcp -m conntrack --ctstate NEW -j ACCEPT", "", "-A ufw-track-output -p udp -m conntrack --ctstate NEW -j ACCEPT", "").Replace(file("ufw-default.iptables"))}, "out", "sudo ufw allow out proto udp to 11.0.0.2 port 443."},
		"ufw that denies TCP":      {map[string]string{"nft": ufw, "iptables-save": strings.NewReplacer(":OUTPUT ACCEPT", ":OUTPUT DROP", "-A ufw-track-output -p tcp -m conntrack --ctstate NEW -j ACCEPT", "").Replace(file("ufw-default.iptables"))}, "hub", "sudo ufw allow out proto tcp to 11.0.0.2 port 443."},
		"Docker":                   {map[string]string{"nft": file("docker.json"), "iptables-save": file("docker.iptables")}, "ok", "chains"},
		"Docker without its texts": {map[string]string{"nft": file("docker.json")}, "ok", "chains"},
	} {
		t.Run(name, func(t *testing.T) {
			run := firewallRun{commands: test.commands, six: true, servers: []string{"11.0.0.2:443"}, hub: 443}
			if test.want == "out" {
				run.sent = map[string]error{"11.0.0.2:443": os.NewSyscallError("write", syscall.EPERM)}
			}
			got, a := run.run(t)
			if text := strings.Join(append(a.Evidence, a.Fix), "\n"); got != test.want || !strings.Contains(text, test.says) {
				t.Errorf("%s, want %s with %q: %s", got, test.want, test.says, text)
			}
		})
	}
}

// linesWithout leaves out the lines that hold a text.
func linesWithout(text, part string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		if !strings.Contains(line, part) {
			out.WriteString(line)
		}
	}
	return out.String()
}

// TestDeviceFirewallFamilies: the LAN is let in by the table of one family, and the other drops
// all; that is enough to be found.
func TestDeviceFirewallFamilies(t *testing.T) {
	rules, err := parseNft([]byte(`{"nftables":[
{"chain":{"family":"ip","table":"f","name":"in","type":"filter","hook":"input","prio":0,"policy":"drop"}},
{"chain":{"family":"ip6","table":"f","name":"in","type":"filter","hook":"input","prio":0,"policy":"drop"}},
{"rule":{"family":"ip","table":"f","chain":"in","expr":[{"match":{"op":"==","left":{"payload":{"protocol":"ip","field":"saddr"}},"right":{"prefix":{"addr":"192.168.1.0","len":24}}}},{"accept":null}]}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	p := fwPacket{proto: "udp", ifi: "eth0"}
	port := netip.MustParseAddrPort
	for want, packet := range map[fwSays]fwPacket{
		fwAccept: p.got("new", port("192.168.1.7:27491"), port("239.255.107.105:27491")),
		fwDrop:   p.got("new", port("[fe80::7]:27491"), port("[ff12::6b69:7468]:27491")),
	} {
		if got, _ := rules.judge(packet); got != want {
			t.Errorf("%v: %d, want %d", packet, got, want)
		}
	}
}

// TestDeviceFirewallGoto: what a chain leaves open that was gone to for good is not decided
// by the chain that it was gone to from.
func TestDeviceFirewallGoto(t *testing.T) {
	for verb, want := range map[string]fwSays{"goto": fwDrop, "jump": fwAccept} {
		rules, err := parseNft([]byte(`{"nftables":[
{"chain":{"family":"inet","table":"f","name":"zones"}}, {"chain":{"family":"inet","table":"f","name":"zone"}},
{"chain":{"family":"inet","table":"f","name":"in","type":"filter","hook":"input","prio":0,"policy":"drop"}},
{"rule":{"family":"inet","table":"f","chain":"in","expr":[{"jump":{"target":"zones"}}]}},
{"rule":{"family":"inet","table":"f","chain":"zones","expr":[{"` + verb + `":{"target":"zone"}}]}},
{"rule":{"family":"inet","table":"f","chain":"zones","expr":[{"accept":null}]}}]}`))
		if err != nil {
			t.Fatal(err)
		}
		p := fwPacket{proto: "udp", ifi: "eth0"}.got("new", netip.MustParseAddrPort("192.168.1.7:1"), netip.MustParseAddrPort("192.168.1.20:1"))
		if got, _ := rules.judge(p); got != want {
			t.Errorf("%s: %d, want %d", verb, got, want)
		}
	}
}

// TestDeviceCommand: what a command prints is read to a bound, and its failure told.
func TestDeviceCommand(t *testing.T) {
	if _, err := deviceCommand(t.Context(), "kith-no-such-command"); err == nil {
		t.Error("a command that is not there has no error")
	}
	out, err := deviceRun(exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$", "-test.v"))
	if err != nil || !strings.Contains(string(out), "PASS") {
		t.Errorf("%q, %v", out, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := deviceRun(exec.CommandContext(ctx, os.Args[0])); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}

// TestDeviceFirewallNetworks: the LAN is closed only if each of its networks is, and one that is
// closed beside another is told.
func TestDeviceFirewallNetworks(t *testing.T) {
	const first = "*filter\n:INPUT DROP [0:0]\n-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT\n-A INPUT -i eth0 -j ACCEPT\n"
	for want, text := range map[string]string{
		"what others send to find it is dropped on eth1": first,
		"": first + "-A INPUT -i eth1 -j ACCEPT\n",
	} {
		env := deviceEnv(deviceIface("eth0", "192.168.1.20/24"), deviceIface("eth1", "192.168.2.20/24"))
		rules, err := parseIptables([]byte(text), "ip")
		if err != nil {
			t.Fatal(err)
		}
		a := testDevice().judgeFirewall(env, rules, []firewallServer{{AddrPort: netip.MustParseAddrPort("11.0.0.2:443")}}, make([]error, 1), nil)
		if got := strings.Join(a.Evidence, " "); a.State != Yes || got != want {
			t.Errorf("%v %q, want %q", a.State, got, want)
		}
	}
}

// TestDeviceFirewallWay: rules are not asked for an interface that nobody knows.
func TestDeviceFirewallWay(t *testing.T) {
	rules, err := parseIptables([]byte("*filter\n:INPUT DROP [0:0]\n-A INPUT -i ppp0 -j ACCEPT\n"), "ip")
	if err != nil {
		t.Fatal(err)
	}
	env, server := deviceEnv(deviceIface("eth1", "192.168.2.20/24")), firewallServer{AddrPort: netip.MustParseAddrPort("11.0.0.2:443")}
	if a := testDevice().judgeFirewall(env, rules, []firewallServer{server}, make([]error, 1), nil); a.State != Unknown || !strings.Contains(strings.Join(a.Evidence, ""), "11.0.0.2") {
		t.Errorf("%v %q", a.State, a.Evidence)
	}
}

// TestDeviceCommandPlaces: a command is one of the system's own, not whatever the user's path has.
func TestDeviceCommandPlaces(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has none of these places")
	}
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/kith-planted", []byte("#!/bin/sh\necho planted\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	if out, err := deviceCommand(t.Context(), "kith-planted"); err == nil {
		t.Errorf("it runs what the path has: %q", out)
	}
	if out, err := deviceCommand(t.Context(), "sh", "-c", "echo own"); err != nil || string(out) != "own\n" {
		t.Errorf("%q, %v", out, err)
	}
}

// FuzzDeviceFiles reads what the system, its commands and servers say.
func FuzzDeviceFiles(f *testing.F) {
	for _, text := range []string{deviceNftRules, deviceIptablesRules, deviceProcUDP, "nameserver 127.0.0.53\n", "2: FLOCK  ADVISORY  WRITE 4711 08:01:131 0 EOF\n"} {
		f.Add([]byte(text))
	}
	req := make([]byte, ntpSize)
	f.Add(ntpAnswer(req, (&Env{}).now()))
	for _, name := range []string{"firewalld-public.json", "docker.json", "ufw-default.iptables", "ufw-default.ip6tables"} {
		raw, err := os.ReadFile("testdata/firewall/" + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	p := fwPacket{proto: "udp", ifi: "eth0"}.got("new", netip.MustParseAddrPort("192.168.1.7:1"), netip.MustParseAddrPort("192.168.1.20:27491"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if rules, err := parseNft(b); err == nil {
			old, err := parseIptables(b, "ip")
			if err == nil {
				rules.replace(old)
			}
			if says, _ := rules.judge(p); says != fwAccept && says != fwDrop && says != fwMaybe {
				t.Errorf("nft: %d", says)
			}
		}
		rules, _ := parseIptables(b, "ip") // without rules all passes
		if says, _ := rules.judge(p); says != fwAccept && says != fwDrop && says != fwMaybe {
			t.Errorf("iptables: %d", says)
		}
		if list := parseResolvers(b); len(list) > maxResolvers {
			t.Errorf("%d resolvers", len(list))
		}
		for _, x := range append(parseUDPOwners(b, 27491), parseLocks(b, 131)) {
			if strings.Trim(x, "0123456789") != "" {
				t.Errorf("%q is no number", x)
			}
		}
		_, _ = parseDrops(b, 0xc738)
		if r, ok := parseDNS(b, 7); ok && len(r.addrs) > 32 {
			t.Errorf("%d addresses", len(r.addrs))
		}
		if got, ok := parseNTP(b, [8]byte{}); ok && got.sent.Before(got.received) {
			t.Errorf("NTP: %v", got)
		}
		if text := plain(string(b)); strings.ContainsAny(text, "\x1b\n\r\x00") || len(text) > 310 {
			t.Errorf("not clean: %q", text)
		}
		_, fits := deviceBinding(0)
		if fits(b) {
			t.Error("a guess is an answer")
		}
	})
}
