package doctor

import "slices"

// cutOff are findings that are no wonder where nothing of others gets to this device, or
// nothing of those beyond its router.
var cutOff = []string{ //nolint:gochecknoglobals // a table
	"address.outbound/none", "relays.tcp/silent", "relays.tcp/hub-silent", "relays.udp/down",
	"meeting.broker/silent", "meeting.waku/silent", "meeting.dht/silent", "meeting.echo/silent",
	"peers.heard/gone", "peers.heard/silent", "peers.candidates",
}

// andCutOff are findings that one explains besides.
func andCutOff(others ...string) []string { return slices.Concat(cutOff, others) }
