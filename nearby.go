package kith

import (
	"context"
	"errors"
	"net/netip"
	"runtime"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/rendezvous/lan"
)

// A NearbyDevice is what a device of this LAN that is in pairing mode says of
// itself. Anybody can make up all of it: only the code proves who it is.
type NearbyDevice struct {
	Name string `json:"name"`           // what it calls itself, at most 64 bytes
	Kind string `json:"kind,omitempty"` // its operating system, as a word for people; at most 32 bytes
	// Addrs are where it was heard from, with the port that takes frames of a
	// pairing; port 0: none. They fit OfferConfig's and JoinConfig's Endpoints.
	Addrs     []netip.AddrPort `json:"addrs"`
	Instance  string           `json:"instance"`   // 16 hexadecimal digits, others in each pairing
	ShowsCode bool             `json:"shows_code"` // it shows a code; else it waits to be given one
}

// errNoLAN says why there is nothing nearby.
var errNoLAN = errors.New("kith: nearby devices are found on the LAN, and this device does not use it")

// Nearby lists the devices of this LAN that are in pairing mode. The channel
// gives the list at once and after each change, the newest only; it is closed when
// ctx or the node ends. This device announces nothing by looking. It errs if the
// LAN is off or cannot be used, and after Close.
func (n *Node) Nearby(ctx context.Context) (<-chan []NearbyDevice, error) {
	if n.lan == nil {
		return nil, errNoLAN
	}
	ctx, cancel := context.WithCancel(ctx)
	unlink := context.AfterFunc(n.ctx, cancel)
	stop := func() { unlink(); cancel() }
	heard, err := n.lan.Nearby(ctx)
	if err != nil {
		stop()
		return nil, err
	}
	out := make(chan []NearbyDevice, 1)
	err = n.start(func() {
		defer close(out)
		defer stop()
		for list := range heard {
			select {
			case <-out: // a list that nobody took is old now
			default:
			}
			out <- nearbyDevices(list) // there is room: nobody else sends
		}
	})
	if err != nil {
		stop()
		return nil, err
	}
	return out, nil
}

func nearbyDevices(list []lan.Device) []NearbyDevice {
	out := make([]NearbyDevice, 0, len(list))
	for _, d := range list {
		out = append(out, NearbyDevice{Name: d.Name, Kind: d.Kind, Addrs: d.Addrs, Instance: d.Instance, ShowsCode: d.ShowsCode})
	}
	return out
}

// AnnounceNearby says on the LAN that this device waits to be given a code, while
// its user types one: its name and operating system. It does so until stop, which
// waits for the end and may be called again, or the end of ctx. A pairing under way
// is announced by itself. It errs if the LAN is off or cannot be used, and after
// Close.
func (n *Node) AnnounceNearby(ctx context.Context) (stop func(), err error) {
	return n.announce(ctx, false)
}

func (n *Node) announce(ctx context.Context, showsCode bool) (stop func(), err error) {
	if n.lan == nil {
		return nil, errNoLAN
	}
	return n.lan.AnnounceNearby(ctx, lan.Device{Name: n.cfg.Name, Kind: kindOf(runtime.GOOS), ShowsCode: showsCode})
}

// kindOf is the word that people know for a system.
func kindOf(goos string) string {
	if goos == "darwin" {
		return "macos"
	}
	return goos
}

// findHow is how a pairing finds the other device besides the code.
type findHow struct {
	hidden    bool             // not announced on the LAN
	endpoints []netip.AddrPort // of the other device, as hints

	vouchedBy identity.DeviceID // the device that introduced it; zero: it is paired by a code
	name      string            // what that one calls it
}

// announce lists the pairing nearby until it has a result.
func (p *Pairing) announce() {
	if p.how.hidden {
		return
	}
	stop, err := p.n.announce(p.ctx, p.role == pairing.Offerer)
	if err != nil { // the code is enough
		p.n.cfg.Logger.Debug("pairing not announced nearby", "err", err)
		return
	}
	defer stop()
	select {
	case <-p.done:
	case <-p.ctx.Done():
	}
}

// maxHints is how many addresses a session is given, in number (Point.Endpoints).
const maxHints = 16

// hints joins the addresses of a code and those that the caller knows.
func hints(lists ...[]netip.AddrPort) []netip.AddrPort {
	var out []netip.AddrPort
	for _, list := range lists {
		for _, a := range list {
			if a.IsValid() && a.Port() != 0 && len(out) < maxHints {
				out = append(out, a)
			}
		}
	}
	return out
}
