package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// askTime is how long an answer of a device is awaited that is not connected, and
	// askConnected how long that of one that is: it may not know yet that it is, and then
	// looks at itself for six seconds.
	askTime      = 10 * time.Second
	askConnected = 8 * time.Second
	askLimit     = askTime + settleTime + time.Second
)

// peerChecks are the checks of the group.
func peerChecks() []Check { return peersWith(hop) }

// peersWith has another way to ask routers.
func peersWith(h hopper) []Check {
	return []Check{
		{
			Code: "peers.known", Asks: "Is the pair with it whole, and may it connect?", Needs: []Code{"device.interfaces"}, Limit: askLimit,
			Findings: []Finding{
				{ID: "ended", Severity: Limit, Cause: "The other device has ended the pair.", Fix: "Pair the two devices again if both users want it: kith pair, and kith join on the other one."},
				{ID: "blocked", Severity: Limit, Cause: "The device is blocked here.", Fix: "End that with kith unblock if it is to connect."},
				{ID: "unfinished", Severity: Limit, Cause: "The pairing was never finished.", Fix: "Start kith on both devices and wait a minute, and pair them again if that does not help: kith unpair, kith pair."},
			},
			Subjects: allPeers, Run: checkKnown,
		},
		{
			Code: "peers.heard", Asks: "Is it there?", Needs: []Code{"peers.known"}, Limit: 5 * time.Second,
			Findings: []Finding{
				{ID: "deaf", Severity: Limit, Cause: "The device speaks, and does not hear this one.", Fix: "See what keeps packets out there: run kith doctor on it, and let kith through its firewall."},
				{ID: "left", Severity: Limit, Cause: "The device was here, and said that kith stops on it.", Fix: "Start kith on it again: kith up."},
				{ID: "gone", Severity: Limit, Cause: "The device was here, and is not heard any more.", Fix: "See that it is awake, has a network and runs kith, and that its user has not blocked this device."},
				{ID: "silent", Severity: Limit, Cause: "The device was not heard since kith runs here.", Fix: "See that it is switched on, has a network and runs kith, and that its user has not blocked this device or ended the pair long ago."},
				{ID: "away", Severity: Note, Cause: "The device is not there at the moment.", Fix: "Nothing needs to be done if it is switched off."},
			},
			Subjects: workingPeers, Run: checkHeard,
		},
		{
			Code: "peers.version", Asks: "Does it answer the questions of a doctor?", Needs: []Code{"peers.heard"},
			Findings: []Finding{
				{ID: "old", Severity: Limit, Cause: "The device runs an older kith, which does not answer the doctor.", Fix: "Bring kith on it up to date."},
			},
			Subjects: workingPeers, Run: ifThere(checkVersion),
		},
		{
			Code: "peers.clock", Asks: "Do its clock and this one agree?", Needs: []Code{"peers.heard"},
			Findings: []Finding{
				{ID: "days", Severity: Limit, Cause: "The clocks of the two devices are days apart.", Fix: "Set the clock that is wrong."},
				{ID: "apart", Severity: Limit, Cause: "The clocks of the two devices are hours apart.", Fix: "Set the clock that is wrong."},
				{ID: "drift", Severity: Note, Cause: "The clocks of the two devices are minutes apart.", Fix: "Have both set by the network."},
			},
			Subjects: workingPeers, Run: ifThere(checkClock),
		},
		{
			Code: "peers.remote", Asks: "Is all well at its side?", Needs: []Code{"peers.heard"},
			Findings: []Finding{
				{
					ID: "network", Severity: Limit, Cause: "The other device says that something at its side keeps packets out.", Fix: "Run kith doctor on it, and do what it says.",
					Explains: []string{"peers.candidates", "peers.policy"},
				},
				{ID: "other", Severity: Note, Cause: "The other device says that something is wrong at its side.", Fix: "Run kith doctor on it, and do what it says."},
			},
			Subjects: workingPeers, Run: ifThere(checkRemote),
		},
		{
			Code: "peers.policy", Asks: "Do the settings of both sides leave a way?", Needs: []Code{"peers.heard"},
			Findings: []Finding{
				{ID: "clash", Severity: Limit, Cause: "One of the two devices uses relays alone, and the other one none.", Fix: "Set one of them to auto: kith config relay auto.", Explains: []string{"peers.candidates"}},
				{ID: "never-here", Severity: Limit, Cause: "This device uses no relays, and there is no straight path.", Fix: "Allow relays here: kith config relay auto.", Explains: []string{"peers.candidates"}},
				{ID: "never-there", Severity: Limit, Cause: "The other device uses no relays, and there is no straight path.", Fix: "Allow relays on it: kith config relay auto.", Explains: []string{"peers.candidates"}},
				{ID: "always-here", Severity: Limit, Cause: "This device uses relays alone, and none works.", Fix: "See to the hub (kith config hub), or allow straight paths here: kith config relay auto.", Explains: []string{"peers.candidates"}},
				{ID: "always-there", Severity: Limit, Cause: "The other device uses relays alone, and none works.", Fix: "See to its hub, or allow straight paths on it: kith config relay auto.", Explains: []string{"peers.candidates"}},
			},
			Subjects: workingPeers, Run: ifThere(checkPolicy),
		},
		{
			Code: "peers.candidates", Asks: "Does a path to it answer?", Needs: []Code{"peers.heard"}, Limit: watchTime + askConnected + time.Second,
			Findings: []Finding{
				{ID: "none", Severity: Limit, Cause: "The device names no address at which it may be reached.", Fix: "Run kith doctor on it."},
				{ID: "unsent", Severity: Limit, Cause: "This device cannot send to any address of the other one.", Fix: "See that this device has a network and a route for the addresses of the other one."},
				{ID: "late", Severity: Limit, Cause: "Packets take longer to the other device and back than kith waits.", Fix: "Find out what holds them up: a full line, a bad radio link, or a VPN."},
				{ID: "tunnel", Severity: Limit, Cause: "Probes come through, and WireGuard inside them does not.", Fix: "Restart kith on both devices, and report it as a fault of kith if that does not help."},
				{ID: "in", Severity: Limit, Cause: "What the other device sends does not arrive here, while it says that this device's packets arrive there.", Fix: "Let kith's UDP port in on the firewall of this device or its router, or use a relay: kith config hub."},
				{ID: "out", Severity: Limit, Cause: "The other device says that nothing of this one arrives there, while what it sends arrives here.", Fix: "Let kith's UDP port in on the firewall of the other device or its router, or use a relay: kith config hub."},
				{ID: "hard", Severity: Limit, Cause: "Both devices are behind NATs that give each destination another port, and there is no relay.", Fix: "Use a relay (kith config hub), or have one of the two routers forward kith's UDP port."},
				{ID: "nothing", Severity: Limit, Cause: "Packets come through in neither direction, and there is no relay.", Fix: "Use a relay (kith config hub), or let kith's UDP port in at one of the two sides."},
				{ID: "relay", Severity: Limit, Cause: "Packets come through in neither direction, not even through a relay.", Fix: "Run kith doctor on both devices and see what it says of relays."},
			},
			Subjects: workingPeers, Run: ifThere(h.checkCandidates),
		},
		{
			Code: "peers.path", Asks: "Is the path to it straight, and wide enough?", Needs: []Code{"peers.heard"}, Limit: sizeTime + 2*time.Second,
			Findings: []Finding{
				{ID: "mtu", Severity: Limit, Cause: "Large packets get lost between the two devices.", Fix: "Set the MTU of the VPN, tunnel or router on the way right, or have it let ICMP messages of packets too big through."},
				{ID: "virtual", Severity: Note, Cause: "The path goes through a VPN or container network.", Fix: "Nothing needs to be done if that is meant."},
				{ID: "relayed", Severity: Note, Cause: "The path goes through a relay.", Fix: "Nothing needs to be done if it is fast enough; else have one of the two routers forward kith's UDP port."},
			},
			Subjects: workingPeers, Run: ifConnected(checkPath),
		},
		{
			Code: "peers.loss", Asks: "Do packets through the tunnel arrive?", Needs: []Code{"peers.heard"}, Limit: echoLimit,
			Findings: []Finding{
				{ID: "dead", Severity: Limit, Cause: "Nothing comes back through the tunnel.", Fix: "Wait half a minute, and restart kith on both devices if that does not help."},
				{ID: "lossy", Severity: Limit, Cause: "Many packets get lost between the two devices.", Fix: "Look for a bad radio link or a full line at either side, and try a cable or another network."},
			},
			Subjects: echoedPeers, Run: ifConnected(checkLoss),
		},
		{
			Code: "peers.latency", Asks: "Do packets through the tunnel come fast?", Needs: []Code{"peers.heard"}, Limit: echoLimit,
			Findings: []Finding{
				{ID: "late", Severity: Limit, Cause: "Packets take very long to the other device and back.", Fix: "Look for what holds them up: an upload or download that fills the line, a bad radio link, a relay or VPN far away."},
			},
			Subjects: echoedPeers, Run: ifConnected(checkLatency),
		},
		{
			Code: "peers.rate", Asks: "What does the path to it carry?", Needs: []Code{"peers.heard"}, Limit: 25 * time.Second,
			Findings: []Finding{
				{ID: "no-path", Severity: Limit, Cause: "There is no path of the kind that was asked for.", Fix: "Measure without --force, or with another kind of path."},
				{ID: "slow", Severity: Note, Cause: "The path carries little.", Fix: "Look for what else uses the line."},
			},
			Subjects: measuredPeers, Run: ifConnected(checkRate),
		},
	}
}

// factAsked is what came of asking a device, an askedFact, by its name.
const factAsked = "peers.asked."

// An askedFact is what came of asking a device.
type askedFact struct {
	peer  Peer // after it
	reply Reply
	err   error
	began time.Time
	ended time.Time // when the answer came, or was given up
}

// answered reports whether there is a reply.
func (a askedFact) answered() bool { return a.err == nil }

func names(env *Env, want func(Peer) bool) []string {
	out := []string{}
	for _, p := range env.Peers {
		if want(p) {
			out = append(out, p.Name)
		}
	}
	return out
}

// unwanted reports whether it is of no interest that a device does not connect.
func (p Peer) unwanted() bool { return p.Blocked && !p.Named }

func allPeers(env *Env) []string {
	return names(env, func(p Peer) bool { return !p.unwanted() })
}

func workingPeers(env *Env) []string {
	return names(env, func(p Peer) bool { return !p.Blocked && !p.Ended && p.Finished })
}

// maxEchoed is how many devices are sent echoes to in a run, in number.
const maxEchoed = 12

// echoedPeers are those that are connected, before those that may be in a moment.
func echoedPeers(env *Env) []string {
	all := workingPeers(env)
	slices.SortStableFunc(all, func(a, b string) int {
		switch x, y := env.peer(a).Connected, env.peer(b).Connected; {
		case x == y:
			return 0
		case x:
			return -1
		}
		return 1
	})
	return all[:min(len(all), maxEchoed)]
}

func measuredPeers(env *Env) []string {
	return names(env, func(p Peer) bool { return p.Named && p.Measure != nil && !p.Blocked && !p.Ended })
}

func (e *Env) peer(name string) Peer {
	i := slices.IndexFunc(e.Peers, func(p Peer) bool { return p.Name == name })
	if i < 0 {
		return Peer{}
	}
	return e.Peers[i]
}

// now is the peer at this moment.
func (p Peer) now() Peer {
	if p.Now == nil {
		return p
	}
	return p.Now()
}

// checkKnown asks the device, for all checks after it.
func checkKnown(ctx context.Context, env *Env, name string) Answer {
	p := env.peer(name)
	switch {
	case p.Ended:
		return Fails("ended").With(name+" has ended the pair with this device.", "")
	case p.Blocked:
		return Fails("blocked").With(name+" is blocked on this device.", "End that if it is to connect: kith unblock "+Word(name)+".")
	case !p.Finished:
		return Fails("unfinished").With("The pairing with "+name+" was never finished.", "")
	}
	a := askedFact{peer: p, began: time.Now(), err: errors.New("it cannot be asked")}
	if p.Ask != nil {
		limit := askTime
		if p.Connected {
			limit = askConnected
		}
		a.err = env.Pacer.Wait(ctx, 4)
		if a.err == nil {
			asking, cancel := context.WithTimeout(ctx, limit)
			a.reply, a.err = p.Ask(asking, Question{})
			cancel()
		}
	}
	a.ended = time.Now()
	a.peer = settle(ctx, p, a.err == nil || errors.Is(a.err, ErrOld))
	env.Remember(factAsked+name, a)
	switch {
	case errors.Is(a.err, ErrEnded) || a.peer.Ended:
		return Fails("ended", "it says so").With(name+" has ended the pair with this device.", "")
	case a.answered():
		return OK(fmt.Sprintf("%s answered after %s", name, a.ended.Sub(a.began).Round(time.Millisecond)))
	case errors.Is(a.err, ErrOld), p.Connected, a.peer.Heard.After(a.began):
		return OK(name + " does not say that the pair is over")
	}
	return OK("only a device that is heard says that the pair is over")
}

// settleTime is how long a device that is there has to connect: kith may have been started
// a moment ago.
const settleTime = 3 * time.Second

// settle is the peer at this moment, or, if it is there, when it has connected.
func settle(ctx context.Context, p Peer, there bool) Peer {
	if !there {
		return p.now()
	}
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	return awaitConnected(ctx, p)
}

// awaitConnected is the peer when it has connected, or when ctx ends.
func awaitConnected(ctx context.Context, p Peer) Peer {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		now := p.now()
		if now.Connected || now.Ended || p.Now == nil {
			return now
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return now
		}
	}
}

// asked is what came of asking, or the zero fact with an error.
func asked(env *Env, name string) askedFact {
	a, ok := Fact[askedFact](env, factAsked+name)
	if !ok {
		return askedFact{peer: env.peer(name), err: errors.New("it was not asked")}
	}
	return a
}

// deafFor is how long ago a device may have spoken that is there: it repeats itself every
// half a minute at first.
const deafFor = 45 * time.Second

// factThere is whether a device is there, a bool, by its name.
const factThere = "peers.there."

// ifThere looks only at devices that are there: of others, nothing can be said.
func ifThere(run func(context.Context, *Env, string) Answer) func(context.Context, *Env, string) Answer {
	return func(ctx context.Context, env *Env, name string) Answer {
		if there, _ := Fact[bool](env, factThere+name); !there {
			return Skips(name + " is not heard")
		}
		return run(ctx, env, name)
	}
}

// ifConnected looks only at devices that are connected.
func ifConnected(run func(context.Context, *Env, string) Answer) func(context.Context, *Env, string) Answer {
	return ifThere(func(ctx context.Context, env *Env, name string) Answer {
		if !asked(env, name).peer.now().Connected {
			return Skips(name + " is not connected")
		}
		return run(ctx, env, name)
	})
}

func checkHeard(ctx context.Context, env *Env, name string) Answer {
	answer := hear(ctx, env, name)
	env.Remember(factThere+name, answer.State == Yes)
	return answer
}

// hear says whether a device is there.
func hear(ctx context.Context, env *Env, name string) Answer {
	a := asked(env, name)
	p := a.peer
	switch {
	case a.answered():
		return OK(name + " answered")
	case errors.Is(a.err, ErrOld), p.Heard.After(a.began) && !a.began.IsZero():
		return OK(name + " is heard")
	}
	var seen []string
	if p.Connected && p.Echo != nil {
		took, err := echo(ctx, env, p)
		if err == nil {
			return OK(fmt.Sprintf("%s answered through the tunnel after %s", name, took.Round(time.Microsecond)), "it did not answer over the media: "+a.err.Error())
		}
		seen = append(seen, "nothing came back through the tunnel: "+err.Error())
	}
	if !p.Seen.IsZero() && !p.Heard.After(p.Seen) && !p.Left.After(p.Seen) { // else what is said below is newer
		seen = append(seen, "something of it came last at about "+p.Seen.UTC().Format("2006-01-02 15:04")+" UTC")
	}
	if p.Days != 0 {
		seen = append(seen, fmt.Sprintf("its clock was %d days ahead of this one then", p.Days))
	}
	if ready := readyMedia(env); ready == 0 {
		return Unclear(append(seen, "no medium to meet on works here, so that it cannot be heard")...)
	}
	fail := func(id, cause string) Answer {
		if !p.Named && slices.ContainsFunc(env.Peers, func(o Peer) bool { return o.Connected }) && id != "deaf" {
			return Fails("away", seen...).With(name+" is not there at the moment.", "")
		}
		return Fails(id, seen...).With(cause, "")
	}
	switch {
	case p.Speaks.After(p.Heard) && p.Speaks.After(p.Left) && a.began.Sub(p.Speaks) < deafFor: // one that hears this device answers at once
		return fail("deaf", name+" speaks, and does not hear this device.")
	case p.Left.After(p.Heard):
		seen = append(seen, "it said goodbye at "+p.Left.UTC().Format(time.TimeOnly)+" UTC")
		return fail("left", name+" was here, and said that kith stops on it.")
	case nearAlone(env) && len(p.onNetworks(env.networks())) == 0: // hubs and the like tell what is in the way
		return Unclear(append(seen, "of the media to meet on the LAN alone works here, and it need not be there")...)
	case !p.Heard.IsZero():
		seen = append(seen, "it was heard last at "+p.Heard.UTC().Format(time.TimeOnly)+" UTC")
		return fail("gone", name+" was here, and is not heard any more.")
	}
	return fail("silent", name+" was not heard since kith runs here.")
}

// readyMedia counts the media that say that they work.
func readyMedia(env *Env) (n int) {
	for _, m := range env.Media {
		if m.Exchange != nil && m.Exchange.Health().Ready {
			n++
		}
	}
	return n
}

// nearAlone reports whether of media that reach further than the LAN none works.
func nearAlone(env *Env) bool {
	far := false
	for _, m := range env.Media {
		if m.Exchange == nil || m.Name == lanDriver || m.Name == paperDriver {
			continue
		}
		if far = true; m.Exchange.Health().Ready {
			return false
		}
	}
	return far
}

func checkVersion(_ context.Context, env *Env, name string) Answer {
	a := asked(env, name)
	if errors.Is(a.err, ErrOld) {
		said := "it does not say which"
		if a.peer.Version != "" {
			said = "it says that it is version " + a.peer.Version
		}
		return Fails("old", said).With(name+" runs an older kith, which does not answer the doctor.", "Bring kith on "+name+" up to date.")
	}
	if !a.answered() {
		return Unclear("no answer: " + a.err.Error())
	}
	return OK("version " + a.reply.Version)
}

const (
	clockHours   = time.Hour       // apart is something wrong
	clockMinutes = 2 * time.Minute // apart is to be known
	clockDays    = 20 * time.Hour  // apart is days
)

func checkClock(_ context.Context, env *Env, name string) Answer {
	a := asked(env, name)
	if !a.answered() || a.reply.Clock.IsZero() {
		if d := a.peer.Days; d > 1 || d < -1 {
			return Fails("days", fmt.Sprintf("it says that it is %d days ahead", d)).With(fmt.Sprintf("The clocks of %s and this device are %d days apart.", name, max(d, -d)), "")
		}
		return Unclear("it did not say what time it is")
	}
	// The answer was made between the question and its arrival.
	off := time.Duration(0)
	switch t := a.reply.Clock; {
	case t.Before(a.began):
		off = t.Sub(a.began)
	case t.After(a.ended):
		off = t.Sub(a.ended)
	}
	seen := fmt.Sprintf("it was %s here, and %s there", a.ended.UTC().Format(time.DateTime), a.reply.Clock.UTC().Format(time.DateTime))
	apart := off.Abs()
	far := fmt.Sprintf("%.1f days", apart.Hours()/24)
	if apart < clockDays {
		far = apart.Round(time.Minute).String()
	}
	answer := func(id string) Answer {
		return Fails(id, seen).With(fmt.Sprintf("The clocks of %s and this device are %s apart.", name, far),
			fmt.Sprintf("Set the one that is wrong: here it is %s UTC, and there %s.", a.ended.UTC().Format("2006-01-02 15:04"), a.reply.Clock.UTC().Format("2006-01-02 15:04")))
	}
	switch {
	case apart >= clockDays:
		return answer("days")
	case apart >= clockHours:
		return answer("apart")
	case apart >= clockMinutes:
		return answer("drift")
	}
	return OK(fmt.Sprintf("they are less than %s apart", (apart + time.Second).Round(time.Second)))
}
