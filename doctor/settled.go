package doctor

import (
	"fmt"
	"slices"
	"strings"
)

// relaying names a relay that passed packets on in this run, and that connections may use.
func relaying(env *Env, results []Result, fits func(server) bool) (string, bool) {
	if env.Relay == "never" {
		return "", false
	}
	for _, r := range results {
		if r.Code != "relays.echo" || r.State != Yes || r.Silent {
			continue
		}
		if s, ok := serverNamed(env, r.Subject); ok && fits(s) {
			return "the " + s.title(), true
		}
	}
	return "", false
}

// leaveTo begins a fix that is there already, without the promise that all is well where a
// device is not connected.
func leaveTo(env *Env, relay string, results []Result) string {
	if len(disconnected(env, results)) > 0 {
		return "Leave it to " + relay + ", which"
	}
	return "Nothing has to be done, as " + relay
}

// relaysAlready is the fix of what keeps straight connections away, where a relay does its work.
// The fix of the finding ends with orElse.
func relaysAlready(env *Env, r Result, results []Result) string {
	name, ok := relaying(env, results, func(server) bool { return true })
	ways, ends := strings.CutSuffix(r.Fix, ", "+orElse)
	if !ok || !ends {
		return ""
	}
	if last := strings.LastIndex(ways, ", "); last >= 0 {
		ways = ways[:last] + ", or " + ways[last+len(", "):]
	}
	return fmt.Sprintf("%s relays already; for straight connections %s.", leaveTo(env, name, results), strings.ToLower(ways[:1])+ways[1:])
}

// webSuffices is the fix where nothing but the web is let out, and a hub is there at a port of it.
func webSuffices(env *Env, _ Result, results []Result) string {
	name, ok := relaying(env, results, func(s server) bool { return s.Hub && (tried{server: s}).web() })
	if !ok {
		return ""
	}
	return leaveTo(env, name, results) + " carries everything already; to have it faster, have the firewall of this network let UDP out."
}

// meetElsewhere is the fix where multicast is dropped, and devices meet on another medium.
func meetElsewhere(env *Env, _ Result, results []Result) string {
	i := slices.IndexFunc(results, func(r Result) bool { return r.Code == "meeting.echo" && r.State == Yes && !r.Silent })
	if i < 0 || len(disconnected(env, results)) > 0 {
		return ""
	}
	return fmt.Sprintf("Nothing has to be done, as devices meet elsewhere already (%s); to have them find each other here, too, %s.", plain(results[i].Subject), unfilter)
}

// unfilter is what lets multicast through.
const unfilter = "switch off what filters multicast in the access point or switch (multicast filter, IGMP snooping)"
