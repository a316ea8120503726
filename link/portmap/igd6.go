package portmap

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	upnpNoSuchPinhole = 704            // WANIPv6FirewallControl:1: NoSuchEntry
	maxPinholeLease   = 24 * time.Hour // LeaseTime is 1 to 86400 there
	minPinholeLease   = time.Second
)

// firewallTypes are what can open a firewall for IPv6.
var firewallTypes = []string{"urn:schemas-upnp-org:service:WANIPv6FirewallControl:1"} //nolint:gochecknoglobals // a table

// An igd6 is a UPnP gateway whose IPv6 firewall can be opened
// (WANIPv6FirewallControl:1). It is safe for concurrent use.
type igd6 struct {
	igd

	mu  sync.Mutex // guards the fields below; not held while the gateway is asked
	id  uint16     // of our pinhole
	has bool       // there is one, as far as we know
}

// describe6 reads a description, and returns the gateway that it describes. It
// errs if that cannot open pinholes, and if it has no firewall that is in the way.
func describe6(ctx context.Context, gw, self netip.Addr, location *url.URL) (*igd6, error) {
	client := newGuard(gw, self).client()
	services, err := readDescription(ctx, client, gw, location, firewallTypes)
	if err != nil {
		return nil, err
	}
	for _, s := range services {
		d := &igd6{igd: newIGD(s, self, client)}
		open, err := d.pinholesAllowed(ctx)
		if open || err != nil && upnpCode(err) != 0 {
			return d, nil // who does not say is asked for a pinhole
		}
	}
	return nil, errNoIGD
}

// pinholesAllowed asks whether there is a firewall and it may be opened. It errs
// if the gateway does not answer or says no.
func (d *igd6) pinholesAllowed(ctx context.Context) (bool, error) {
	var out struct {
		Enabled string `xml:"FirewallEnabled"`
		Allowed string `xml:"InboundPinholeAllowed"`
	}
	if err := d.call(ctx, "GetFirewallStatus", nil, &out); err != nil {
		return false, err
	}
	return isTrue(out.Enabled) && isTrue(out.Allowed), nil
}

// isTrue reads a boolean, UPnP Device Architecture 1.1 section 2.5.
func isTrue(s string) bool {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "1", "true", "yes":
		return true
	}
	return false
}

type addPinholeArgs struct {
	RemoteHost     string `soap:"RemoteHost"`
	RemotePort     string `soap:"RemotePort"`
	InternalClient string `soap:"InternalClient"`
	InternalPort   string `soap:"InternalPort"`
	Protocol       string `soap:"Protocol"`
	LeaseTime      string `soap:"LeaseTime"`
}

type pinholeArgs struct {
	UniqueID string `soap:"UniqueID"`
}

type updatePinholeArgs struct {
	UniqueID  string `soap:"UniqueID"`
	LeaseTime string `soap:"NewLeaseTime"`
}

// pinhole returns the number of our pinhole.
func (d *igd6) pinhole() (id uint16, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.id, d.has
}

func (d *igd6) setPinhole(id uint16, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.id, d.has = id, ok
}

// add makes or renews the pinhole for internal, and returns our own address: a
// firewall does not change it. There is no external port. It errs with the
// gateway's code if that says no.
func (d *igd6) add(ctx context.Context, _, internal uint16, lease time.Duration) (netip.Addr, error) {
	if lease == 0 {
		lease = maxPinholeLease // none is without end here
	}
	life := decimal32(seconds(min(max(lease, minPinholeLease), maxPinholeLease)))
	if id, ok := d.pinhole(); ok {
		err := d.call(ctx, "UpdatePinhole", &updatePinholeArgs{UniqueID: decimal(id), LeaseTime: life}, nil)
		if err == nil {
			return d.self, nil
		}
		if upnpCode(err) == 0 {
			return netip.Addr{}, err
		}
		// Whatever it has against that number, a new pinhole gets another.
		d.setPinhole(0, false)
	}
	var out struct {
		ID string `xml:"UniqueID"`
	}
	err := d.call(ctx, "AddPinhole", &addPinholeArgs{
		RemotePort: "0", InternalClient: d.self.String(), InternalPort: decimal(internal),
		Protocol: strconv.Itoa(int(d.transport.number())), LeaseTime: life,
	}, &out)
	if err != nil {
		return netip.Addr{}, err
	}
	id, err := strconv.ParseUint(strings.TrimSpace(out.ID), 10, 16)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("portmap: upnp: pinhole: %w", errPacket)
	}
	d.setPinhole(uint16(id), true)
	return d.self, nil
}

// check looks whether the pinhole is still there. It errs if the gateway does not
// answer.
func (d *igd6) check(ctx context.Context, _, _ uint16) (addr netip.Addr, gone bool, err error) {
	id, ok := d.pinhole()
	if !ok {
		return d.self, true, nil
	}
	err = d.call(ctx, "GetPinholePackets", &pinholeArgs{decimal(id)}, nil)
	if code := upnpCode(err); code != 0 {
		return d.self, code == upnpNoSuchPinhole, nil
	}
	return d.self, false, err
}

// remove ends the pinhole. It errs if the gateway does not do it.
func (d *igd6) remove(ctx context.Context, _, _ uint16) error {
	id, ok := d.pinhole()
	if !ok {
		return nil
	}
	err := d.call(ctx, "DeletePinhole", &pinholeArgs{decimal(id)}, nil)
	if err == nil {
		d.setPinhole(0, false)
	}
	return err
}

func decimal32(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// discoverIGD6 searches for a UPnP gateway that can open pinholes. It errs if
// there is none.
func discoverIGD6(ctx context.Context, gw, self netip.Addr, targets ...netip.AddrPort) (control, error) {
	d, err := search(ctx, gw, self, targets, func(ctx context.Context, u *url.URL, host netip.Addr) (control, error) {
		return describe6(ctx, host, self, u)
	})
	if err != nil {
		return nil, errors.Join(errNoIGD, err)
	}
	return d, nil
}
