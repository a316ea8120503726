package link

import (
	"fmt"
	"net/netip"
	"time"
)

// A PathKind says which sort of way a Path is.
type PathKind uint8

// The kinds of paths, the worst first. Punched, Mapped and Direct are equally
// good; the others differ in what they cost.
const (
	Relay    PathKind = 1 // through a TURN server
	Virtual  PathKind = 2 // through a VPN or container interface of this device
	Punched  PathKind = 3 // straight, through a hole in the peer's NAT or firewall
	Mapped   PathKind = 4 // straight, through a port mapping on the peer's router
	Direct   PathKind = 5 // straight, to an address of the peer itself
	LAN      PathKind = 6 // the peer's address is on a network of one of our interfaces
	Loopback PathKind = 7 // the peer runs on this machine
)

var kindNames = [...]string{ //nolint:gochecknoglobals // never changed
	Relay: "relay", Virtual: "virtual", Punched: "punched", Mapped: "mapped", Direct: "direct", LAN: "lan", Loopback: "loopback",
}

// rank orders kinds by what a path of them is worth.
func (k PathKind) rank() int {
	if k == Punched || k == Mapped {
		return int(Direct)
	}
	return int(k)
}

// String returns the kind in one lower-case word.
func (k PathKind) String() string {
	if k == 0 || int(k) >= len(kindNames) {
		return "unknown"
	}
	return kindNames[k]
}

// MarshalText returns String. It never errs.
func (k PathKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads what MarshalText gives. It errs for any other word.
func (k *PathKind) UnmarshalText(text []byte) error {
	for i, name := range kindNames {
		if name != "" && name == string(text) {
			*k = PathKind(i)
			return nil
		}
	}
	return fmt.Errorf("link: unknown path kind %q", text)
}

// A Path is one proven way to a peer, as it was at some moment.
type Path struct {
	Kind     PathKind       `json:"kind"`
	Local    netip.AddrPort `json:"local"`         // our address and port; the zero address where the platform does not tell
	Remote   netip.AddrPort `json:"remote"`        // the peer's address and port
	Observed netip.AddrPort `json:"observed"`      // our address and port as the peer sees them
	RTT      time.Duration  `json:"rtt"`           // smoothed round trip, in nanoseconds in JSON
	Since    time.Time      `json:"since"`         // when it was first proven without a break
	Selected bool           `json:"selected"`      // the Link sends its data here
	Size     int            `json:"size"`          // largest datagram that was answered, in bytes of UDP payload
	Via      string         `json:"via,omitempty"` // the relay that carries it
}

// String returns the path for people, such as "lan 192.0.2.7:41641 (1.3ms)" or
// "relay via hub.example (31ms)".
func (p Path) String() string {
	text := fmt.Sprintf("%s %s", p.Kind, p.Remote)
	if p.Via != "" {
		text = fmt.Sprintf("%s via %s", p.Kind, p.Via)
	}
	if p.RTT == 0 {
		return text
	}
	return fmt.Sprintf("%s (%s)", text, p.RTT.Round(roundTo(p.RTT)))
}

// roundTo keeps about three digits of a duration.
func roundTo(d time.Duration) time.Duration {
	switch {
	case d < 10*time.Millisecond:
		return 10 * time.Microsecond
	case d < time.Second:
		return 100 * time.Microsecond
	default:
		return 10 * time.Millisecond
	}
}

// An EventKind says what an Event tells.
type EventKind uint8

// The kinds of events.
const (
	Up      EventKind = 1 // there was no path, now there is one
	Changed EventKind = 2 // another path is selected, or the selected one's Size changed
	Down    EventKind = 3 // the last path was lost; the Link keeps trying
	Silent  EventKind = 4 // the selected path misses answers; all others are being asked
	Waking  EventKind = 5 // data ended the sleep of a lazy link; its path may be gone, all are being asked
)

// String returns the kind in one lower-case word.
func (k EventKind) String() string {
	switch k {
	case Up:
		return "up"
	case Changed:
		return "changed"
	case Down:
		return "down"
	case Silent:
		return "silent"
	case Waking:
		return "waking"
	default:
		return "unknown"
	}
}

// An Event tells that a Link's selected path changed.
type Event struct {
	Kind EventKind
	Link *Link
	Path Path // the selected path; for Down, the one that was lost; for Waking, the zero Path if there is none
	// Round is the number of Link.Resets before the event.
	Round int
}
