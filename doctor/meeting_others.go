package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/rendezvous/lan"
)

const (
	// factLAN is what meeting.lan.others found out: a lanView.
	factLAN = "meeting.lan"

	roundTime  = 300 * time.Millisecond // in which devices answer one question
	fewRounds  = 4                      // in number, while nobody answers
	mostRounds = 9                      // in number, while answers are missing: a network may lose some
	sureFrom   = 3                      // answers to be had otherwise before a way that gave none is called closed, in number

	maxLANDevices = 32 // in number: anybody on the LAN can make some up
	maxLANAddrs   = 8  // of one device, in number
	fewLines      = 8  // of evidence of one kind, in number
)

// A lanView is what this device and the others of the LAN hear of each other.
type lanView struct {
	devices []lanDevice
	// mdns are the hosts that were heard by mDNS, whatever runs there.
	mdns []string
	// heard are the addresses on the link from which any multicast came.
	heard []netip.Addr
}

// A lanDevice is another device of the LAN that runs kith.
type lanDevice struct {
	id      [8]byte
	from    netip.Addr
	addrs   []netip.Addr // from among them
	ifi     string
	answers int           // in number
	both    int           // answers that say that the device sent its multicast as well
	heard   int           // answers that say that the device hears our multicast
	hears   int           // answers that came by its multicast
	there   int           // hop limit that our multicast had left there
	here    int           // hop limit that its multicast had left here
	took    time.Duration // the shortest round trip by unicast; 0: none
}

func (d lanDevice) String() string {
	line := fmt.Sprintf("%v on %s: %d answers", d.from, d.ifi, d.answers)
	if d.took > 0 {
		line += fmt.Sprintf(", shortest round trip %v", d.took.Round(10*time.Microsecond))
	}
	if d.heard > 0 {
		line += fmt.Sprintf("; hears our multicast (hop limit left %d)", d.there)
	}
	if d.hears > 0 {
		line += fmt.Sprintf("; we hear its multicast (hop limit left %d)", d.here)
	}
	return line
}

// silent reports whether the device certainly sent multicast, and none came here.
func (d lanDevice) silent() bool { return d.hears == 0 && d.both >= sureFrom }

// deaf reports whether the device certainly hears of our questions, and of none by
// multicast.
func (d lanDevice) deaf() bool { return d.heard == 0 && d.answers >= sureFrom }

// few are the first lines, and how many there are more.
func few(lines []string) []string {
	if len(lines) <= fewLines {
		return lines
	}
	return append(slices.Clone(lines[:fewLines]), fmt.Sprintf("and %d more", len(lines)-fewLines))
}

// add counts an answer. What has one ID, or one address, is one device.
func (v *lanView) add(a lan.Answer) {
	if a.Own {
		return
	}
	from := a.From.Addr()
	i := slices.IndexFunc(v.devices, func(d lanDevice) bool { return d.id == a.Device || slices.Contains(d.addrs, from) })
	if i < 0 && len(v.devices) == maxLANDevices {
		return
	}
	if i < 0 {
		i = len(v.devices)
		v.devices = append(v.devices, lanDevice{id: a.Device, from: from, ifi: a.Interface})
	}
	d := &v.devices[i]
	d.answers++
	if !slices.Contains(d.addrs, from) && len(d.addrs) < maxLANAddrs {
		d.addrs = append(d.addrs, from)
		if from.Is4() && !d.from.Is4() {
			d.from = from
		}
	}
	if a.Came != lan.ByMulticast && (d.took == 0 || a.Took < d.took) {
		d.took = a.Took
	}
	if a.Both {
		d.both++
	}
	if a.Asked == lan.ByMulticast {
		d.heard, d.there = d.heard+1, a.HopsThere
	}
	if a.Came == lan.ByMulticast {
		d.hears, d.here = d.hears+1, a.HopsHere
	}
}

// whole reports that all ways are known.
func (v *lanView) whole() bool {
	return len(v.devices) > 0 && !slices.ContainsFunc(v.devices, func(d lanDevice) bool { return d.heard == 0 || d.hears == 0 })
}

func lanOthersCheck(neighbours func() []lanNeighbour) Check {
	return Check{
		Code: "meeting.lan.others", Asks: "Which other devices of the LAN run kith?", Limit: lanLimit, Needs: []Code{"meeting.lan.port"},
		Tells: "it tells at which addresses kith runs, paired or not, and which way multicast came.",
		Run:   func(ctx context.Context, env *Env, _ string) Answer { return lanOthers(ctx, env, neighbours()) },
	}
}

func lanOthers(ctx context.Context, env *Env, known []lanNeighbour) Answer {
	_, x, ok := env.lan()
	if !ok {
		return Nothing("the LAN is switched off")
	}
	networks := env.networks()
	if len(networks) == 0 {
		return Nothing("no network is connected")
	}
	to := lanAsked(env.Peers, networks, known)
	mdns, own := heardAt(x.MDNS(), networks), heardAt(x.Multicast(), networks)
	var view lanView
	for round := range mostRounds {
		if round == 0 || round == fewRounds-1 {
			x.AskMDNS()
		}
		answers, err := lanRound(ctx, env, x, roundTime, to)
		if err != nil {
			return Unclear(plain(err.Error()))
		}
		for _, a := range answers {
			view.add(a)
		}
		if view.whole() || len(view.devices) == 0 && round+1 >= fewRounds || ctx.Err() != nil {
			break
		}
	}
	for h, at := range heardAt(x.MDNS(), networks) {
		if at.After(mdns[h]) {
			view.mdns = append(view.mdns, h.from.String()+" on "+h.ifi)
			view.heard = append(view.heard, h.from)
		}
	}
	slices.Sort(view.mdns)
	for h, at := range heardAt(x.Multicast(), networks) {
		if at.After(own[h]) {
			view.heard = append(view.heard, h.from)
		}
	}
	env.Remember(factLAN, view)
	var evidence []string
	for _, d := range view.devices {
		evidence = append(evidence, d.String())
	}
	evidence = few(evidence)
	if len(view.mdns) > 0 {
		evidence = append(evidence, view.mdnsLine())
	}
	if len(view.devices) == 0 {
		return Nothing(append(evidence, "no other device answers that runs kith")...)
	}
	return OK(evidence...)
}

// mdnsLine names the hosts that were heard by mDNS.
func (v lanView) mdnsLine() string { return "mDNS of " + strings.Join(few(v.mdns), ", ") }

// lanAsked are the addresses that are asked by unicast: of peers on these networks, and of
// neighbours that the system knows.
func lanAsked(peers []Peer, networks map[string]netmon.Interface, known []lanNeighbour) (out []netip.Addr) {
	add := func(a netip.Addr) {
		if len(out) < maxAskedByName && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	for _, p := range peers {
		for _, a := range p.onNetworks(networks) {
			add(a)
		}
	}
	for _, n := range known {
		if i, ok := networks[n.ifi]; ok && n.found && onNetwork(i, n.addr) {
			add(n.addr)
		}
	}
	return out
}

// onNetworks are the peer's own addresses that are of a network of this device.
func (p Peer) onNetworks(networks map[string]netmon.Interface) (out []netip.Addr) {
	if p.Candidates == nil {
		return nil
	}
	for _, c := range p.Candidates() {
		a := c.Remote.Addr().Unmap()
		if c.Kind != "host" || slices.Contains(out, a) {
			continue
		}
		for _, i := range networks {
			if onNetwork(i, a) {
				out = append(out, a)
				break
			}
		}
	}
	return out
}

// onNetwork reports whether an address is another host's of an interface's network.
func onNetwork(i netmon.Interface, a netip.Addr) bool {
	on := false
	for _, p := range i.Addrs {
		if p.Addr() == a {
			return false
		}
		on = on || !p.IsSingleIP() && !p.Addr().IsLinkLocalUnicast() && p.Contains(a)
	}
	return on
}

// A hearing is another host, as it was heard by multicast.
type hearing struct {
	from netip.Addr
	ifi  string
}

// heardAt says when each other host of the link was heard last.
func heardAt(list []lan.Membership, networks map[string]netmon.Interface) map[hearing]time.Time {
	out := make(map[hearing]time.Time)
	for _, m := range list {
		if _, ok := networks[m.Interface]; !ok {
			continue
		}
		for _, h := range m.HopsSeen {
			if key := (hearing{h.From, m.Interface}); h.OnLink && h.Seen.After(out[key]) {
				out[key] = h.Seen
			}
		}
	}
	return out
}

func lanMulticastCheck() Check {
	return Check{
		Code: "meeting.lan.multicast", Asks: "Does multicast pass between the devices of this LAN?",
		Needs: []Code{"meeting.lan.loop", "meeting.lan.others"}, Run: lanMulticast,
		Findings: []Finding{
			{
				ID: "dropped", Severity: Limit, Cause: "The network drops multicast: other devices of the LAN answer, but they and this device do not hear each other's multicast.",
				Fix:     capital(unfilter) + ", or meet at a hub: kith config hub.",
				Settled: meetElsewhere,
			},
			{
				ID: "partly", Severity: Limit, Cause: "Multicast passes to some devices of the LAN, but not to all that answer.",
				Fix: "See what is between the devices of the evidence and this one, such as another access point, and whether their firewalls let multicast in.",
			},
		},
	}
}

func lanMulticast(_ context.Context, env *Env, _ string) Answer {
	view, ok := Fact[lanView](env, factLAN)
	if !ok {
		return Nothing("there is no LAN to look at")
	}
	var both, neither []string
	one := 0
	for _, d := range view.devices {
		switch {
		case d.heard > 0 && d.hears > 0:
			both = append(both, d.String())
		case d.heard > 0 || d.hears > 0:
			one++
		case d.deaf() && d.silent():
			neither = append(neither, d.String())
		}
	}
	switch {
	case len(neither) > 0 && len(both)+one > 0:
		return Fails("partly", append(few(neither), few(both)...)...)
	case len(neither) > 0:
		return Fails("dropped", few(neither)...)
	case len(both)+one > 0:
		return OK(fmt.Sprintf("devices between which it passes both ways: %d, one way: %d", len(both), one))
	case len(view.mdns) > 0:
		return OK("multicast comes in: "+view.mdnsLine(), "no other device answers that runs kith, so what goes out was not seen")
	}
	if len(view.devices) == 0 && len(disconnected(env, nil)) == 0 {
		return Nothing("no other device of this LAN runs kith, and none is looked for")
	}
	return Unclear("only another device can tell, and none of this LAN answers")
}

func lanFindCheck() Check {
	return Check{
		Code: "meeting.lan.find", Asks: "Does this device hear the multicast of others, and so find them?", Needs: []Code{"meeting.lan.multicast"},
		Run: lanFind,
		Findings: []Finding{{
			ID: "deaf", Severity: Limit, Cause: "This device does not hear the multicast of other devices of the LAN, although they hear its own.",
			Fix: fmt.Sprintf("Let UDP port %d come in through the firewall of this device from the LAN, and see whether the access point filters multicast.", lan.Port),
		}},
	}
}

func lanFind(_ context.Context, env *Env, _ string) Answer {
	return oneWay(env, "deaf", lanDevice.silent, func(d lanDevice) string {
		if d.hears == 0 {
			return ""
		}
		return fmt.Sprintf("hears %v on %s, with hop limit %d left", d.from, d.ifi, d.here)
	})
}

func lanFoundCheck() Check {
	return Check{
		Code: "meeting.lan.found", Asks: "Do others hear the multicast of this device, and so find it?", Needs: []Code{"meeting.lan.multicast"},
		Run: lanFound,
		Findings: []Finding{{
			ID: "unheard", Severity: Limit, Cause: "Other devices of the LAN do not hear the multicast of this device, although it hears theirs.",
			Fix: fmt.Sprintf("Let UDP port %d come in through the firewalls of those devices, and see whether the access point filters multicast.", lan.Port),
		}},
	}
}

func lanFound(_ context.Context, env *Env, _ string) Answer {
	return oneWay(env, "unheard", lanDevice.deaf, func(d lanDevice) string {
		if d.heard == 0 {
			return ""
		}
		return fmt.Sprintf("%v hears it on %s, with hop limit %d left", d.from, d.ifi, d.there)
	})
}

// oneWay fails if a way is open to no device, and certainly closed to one. open describes
// an open way.
func oneWay(env *Env, finding string, closed func(lanDevice) bool, open func(lanDevice) string) Answer {
	view, _ := Fact[lanView](env, factLAN)
	var yes, no []string
	for _, d := range view.devices {
		if way := open(d); way != "" {
			yes = append(yes, way)
		} else if closed(d) {
			no = append(no, d.String())
		}
	}
	switch {
	case len(yes) > 0:
		return OK(few(yes)...)
	case len(no) > 0:
		return Fails(finding, few(no)...)
	}
	return Nothing("no other device of this LAN answers that runs kith")
}
