package doctor

import (
	"net/netip"
	"strings"
	"testing"
)

// known adds to a network what is told of it: fits of routers and other hosts on the way.
// Of what is not told, nothing is heard.
func known(env *Env, told ...func(*Env)) *Env {
	for _, tell := range told {
		tell(env)
	}
	env.Strangers = true
	given(env, factWitnesses, []deviceKnock(nil))
	for _, h := range env.Hubs {
		for _, name := range h.STUNServers() {
			given(env, "passage udp "+name, passage{})
			given(env, "passage tcp "+name, passage{})
		}
	}
	return env
}

// gets has packets get so far, past a router.
func gets(network, to string, hops int, router string) func(*Env) {
	return func(env *Env) {
		p := passage{hops: hops}
		if router != "" {
			p.by = netip.MustParseAddr(router)
		}
		given(env, "passage "+network+" "+to, p)
	}
}

// tellsTime is a server of network time that answers.
func tellsTime(env *Env) {
	given(env, factWitnesses, []deviceKnock{{alive: true, how: "11.0.9.1:123, which is no server of kith's, answers over UDP"}})
}

func vpnOn(name string) func(*Env) { return func(env *Env) { env.Remember(factVPN, name) } }

func TestUDP(t *testing.T) {
	const hub = "192.0.2.9:443"
	up, down := probes{hub: connectedTLS}, probes{hub: silentTCP}
	const router, inside = "11.0.0.1", "10.0.0.1"
	runCases(t, "nat.udp", "", map[string]answerCase{
		"nobody":                    {new(Env), "unknown", "no server"},
		"answers":                   {tcpNet("203.0.113.7:7", up, nil), "yes", "1 of 1"},
		"the hub or the network":    {known(tcpNet("", up, nil)), "blocked", "No answer over UDP comes back"},
		"blocked, say the routers":  {known(tcpNet("", up, nil), gets("tcp", hub, 4, ""), gets("udp", hub, 2, inside)), "blocked", "none after router 2"},
		"though the time comes":     {known(tcpNet("", up, nil), gets("tcp", hub, 4, ""), tellsTime), "blocked", "router 4 on the way"},
		"the hub's port is shut":    {known(tcpNet("", up, nil), gets("tcp", hub, 3, ""), gets("udp", hub, 3, router)), "yes", "11.0.0.1, a router on the internet"},
		"a router inside alone":     {known(tcpNet("", up, nil), gets("udp", hub, 2, inside), gets("tcp", hub, 2, "")), "blocked", "No answer"},
		"the time comes":            {known(tcpNet("", up, nil), tellsTime), "blocked", "No answer over UDP comes back"},
		"the hub is down":           {known(tcpNet("", down, nil)), "unknown", ""},
		"the hub is down, not UDP":  {known(tcpNet("", down, nil), tellsTime), "unknown", ""},
		"a portal":                  {known(tcpNet("", probes{hub: wrongPin}, nil)), "unknown", ""},
		"another server":            {known(tcpNet("", probes{hub: refusedTCP}, probes{"192.0.2.1:80": connectedTCP})), "unknown", ""},
		"behind a VPN":              {known(tcpNet("", up, nil), vpnOn("tun0")), "blocked", "UDP does not get through the VPN on tun0"},
		"behind a VPN that lets it": {known(tcpNet("", up, nil), vpnOn("tun0"), gets("udp", hub, 3, router)), "yes", ""},
	})
	// Without evidence the fix is not of the network alone.
	a := checkUDP(t.Context(), known(tcpNet("", up, nil)), "")
	if !strings.Contains(a.Fix, "this network") || !strings.Contains(a.Fix, "its machine") {
		t.Errorf("fix %q", a.Fix)
	}
	if a := checkUDP(t.Context(), known(tcpNet("", up, nil), gets("tcp", hub, 3, "")), ""); a.Fix != "" || a.Cause != "" {
		t.Errorf("with evidence: %q", a.Fix)
	}
}

func TestWeb(t *testing.T) {
	const hub, second = "192.0.2.9:443", "192.0.2.9:444"
	up := probes{hub: connectedTLS}
	runCases(t, "nat.web", "", map[string]answerCase{
		"nobody":              {new(Env), "unknown", "no server"},
		"UDP":                 {tcpNet("203.0.113.7:7", up, nil), "yes", "UDP"},
		"UDP, to the time":    {known(tcpNet("", up, probes{second: silentTCP}), tellsTime), "unknown", second + ": no answer"},
		"the hub's own ports": {known(tcpNet("", up, probes{second: silentTCP})), "unknown", second + ": no answer"},
		"say the routers":     {known(tcpNet("", up, probes{second: silentTCP}), gets("tcp", hub, 3, ""), gets("tcp", second, 2, "")), "only443", "none after router 2 what is sent to port 444"},
		"it gets to the hub":  {known(tcpNet("", up, probes{second: silentTCP}), gets("tcp", hub, 3, ""), gets("tcp", second, 3, "")), "unknown", ""},
		"another server":      {known(tcpNet("", up, probes{second: silentTCP, "192.0.2.1:1883": silentTCP})), "only443", "192.0.2.1:1883: no answer"},
		"a shut port":         {known(tcpNet("", up, probes{second: refusedTCP})), "yes", "refused"},
		"another gets out":    {known(tcpNet("", up, probes{second: silentTCP, "192.0.2.1:1883": connectedTCP})), "yes", ""},
		"all is silent":       {known(tcpNet("", probes{hub: silentTCP}, probes{second: silentTCP})), "unknown", ""},
		"a portal":            {known(tcpNet("", probes{hub: wrongPin}, probes{second: silentTCP})), "unknown", ""},
	})
}
