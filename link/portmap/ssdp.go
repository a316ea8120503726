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

// ssdpRequest is an M-SEARCH, UPnP Device Architecture 1.1 section 1.3.2. A
// gateway may take up to MX, the least there is, to answer.
func ssdpRequest(target string) []byte {
	return []byte("M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nST: " + target +
		"\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n\r\n")
}

// parseSSDP returns where an answer to a search says the description is. It errs
// if it is none, or if it points anywhere but to gw.
func parseSSDP(b []byte, gw netip.Addr) (*url.URL, error) {
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
	return u, onGateway(u, gw)
}

// onGateway errs unless a URL is plain http to the address of the gateway.
func onGateway(u *url.URL, gw netip.Addr) error {
	host, err := netip.ParseAddr(u.Hostname())
	if err != nil || host != gw || u.Scheme != "http" || u.User != nil || u.Opaque != "" {
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
// description URL that it can use. It errs if there is none in time.
func search(ctx context.Context, gw, self netip.Addr, targets []netip.AddrPort, try func(context.Context, *url.URL) (*igd, error)) (*igd, error) {
	ctx, cancel := context.WithTimeout(ctx, ssdpFor)
	defer cancel()
	var lc net.ListenConfig
	// Bound to our address on the gateway's network, the search also leaves there.
	pc, err := lc.ListenPacket(ctx, "udp4", net.JoinHostPort(self.String(), "0"))
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
				_, _ = conn.WriteToUDPAddrPort(ssdpRequest(st), to) // the other target may work
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
			u, err := parseSSDP(buf[:n], gw)
			if err != nil || seen[u.String()] {
				continue
			}
			if len(seen) == maxLocations {
				return nil, errNoIGD
			}
			seen[u.String()] = true
			if g, err := try(ctx, u); err == nil {
				return g, nil
			}
		}
	}
	return nil, errNoIGD
}
