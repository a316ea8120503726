package control

import (
	"net"

	"github.com/kithproject/kith"
)

// serves reports whether a device may use services of this one at all: it is paired, or a
// member of a room with this one, and not blocked.
func serves(d kith.Device) bool {
	return (d.State == kith.Paired || d.State == kith.Member) && !d.Rights.Blocked
}

// partner returns a device, and whether it may use services of this one.
func (s *Server) partner(ref string) (kith.Device, bool) {
	d, err := s.node.Device(ref)
	return d, err == nil && serves(d)
}

// caller returns the ID of the device behind a remote address in the tunnel, and whether it
// may use services of this one.
func (s *Server) caller(remote net.Addr) (string, bool) {
	d, err := s.node.WhoIs(remote)
	return d.ID.String(), err == nil && serves(d)
}

// watchRights ends what devices may no longer do: listening here, transfers, and what is
// kept for one that is gone. An event can be lost; listeners are looked at each second, too.
func (s *Server) watchRights() {
	events, stop := s.node.Events()
	defer stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case ev, ok := <-events:
			if !ok {
				return
			}
			if ev.Kind != kith.EventUnpaired && ev.Kind != kith.EventRights {
				continue
			}
			s.expose.Recheck()
			switch id := ev.Device.ID.String(); {
			case ev.Kind == kith.EventUnpaired:
				s.files.EndPeer(id, endUnpaired)
				s.forwards.drop(id)
			case ev.Device.Rights.Blocked:
				s.files.EndPeer(id, endBlocked)
			default:
				s.files.Recheck(id)
			}
		}
	}
}
