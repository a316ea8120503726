package doctor

import (
	"slices"
	"time"
)

// factMapping is what is known of the NAT, a punch.Behaviour.
const factMapping = "nat.mapping"

// natChecks are the checks of the group.
func natChecks() []Check {
	return []Check{
		{
			Code: "nat.tcp", Asks: "Do TCP connections get out?", Quick: true, Limit: tcpPatience + 3*time.Second,
			Needs: []Code{"address.outbound", "address.discovery"},
			Findings: []Finding{{
				ID: "blocked", Severity: Limit,
				Cause:    "This network lets UDP out, but no TCP connections.",
				Fix:      "Have the firewall of this network let TCP out, or use another network.",
				Explains: []string{"relays.tcp/silent", "relays.tcp/hub-silent", "meeting.broker/silent", "meeting.waku/silent"},
			}},
			Run: checkTCP,
		},
		{
			Code: "nat.web", Asks: "Does this network let out more than the web?", Limit: tcpPatience + 3*time.Second,
			Needs: []Code{"address.outbound", "address.discovery"},
			Findings: []Finding{{
				ID: "only443", Severity: Limit,
				Cause:   "This network lets out nothing but the web (TCP ports 80 and 443).",
				Fix:     "Use a hub that listens at port 443, which carries everything though more slowly, or have the firewall of this network let UDP out.",
				Settled: webSuffices,
				Explains: []string{
					"nat.udp/blocked", "nat.tcp", "relays.tcp/silent", "relays.tcp/hub-silent", "relays.udp",
					"meeting.broker/silent", "meeting.waku/silent", "meeting.dht/silent", "meeting.echo/silent",
					"peers.candidates", "peers.path/relayed",
					"device.dns/silent", "device.dns/refuses", "device.dns/partly", "device.dns/idle", "device.dns/slow",
				},
			}},
			Run: checkWeb,
		},
		{
			Code: "nat.udp", Asks: "Do answers over UDP come back?", Quick: true, Limit: tcpPatience + 3*time.Second,
			Needs: []Code{"address.outbound", "address.discovery"},
			Findings: []Finding{{
				ID: "blocked", Severity: Limit,
				Cause: "UDP does not get through this network, though TCP does, so that all connections need a relay.",
				Fix:   "Have the firewall of this network let UDP out, or use another network; meanwhile a hub carries everything over TCP.",
				Explains: []string{
					"relays.udp", "meeting.dht/silent", "meeting.echo/silent", "peers.candidates", "peers.path/relayed",
					"device.dns/silent", "device.dns/refuses", "device.dns/partly", "device.dns/idle", "device.dns/slow", // of servers beyond the router
				},
			}},
			Run: checkUDP,
		},
		{
			Code: "nat.mapping", Asks: "Does the router keep one public port for all destinations?", Quick: true, Limit: 4 * time.Second,
			Needs: []Code{"nat.udp"},
			Findings: []Finding{{
				ID: "hard", Severity: Limit,
				Cause:    "The router takes another public port for each destination (a hard NAT), so that straight connections to many devices fail and a relay is needed.",
				Fix:      "Turn on UPnP or forward kith's UDP port in the router, turn off what it calls symmetric NAT or strict NAT, use IPv6, " + orElse,
				Settled:  relaysAlready,
				Explains: []string{"peers.candidates/hard", "peers.path/relayed"},
			}},
			Run: checkMapping,
		},
		{
			Code: "nat.preserve", Asks: "Does the router keep the number of a port?", Limit: time.Second,
			Tells: "it tells whether the router gives a port its own number outside, which helps others to guess it.",
			Needs: []Code{"nat.udp"},
			Run:   checkPreserve,
		},
		{
			Code: "nat.filtering", Asks: "What does the router or firewall let in from outside?", Limit: 5 * time.Second,
			Tells: "it tells whether answers come in from everywhere, or from those alone that were sent to (RFC 5780).",
			Needs: []Code{"nat.udp"},
			Run:   checkFiltering,
		},
		{
			Code: "nat.hairpin", Asks: "Does the router connect devices behind it by its public address?", Limit: 5 * time.Second,
			Needs: []Code{"nat.udp"},
			Findings: []Finding{{
				ID: "missing", Severity: Limit,
				Cause:    "The router does not connect devices behind it by its public address (hairpinning), and another device behind it is known by that address alone.",
				Fix:      "Let both devices use the same network, or allow multicast between them so that they find each other's local addresses.",
				Explains: []string{"peers.candidates"},
			}},
			Run: checkHairpin,
		},
		{
			Code: "nat.lifetime", Asks: "Does the router remember a connection through ten seconds of silence?", Limit: silence + 9*time.Second,
			Needs: []Code{"nat.udp"},
			Findings: []Finding{{
				ID: "short", Severity: Limit,
				Cause: "The router forgets UDP connections after less than eleven seconds without traffic, so that connections at rest break.",
				Fix:   "Raise the UDP timeout in the router's settings to a minute or more, or forward kith's UDP port to this device.",
			}},
			Run: checkLifetime,
		},
		{
			Code: "nat.timeout", Asks: "For how long does the router remember a connection without traffic?", Slow: true, Limit: timeouts[len(timeouts)-1] + 15*time.Second,
			Needs: []Code{"nat.lifetime"},
			Findings: []Finding{{
				ID: "short", Severity: Limit,
				Cause: "The router forgets UDP connections after less than twenty seconds without traffic, so that connections at rest break.",
				Fix:   "Raise the UDP timeout in the router's settings to a minute or more.",
			}},
			Run: checkTimeout,
		},
		{
			Code: "nat.carrier", Asks: "Has this network a public IPv4 address of its own?", Limit: gatewayPatience + 6*time.Second,
			Needs: []Code{"nat.udp"},
			Findings: []Finding{
				{
					ID: "shared", Severity: Note,
					Cause:    "The internet provider shares one public IPv4 address among customers (carrier NAT), so that ports opened in the router do not help and devices reach this one only by opening the way from both ends.",
					Fix:      "Nothing needs to be done while devices connect; else ask the provider for a public IPv4 address or for IPv6, " + orElse,
					Explains: behindTwo,
				},
				{
					ID: "hard", Severity: Limit,
					Cause:    "The internet provider shares one public IPv4 address among customers and takes another port of it for each destination (a hard carrier NAT), so that straight connections to many devices fail and a relay is needed.",
					Fix:      "Ask the provider for a public IPv4 address or for IPv6, use another network, " + orElse,
					Settled:  relaysAlready,
					Explains: slices.Concat(behindTwo, hardNAT),
				},
				{
					ID: "several", Severity: Limit,
					Cause:    "This device is seen with several public addresses at once, so that others cannot tell which to use.",
					Fix:      "If the network has two internet lines, have the router send all of this device's traffic over one of them, else ask the provider for a public address or for IPv6, " + orElse,
					Settled:  relaysAlready,
					Explains: slices.Concat(behindTwo, hardNAT),
				},
			},
			Run: checkCarrier,
		},
		{
			Code: "nat.double", Asks: "Is there one router alone between this device and the internet?", Limit: gatewayPatience + 6*time.Second,
			Needs: []Code{"nat.udp"},
			Findings: []Finding{
				{
					ID: "second", Severity: Note,
					Cause:    "The public address belongs to another router behind the nearest one (double NAT), so that ports opened in the nearest do not help.",
					Fix:      "Nothing needs to be done while devices connect; else put one of the two routers into bridge mode, or forward kith's UDP port in both.",
					Explains: behindTwo,
				},
				{
					ID: "hard", Severity: Limit,
					Cause:    "There are two routers one behind the other (double NAT), and they take another public port for each destination, so that straight connections to many devices fail and a relay is needed.",
					Fix:      "Put one of the two routers into bridge mode, turn off what they call symmetric NAT or strict NAT, " + orElse,
					Settled:  relaysAlready,
					Explains: slices.Concat(behindTwo, hardNAT),
				},
			},
			Run: checkDouble,
		},
		gatewayCheck("nat.upnp", "UPnP", "upnp", []string{"nat.pcp", "nat.natpmp"}),
		gatewayCheck("nat.pcp", "PCP", "pcp", []string{"nat.natpmp"}),
		gatewayCheck("nat.natpmp", "NAT-PMP", "nat-pmp", nil),
	}
}

// orElse ends the fix of what keeps straight connections away.
const orElse = "or leave it to a hub that relays (kith config hub)."

// behindTwo are findings that are no wonder where a router has no public address, and
// hardNAT those where it takes other ports for each destination.
var (
	behindTwo = []string{"nat.double", "nat.upnp/refused", "nat.pcp/refused", "nat.natpmp/refused"} //nolint:gochecknoglobals // never changed
	hardNAT   = []string{"nat.mapping/hard", "peers.candidates/hard", "peers.path/relayed"}         //nolint:gochecknoglobals // never changed
)
