package doctor

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/kithproject/kith/hub/hubaddr"
)

// Hosts of the own network: one with a page to log in at, and one that is not there.
const portalHost, portalGone = "192.168.1.1", "192.168.1.9"

// A portalNet is a network as a browser sees it. All web servers are on loopback; names
// are looked up there, too.
type portalNet struct {
	baits     []string
	known     string // the URL of what answers for example.com; "": nothing does
	strangers bool
	hubs      []hubaddr.Address
	six       bool // there is no IPv4
}

func (n portalNet) answer(t *testing.T) (string, Answer) {
	t.Helper()
	d, env := testDevice(), deviceEnv()
	d.baits, env.Strangers, env.Hubs = n.baits, n.strangers, n.hubs
	d.dial = func(_ context.Context, _ *Env, to netip.AddrPort) error {
		switch a := to.Addr().String(); {
		case to.Port() == 443 && a == "11.0.9.80", to.Port() == d.webPort && a == portalHost:
			return nil
		case to.Port() == d.webPort && a == portalGone:
			return errDeviceRefused
		}
		t.Errorf("it connects to %s", to)
		return nil
	}
	if n.six {
		d.outbound = deviceWays(netip.Addr{}, testSelf6)
	}
	env.lookup = func(_ context.Context, host string) ([]netip.Addr, error) {
		if host != knownName || !n.strangers {
			t.Errorf("%s is looked up", host)
		}
		if n.known == "" {
			return nil, errDeviceNone
		}
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	}
	if at, err := url.Parse(n.known); n.known != "" && err == nil {
		d.webPort = netip.MustParseAddrPort(at.Host).Port()
	}
	return deviceWord(t, d.portalCheck(), env)
}

func TestDevicePortal(t *testing.T) {
	serve := func(f http.HandlerFunc, overTLS bool) string {
		srv := httptest.NewUnstartedServer(f)
		if overTLS {
			srv.StartTLS()
		} else {
			srv.Start()
		}
		t.Cleanup(srv.Close)
		return srv.URL
	}
	leads := func(to string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusFound) }
	}
	shows := func(code int, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code); fmt.Fprint(w, text) }
	}
	hello := "http://" + portalHost + "/hello"
	gone := httptest.NewServer(nil)
	gone.Close()
	closed := gone.URL
	page := serve(shows(200, "please log in\x1b[2J"), false)
	login := serve(leads(hello), false)
	secure := serve(leads(hello), true)
	nowhere := serve(leads("http://"+portalGone+"/hello"), false)
	block := serve(leads("http://block.example/why"), false)
	needs := serve(shows(http.StatusNetworkAuthenticationRequired, ""), false)
	proxy := serve(shows(http.StatusGatewayTimeout, "no way"), false)
	truth := serve(shows(200, "<h1>Example Domain</h1>"), false)
	moved := serve(leads("https://example.com/"), false)
	hub := []hubaddr.Address{deviceHub(t, func(http.ResponseWriter, *http.Request) {})}
	one := func(bait string) []string { return []string{bait} }
	for name, test := range map[string]struct {
		net  portalNet
		want string
	}{
		"open":                                 {portalNet{baits: one(closed)}, "ok"},
		"a proxy's error":                      {portalNet{baits: one(proxy)}, "ok"},
		"a login":                              {portalNet{baits: one(login)}, "login"},
		"a login over TLS alone":               {portalNet{baits: []string{closed, secure}}, "login"},
		"a login that says so":                 {portalNet{baits: one(needs)}, "login"},
		"a login that cannot be reached":       {portalNet{baits: one(nowhere)}, "unclear"},
		"a login in the internet":              {portalNet{baits: one(serve(leads("https://11.0.9.80/hello"), false))}, "login"},
		"it leads to this device":              {portalNet{baits: one(serve(leads("http://192.168.1.20/"), false))}, "unclear"},
		"it leads to loopback":                 {portalNet{baits: one(serve(leads("http://127.0.0.1/"), false))}, "unclear"},
		"it leads to loopback of IPv6":         {portalNet{baits: one(serve(leads("http://[::1]/"), false))}, "unclear"},
		"it leads to another private network":  {portalNet{baits: one(serve(leads("http://10.1.2.3/"), false))}, "unclear"},
		"it leads to another port":             {portalNet{baits: one(serve(leads("http://192.168.1.1:22/"), false))}, "unclear"},
		"a page where none is":                 {portalNet{baits: one(page)}, "unclear"},
		"a login, but hubs answer":             {portalNet{baits: one(login), hubs: hub}, "ok"},
		"all pages are that page":              {portalNet{baits: one(page), known: page, strangers: true}, "login"},
		"all pages lead there":                 {portalNet{baits: one(login), known: login, strangers: true}, "login"},
		"a proxy with a page of its own":       {portalNet{baits: one(page), known: truth, strangers: true}, "ok"},
		"a proxy that leads to a page":         {portalNet{baits: one(login), known: truth, strangers: true}, "ok"},
		"a proxy, and the page has moved":      {portalNet{baits: one(login), known: moved, strangers: true}, "ok"},
		"only known pages are elsewhere":       {portalNet{baits: one(page), known: block, strangers: true}, "unclear"},
		"a login in place of real pages alone": {portalNet{baits: one(closed), known: login, strangers: true}, "login"},
		"real pages alone, but hubs answer":    {portalNet{baits: one(closed), known: login, strangers: true, hubs: hub}, "ok"},
		"no page at all":                       {portalNet{baits: one(closed), strangers: true}, "ok"},
		"IPv6 alone":                           {portalNet{baits: deviceBaits(), six: true}, "unclear"},
		"IPv6 alone, and open":                 {portalNet{baits: deviceBaits(), six: true, known: truth, strangers: true}, "ok"},
		"IPv6 alone, and a login":              {portalNet{baits: deviceBaits(), six: true, known: login, strangers: true}, "login"},
		"IPv6 alone, and the page is not told": {portalNet{baits: deviceBaits(), six: true, strangers: true}, "unclear"},
	} {
		t.Run(name, func(t *testing.T) {
			got, a := test.net.answer(t)
			if text := strings.Join(a.Evidence, "\n"); got != test.want || strings.Contains(text, "\x1b") {
				t.Errorf("%s, want %s: %q", got, test.want, text)
			}
		})
	}
}

// TestDevicePortalDNS: some portals give their own address to all names.
func TestDevicePortalDNS(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "please log in") }))
	defer srv.Close()
	at := netip.MustParseAddrPort(srv.Listener.Addr().String())
	for name, test := range map[string]struct {
		strangers bool
		stun      []string
		lies      bool // also of names that exist
		want      string
	}{
		"for all names":        {true, nil, true, "login"},
		"for those unknown":    {true, nil, false, "ok"},
		"also for the hub's":   {false, []string{"stun.example.org:3478"}, true, "login"},
		"not for the hub's":    {false, []string{"stun.example.org:3478"}, false, "ok"},
		"nothing may be asked": {false, nil, true, "ok"},
	} {
		t.Run(name, func(t *testing.T) {
			d, env := testDevice(), deviceEnv()
			d.baits, d.webPort, env.Strangers, env.STUN = []string{"http://127.0.0.1:9/"}, at.Port(), test.strangers, test.stun
			d.read = deviceFiles(map[string]string{"/etc/resolv.conf": "nameserver 127.0.0.1\n"})
			d.ask = func(_ context.Context, _ *Env, to netip.AddrPort, packet []byte, how deviceAsk) deviceAnswer {
				if to.Port() != 53 {
					return deviceAnswer{}
				}
				addr := at.Addr()
				if !test.lies && !strings.HasPrefix(dnsName(t, packet), "kith-") {
					addr = netip.MustParseAddr("11.0.0.2")
				}
				out := dnsAnswer(t, packet, 0, addr, true)
				if !how.fits(out) {
					t.Error("its own answer does not fit")
				}
				return deviceAnswer{Data: out}
			}
			deviceExpect(t, d.portalCheck(), env, test.want)
		})
	}
}
