package portmap

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"
)

const (
	ssdpPort     = 1900
	ssdpMaxSize  = 2048
	ssdpEvery    = 700 * time.Millisecond // search again, datagrams get lost
	ssdpFor      = 4 * time.Second        // with reading the description
	maxLocations = 4                      // descriptions to read, of one gateway
)

var errNoIGD = errors.New("portmap: no UPnP gateway answered")

// searches are what we look for. The last one is only sent to the gateway itself:
// everything with UPnP would answer it.
var searches = [...]string{ //nolint:gochecknoglobals // a table
	"urn:schemas-upnp-org:device:InternetGatewayDevice:1",
	"urn:schemas-upnp-org:device:InternetGatewayDevice:2",
	"upnp:rootdevice",
}

// The groups of SSDP: UPnP Device Architecture 1.1 section 1.3.2 and annex A.
var (
	ssdpGroup4 = netip.AddrFrom4([4]byte{239, 255, 255, 250})       //nolint:gochecknoglobals // a constant
	ssdpGroup6 = netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 15: 0xc}) //nolint:gochecknoglobals // a constant
)

// ssdpRequest is an M-SEARCH, UPnP Device Architecture 1.1 section 1.3.2. A
// gateway may take up to MX, the least there is, to answer.
func ssdpRequest(group netip.Addr, target string) []byte {
	return []byte("M-SEARCH * HTTP/1.1\r\nHOST: " + netip.AddrPortFrom(group, ssdpPort).String() + "\r\nST: " + target +
		"\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n\r\n")
}

// parseSSDP returns where an answer to a search says the description is. It errs
// if it is none, or if it points anywhere but to gw.
func parseSSDP(b []byte, gw netip.Addr) (*url.URL, error) {
	u, err := parseLocation(b)
	if err != nil {
		return nil, err
	}
	return u, onGateway(u, gw)
}

// parseSSDP6 is parseSSDP for IPv6, where a gateway has several addresses. It
// returns the one that the description is at, and errs if that is neither gw nor
// in our own network.
func parseSSDP6(b []byte, gw, self netip.Addr) (*url.URL, netip.Addr, error) {
	u, err := parseLocation(b)
	if err != nil {
		return nil, netip.Addr{}, err
	}
	host, err := netip.ParseAddr(u.Hostname())
	if err != nil {
		return nil, netip.Addr{}, errPacket
	}
	host = host.WithZone("")
	if host == gw.WithZone("") {
		return u, gw, onGateway(u, gw)
	}
	const bits = 64 // of a LAN: RFC 4291 section 2.5.1
	if host == self || host.Is4In6() || !netip.PrefixFrom(self, bits).Masked().Contains(host) {
		return nil, netip.Addr{}, errPacket
	}
	return u, host, onGateway(u, host)
}

// parseLocation returns the URL in an answer to a search. It errs if it is none.
func parseLocation(b []byte) (*url.URL, error) {
	if len(b) > ssdpMaxSize {
		return nil, errPacket
	}
	r, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), nil)
	if err != nil {
		return nil, fmt.Errorf("portmap: ssdp: %w", err)
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return nil, errPacket
	}
	u, err := url.Parse(r.Header.Get("Location"))
	if err != nil {
		return nil, errPacket
	}
	return u, nil
}

// onGateway errs unless a URL is plain http to the address of the gateway.
func onGateway(u *url.URL, gw netip.Addr) error {
	host, err := netip.ParseAddr(u.Hostname())
	if err != nil || host.WithZone("") != gw.WithZone("") || u.Scheme != "http" || u.User != nil || u.Opaque != "" {
		return errors.New("portmap: upnp: the gateway points to another host")
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			return errPacket
		}
	}
	return nil
}

// search asks for a UPnP gateway and returns what try makes of the first
// description URL that it can use, on the address host of the gateway. It errs if
// there is none in time.
func search(ctx context.Context, gw, self netip.Addr, targets []netip.AddrPort, try func(ctx context.Context, u *url.URL, host netip.Addr) (control, error)) (control, error) {
	ctx, cancel := context.WithTimeout(ctx, ssdpFor)
	defer cancel()
	var lc net.ListenConfig
	// Bound to our address on the gateway's network, the search also leaves there.
	network, local, group := "udp4", self, ssdpGroup4
	parse := func(b []byte) (*url.URL, netip.Addr, error) {
		u, err := parseSSDP(b, gw)
		return u, gw, err
	}
	if gw.Is6() {
		// Who asks a link-local address from another one may be answered from
		// another one.
		network, local, group = "udp6", netip.IPv6Unspecified(), ssdpGroup6
		parse = func(b []byte) (*url.URL, netip.Addr, error) { return parseSSDP6(b, gw, self) }
	}
	pc, err := lc.ListenPacket(ctx, network, net.JoinHostPort(local.String(), "0"))
	if err != nil {
		return nil, fmt.Errorf("portmap: ssdp: %w", err)
	}
	defer pc.Close()
	conn := pc.(*net.UDPConn)
	unblock := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer unblock()

	seen := map[string]bool{}
	buf := make([]byte, ssdpMaxSize+1)
	for ctx.Err() == nil {
		for _, to := range targets {
			for _, st := range searches {
				if to.Addr().IsMulticast() && st == searches[len(searches)-1] {
					continue
				}
				_, _ = conn.WriteToUDPAddrPort(ssdpRequest(group, st), to) // the other target may work
			}
		}
		_ = conn.SetReadDeadline(time.Now().Add(ssdpEvery))
		for ctx.Err() == nil {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				break
			}
			if err != nil || from.Addr().Unmap() != gw {
				continue
			}
			u, host, err := parse(buf[:n])
			if err != nil || seen[u.String()] {
				continue
			}
			if len(seen) == maxLocations {
				return nil, errNoIGD
			}
			seen[u.String()] = true
			if g, err := try(ctx, u, host); err == nil {
				return g, nil
			}
		}
	}
	return nil, errNoIGD
}
