package portmap

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/huin/goupnp/soap"
)

// UPnP error codes: WANIPConnection:2 section 2.5 and UPnP Device Architecture
// 1.1 section 3.2.2.
const (
	upnpInvalidArgs    = 402
	upnpActionFailed   = 501
	upnpNoSuchEntry    = 714
	upnpConflict       = 718
	upnpSamePort       = 724
	upnpOnlyPermanent  = 725
	upnpOtherMechanism = 729
)

const (
	description    = "kith"
	maxBody        = 64 << 10 // bytes
	maxHeader      = 16 << 10 // bytes
	requestTimeout = 3 * time.Second
	maxServices    = 4
)

// serviceTypes are what can map ports, the best first.
var serviceTypes = [...]string{ //nolint:gochecknoglobals // a table
	"urn:schemas-upnp-org:service:WANIPConnection:2",
	"urn:schemas-upnp-org:service:WANIPConnection:1",
	"urn:schemas-upnp-org:service:WANPPPConnection:1",
}

// A service is one of a gateway's that can map ports.
type service struct {
	kind    string
	control *url.URL
}

// upnpCode returns the UPnP error code of an error; 0 if the gateway sent none.
func upnpCode(err error) int {
	var coded interface{ upnp() int }
	if errors.As(err, &coded) {
		return coded.upnp()
	}
	return 0
}

// A codeError is an error that the gateway sent.
type codeError int

func (e codeError) Error() string { return "portmap: upnp error " + strconv.Itoa(int(e)) }
func (e codeError) upnp() int     { return int(e) }

// A guard is the way of every HTTP request: to the gateway only, one at a time,
// bounded. It is an http.RoundTripper.
type guard struct {
	gw   netip.Addr
	next *http.Transport
}

func newGuard(gw, self netip.Addr) *guard {
	dialer := &net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(self, 0)), Timeout: requestTimeout}
	return &guard{gw: gw, next: &http.Transport{
		Proxy: nil, // whatever the environment says
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			// A URL has no zone, a link-local gateway does.
			return dialer.DialContext(ctx, network, net.JoinHostPort(gw.String(), port))
		},
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeader,
	}}
}

// RoundTrip does one request. It errs if it would leave the gateway.
func (g *guard) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := onGateway(r.URL, g.gw); err != nil {
		return nil, err
	}
	resp, err := g.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, maxBody), resp.Body}
	return resp, nil
}

func (g *guard) client() http.Client {
	return http.Client{
		Transport:     g,
		Timeout:       requestTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// An igd is a UPnP gateway that can map ports.
type igd struct {
	self   netip.Addr
	kind   string
	client *soap.SOAPClient

	transport Transport
}

func (d *igd) carry(t Transport) { d.transport = t }

// readDescription reads a description and returns the services of some types that
// it has, the best first. It errs if it cannot be read or has none.
func readDescription(ctx context.Context, client http.Client, gw netip.Addr, location *url.URL, types []string) ([]service, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, location.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("portmap: upnp: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("portmap: upnp: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("portmap: upnp: description: %s", resp.Status)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("portmap: upnp: description: %w", err)
	}
	return parseServices(body, location, gw, types)
}

func newIGD(s service, self netip.Addr, client http.Client) igd {
	d := igd{self: self, kind: s.kind, client: soap.NewSOAPClient(*s.control)}
	d.client.HTTPClient = client
	return d
}

// describe reads a description, and returns the gateway that it describes. It
// errs if it cannot map ports.
func describe(ctx context.Context, gw, self netip.Addr, location *url.URL) (*igd, error) {
	client := newGuard(gw, self).client()
	services, err := readDescription(ctx, client, gw, location, serviceTypes[:])
	if err != nil {
		return nil, err
	}
	// A gateway may have several, of which one is connected. That one knows
	// its external address.
	var first *igd
	for _, s := range services {
		one := newIGD(s, self, client)
		d := &one
		addr, err := d.external(ctx)
		switch {
		case err != nil && upnpCode(err) == 0:
			continue
		case err == nil && !addr.IsUnspecified():
			return d, nil
		case first == nil:
			first = d
		}
	}
	if first == nil {
		return nil, errNoIGD
	}
	return first, nil
}

// A device is the part of a description that matters here, UPnP Device
// Architecture 1.1 section 2.3.
type device struct {
	Services []struct {
		Type    string `xml:"serviceType"`
		Control string `xml:"controlURL"`
	} `xml:"serviceList>service"`
	Devices []device `xml:"deviceList>device"`
}

// parseDescription returns the services of a description that can map ports, the
// best first. It errs if there is none on the gateway itself.
func parseDescription(body []byte, location *url.URL, gw netip.Addr) ([]service, error) {
	return parseServices(body, location, gw, serviceTypes[:])
}

// parseServices is parseDescription for services of other types.
func parseServices(body []byte, location *url.URL, gw netip.Addr, types []string) ([]service, error) {
	if len(body) > maxBody {
		return nil, errPacket
	}
	var root struct {
		Base   string `xml:"URLBase"`
		Device device `xml:"device"`
	}
	dec := xml.NewDecoder(bytes.NewReader(body))
	// Whatever the charset: types and URLs are ASCII.
	dec.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil }
	if err := dec.Decode(&root); err != nil {
		return nil, fmt.Errorf("portmap: upnp: description: %w", err)
	}
	base := location
	if u, err := url.Parse(strings.TrimSpace(root.Base)); err == nil && onGateway(u, gw) == nil {
		base = u // some say nonsense here, for those the location stands
	}
	found := make([][]service, len(types))
	var visit func(device)
	visit = func(d device) {
		for _, s := range d.Services {
			for i, kind := range types {
				if strings.TrimSpace(s.Type) != kind || len(found[i]) == maxServices {
					continue
				}
				u, err := base.Parse(strings.TrimSpace(s.Control))
				if err == nil && onGateway(u, gw) == nil {
					found[i] = append(found[i], service{kind, u})
				}
			}
		}
		for _, sub := range d.Devices {
			visit(sub)
		}
	}
	visit(root.Device)
	var out []service
	for _, f := range found {
		out = append(out, f...)
	}
	if len(out) == 0 {
		return nil, errNoIGD
	}
	return out[:min(len(out), maxServices)], nil
}

// call performs an action. It errs if the gateway does not answer or says no.
func (d *igd) call(ctx context.Context, action string, in, out any) error {
	err := d.client.PerformActionCtx(ctx, d.kind, action, in, out)
	var fault *soap.SOAPFaultError
	if errors.As(err, &fault) {
		if code := fault.Detail.UPnPError.Errorcode; code != 0 {
			return codeError(code)
		}
		return codeError(upnpActionFailed)
	}
	if err != nil {
		return fmt.Errorf("portmap: upnp: %w", err)
	}
	return nil
}

// external returns the gateway's external address, unspecified if it has none.
func (d *igd) external(ctx context.Context) (netip.Addr, error) {
	var out struct {
		Addr string `xml:"NewExternalIPAddress"`
	}
	if err := d.call(ctx, "GetExternalIPAddress", nil, &out); err != nil {
		return netip.Addr{}, err
	}
	addr, err := netip.ParseAddr(strings.TrimSpace(out.Addr))
	if err != nil || !addr.Unmap().Is4() {
		return netip.IPv4Unspecified(), nil //nolint:nilerr // empty is what a gateway without uplink says
	}
	return addr.Unmap(), nil
}

type entryArgs struct {
	RemoteHost   string `soap:"NewRemoteHost"`
	ExternalPort string `soap:"NewExternalPort"`
	Protocol     string `soap:"NewProtocol"`
}

type mappingArgs struct {
	RemoteHost     string `soap:"NewRemoteHost"`
	ExternalPort   string `soap:"NewExternalPort"`
	Protocol       string `soap:"NewProtocol"`
	InternalPort   string `soap:"NewInternalPort"`
	InternalClient string `soap:"NewInternalClient"`
	Enabled        string `soap:"NewEnabled"`
	Description    string `soap:"NewPortMappingDescription"`
	Lease          string `soap:"NewLeaseDuration"`
}

func decimal(p uint16) string { return strconv.Itoa(int(p)) }

// An entry is what a gateway's table has for one external port.
type entry int

const (
	entryUnknown entry = iota // it does not say
	entryNone
	entryOurs
	entryForeign
)

// lookup says whose mapping of an external port is. Many gateways answer this
// question badly, so no answer of any kind is an error.
func (d *igd) lookup(ctx context.Context, external, internal uint16) entry {
	var out struct {
		Client string `xml:"NewInternalClient"`
		Port   string `xml:"NewInternalPort"`
	}
	err := d.call(ctx, "GetSpecificPortMappingEntry", &entryArgs{ExternalPort: decimal(external), Protocol: d.transport.String()}, &out)
	if upnpCode(err) == upnpNoSuchEntry {
		return entryNone
	}
	client, bad := netip.ParseAddr(strings.TrimSpace(out.Client))
	switch {
	case err != nil || bad != nil:
		return entryUnknown
	case client.Unmap() == d.self && strings.TrimSpace(out.Port) == decimal(internal):
		return entryOurs
	}
	return entryForeign
}

// add makes or renews the mapping, and returns the external address if the
// gateway says it. It errs with the gateway's code if that says no.
func (d *igd) add(ctx context.Context, external, internal uint16, lease time.Duration) (netip.Addr, error) {
	// Some gateways replace a mapping of another device without a word.
	if d.lookup(ctx, external, internal) == entryForeign {
		return netip.Addr{}, codeError(upnpConflict)
	}
	err := d.call(ctx, "AddPortMapping", &mappingArgs{
		ExternalPort: decimal(external), Protocol: d.transport.String(), InternalPort: decimal(internal),
		InternalClient: d.self.String(), Enabled: "1", Description: description,
		Lease: strconv.FormatUint(uint64(seconds(lease)), 10),
	}, nil)
	if err != nil {
		return netip.Addr{}, err
	}
	addr, err := d.external(ctx)
	if err != nil {
		return netip.Addr{}, nil //nolint:nilerr // the mapping is there; where is asked again at the next check
	}
	return addr, nil
}

// check looks whether the mapping is still there, and at which address. It errs
// if the gateway does not answer.
func (d *igd) check(ctx context.Context, external, internal uint16) (addr netip.Addr, gone bool, err error) {
	whose := d.lookup(ctx, external, internal)
	addr, err = d.external(ctx)
	if upnpCode(err) != 0 {
		addr, err = netip.Addr{}, nil
	}
	return addr, whose == entryNone || whose == entryForeign, err
}

// remove ends the mapping, unless it is somebody else's by now. It errs if the
// gateway does not do it.
func (d *igd) remove(ctx context.Context, external, internal uint16) error {
	if whose := d.lookup(ctx, external, internal); whose == entryForeign || whose == entryNone {
		return nil
	}
	return d.call(ctx, "DeletePortMapping", &entryArgs{ExternalPort: decimal(external), Protocol: d.transport.String()}, nil)
}
