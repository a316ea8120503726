package portmap

import (
	"context"
	"net/netip"
	"slices"
	"time"
)

// A pinhole is one address that is kept open.
type pinhole struct {
	m      *Mapper
	cancel context.CancelFunc
	ending bool
}

// keepPinholes keeps a pinhole for each address of Config.Gateway6, until ctx ends
// and all of them are removed.
func (m *Mapper) keepPinholes(ctx context.Context, port uint16, changed func(Mapping, bool)) {
	all := make(map[netip.Addr]*pinhole)
	ended := make(chan netip.Addr)
	review := time.NewTicker(noGateway)
	defer review.Stop()
	for fresh := true; ; {
		_, self, ok := m.cfg.Gateway6()
		if !ok || ctx.Err() != nil {
			self = nil
		}
		self = self[:min(len(self), maxPinholes)]
		for addr, p := range all {
			switch {
			case !slices.Contains(self, addr):
				p.ending = true
				p.cancel()
			case fresh:
				p.m.Refresh()
			}
		}
		for _, addr := range self {
			if all[addr] != nil { // or one of before is still being removed
				continue
			}
			p := &pinhole{m: m.forAddress(addr)}
			var own context.Context
			own, p.cancel = context.WithCancel(ctx)
			all[addr] = p
			go func() {
				p.m.keep(own, port, changed)
				ended <- addr
			}()
		}
		if ctx.Err() != nil && len(all) == 0 {
			return
		}
		done := ctx.Done()
		if ctx.Err() != nil {
			done = nil
		}
		fresh = false
		select {
		case <-done:
		case <-review.C: // nobody may have told of a new address
		case <-m.refresh6:
			fresh = true
		case addr := <-ended:
			all[addr].cancel()
			delete(all, addr)
		}
	}
}

// forAddress returns a Mapper for the pinhole of one of our addresses.
func (m *Mapper) forAddress(addr netip.Addr) *Mapper {
	one := &Mapper{
		cfg: m.cfg, log: m.log, key: m.key, refresh: make(chan struct{}, 1), refresh6: make(chan struct{}, 1),
		udpPort: m.udpPort, dial: m.dial, discover: m.discover6,
	}
	one.cfg.Gateway6 = nil
	one.cfg.Gateway = func() (gw, self netip.Addr, ok bool) {
		gw, all, ok := m.cfg.Gateway6()
		return gw, addr, ok && slices.Contains(all, addr)
	}
	return one
}
