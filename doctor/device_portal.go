package doctor

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// deviceBaits are at an address for documentation (RFC 5737) that nobody has: who answers
// there has caught what was meant for others.
func deviceBaits() []string {
	return []string{"http://198.51.100.73/generate_204", "https://198.51.100.73/generate_204"}
}

// knownPage is what the page of knownName holds.
const knownPage = "Example Domain"

func (d *device) portalCheck() Check {
	return Check{
		Code: "device.portal", Asks: "Is there no captive portal, a page to log in at before the network is open?", Needs: []Code{"device.gateway"}, Limit: 8 * time.Second, Quick: true,
		Findings: []Finding{
			{
				ID: "login", Severity: Fault, Cause: "The network shows a page to log in at, and lets nothing else pass until then (a captive portal).",
				Fix: "Open any web page in a browser, log in there, and try again.",
				Explains: andCutOff(
					"device.outside/nothing", "device.dns/hijack", "device.dns/lies", "device.dns/lies-partly", "device.dns/silent", "device.dns/partly", "device.dns/refuses", "device.dns/idle", "device.clock/wrong", "device.clock/off", "device.pmtu/hole",
					"nat.tcp", "nat.web", "nat.udp", "relays.tcp", "relays.tls", "relays.udp", "meeting.broker", "meeting.waku", "meeting.dht",
				),
			},
		},
		Run: d.runPortal,
	}
}

func (d *device) runPortal(ctx context.Context, env *Env, _ string) Answer {
	ctx, cancel := context.WithTimeout(ctx, 7*time.Second)
	defer cancel()
	ways := []func() (devicePage, error){func() (devicePage, error) { return d.fetchLie(ctx, env) }}
	asked := false
	for _, bait := range d.baits {
		ways = append(ways, func() (devicePage, error) { return d.fetch(ctx, env, bait) })
		at, err := url.Parse(bait)
		if err == nil {
			asked = asked || d.hasWay(at.Hostname())
		}
	}
	pages, caught := make([]devicePage, len(ways)), make([]string, len(ways))
	var wg sync.WaitGroup
	for i, way := range ways {
		wg.Go(func() {
			if page, err := way(); err == nil {
				pages[i], caught[i] = page, page.catches()
			}
		})
	}
	wg.Wait()
	i := slices.IndexFunc(caught, func(line string) bool { return line != "" })
	switch {
	case i >= 0:
		return d.judgePortal(ctx, env, pages[i], caught[i])
	case !asked: // as on a network of IPv6 alone
		return d.judgeKnown(ctx, env, Unclear("there is no way to an address that a portal would answer at"))
	}
	none := OK("no page comes from where none is")
	if !env.Strangers || d.honest(ctx, env) != "" {
		return none
	}
	return d.judgeKnown(ctx, env, none) // some portals catch only what goes to real addresses
}

// hasWay reports whether there is a route to an address.
func (d *device) hasWay(host string) bool {
	a, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	_, err = d.outbound(a)
	return !deviceNoWay(err)
}

// judgePortal says whether a page that stands where none is is one to log in at. A proxy on
// the way may also answer in place of hosts that are not there.
func (d *device) judgePortal(ctx context.Context, env *Env, page devicePage, line string) Answer {
	var who string
	var known devicePage
	var knownErr error
	var open bool
	var wg sync.WaitGroup
	wg.Go(func() { who = d.honest(ctx, env) })
	wg.Go(func() { known, knownErr = d.fetchKnown(ctx, env) })
	wg.Go(func() { open = page.to != nil && d.opens(ctx, env, page.to) })
	wg.Wait()
	switch {
	case who != "":
		return OK(line, "but "+who+" answers itself, so the network is open")
	case knownErr == nil && known.shown():
		return OK(line, "but "+knownName+" shows its own page, so the network is open")
	case knownErr == nil && known.like(page):
		return Fails("login", line, known.catches())
	case page.lie, page.status == http.StatusNetworkAuthenticationRequired:
		return Fails("login", line)
	case open:
		return Fails("login", line, "which can be reached")
	}
	return Unclear(line, "it may be a page to log in at, or a proxy that answers for what is not there")
}

// judgeKnown looks at a page that everybody knows, and answers otherwise if there is none.
func (d *device) judgeKnown(ctx context.Context, env *Env, otherwise Answer) Answer {
	page, err := d.fetchKnown(ctx, env)
	switch {
	case err != nil || page.catches() == "" && !page.shown():
		return otherwise
	case page.shown():
		return OK(knownName + " shows its own page")
	}
	return d.judgePortal(ctx, env, page, page.catches())
}

// A devicePage is what came of asking for a page.
type devicePage struct {
	host   string
	status int
	to     *url.URL // where it leads
	body   []byte
	lie    bool // it is at the address that DNS gives to all names
}

// catches says in a line how the page stands in for one that is not there, "" if it is a
// proxy's error or the like.
func (p devicePage) catches() string {
	switch {
	case p.status == http.StatusNetworkAuthenticationRequired: // RFC 6585 section 6
		return fmt.Sprintf("%s wants a login (511)", p.host)
	case p.to != nil:
		return fmt.Sprintf("%s leads to %s", p.host, plain(p.to.Host))
	case p.status >= 200 && p.status < 300 && len(p.body) > 0:
		return fmt.Sprintf("%s shows another page", p.host)
	}
	return ""
}

// shown reports whether it is the page of knownName itself, or its own way to TLS.
func (p devicePage) shown() bool {
	return p.status == http.StatusOK && bytes.Contains(p.body, []byte(knownPage)) || p.to != nil && strings.EqualFold(p.to.Hostname(), knownName)
}

// like reports whether two pages stand in for others in the same way.
func (p devicePage) like(q devicePage) bool {
	if p.to != nil && q.to != nil {
		return strings.EqualFold(p.to.Hostname(), q.to.Hostname())
	}
	return p.to == nil && q.to == nil && p.status == q.status && p.catches() != ""
}

// fetchKnown asks for the page of knownName. It errs without an answer, and where no
// stranger may be asked.
func (d *device) fetchKnown(ctx context.Context, env *Env) (devicePage, error) {
	if !env.Strangers {
		return devicePage{}, errNoStrangers
	}
	return d.fetch(ctx, env, d.page(knownName))
}

var errNoStrangers = errors.New("doctor: no stranger's server may be asked")

func (d *device) page(host string) string {
	return "http://" + net.JoinHostPort(host, strconv.Itoa(int(d.webPort))) + "/"
}

// opens reports whether a page's host can be connected to. Whoever answered the bait has chosen
// it, so only where a browser would find a page to log in at is tried.
func (d *device) opens(ctx context.Context, env *Env, page *url.URL) bool {
	port, err := strconv.ParseUint(page.Port(), 10, 16)
	if err != nil {
		port = uint64(d.webPort)
		if page.Scheme == "https" {
			port = 443
		}
	}
	if port != 443 && port != uint64(d.webPort) {
		return false
	}
	addrs, err := resolve(ctx, env, page.Hostname())
	if err != nil || len(addrs) == 0 || !foreign(env, addrs[0]) {
		return false
	}
	return d.dial(ctx, env, netip.AddrPortFrom(addrs[0], uint16(port))) == nil
}

// foreign reports whether an address is another host's, on the internet or on a link of this device.
func foreign(env *Env, a netip.Addr) bool {
	all, err := env.allInterfaces()
	if err != nil {
		return false
	}
	ok := scope(a) == scopePublic && a.IsGlobalUnicast()
	for _, i := range all {
		for _, p := range i.Addrs {
			if p.Addr() == a {
				return false
			}
			ok = ok || i.Up && !i.Loopback && p.Contains(a)
		}
	}
	return ok
}

// fetchLie asks at the address that DNS gives to all names, also to one that cannot exist,
// as some portals do. It errs if there is no such.
func (d *device) fetchLie(ctx context.Context, env *Env) (devicePage, error) {
	servers := d.resolvers()
	name := knownName
	if !env.Strangers {
		name = ""
		if needed := hostNames(env); len(needed) > 0 {
			name = needed[0]
		}
	}
	if len(servers) == 0 || name == "" {
		return devicePage{}, errors.New("doctor: no resolver is known, or no name to ask for")
	}
	lies, ok := d.hijacked(ctx, env, servers[0])
	if !ok {
		return devicePage{}, errors.New("doctor: DNS tells the truth")
	}
	known, _ := d.queryDNS(ctx, env, servers[0], name)
	if !slices.Contains(known.addresses(), lies[0]) {
		return devicePage{}, errors.New("doctor: DNS lies about names that do not exist alone")
	}
	page, err := d.fetch(ctx, env, d.page(lies[0].String()))
	page.lie = true
	return page, err
}

// fetch gets a page. It errs if nobody answers.
func (d *device) fetch(ctx context.Context, env *Env, page string) (devicePage, error) {
	const most = 64 << 10 // bytes
	if err := env.Pacer.Wait(ctx, 12); err != nil {
		return devicePage{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, page, nil)
	if err != nil {
		return devicePage{}, err
	}
	var dialer net.Dialer
	client := http.Client{
		Transport: &http.Transport{
			Proxy: nil, DisableKeepAlives: true, MaxResponseHeaderBytes: most,
			DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				host, port, err := net.SplitHostPort(addr)
				if err != nil {
					return nil, err
				}
				addrs, err := resolve(ctx, env, host)
				if err != nil || len(addrs) == 0 {
					return nil, errors.Join(err, errors.New("doctor: no address"))
				}
				return dialer.DialContext(ctx, network, net.JoinHostPort(addrs[0].String(), port))
			},
			// Whoever answers there is not whom it was meant for, and gets nothing to know.
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // nobody is trusted
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return devicePage{}, err
	}
	defer resp.Body.Close()
	out := devicePage{host: plain(req.URL.Host), status: resp.StatusCode}
	out.body, _ = io.ReadAll(io.LimitReader(resp.Body, most))
	if out.status >= 300 && out.status < 400 {
		out.to, _ = resp.Location() // nil without one
	}
	return out, nil
}

// honest names a server that proves who it is, which none does that stands in for it:
// a hub by its key, or one that sees this device from elsewhere.
func (d *device) honest(ctx context.Context, env *Env) string {
	type way func() string
	var ways []way
	for _, h := range env.Hubs[:min(len(env.Hubs), maxTargets)] {
		ways = append(ways, func() string {
			if d.hubTime(ctx, env, h).err != nil {
				return ""
			}
			return h.Host
		})
	}
	for _, t := range targets(env) {
		if t.UDP {
			ways = append(ways, func() string {
				addrs, err := resolve(ctx, env, t.Host)
				if err != nil || len(addrs) == 0 {
					return ""
				}
				req, fits := deviceBinding(0)
				if r := d.ask(ctx, env, netip.AddrPortFrom(addrs[0], t.Port), req, deviceAsk{tries: 2, wait: 500 * time.Millisecond, fits: fits}); r.Data == nil {
					return ""
				}
				return hostPort(t.Host, t.Port)
			})
		}
	}
	found := make([]string, len(ways))
	var wg sync.WaitGroup
	for i, w := range ways {
		wg.Go(func() { found[i] = w() })
	}
	wg.Wait()
	for _, who := range found {
		if who != "" {
			return who
		}
	}
	return ""
}
