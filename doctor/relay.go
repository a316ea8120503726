package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// anewFix is for what an address of a hub gets wrong.
const anewFix = "Get the hub's address anew with kith hub address on its machine, and give it to kith config hub here."

// relayChecks are the checks of the group, each for every hub and TURN server.
func relayChecks() []Check {
	checks := []Check{
		{
			Code: "relays.resolve", Asks: "Has the name of the relay an address?", Quick: true, Limit: 4 * time.Second,
			Needs: []Code{"device.gateway", "address.outbound"},
			Findings: []Finding{
				{
					ID: "name", Severity: Limit,
					Cause: "The name of the relay cannot be looked up.",
					Fix:   "Check the name in the settings, and whether the network's DNS works.",
					// Those of the same host.
					Explains: []string{"meeting.broker/name", "meeting.waku/name", "meeting.echo/second"},
				},
				{
					ID: "family", Severity: Limit,
					Cause: "The relay has addresses of one family of IP alone, and this network has the other alone.",
					Fix:   "Give the relay an address of the other family, too, or use another network.",
				},
			},
			Run: checkRelayResolve,
		},
		{
			Code: "relays.tcp", Asks: "Does the relay accept TCP connections?", Quick: true, Limit: tcpPatience + 2*time.Second,
			Needs: []Code{"address.outbound", "nat.tcp", "relays.resolve"},
			Findings: []Finding{
				{
					ID: "hub", Severity: Limit,
					Cause:    "The hub is down: its machine refuses the connection.",
					Fix:      "Start it again, or check the port number in its address.",
					Explains: []string{"meeting.broker/refused", "meeting.dht/silent", "meeting.echo/silent"}, // it is a node of the DHT, too
				},
				{
					ID: "hub-silent", Severity: Limit,
					Cause:    "The hub is down: nothing answers at its address.",
					Fix:      "Check that its machine is on and that its firewall lets the port in, or use another hub.",
					Explains: []string{"meeting.broker/silent", "meeting.dht/silent", "meeting.echo/silent"},
				},
				{
					ID: "refused", Severity: Limit,
					Cause: "The relay is down: its machine refuses the connection.",
					Fix:   "Start it again, or check the port number in its address.",
				},
				{
					ID: "silent", Severity: Limit,
					Cause: "The relay is down: nothing answers at its address.",
					Fix:   "Check that its machine is on and that its firewall lets the port in, or use another relay.",
				},
			},
			Run: checkRelayTCP,
		},
		{
			Code: "relays.tls", Asks: "Is the relay the one that is meant, by its certificate?", Quick: true, Limit: tcpPatience + 2*time.Second,
			Needs: []Code{"relays.tcp"},
			Findings: []Finding{
				{
					ID: "pin", Severity: Limit,
					Cause:    "The hub at this address is another one than the address says, or its key has changed.",
					Fix:      anewFix,
					Explains: []string{"meeting.broker/pin"},
				},
				{
					ID: "inspected", Severity: Limit,
					Cause:    inspectedBy("the hub"),
					Fix:      inspectedFix,
					Explains: []string{"meeting.broker/inspected"},
				},
				{
					ID: "expired", Severity: Limit,
					Cause: "The certificate of the relay has expired.",
					Fix:   "Renew the certificate at the relay, or use another relay.",
				},
				{
					ID: "early", Severity: Limit,
					Cause: "By the clock of this device the certificate of the relay is not valid yet.",
					Fix:   "Set the clock of this device, or that of the machine where the certificate was made.",
				},
				{
					ID: "untrusted", Severity: Limit,
					Cause: "The certificate of the relay is not for this name, or of nobody whom this device trusts.",
					Fix:   "Check the relay's name (kith config turn), and its certificate.",
				},
				{
					ID: "failed", Severity: Limit,
					Cause: "The relay accepts connections, but does not speak TLS with this device.",
					Fix:   "Check the port number in its address, and whether a firewall on the way inspects TLS.",
				},
			},
			Run: checkRelayTLS,
		},
		{
			Code: "relays.udp", Asks: "Does the relay answer over UDP?", Limit: stunPatience + 3*time.Second,
			Needs: []Code{"nat.udp", "relays.resolve"},
			Findings: []Finding{
				{
					ID: "silent", Severity: Limit,
					Cause: "The relay does not answer over UDP although it does over TCP.",
					Fix:   "Open its UDP port in the firewall of the machine that it runs on.",
				},
				{
					ID: "down", Severity: Limit,
					Cause: "The relay is down: nothing answers at its address.",
					Fix:   "Check that its machine is on and that its firewall lets the port in, or use another relay.",
				},
				{
					ID: "half", Severity: Note,
					Cause: "The relay answers over IPv4, but not at its IPv6 address.",
					Fix:   "Have its machine listen at that address and its firewall let the port in, or take the address out of its name in DNS.",
				},
			},
			Run: checkRelayUDP,
		},
		{
			Code: "relays.auth", Asks: "Does the relay take this device's credentials?", Limit: 10 * time.Second,
			Needs: []Code{"relays.resolve", "relays.tcp", "relays.tls"},
			Findings: []Finding{
				{
					ID: "refused", Severity: Limit,
					Cause: "The relay refuses the user, password or secret that this device has for it.",
					Fix:   "Correct the credentials of the relay with kith config turn.",
				},
				{
					ID: "other", Severity: Limit,
					Cause: "The relay answers, but not as a TURN server.",
					Fix:   "Check host and port of the relay (kith config hub, kith config turn).",
				},
			},
			Run: checkRelayAuth,
		},
		{
			Code: "relays.allocate", Asks: "Does the relay give this device an address?", Limit: 10 * time.Second,
			Needs: []Code{"relays.auth"},
			Findings: []Finding{
				{
					ID: "quota", Severity: Limit,
					Cause: "The quota of this device's user at the relay is used up.",
					Fix:   "Close connections of other devices that use this relay, wait ten minutes, or raise the quota at the relay (user-quota in coturn's settings).",
				},
				{
					ID: "full", Severity: Limit,
					Cause: "The relay is full.",
					Fix:   "Wait, or use another relay.",
				},
				{
					ID: "refused", Severity: Limit,
					Cause: "The relay gives this device no address.",
					Fix:   "Look at the settings and the log of the relay, or use another one.",
				},
			},
			Run: checkRelayAllocate,
		},
		{
			Code: "relays.echo", Asks: "Does the relay pass packets on?", Limit: 16 * time.Second,
			Needs: []Code{"relays.allocate"},
			Findings: []Finding{{
				ID: "silent", Severity: Limit,
				Cause: "The relay gives this device an address, but passes no packets on.",
				Fix:   "Open the relay's range of UDP ports in the firewall of its machine, or give it its public address (external-ip in coturn's settings, kith hub --relay-ip).",
			}},
			Run: checkRelayEcho,
		},
	}
	for i := range checks {
		checks[i].Subjects = serverNames
	}
	return checks
}

func checkRelayResolve(ctx context.Context, env *Env, name string) Answer {
	s, ok := serverNamed(env, name)
	if !ok {
		return Unclear("the address of the relay cannot be read")
	}
	addrs, err := resolve(ctx, env, s.Host)
	if err != nil {
		if ctx.Err() != nil {
			return Unclear("no answer: " + err.Error())
		}
		a := Fails("name", err.Error()).With(fmt.Sprintf("The name of the relay, %s, cannot be looked up.", s.Host), "")
		a.About = subjectsAt(env, func(host string) bool { return host == s.Host })
		return a
	}
	lines := make([]string, 0, len(addrs))
	for _, a := range addrs {
		lines = append(lines, a.String())
	}
	slices.Sort(lines)
	if cause, fix := s.outOfReach(env, addrs); cause != "" {
		return Fails("family", lines...).With(cause, fix)
	}
	return OK(lines...)
}

func checkRelayTCP(ctx context.Context, env *Env, name string) Answer {
	s, ok := serverNamed(env, name)
	if !ok || !s.TCP {
		return Nothing("it is used over UDP alone")
	}
	p := probeTCP(ctx, env, s.Host, s.Port, s.TLS)
	switch {
	case p.connected():
		return OK(p.words())
	case p.refused():
		return Fails(s.either("hub", "refused"), p.words()).With(fmt.Sprintf("The %s is down: its machine refuses the connection.", s.title()), "")
	case !p.silent():
		return Unclear(p.words())
	case s.answersUDP(env):
		return Fails(s.either("hub-silent", "silent"), p.words(), "it answers over UDP").With(
			fmt.Sprintf("The %s answers over UDP, but its TCP port does not.", s.title()), "Open its TCP port in the firewall of the machine that it runs on.")
	}
	return Fails(s.either("hub-silent", "silent"), p.words()).With(fmt.Sprintf("The %s is down: nothing answers at its address.", s.title()), "")
}

// either chooses between what is for hubs and what for other servers. A hub's broker is
// down with it; that of others is not.
func (s server) either(hub, other string) string {
	if s.Hub {
		return hub
	}
	return other
}

// title names the server in a sentence.
func (s server) title() string {
	if s.Hub {
		return s.Name
	}
	return "relay " + s.Name
}

// answersUDP reports whether address.discovery has heard of a hub.
func (s server) answersUDP(env *Env) bool {
	all, _ := Fact[[]sighting](env, factSeen)
	return slices.ContainsFunc(all, func(x sighting) bool { return x.Server.Name == hostPort(s.Host, s.Port) })
}

func checkRelayTLS(ctx context.Context, env *Env, name string) Answer {
	s, ok := serverNamed(env, name)
	if !ok || s.TLS == nil {
		return Nothing("it does not use TLS")
	}
	p := probeTCP(ctx, env, s.Host, s.Port, s.TLS)
	switch {
	case !p.connected():
		return Unclear(p.words())
	case p.TLSErr == nil:
		return OK(fmt.Sprintf("it is the one that is meant, after %d ms", p.Took.Milliseconds()))
	case ctx.Err() != nil || p.silent() || (tcpProbe{Err: p.TLSErr}).silent():
		return Unclear("TLS did not finish in time")
	}
	id := p.tlsFinding(time.Now())
	lines := []string{answeredBy(p.TLSErr)}
	if !p.Expiry.IsZero() {
		lines = append(lines, "the certificate is valid until "+p.Expiry.UTC().Format(time.DateTime)+" UTC")
	}
	a := Fails(id, lines...)
	switch id {
	case "pin":
		a = a.With(fmt.Sprintf("The server at %s is another hub than the address says, or its key has changed.", hostPort(s.Host, s.Port)), "")
	case "inspected":
		a = a.With(inspectedBy("the "+s.title()), "")
	case "expired":
		a = a.With(fmt.Sprintf("The certificate of the %s has expired.", s.title()), "")
	}
	return a
}

func checkRelayUDP(ctx context.Context, env *Env, name string) Answer {
	s, ok := serverNamed(env, name)
	if !ok || !s.UDP {
		return Nothing("it is used over TCP alone")
	}
	a, err := s.bind(ctx, env)
	if at, ok := s.deadOver6(env); ok && err == nil {
		return Fails("half", at.String()+" does not answer").With(fmt.Sprintf("The %s answers over IPv4, but not at its IPv6 address.", s.title()), "")
	}
	if err == nil {
		return OK(fmt.Sprintf("it answers after %d ms", a.RTT.Milliseconds()))
	}
	if ctx.Err() != nil {
		return Unclear("no answer")
	}
	if !s.TCP {
		return s.downOverUDP(env)
	}
	if p := probeTCP(ctx, env, s.Host, s.Port, s.TLS); p.proved() {
		seen, _ := Fact[[]sighting](env, factSeen)
		open, out := Fact[string](env, factUDPOut)
		if len(seen) == 0 && !out {
			return Unclear("no answer; nobody else answers over UDP either")
		}
		fix := ""
		if out {
			fix = fmt.Sprintf("Open its UDP port %d in the firewall of the machine that it runs on, or if that is open have this network's firewall let UDP to it out.", s.Port)
		}
		return Fails("silent", strings.TrimSpace("no answer over UDP; "+open), "over TCP: "+p.words()).With(
			fmt.Sprintf("The %s does not answer over UDP although it does over TCP.", s.title()), fix)
	}
	return Unclear("no answer, neither over UDP nor TCP")
}

// downOverUDP is the answer about a relay of UDP alone that is silent.
func (s server) downOverUDP(env *Env) Answer {
	seen, _ := Fact[[]sighting](env, factSeen)
	if _, out := Fact[string](env, factUDPOut); len(seen) == 0 && !out {
		return Fails("down", "no answer; nobody else answers over UDP either").With(
			fmt.Sprintf("The %s does not answer: it is down, or this network lets no UDP through.", s.title()), "")
	}
	return Fails("down", "no answer").With(fmt.Sprintf("The %s is down: nothing answers at its address.", s.title()), "")
}
