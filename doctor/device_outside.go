package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// beyondLimit is for the servers of the settings, after them for others, and for proof.
	beyondLimit = 2*lookupWait + deviceKnockWait + 3*time.Second + proofAsk
	// silentEnough is how many hosts must be silent before it is the network's fault and not theirs, a count.
	silentEnough  = 2
	maxDeviceHops = 4 // routers that are asked for, a count
)

func (d *device) outsideCheck() Check {
	return Check{
		Code: "device.outside", Asks: "Does anything beyond the router answer?", Needs: []Code{"device.gateway"}, Limit: beyondLimit,
		Findings: []Finding{
			{
				ID: "nothing", Severity: Fault, Cause: "The router answers, but nothing beyond it does: it has no connection to the internet.",
				Explains: cutOff,
				Fix:      "Check the router's connection (its cable or its provider), and restart it.",
			},
			{
				ID: "near", Severity: Note, Cause: "Nothing beyond the router answers, so only devices in its network can connect.",
				Fix: "Nothing has to be done as long as that is enough; else check the router's connection (its cable or its provider).",
				// The first ones are not looked at where it is a fault.
				Explains: andCutOff("device.dns", "device.pmtu/hole", "meeting.dht/names"),
			},
		},
		Run: d.runOutside,
	}
}

func (d *device) runOutside(ctx context.Context, env *Env, _ string) Answer {
	b := d.beyond(ctx, env)
	env.Remember(factQuiet, b.how == "" && ctx.Err() == nil)
	far := func(t server) bool {
		a, err := netip.ParseAddr(t.Host)
		return err != nil || scope(a) == scopePublic
	}
	switch {
	case b.how != "":
		return OK(append(b.lines, b.how)...)
	case !slices.ContainsFunc(targets(env), far): // what is at home says nothing of the internet
		return Unclear(append(b.lines, "no server of the internet is known to try")...)
	case !b.dead() && b.asked() == 0: // their names are not found, or there is no way to their addresses
		return Unclear(append(b.lines, "none of the servers that are known has an address of the internet that could be tried")...)
	case !b.dead():
		return Unclear(append(b.lines, "that says more of the servers than of this network, as nobody else could be asked")...)
	case allNear(env):
		return Fails("near", b.lines...)
	case slices.ContainsFunc(proxyNames, func(name string) bool { return d.getenv(name) != "" }):
		return Fails("nothing", b.lines...).With(
			"Nothing beyond the router answers, and as this device is told to use a proxy, the network seems to let programs out through that alone, which kith cannot use.",
			"Ask whoever runs the network to let this device reach its hub without the proxy, over UDP or TCP, or use another network.")
	case b.second.IsValid():
		return Fails("nothing", b.lines...).With(
			fmt.Sprintf("The router answers, but the next one on the way, %v, says that it knows no way to the internet.", b.second),
			"Ask whoever runs that router, as a rule the provider, and restart the own one if that does not help.")
	}
	return Fails("nothing", b.lines...)
}

// A beyond is what is known of what lies beyond the router.
type beyond struct {
	how       string // who answers; "": nobody
	lines     []string
	four, six familyBeyond
	second    netip.Addr // the router behind the first one, if that says that it knows no way on
}

// A familyBeyond is the part of one family of addresses.
type familyBeyond struct {
	silent    []netip.Addr // addresses of the internet
	strangers []netip.Addr // those of them that are no hub's, which may just be switched off
	resolver  bool         // one of those is a DNS server of the system
	cut       bool         // a router nearby says that it knows no way on
	alive     bool         // somebody answers
}

// dead reports whether a router says so, or enough hosts are silent that have nothing to do with
// each other. A hub counts beside the system's own DNS server, without which nothing works here.
func (f familyBeyond) dead() bool {
	return f.cut || f.mute()
}

// mute reports whether that is so by the silence alone.
func (f familyBeyond) mute() bool {
	return len(f.strangers) >= silentEnough || f.resolver && len(f.silent) >= silentEnough
}

// dead reports whether there is proof that nothing beyond the router answers.
func (b *beyond) dead() bool {
	return b.by(familyBeyond.dead)
}

func (b *beyond) by(dead func(familyBeyond) bool) bool {
	known := func(f familyBeyond) bool { return dead(f) || len(f.silent) == 0 }
	return b.how == "" && (dead(b.four) || dead(b.six)) && known(b.four) && known(b.six)
}

// asked is how many addresses of the internet are silent.
func (b *beyond) asked() int { return len(b.four.silent) + len(b.six.silent) }

func (b *beyond) of(a netip.Addr) *familyBeyond {
	if a.Is4() {
		return &b.four
	}
	return &b.six
}

// add takes note of hosts that were tried.
func (b *beyond) add(all []deviceKnock) {
	hub := func(a netip.Addr) bool {
		return slices.ContainsFunc(all, func(k deviceKnock) bool { return k.target.Hub && k.addr == a })
	}
	for _, k := range all {
		if k.alive {
			b.how, b.of(k.addr).alive = k.how, true
			continue
		}
		b.lines = append(b.lines, k.silence())
		if scope(k.addr) != scopePublic {
			continue
		}
		f := b.of(k.addr)
		if !slices.Contains(f.silent, k.addr) {
			f.silent = append(f.silent, k.addr)
		}
		f.resolver = f.resolver || k.resolver
		if !hub(k.addr) && !slices.Contains(f.strangers, k.addr) {
			f.strangers = append(f.strangers, k.addr)
		}
	}
}

// beyond asks the servers of the settings and looks for routers on the way, and where all of
// those are silent asks hosts that are no hub: once in a run. What a router says of the way on
// shows nothing where somebody answers all the same: a network without internet may have
// servers of its own.
func (d *device) beyond(ctx context.Context, env *Env) *beyond {
	return once(env, "device.beyond", func() *beyond {
		began := time.Now()
		look, enough := context.WithCancel(ctx)
		defer enough()
		ways := d.ways()
		hops, cuts := make([]netip.Addr, len(ways)), make([]netip.Addr, len(ways))
		var wg sync.WaitGroup
		for i, far := range ways {
			wg.Go(func() { hops[i], cuts[i] = d.routers(look, env, far) })
		}
		knocks := d.knockAll(ctx, env, targets(env), d.routed)
		how := deviceAlive(knocks)
		if how != "" {
			enough()
		}
		wg.Wait()
		if how != "" { // the others were not waited for
			return &beyond{how: how}
		}
		b := new(beyond)
		b.add(knocks)
		for i, far := range ways {
			switch {
			case hops[i].IsValid():
				b.of(far[0]).alive = true
				b.how = hops[i].String() + ", a router on the way, answers"
			case cuts[i].IsValid():
				b.of(far[0]).cut = true
				b.lines = append(b.lines, "the router "+cuts[i].String()+" says that it knows no way on")
				if farOff(env, cuts[i]) {
					b.second = cuts[i]
				}
			}
		}
		if line := peerBeyond(env); line != "" {
			return &beyond{how: line}
		}
		if b.how == "" && !b.by(familyBeyond.mute) {
			b.add(d.witnesses(ctx, env))
		}
		if b.how == "" && !b.dead() {
			if line := d.nameless(ctx, env); line != "" {
				b.lines = append(b.lines, line)
				b.four.cut, b.six.cut = len(b.four.silent) > 0, len(b.six.silent) > 0
			}
		}
		if b.dead() || b.how == "" && b.asked() > 0 {
			if line := d.proof(ctx, env, began.Add(proofWait)); line != "" {
				return &beyond{how: line}
			}
		}
		return b
	})
}

// nameless looks for a DNS server of the own network, as a rule the router, that says that it
// gets no answers to what it is asked, or for a router that has nobody to ask and so refuses.
// It is "" if there is none.
func (d *device) nameless(ctx context.Context, env *Env) string {
	if !env.Strangers {
		return ""
	}
	gw, _ := d.gateway(false)
	for _, a := range d.resolvers() {
		r, _ := d.queryDNS(ctx, env, a, knownName)
		if r != nil && near(env, a) && (r.RCode == dnsmessage.RCodeServerFailure || r.RCode == dnsmessage.RCodeRefused && a == gw) {
			return a.String() + " cannot look up any name"
		}
	}
	return ""
}

// ways are far addresses of each family that this device has a way to the internet by.
func (d *device) ways() (out [][]netip.Addr) {
	for _, far := range [][]netip.Addr{deviceFar4, deviceFar6} {
		self, err := d.outbound(far[0])
		if err == nil && !linkOnly(self) && (self.Is4() || !self.IsPrivate()) {
			out = append(out, far)
		}
	}
	return out
}

// witnesses asks hosts of the internet that are no server of the settings, but that this device
// asks anyway if it may: its own resolvers, and those that tell the time. It asks once in a run.
func (d *device) witnesses(ctx context.Context, env *Env) []deviceKnock {
	if !env.Strangers {
		return nil
	}
	return once(env, factWitnesses, func() (out []deviceKnock) {
		far := func(a netip.Addr) bool { return d.routed(a) && !near(env, a) }
		var mu sync.Mutex // guards out
		var wg sync.WaitGroup
		ask := func(k deviceKnock, answers func() bool) {
			wg.Go(func() {
				k.alive = answers()
				if !k.alive && ctx.Err() != nil {
					return // it was not waited for
				}
				k.how = netip.AddrPortFrom(k.addr, k.target.Port).String() + ", which is no server of kith's, answers over UDP"
				mu.Lock()
				defer mu.Unlock()
				out = append(out, k)
			})
		}
		for _, a := range d.resolvers() {
			if far(a) {
				ask(deviceKnock{target: server{Host: a.String(), Port: d.dnsPort}, addr: a, resolver: true}, func() bool {
					r, _ := d.queryDNS(ctx, env, a, knownName)
					return r != nil
				})
			}
		}
		for _, s := range env.NTP[:min(len(env.NTP), maxTargets)] {
			host, port, _ := splitHostPort(s, d.ntpPort) // none has no address
			wg.Go(func() {
				addrs, _ := resolve(ctx, env, host)
				for _, a := range deviceEach(addrs, far) {
					ask(deviceKnock{target: server{Host: host, Port: port}, addr: a}, func() bool {
						_, err := d.ntp(ctx, env, netip.AddrPortFrom(a, port).String())
						return err == nil
					})
				}
			})
		}
		wg.Wait()
		slices.SortFunc(out, func(a, b deviceKnock) int { return a.addr.Compare(b.addr) })
		return out
	})
}

// deviceTraces are where to look for routers: a server's address of the family, if there is one,
// and one or two far away. What is sent does not get there.
func deviceTraces(env *Env, far []netip.Addr) (one, other netip.Addr) {
	for _, a := range literals(env) {
		if a.Is4() == far[0].Is4() && scope(a) == scopePublic {
			return a, far[0]
		}
	}
	return far[0], far[1]
}

// routers looks for a router beyond the first that says that a packet's hop limit ended there, and
// for one, the first or the second, that says that it knows no way on, wherever to. Unlike hop
// it waits for the latter, too.
func (d *device) routers(ctx context.Context, env *Env, far []netip.Addr) (best, cut netip.Addr) {
	one, other := deviceTraces(env, far)
	ask := func(to netip.Addr, ttl int) deviceAnswer {
		// A router may look for a neighbour for three seconds before it says that there is none.
		return d.ask(ctx, env, netip.AddrPortFrom(to, 33434), []byte{0}, deviceAsk{ttl: ttl, tries: 5, wait: 700 * time.Millisecond})
	}
	var all [maxDeviceHops]deviceAnswer
	var second deviceAnswer
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() { all[i] = ask(one, 2+i) })
	}
	wg.Go(func() { second = ask(other, 2) })
	wg.Wait()
	for _, a := range all {
		if a.Expired {
			best = a.Hop
		}
	}
	if all[0].NoWay && second.NoWay {
		cut = all[0].Hop
	}
	return best, cut
}
