package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/net/ipv4"

	"github.com/kithproject/kith/link/portmap"
)

// gatewayPatience is how long one protocol may take: the search, the mapping, and the proof.
const gatewayPatience = 14 * time.Second

// gatewayCheck is the check of one protocol that routers map ports by.
func gatewayCheck(code Code, name, protocol string, explains []string) Check {
	others := make([]string, 0, len(explains))
	for _, e := range explains {
		others = append(others, e+"/lies", e+"/refused")
	}
	return Check{
		Code: code, Asks: "If the router speaks " + name + ", does a port that it opens let anything in?", Limit: gatewayPatience,
		Needs: []Code{"address.outbound", "address.discovery"},
		Findings: []Finding{
			{
				ID: "lies", Severity: Limit,
				Cause:    "The router says by " + name + " that it has opened a port, but nothing comes in through it.",
				Fix:      "Update or restart the router, or turn " + name + " off in it and forward kith's UDP port by hand.",
				Explains: others,
			},
			{
				ID: "refused", Severity: Note,
				Cause: "The router speaks " + name + ", but opens no port.",
				Fix:   "Allow devices to open ports in the router's settings, if straight connections fail.",
			},
		},
		Run: func(ctx context.Context, env *Env, _ string) Answer {
			if env.NoPortMapping {
				return Nothing("the router is not to be asked for ports")
			}
			return judgeTrial(name, tryGateway(ctx, env, protocol))
		},
	}
}

// A trial is what came of one protocol.
type trial struct {
	err     error
	mapping portmap.Mapping
	checked bool   // whether it could be found out that something comes in
	works   bool   // and did
	why     string // it could not be found out
}

func judgeTrial(name string, t trial) Answer {
	switch {
	case errors.Is(t.err, portmap.ErrAbsent):
		return Nothing("no router here speaks " + name)
	case errors.Is(t.err, portmap.ErrRefused):
		return Fails("refused", t.err.Error())
	case t.err != nil:
		return Unclear(t.err.Error())
	}
	line := fmt.Sprintf("the router %s has opened %s for the port %d of this device", t.mapping.Gateway, t.mapping.External, t.mapping.Internal)
	switch {
	case t.works:
		return OK(line, "what a server sent there came in")
	case t.checked:
		return Fails("lies", line, "what a server sent there did not come in")
	}
	return OK(line, "whether anything comes in was not found out: "+t.why)
}

// tryGateway has the router map a port of a new socket, and a server send to it: once in a run.
func tryGateway(ctx context.Context, env *Env, protocol string) trial {
	return once(env, "gateway "+protocol, func() (t trial) {
		sock, err := openSTUN(env, "udp4")
		if err != nil {
			return trial{err: err}
		}
		defer sock.close()
		if err := env.Pacer.Wait(ctx, 10); err != nil {
			return trial{err: err}
		}
		m := portmap.New(portmap.Config{Gateway: env.gateway, Logger: env.Logger})
		t.err = m.Try(ctx, protocol, sock.local.Port(), func(mapping portmap.Mapping) {
			t.mapping = mapping
			t.works, t.checked, t.why = comesIn(ctx, env, sock, mapping)
		})
		return t
	})
}

// comesIn has a server send to a mapped port whose socket has never sent anything that got
// past the router.
func comesIn(ctx context.Context, env *Env, sock *stunSocket, mapping portmap.Mapping) (works, checked bool, why string) {
	own, ok := public(env)
	switch {
	case !ok:
		return false, false, "no server on the internet sees this device"
	case mapping.External.Addr() != own:
		return false, false, fmt.Sprintf("the router's address %s is not the one that servers see, %s", mapping.External.Addr(), own)
	}
	k, err := newKnocker(ctx, env, seenBy(env, true))
	if err != nil {
		return false, false, err.Error()
	}
	defer k.close()
	openOwnFirewall(sock, k.server)
	if k.knock(ctx, sock, mapping.External.Port(), knockWait) {
		return true, true, ""
	}
	if !k.works(ctx) {
		return false, false, "the server does not answer any more"
	}
	return false, true, ""
}

// openOwnFirewall has a firewall of this device itself let in what comes from a server: a
// packet goes there that lives for one hop, so that no router opens anything for it.
func openOwnFirewall(sock *stunSocket, server netip.AddrPort) {
	c := ipv4.NewConn(sock.conn)
	before, err := c.TTL()
	if err != nil || c.SetTTL(1) != nil {
		return
	}
	_, _ = sock.conn.WriteToUDPAddrPort([]byte{0}, server)
	_ = c.SetTTL(before)
}
