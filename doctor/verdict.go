package doctor

import (
	"fmt"
	"slices"
	"strings"
)

// A Verdict is a Report in three sentences for a person.
type Verdict struct {
	Severity Severity `json:"severity"`
	State    string   `json:"state"` // how it is
	Cause    string   `json:"cause"` // why, "" if all is well
	Fix      string   `json:"fix"`   // what to do, "" if there is nothing to do
}

// String returns the sentences, one after the other.
func (v Verdict) String() string {
	return strings.TrimSpace(strings.Join([]string{v.State, v.Cause, v.Fix}, " "))
}

// judge says what a report comes to: how it is, the first cause, and its fix. It says
// that a device cannot be reached only where the cause is one of that device.
func judge(env *Env, r Report) Verdict {
	if len(r.Causes) == 0 || r.Causes[0].Severity == Note {
		return Verdict{State: well(env, r.Results)}
	}
	first := r.Causes[0]
	v := Verdict{Severity: first.Severity, Cause: first.Cause, Fix: first.Fix}
	reached, away := echoed(r.Results), disconnected(env, r.Results)
	switch {
	case first.Severity == Fault && len(reached) > 0: // that may have been this run's own connection
		v.State = fmt.Sprintf("%s %s reached just now, but something is wrong here.", some(reached), were(reached))
	case first.Severity == Fault && first.Code == "device.state" && env.OpenErr == nil: // kith runs
		v.State = "Something is wrong here."
	case first.Severity == Fault:
		v.State = "This device cannot connect to others as it is."
	case first.Name() == "peers.known/ended":
		v.State = first.Subject + " is not paired with this device any more."
	case first.Code.Group() == PeerGroup && connected(env, first.Subject) && !unanswered(r.Results, first.Subject):
		v.State = first.Subject + " is connected, but not as well as it could be."
	case first.Code.Group() == PeerGroup:
		v.State = first.Subject + " cannot be reached at the moment."
	case len(away) > 0:
		v.State = fmt.Sprintf("This device can connect, but not everywhere; %s.", notConnected(away))
	default:
		v.State = "This device can connect, but not everywhere."
	}
	return v
}

// well is how it is where nothing worse than a note was found.
func well(env *Env, results []Result) string {
	unknown := count(results, Unknown)
	state := "Nothing is in the way of this device"
	if unknown > 0 {
		state = "Nothing is known to be in the way of this device"
	}
	if away := disconnected(env, results); len(away) > 0 {
		state += "; " + notConnected(away)
	}
	if unknown > 0 {
		state += fmt.Sprintf("; %s could not be found out", answers(unknown))
	}
	return strings.TrimSpace(state + ". " + askedAbout(env))
}

// askedAbout says how the device is connected that the run is about, "" if it is about none,
// or that one is not connected.
func askedAbout(env *Env) string {
	i := slices.IndexFunc(env.Peers, func(p Peer) bool { return p.Named })
	if i < 0 {
		return ""
	}
	p := env.Peers[i].now()
	kind, _, _ := strings.Cut(p.Path, " ")
	if !p.Connected || kind == "" {
		return ""
	}
	said := p.Name + " is connected " + way(kind)
	if e, ok := Fact[*echoTrain](env, factTrain+p.Name); ok && e.back() {
		said += ", with a round trip of " + show(e.median())
	}
	if m, ok := Fact[Measurement](env, factRate+p.Name); ok {
		over, _, _ := strings.Cut(m.Path, " ")
		path := "the path"
		if over != kind {
			path = "the path " + way(over)
		}
		said += fmt.Sprintf(", and %s carries %s to it and %s from it", path, bits(m.RateOut), bits(m.RateIn))
	}
	return said + "."
}

// way is a kind of path in words.
func way(kind string) string {
	switch kind {
	case "relay":
		return "through a relay"
	case "virtual":
		return "through a VPN or container network"
	}
	return "straight"
}

// connected reports whether a device is connected at this moment.
func connected(env *Env, name string) bool {
	return slices.ContainsFunc(env.Peers, func(p Peer) bool { return p.Name == name && p.now().Connected })
}

// disconnected are the names of the devices that have no connection at this moment and might
// have one, but for those that answered in this run through the tunnel.
func disconnected(env *Env, results []Result) (names []string) {
	reached := echoed(results)
	for _, p := range env.Peers {
		if now := p.now(); !now.Connected && !now.Blocked && !now.Ended && !slices.Contains(reached, p.Name) {
			names = append(names, p.Name)
		}
	}
	return names
}

// echoed are the names of the devices that answered in this run through the tunnel.
func echoed(results []Result) (names []string) {
	for _, r := range results {
		if r.Code == "peers.loss" && (r.State == Yes && !r.Silent || r.Finding == "lossy") {
			names = append(names, r.Subject)
		}
	}
	return names
}

// unanswered reports that a device was to be asked in this run through the tunnel, and
// that nothing came back: it may count as connected for half a minute more.
func unanswered(results []Result, name string) bool {
	return slices.ContainsFunc(results, func(r Result) bool {
		return r.Code == "peers.loss" && (r.State == Unknown || r.State == Skipped && r.Because != "") && r.Subject == name
	})
}

// notConnected says so of some devices.
func notConnected(names []string) string {
	if len(names) == 1 {
		return names[0] + " is not connected"
	}
	return some(names) + " are not connected"
}

func were(names []string) string {
	if len(names) == 1 {
		return "was"
	}
	return "were"
}

// some names devices, or counts them if they are more than a few.
func some(names []string) string {
	switch n := len(names); {
	case n == 1:
		return names[0]
	case n <= 3:
		return fmt.Sprintf("%s and %s", strings.Join(names[:n-1], ", "), names[n-1])
	default:
		return fmt.Sprintf("%d devices", n)
	}
}

func count(results []Result, s State) (n int) {
	for _, r := range results {
		if r.State == s {
			n++
		}
	}
	return n
}

func answers(n int) string {
	if n == 1 {
		return "one answer"
	}
	return fmt.Sprintf("%d answers", n)
}
