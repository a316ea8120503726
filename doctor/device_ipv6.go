package doctor

import (
	"context"
	"net/netip"
	"slices"
	"sync"
)

func (d *device) ipv6Check() Check {
	return Check{
		Code: "device.ipv6", Asks: "Does IPv6, if there is any, work?", Needs: []Code{"device.addresses"}, Limit: beyondLimit,
		Findings: []Finding{
			{
				ID: "broken", Severity: Limit, Cause: "This device has an address and a route of IPv6, but nothing comes back over it.",
				Fix:      "Restart the router, and if that does not help switch IPv6 off for this network, since IPv4 works.",
				Explains: []string{"relays.udp/half"},
			},
		},
		Run: d.runIPv6,
	}
}

func (d *device) runIPv6(ctx context.Context, env *Env, _ string) Answer {
	var self netip.Addr
	for _, to := range deviceFar6 {
		if a, err := d.outbound(to); err == nil && a.Is6() && a.IsGlobalUnicast() && !a.IsPrivate() {
			self = a
		}
	}
	if !self.IsValid() {
		return Nothing("there is no IPv6 here, and none is needed")
	}
	evidence := []string{"outwards from " + self.String()}
	six := func(a netip.Addr) bool { return a.Is6() && a.IsGlobalUnicast() && !a.IsPrivate() }
	look, enough := context.WithCancel(ctx)
	defer enough()
	// All at once, as each may take seconds where nothing comes back.
	var router deviceAnswer
	var hop, cut netip.Addr
	var works4 bool
	var knocks []deviceKnock
	var wg sync.WaitGroup
	wg.Go(func() { router = d.router6(look, env) })
	wg.Go(func() { hop, cut = d.routers(look, env, deviceFar6) })
	wg.Go(func() { works4 = deviceAlive(d.knockAll(look, env, targets(env), netip.Addr.Is4)) != "" })
	wg.Go(func() {
		if knocks = d.knockAll(look, env, targets(env), six); deviceAlive(knocks) != "" {
			enough()
		}
	})
	wg.Wait()
	if how := deviceAlive(knocks); how != "" {
		return OK(evidence[0], how)
	}
	if !hop.IsValid() && !router.late() && !cut.IsValid() && works4 && len(knocks) > 0 { // one server may be at fault itself
		knocks = append(knocks, slices.DeleteFunc(slices.Clone(d.witnesses(ctx, env)), func(k deviceKnock) bool { return !k.addr.Is6() })...)
	}
	var hosts []netip.Addr
	for _, k := range knocks {
		if k.alive {
			return OK(append(evidence, k.how)...)
		}
		evidence = append(evidence, k.silence())
		if !slices.Contains(hosts, k.addr) {
			hosts = append(hosts, k.addr)
		}
	}
	switch {
	case hop.IsValid():
		return OK(append(evidence, hop.String()+", a router on the way, answers")...)
	case router.late():
		return Fails("broken", append(evidence, "nobody answers at the router's address of IPv6")...)
	case len(knocks) == 0 && !cut.IsValid():
		return Unclear(append(evidence, "no server with IPv6 is known to try")...)
	case !works4:
		return Unclear(append(evidence, "nothing answers over IPv4 either")...)
	case cut.IsValid():
		return Fails("broken", append(evidence, "the router "+cut.String()+" says that it knows no way on over IPv6", "over IPv4 answers come")...)
	case len(hosts) < silentEnough:
		return Unclear(append(evidence, "over IPv4 answers come, but one server alone says nothing of the network")...)
	}
	return Fails("broken", append(evidence, "over IPv4 answers come")...)
}

// router6 asks the router of IPv6.
func (d *device) router6(ctx context.Context, env *Env) deviceAnswer {
	gw, ok := d.gateway(true)
	if !ok {
		return deviceAnswer{}
	}
	return d.ask(ctx, env, netip.AddrPortFrom(gw, 5351), []byte{0, 0}, deviceAsk{wait: gatewayWait})
}
