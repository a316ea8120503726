package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/lan"
)

const mdnsPort = 5353 // number

func lanPortCheck() Check {
	return Check{
		Code: "meeting.lan.port", Asks: "Has this program the ports of the LAN?", Quick: true, Run: lanPort,
		Needs: []Code{"device.interfaces"},
		Findings: []Finding{
			{
				ID: "taken", Severity: Limit,
				Cause: fmt.Sprintf("Another program holds UDP port %d, at which devices of the LAN are heard.", lan.Port),
				Fix:   "Stop that program, or have it use another port, and then start kith again.",
			},
			{
				ID: "mdns", Severity: Note,
				Cause: fmt.Sprintf("Another program holds UDP port %d of mDNS and does not share it, so kith uses its own multicast alone.", mdnsPort),
				Fix:   "Nothing needs to be done while devices of the LAN find each other.",
			},
		},
	}
}

func lanPort(_ context.Context, env *Env, _ string) Answer {
	_, x, ok := env.lan()
	if !ok {
		return Nothing("the LAN is switched off")
	}
	taken, mdns, evidence := lanProblems(x)
	switch {
	case taken:
		return Fails("taken", evidence...)
	case mdns:
		return Fails("mdns", evidence...)
	case len(evidence) > 0:
		return Unclear(evidence...)
	}
	return OK(fmt.Sprintf("UDP ports %d and %d", lan.Port, mdnsPort))
}

// lanProblems says which ports other programs hold, and what else could not be opened.
func lanProblems(x *lan.Exchange) (taken, mdns bool, evidence []string) {
	for _, err := range x.Problems() {
		evidence = append(evidence, plain(err.Error()))
		var held *lan.PortError
		if errors.As(err, &held) {
			taken = taken || held.Port != mdnsPort
			mdns = mdns || held.Port == mdnsPort
		}
	}
	return taken, mdns, evidence
}

func lanSendCheck() Check {
	unsent := []string{"meeting.lan.loop", "meeting.lan.multicast", "meeting.lan.find", "meeting.lan.found"}
	return Check{
		Code: "meeting.lan.send", Asks: "Can this device send multicast on the interface, and be a member of its groups?", Limit: lanLimit,
		Needs: []Code{"meeting.lan.port"}, Subjects: lanInterfaces, Run: lanSend,
		Findings: []Finding{
			{
				ID: "member", Severity: Limit, Cause: "The system does not let this program be a member of multicast groups on the interface.",
				Fix:      "Allow multicast on the interface, and more memberships if the evidence speaks of room (net.ipv4.igmp_max_memberships).",
				Explains: unsent,
			},
			{
				ID: "send", Severity: Limit, Cause: "The system does not send multicast on the interface, as a firewall on this device may forbid it.",
				Fix:      fmt.Sprintf("Allow this program to send to UDP port %d at 239.255.107.105 and ff12::6b69:7468.", lan.Port),
				Explains: unsent,
			},
		},
	}
}

// lanInterfaces are the interfaces of networks, on which devices are met.
func lanInterfaces(env *Env) (out []string) {
	_, x, ok := env.lan()
	if !ok {
		return nil
	}
	real := env.networks()
	for _, m := range x.Multicast() {
		if _, ok := real[m.Interface]; ok && !slices.Contains(out, m.Interface) {
			out = append(out, m.Interface)
		}
	}
	return out
}

// networks are the interfaces that lead to other devices by themselves, not those of
// VPNs, containers and this host. A bridge is one if there is no other.
func (e *Env) networks() map[string]netmon.Interface {
	list := netmon.Interfaces
	if e.Interfaces != nil {
		list = e.Interfaces
	}
	all, err := list()
	if err != nil {
		return nil
	}
	out, virtual := make(map[string]netmon.Interface), make(map[string]netmon.Interface)
	for _, i := range all {
		switch {
		case !i.Up || !i.Multicast || i.Loopback || i.PointToPoint || len(i.Addrs) == 0:
		case i.Virtual:
			virtual[i.Name] = i
		default:
			out[i.Name] = i
		}
	}
	if len(out) == 0 {
		return virtual
	}
	return out
}

// lanSend sends a few datagrams and looks what has become of them.
func lanSend(ctx context.Context, env *Env, subject string) Answer {
	_, x, ok := env.lan()
	if !ok {
		return Nothing("the LAN is switched off")
	}
	var report []lan.Membership
	var joined, sent bool
	for try := 0; ; try++ { // an address that has just come cannot be sent from yet
		before := sentOn(x.Multicast(), subject)
		if _, err := lanRound(ctx, env, x, 100*time.Millisecond, nil); err != nil {
			return Unclear(plain(err.Error()))
		}
		report = slices.DeleteFunc(x.Multicast(), func(m lan.Membership) bool { return m.Interface != subject })
		if len(report) == 0 {
			return Unclear("the interface is gone")
		}
		joined = slices.ContainsFunc(report, func(m lan.Membership) bool { return m.Joined })
		sent = sentOn(report, subject) > before
		const tries = 4
		if joined && sent || try == tries || ctx.Err() != nil {
			break
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	var evidence []string
	for _, m := range report {
		evidence = append(evidence, membershipLine(m))
	}
	switch {
	case !joined:
		return Fails("member", few(evidence)...)
	case !sent:
		return Fails("send", few(evidence)...)
	}
	return OK(few(evidence)...)
}

func sentOn(list []lan.Membership, name string) (n uint64) {
	for _, m := range list {
		if m.Interface == name {
			n += m.Sent
		}
	}
	return n
}

// membershipLine says what went through a group.
func membershipLine(m lan.Membership) string {
	line := fmt.Sprintf("%s %v, scope %v: %d sent, %d of other devices received", m.Interface, m.Group, m.Scope, m.Sent, m.Received)
	switch {
	case m.Err != "":
		line += ", not joined: " + m.Err
	case !m.Joined:
		line += ", not joined"
	}
	if m.SendErr != "" {
		line += ", not sent: " + m.SendErr
	}
	const most = 3 // senders named
	for i, h := range m.HopsSeen {
		if i == most {
			return line + fmt.Sprintf(", %d more", len(m.HopsSeen)-most)
		}
		line += fmt.Sprintf(", from %v with hop limit %d", h.From, h.Last)
	}
	return plain(line)
}

// lanRound asks the devices of the LAN once and collects their answers for a while.
func lanRound(ctx context.Context, env *Env, x *lan.Exchange, wait time.Duration, to []netip.Addr) ([]lan.Answer, error) {
	const perInterface = 3 // packets: two groups and a broadcast
	if err := env.Pacer.Wait(ctx, perInterface*max(len(env.networks()), 1)+len(to)); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	return x.Echo(ctx, to...)
}

func lanLoopCheck() Check {
	return Check{
		Code: "meeting.lan.loop", Asks: "Does multicast come in that this very device sent?", Limit: lanLimit,
		Needs: []Code{"meeting.lan.port"}, Run: lanLoop,
		Findings: []Finding{{
			ID: "firewall", Severity: Limit,
			Cause: "This device does not even hear its own multicast, so something on it, such as a firewall, drops what comes for kith on the LAN.",
			Fix:   fmt.Sprintf("Let UDP port %d come in through the firewall of this device, from the LAN.", lan.Port),
		}},
	}
}

// lanLoop has a second exchange of this host hear the one that is in use. It proves
// nothing about the network.
func lanLoop(ctx context.Context, env *Env, _ string) Answer {
	m, x, ok := env.lan()
	switch {
	case !ok:
		return Nothing("the LAN is switched off")
	case len(env.networks()) == 0:
		return Nothing("no network is connected")
	}
	other, why := m.fresh()
	if other == nil {
		return Unclear(why)
	}
	defer other.Close()
	second, ok := other.(*lan.Exchange)
	if !ok {
		return Unclear("a second session is not of the LAN")
	}
	if taken, _, problems := lanProblems(second); taken {
		return Unclear(problems...)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Until(deadline(ctx, lanLimit))-closePatience)
	defer cancel()
	topic := randomTopic()
	in, err := second.Join(ctx, rendezvous.Point{Topic: topic, Mode: rendezvous.ReceiveOnly})
	if err != nil {
		return Unclear("topic not joined: " + plain(err.Error()))
	}
	defer in.Close()
	out, err := x.Join(ctx, rendezvous.Point{Topic: topic, Mode: rendezvous.SendOnly})
	if err != nil {
		return Unclear("topic not joined: " + plain(err.Error()))
	}
	defer out.Close()
	trip := trip{env: env, in: in, out: out}
	took, back := trip.make(ctx, randomFrame(), againAfter)
	var evidence []string
	for _, m := range second.Multicast() {
		if _, real := env.networks()[m.Interface]; real {
			evidence = append(evidence, "second session: "+membershipLine(m))
		}
	}
	evidence = few(evidence)
	switch {
	case back:
		return OK(append(evidence, fmt.Sprintf("own frame heard in %v; that proves this host alone", took.Round(10*time.Microsecond)))...)
	case trip.sent < 3:
		return Unclear(evidence...)
	}
	return Fails("firewall", evidence...)
}
