package doctor

import (
	"context"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/lan"
)

// The drivers, by the names of their exchanges.
const (
	lanDriver    = "lan"
	brokerDriver = "mqtt"
	dhtDriver    = "dht"
	wakuDriver   = "waku"
	paperDriver  = "paper" // is carried by hand: there is nothing to look at
)

const (
	reachLimit       = 8 * time.Second
	meetingEchoLimit = 12 * time.Second
	lanLimit         = 5 * time.Second
	closePatience    = 1500 * time.Millisecond // that an exchange of a check is given to close
	lookEvery        = 50 * time.Millisecond   // at the health of a medium
)

// meetingChecks are the checks of the group.
func meetingChecks() []Check { return meetingWith(lanSources{lanNeighbours, routerIsPublic}) }

// meetingWith has other sources of what is known of the LAN.
func meetingWith(sources lanSources) []Check {
	return []Check{
		{
			Code: "meeting.media", Asks: "Is there a medium to meet other devices on?", Quick: true, Run: haveMedia,
			Findings: []Finding{{
				ID: "none", Severity: Fault,
				Cause: "All media to meet other devices on are switched off, and no hub is set.",
				Fix:   "Switch one on with kith config rendezvous lan on, or name a hub with kith config hub.",
			}},
		},
		{
			Code: "meeting.broker", Asks: "Is the broker there, and does it let this device in?", Limit: reachLimit, Quick: true,
			Needs: []Code{"device.interfaces"}, Subjects: mediaOf(brokerDriver), Run: reach, Findings: brokerFindings(),
		},
		{
			Code: "meeting.waku", Asks: "Is the Waku node there, and of the right network?", Limit: reachLimit, Quick: true,
			Needs: []Code{"device.interfaces"}, Subjects: mediaOf(wakuDriver), Run: reach, Findings: wakuFindings(),
		},
		{
			Code: "meeting.dht", Asks: "Do nodes of the DHT answer?", Limit: reachLimit, Quick: true,
			Needs: []Code{"device.interfaces"}, Subjects: mediaOf(dhtDriver), Run: reach, Findings: dhtFindings(),
		},
		{
			Code: "meeting.other", Asks: "Does the medium say that it can carry something?", Limit: reachLimit,
			Needs: []Code{"device.interfaces"}, Subjects: otherMedia, Run: reach, Findings: []Finding{{
				ID: "down", Severity: Limit, Cause: "The medium cannot carry anything at the moment.",
				Fix: "Look at the evidence, and whether its server is up and its settings are right.",
			}},
		},
		{
			Code: "meeting.echo", Asks: "Does a frame that is published come back to a second device's session?", Limit: meetingEchoLimit,
			Needs: []Code{"meeting.broker", "meeting.waku", "meeting.dht", "meeting.other"}, Subjects: remoteMedia, Run: meetingEcho,
			Findings: []Finding{{
				ID: "second", Severity: Limit, Cause: "A second session does not get to the medium, although an earlier one is connected.",
				Fix: "See whether the medium is up and lets this device in again.",
			}, {
				ID: "silent", Severity: Limit, Cause: "None of the nodes of the DHT that this device knows answers any more.",
				Fix: "Give nodes that are up with kith config dht bootstrap, such as a hub, or see whether a firewall blocks UDP.",
			}, {
				ID: "lost", Severity: Limit, Cause: "The medium takes what this device publishes, but does not bring it to others.",
				Fix: "Have whoever runs it let this user publish and subscribe to all topics below kith/1/.",
			}},
		},
		lanPortCheck(), lanSendCheck(), lanLoopCheck(), lanOthersCheck(sources.neighbours), lanMulticastCheck(), lanFindCheck(), lanFoundCheck(),
		lanIsolationCheck(sources),
	}
}

// MediumOf describes an exchange that is in use. Its name is the driver's, with the
// server where there may be several.
func MediumOf(x rendezvous.Exchange, hubs []hubaddr.Address) Medium {
	m := Medium{Name: x.Name(), Exchange: x}
	o, ok := x.(rendezvous.Opener)
	if !ok {
		return m
	}
	m.Fresh, m.Servers = o.Another, o.Servers()
	if x.Name() == dhtDriver || len(m.Servers) == 0 {
		return m
	}
	m.Name = x.Name() + " " + m.Servers[0]
	for _, h := range hubs {
		if at, err := url.Parse(h.MQTTURLs()[0]); err == nil && x.Name() == brokerDriver && at.Host == m.Servers[0] {
			m.Name, m.Hub = "hub "+h.Host, h
		}
	}
	return m
}

func haveMedia(_ context.Context, env *Env, _ string) Answer {
	var names []string
	for _, m := range env.Media {
		if m.Exchange != nil {
			names = append(names, m.Name)
		}
	}
	switch {
	case env.OpenErr != nil || env.Port == 0 && len(names) == 0:
		return Unclear("no node is running")
	case len(names) == 0:
		return Fails("none")
	}
	return OK(strings.Join(names, ", "))
}

// mediaOf lists the media of a driver.
func mediaOf(driver string) func(*Env) []string {
	return func(env *Env) (out []string) {
		for _, m := range env.Media {
			if m.Exchange != nil && m.Exchange.Name() == driver {
				out = append(out, m.Name)
			}
		}
		return out
	}
}

// remoteMedia are those whose echo has something to say: not the LAN, which gives this
// host its own frames back, and not paper.
func remoteMedia(env *Env) (out []string) {
	for _, m := range env.Media {
		if m.Exchange != nil && m.Exchange.Name() != lanDriver && m.Exchange.Name() != paperDriver {
			out = append(out, m.Name)
		}
	}
	return out
}

// otherMedia are those of no driver that is known here.
func otherMedia(env *Env) (out []string) {
	for _, m := range env.Media {
		if m.Exchange == nil {
			continue
		}
		switch m.Exchange.Name() {
		case lanDriver, brokerDriver, dhtDriver, wakuDriver, paperDriver:
		default:
			out = append(out, m.Name)
		}
	}
	return out
}

// medium finds one by its name.
func (e *Env) medium(name string) (Medium, bool) {
	for _, m := range e.Media {
		if m.Name == name && m.Exchange != nil {
			return m, true
		}
	}
	return Medium{}, false
}

// lan is the LAN as a medium, if this device uses it.
func (e *Env) lan() (Medium, *lan.Exchange, bool) {
	for _, m := range e.Media {
		if x, ok := m.Exchange.(*lan.Exchange); ok {
			return m, x, true
		}
	}
	return Medium{}, nil, false
}

// fresh opens a second exchange of a medium, and says so if there is none.
func (m Medium) fresh() (rendezvous.Exchange, string) {
	if m.Fresh == nil {
		return nil, "the medium cannot be opened a second time"
	}
	x, err := m.Fresh()
	if err != nil {
		return nil, "not opened a second time: " + plain(err.Error())
	}
	return x, ""
}

// plain makes a text fit for a line on a terminal: a part of it may be of others.
func plain(text string) string {
	const most = 300 // bytes
	text = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsGraphic(r) || unicode.Is(unicode.Cf, r):
			return -1
		}
		return r
	}, text)
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}
