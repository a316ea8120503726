package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Far addresses of the internet, one in each half of IPv4 (a VPN that takes all may
// have a route for each half). Nothing is sent there: the system says by which of our
// addresses it would.
var (
	deviceFar4 = []netip.Addr{netip.MustParseAddr("9.9.9.9"), netip.MustParseAddr("193.0.14.129")}    //nolint:gochecknoglobals // a table
	deviceFar6 = []netip.Addr{netip.MustParseAddr("2001:7fd::1"), netip.MustParseAddr("2620:fe::fe")} //nolint:gochecknoglobals // a table
)

func (d *device) routesCheck() Check {
	return Check{
		Code: "device.routes", Asks: "Is there a way to the internet?", Needs: []Code{"device.addresses"}, Quick: true,
		Findings: []Finding{
			{
				ID: "none", Severity: Fault, Cause: "This device has no route to the internet (no default route).",
				Fix:      "Connect to the network again, or set the router's address as default route (ip route add default via ROUTER).",
				Explains: cutOff,
			},
			{
				ID: "near", Severity: Note, Cause: "This device has no route to the internet, so only devices in its own network can connect.",
				Fix:      "Nothing has to be done as long as that is enough.",
				Explains: []string{"address.outbound/none"},
			},
		},
		Run: d.runRoutes,
	}
}

func (d *device) runRoutes(_ context.Context, env *Env, _ string) Answer {
	o := env.outwards(d.outbound)
	evidence := slices.Clone(o.unknown)
	for _, a := range o.own {
		evidence = append(evidence, "outwards from "+a.String())
	}
	found := len(evidence) > 0
	for _, t := range literals(env) {
		if self, err := d.outbound(t); err == nil && !linkOnly(self) && !found {
			return OK(fmt.Sprintf("no default route, but a way to %s from %s", t, self))
		}
	}
	switch {
	case found:
		return OK(evidence...)
	case slices.ContainsFunc(env.Peers, func(p Peer) bool {
		return p.Connected && strings.HasPrefix(p.Path, "lan ") || !p.Heard.IsZero() && len(targets(env)) == 0
	}):
		return Fails("near", "no default route")
	case len(env.Peers) == 0 && len(targets(env)) == 0: // nothing that would need one
		return Fails("near", "no default route", "no device is paired, and no server is set")
	}
	return Fails("none", "no default route")
}

// outwards is what the system's routes say of the way to the internet.
type outwards struct {
	own     []netip.Addr // this device's addresses there, IPv4 before IPv6
	unknown []string     // why a part of it is not known, a line each
}

// outwards asks how far addresses are reached, once in a run.
func (e *Env) outwards(outbound func(netip.Addr) (netip.Addr, error)) outwards {
	return once(e, "outwards", func() (o outwards) {
		for _, to := range slices.Concat(deviceFar4, deviceFar6) {
			self, err := outbound(to)
			switch {
			case err != nil && !deviceNoWay(err):
				o.unknown = append(o.unknown, err.Error())
			case err == nil && !linkOnly(self) && !slices.ContainsFunc(o.own, func(a netip.Addr) bool { return a.Is4() == self.Is4() }):
				o.own = append(o.own, self)
			}
		}
		e.Remember(factOutbound, o.own)
		return o
	})
}

func (d *device) gatewayCheck() Check {
	return Check{
		Code: "device.gateway", Asks: "Does the router answer?", Needs: []Code{"device.routes"}, Limit: staleWait + time.Second, Quick: true,
		Findings: []Finding{
			{
				ID: "silent", Severity: Fault, Cause: "The router, to which the default route leads, does not answer.",
				Fix:      "Check that the router is on and that the default route is its address, and connect to the network again.",
				Explains: cutOff,
			},
		},
		Run: d.runGateway,
	}
}

const (
	// gatewayWait is a little more than Linux looks for an address on a link.
	gatewayWait = 4 * time.Second
	// staleWait is the same for one that was there a while ago, which Linux asks for five seconds
	// later and then for three seconds, and one in which the system was busy.
	staleWait = 12 * time.Second
)

func (d *device) runGateway(ctx context.Context, env *Env, _ string) Answer {
	begun, whole := time.Now(), ctx
	gw, ok := d.gateway(false)
	if !ok {
		gw, ok = d.gateway(true)
	}
	if !ok {
		return Nothing("no router's address is known")
	}
	ctx, cancel := context.WithTimeout(ctx, gatewayWait+time.Second)
	defer cancel()
	type heard struct {
		line   string
		alive  bool
		nobody bool
	}
	ways := []func() heard{
		func() heard { // a request of NAT-PMP (RFC 6886 section 3.2)
			a := d.ask(ctx, env, netip.AddrPortFrom(gw, 5351), []byte{0, 0}, deviceAsk{wait: gatewayWait})
			return heard{fmt.Sprintf("%s answers after %v", gw, a.RTT.Round(10*time.Microsecond)), a.alive() || a.Hop.IsValid(), a.late()}
		},
		func() heard {
			err := d.dial(ctx, env, netip.AddrPortFrom(gw, 53))
			return heard{gw.String() + " answers at TCP port 53", err == nil || deviceRefused(err), false}
		},
		func() heard { // a packet that the router may not forward: it says so
			a := d.ask(ctx, env, netip.AddrPortFrom(deviceFar(gw), 33434), []byte{0}, deviceAsk{ttl: 1, wait: gatewayWait})
			return heard{fmt.Sprintf("%s forwards", a.Hop), a.Hop.IsValid(), a.late()}
		},
		func() heard { // some routers never answer for themselves
			select {
			case <-ctx.Done():
				return heard{}
			case <-time.After(time.Second):
			}
			knocks := d.knockAll(ctx, env, targets(env), func(a netip.Addr) bool { return !a.IsPrivate() && !linkOnly(a) })
			how := deviceAlive(knocks)
			return heard{how, how != "", false}
		},
	}
	out := make(chan heard, len(ways))
	for _, way := range ways {
		go func() { out <- way() }()
	}
	nobody := Fails("silent", "nobody on the link has the address "+gw.String()).With(fmt.Sprintf("The router %s, to which the default route leads, does not answer.", gw), "")
	answer := Unclear(gw.String() + " does not answer, as some routers do")
	for range ways {
		h := <-out
		switch {
		case h.alive && answer.State != Yes:
			answer = OK(h.line)
			cancel()
		case h.nobody && answer.State == Unknown:
			answer = nobody
		}
	}
	for answer.State == Unknown { // the system does not tell everybody who waits
		found, ok := d.neighbour(gw)
		took := time.Since(begun)
		switch {
		case ok && !found:
			return nobody
		case !ok || took < gatewayWait || took >= staleWait: // who answers early is a firewall
			return answer
		}
		select {
		case <-whole.Done():
			return answer
		case <-time.After(500 * time.Millisecond):
		}
	}
	return answer
}

// late reports whether the system gave up looking for the address on the link. A
// firewall that refuses with a message like the system's own is quicker.
func (a deviceAnswer) late() bool { return a.Nobody && a.RTT > 500*time.Millisecond }

// neighbour reports whether the system has found an address on the link, or has looked for it
// and found nobody; ok is false if it does not say.
func (d *device) neighbour(a netip.Addr) (found, ok bool) {
	raw, err := d.read(arpTable)
	if err != nil {
		return false, false
	}
	for _, n := range parseARP(raw) { // of any interface
		if n.addr == a {
			found, ok = found || n.found, true
		}
	}
	return found, ok
}

// deviceFar is a far address of the same family.
func deviceFar(a netip.Addr) netip.Addr {
	if a.Is4() {
		return deviceFar4[0]
	}
	return deviceFar6[0]
}

func deviceRefused(err error) bool { return err != nil && errors.Is(err, errDeviceRefused) }
