package doctor

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// The names by which a device tells of its settings; they are no faults of their own.
const (
	neverName  = "peers.policy/never-here"
	alwaysName = "peers.policy/always-here"
)

// keepsOut reports whether a finding of a check at the other side keeps packets of this one
// out. What else is wrong there, such as no route to the internet, need not matter between
// the two.
func keepsOut(cause string) bool {
	code, _, _ := strings.Cut(cause, "/")
	return slices.Contains([]Code{"device.vpn", "device.portal", "device.firewall", "nat.udp"}, Code(code))
}

// notKnown stands for a name that this program's table does not have: it may be of a newer
// version, or anything.
const notKnown = "something that this version does not know"

// checkRemote tells of what the other side says in words of this program's table alone.
func checkRemote(_ context.Context, env *Env, name string) Answer {
	a := asked(env, name)
	if !a.answered() {
		return Unclear("it did not answer")
	}
	table := Table()
	var first, text, seen = "", Finding{}, []string(nil)
	for _, cause := range a.reply.Causes {
		code, id, _ := strings.Cut(cause, "/")
		if Code(code).Group() == PeerGroup {
			continue // a setting
		}
		f := findingOf(table, Result{Code: Code(code), Finding: id})
		line := cause + ": " + f.Cause
		if f.ID == "" {
			cause, line = notKnown, notKnown
		}
		if !slices.Contains(seen, line) {
			seen = append(seen, line)
		}
		if first == "" || f.ID != "" && text.ID == "" || keepsOut(cause) && !keepsOut(first) {
			first, text = cause, f
		}
	}
	if i := slices.Index(seen, first+": "+text.Cause); i >= 0 { // its words are the cause of the answer
		seen[i] = first
	}
	seen = few(seen)
	switch {
	case first == "":
		return OK()
	case text.ID == "":
		return Fails("other", seen...).With(name+" says that something is wrong at its side, which this version does not know.", "Run kith doctor on "+name+", and do what it says.")
	}
	id := "other"
	if keepsOut(first) && !a.peer.now().Connected {
		id = "network"
	}
	return Fails(id, seen...).With(name+" says of its side: "+text.Cause, "On "+name+": "+text.Fix)
}

func checkPolicy(_ context.Context, env *Env, name string) Answer {
	a := asked(env, name)
	p := a.peer
	never, always := slices.Contains(a.reply.Causes, neverName), slices.Contains(a.reply.Causes, alwaysName)
	list := candidates(p)
	if !always && !a.answered() { // it names relays alone
		always = len(list) > 0 && !slices.ContainsFunc(list, func(c Candidate) bool { return c.Kind != "" && c.Kind != "relayed" })
	}
	there := "auto"
	switch {
	case never:
		there = "never"
	case always:
		there = "always"
	case !a.answered():
		there = "not known"
	}
	said := fmt.Sprintf("relays here: %s; there: %s", orAuto(env.Relay), there)
	relay := len(env.Hubs)+len(env.TURN) > 0 || slices.ContainsFunc(list, func(c Candidate) bool { return c.Kind == "relayed" })
	switch {
	case p.now().Connected:
		return OK(said)
	case env.Relay == "always" && never, env.Relay == "never" && always:
		return Fails("clash", said)
	case env.Relay == "always":
		return Fails("always-here", said)
	case always:
		return Fails("always-there", said).With(name+" uses relays alone, and none works.", "See to the hub of "+name+", or allow straight paths on it: kith config relay auto.")
	case env.Relay == "never" && relay:
		return Fails("never-here", said).With("This device uses no relays, and there is no straight path to "+name+".", "")
	case never && relay:
		return Fails("never-there", said).With(name+" uses no relays, and there is no straight path to it.", "Allow relays on "+name+": kith config relay auto.")
	}
	return OK(said)
}

func orAuto(policy string) string {
	if policy == "" {
		return "auto"
	}
	return policy
}

func candidates(p Peer) []Candidate {
	if p.Candidates == nil {
		return nil
	}
	return p.Candidates()
}

// A view is what both sides have seen of each other's addresses, in counts.
type view struct {
	sent, failed, answered, late, heard uint64
	usable, relay                       bool
	slow                                time.Duration
	there                               bool   // the other side told
	reached                             uint64 // our probes that came there
}

func viewOf(list []Candidate, a askedFact) (v view) {
	for _, c := range list {
		v.sent, v.failed, v.answered, v.late, v.heard = v.sent+c.Sent, v.failed+c.Failed, v.answered+c.Answered, v.late+c.Late, v.heard+c.Received
		v.usable = v.usable || c.Usable
		v.relay = v.relay || c.Via != "" || c.Kind == "relayed"
		if c.Late > 0 || c.Usable {
			v.slow = max(v.slow, c.RTT)
		}
	}
	if v.there = a.answered(); v.there {
		for _, c := range a.reply.Candidates {
			v.reached += c.Received
			v.relay = v.relay || c.Kind == "relayed"
		}
	}
	return v
}

// lines are what was seen of each address, those with news first, and what the other side
// says.
func lines(list []Candidate, a askedFact, name string) []string {
	news := func(a, b Candidate) int {
		return cmp.Or(
			cmp.Compare(b.Answered+b.Late+b.Received+b.Failed, a.Answered+a.Late+a.Received+a.Failed),
			cmp.Compare(b.Sent, a.Sent),
		)
	}
	var ours, theirs []string
	for _, c := range slices.SortedStableFunc(slices.Values(list), news) {
		at := c.Remote.String()
		if c.Via != "" {
			at += " through " + c.Via
		}
		line := fmt.Sprintf("to %s of %s (%s): %d sent, %d answered, %d came from there", at, name, strings.TrimSpace(c.Kind+" "+c.Path), c.Sent, c.Answered, c.Received)
		if c.Failed > 0 {
			line += fmt.Sprintf(", %d not sent", c.Failed)
		}
		if c.Late > 0 {
			line += fmt.Sprintf(", %d answered too late, the last after %s", c.Late, c.RTT.Round(time.Millisecond))
		}
		ours = append(ours, line)
	}
	for _, c := range slices.SortedStableFunc(slices.Values(a.reply.Candidates), news) {
		theirs = append(theirs, fmt.Sprintf("%s says: to %s (%s): %d sent, %d answered, %d came from there", name, c.Remote, c.Kind, c.Sent, c.Answered, c.Received))
	}
	return append(few(ours), few(theirs)...)
}

// watchTime is how long after the question both sides have tried each other's addresses
// often enough, also over a slow way.
const watchTime = 6 * time.Second

// watched asks once more, when both sides had their time; what was told at first may be
// older than what is seen here.
func watched(ctx context.Context, a askedFact) askedFact {
	waiting, cancel := context.WithTimeout(ctx, time.Until(a.began.Add(watchTime)))
	a.peer = awaitConnected(waiting, a.peer)
	cancel()
	if a.peer.Connected || !a.answered() {
		return a
	}
	asking, cancel := context.WithTimeout(ctx, askConnected)
	defer cancel()
	if reply, err := a.peer.Ask(asking, Question{}); err == nil {
		a.reply = reply
	}
	return a
}

// checkCandidates says which side, which pair of addresses and which hop fails.
func (h hopper) checkCandidates(ctx context.Context, env *Env, name string) Answer {
	a := asked(env, name)
	var far []string
	if p := a.peer.now(); !straight(p) {
		looking, stop := context.WithCancel(ctx)
		defer stop()
		var wg sync.WaitGroup
		wg.Go(func() { far = h.ways(looking, env, p) })
		if !p.Connected {
			a = watched(ctx, a)
		}
		if straight(a.peer.now()) {
			stop()
		}
		wg.Wait()
	}
	p := a.peer.now()
	list := candidates(p)
	seen := lines(list, a, name)
	if straight(p) {
		return OK(seen...)
	}
	seen = append(seen, far...)
	if p.Connected {
		return OK(seen...)
	}
	v := viewOf(list, a)
	named := slices.ContainsFunc(list, func(c Candidate) bool { return c.Kind != "" })
	switch {
	case !named && v.heard == 0:
		return Fails("none", seen...).With(name+" names no address at which it may be reached.", "Run kith doctor on "+name+".")
	case v.usable && v.slow >= lateEcho:
		return Fails("late", seen...).With(fmt.Sprintf("Packets take %s to %s and back.", v.slow.Round(100*time.Millisecond), name), "")
	case v.usable:
		return Fails("tunnel", seen...).With("Probes come through to "+name+" and back, and WireGuard does not.", "")
	case v.late > 0 && v.answered == 0:
		return Fails("late", seen...).With(fmt.Sprintf("Packets take %s to %s and back, and kith waits 3 s.", v.slow.Round(100*time.Millisecond), name), "")
	case v.sent == 0 && v.failed > 0:
		return Fails("unsent", seen...).With("This device cannot send to any address of "+name+".", "")
	case v.sent == 0 || v.answered > 0:
		return Unclear(append(seen, "it is being looked for at the moment")...)
	case v.heard == 0 && v.reached > 0:
		port := ""
		if env.Port != 0 {
			port = fmt.Sprintf(" %d", env.Port)
		}
		return Fails("in", seen...).With("Nothing that "+name+" sends arrives here, while it says that packets of this device arrive there.",
			"Let UDP port"+port+" in on the firewall of this device or its router, or use a relay: kith config hub.")
	case v.heard > 0 && v.reached == 0:
		return Fails("out", seen...).With(name+" says that nothing of this device arrives there, while what it sends arrives here.",
			"Let kith's UDP port in on the firewall of "+name+" or its router, or use a relay: kith config hub.")
	case v.heard > 0:
		return Unclear(append(seen, "packets come through both ways, and no answer does")...)
	case v.relay:
		return Fails("relay", seen...).With("Nothing comes through to "+name+" or from it, not even through a relay.", "")
	case env.Behaviour != nil && env.Behaviour().Hard() && p.NAT.Hard():
		none, fix := noRelay(env, "or have one of the two routers forward kith's UDP port.")
		return Fails("hard", seen...).With("This device and "+name+" are both behind NATs that give each destination another port, and "+none+".", fix)
	}
	none, fix := noRelay(env, "or let kith's UDP port in at one of the two sides.")
	return Fails("nothing", seen...).With("Nothing comes through to "+name+" or from it, and "+none+".", fix)
}

// sizeTime is how long it takes at most to find out what datagrams pass.
const sizeTime = 6 * time.Second

// noRelay says that no relay is between two devices, with a fix if one is set here: it is
// not open yet, or does not work, which its own checks tell.
func noRelay(env *Env, or string) (cause, fix string) {
	if len(env.Hubs)+len(env.TURN) == 0 || env.Relay == "never" {
		return "there is no relay", ""
	}
	return "no relay is in use between the two, although one is set here",
		"Try again in a moment, and see what kith doctor says of relays, " + or
}

// sized are the candidates after what fits was found out anew.
func sized(ctx context.Context, env *Env, p Peer) []Candidate {
	if p.Sizes == nil || env.Pacer.Wait(ctx, 4) != nil {
		return candidates(p)
	}
	p.Sizes()
	waiting, cancel := context.WithTimeout(ctx, sizeTime)
	defer cancel()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		list := candidates(p)
		if !slices.ContainsFunc(list, func(c Candidate) bool { return c.Selected && c.Sizing }) {
			return list
		}
		select {
		case <-ticker.C:
		case <-waiting.Done():
			return list
		}
	}
}

func checkPath(ctx context.Context, env *Env, name string) Answer {
	p := asked(env, name).peer.now()
	list := sized(ctx, env, p)
	i := slices.IndexFunc(list, func(c Candidate) bool { return c.Selected })
	if i < 0 {
		return Unclear("it is not connected any more")
	}
	c := list[i]
	seen := []string{"path: " + p.Path}
	if c.Size > 0 {
		seen = append(seen, fmt.Sprintf("the largest probe that was answered has %d bytes", c.Size))
	}
	switch {
	case c.Small:
		fits := "of a few hundred bytes"
		if c.Size > 128 { // the smallest probe
			fits = fmt.Sprintf("of %d bytes", c.Size+overhead(c.Remote))
		}
		return Fails("mtu", seen...).With(fmt.Sprintf("Large packets get lost between %s and this device: those %s pass, and those of %d do not.", name, fits, dataSize+overhead(c.Remote)), "")
	case c.Path == "relay":
		cause := "The path to " + name + " goes through a relay."
		if p.Why != "" {
			seen = append(seen, "why: "+p.Why)
		}
		return Fails("relayed", seen...).With(cause, "")
	case c.Path == "virtual":
		return Fails("virtual", seen...).With("The path to "+name+" goes through a VPN or container network.", "")
	}
	return OK(seen...)
}

// dataSize is the largest datagram of the tunnel, in bytes of UDP payload.
const dataSize = 1432

// overhead is what IP and UDP add to a datagram, in bytes.
func overhead(to netip.AddrPort) int {
	if to.Addr().Unmap().Is4() {
		return 28
	}
	return 48
}
