package portmap

import (
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
	"sync"
	"testing"
	"time"
)

var loopback = netip.MustParseAddr("127.0.0.1")

// A tableEntry is one port mapping of a fakeIGD.
type tableEntry struct{ client, port, description, lease string }

// A fakeIGD is a UPnP gateway on loopback: SSDP over UDP, and HTTP.
type fakeIGD struct {
	t        testing.TB
	http     *http.Server
	addr     netip.AddrPort // of http
	ssdp     netip.AddrPort
	location func() string // default: the description
	answers  int           // to one search

	mu        sync.Mutex
	external  string
	kind      string
	table     map[string]tableEntry // by external port
	permanent bool                  // no leases
	noLookup  bool                  // GetSpecificPortMappingEntry is not there
	replace   bool                  // AddPortMapping replaces what others have
	firewall  *fakeFirewall         // nil: none
	handler   http.HandlerFunc      // in place of everything
	control   string                // URL; default /ctl
	calls     []string
}

// newFakeIGD starts one; set changes it before.
func newFakeIGD(t testing.TB, set ...func(*fakeIGD)) *fakeIGD {
	t.Helper()
	return newFakeIGDAt(t, "127.0.0.1:0", set...)
}

func newFakeIGDAt(t testing.TB, at string, set ...func(*fakeIGD)) *fakeIGD {
	t.Helper()
	f := &fakeIGD{t: t, external: public.String(), kind: serviceTypes[1], table: map[string]tableEntry{}, control: "/ctl", answers: 1}
	ln, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	f.addr = netip.MustParseAddrPort(ln.Addr().String())
	f.ssdp = netip.MustParseAddrPort(pc.LocalAddr().String())
	f.location = func() string { return "http://" + f.addr.String() + "/desc.xml" }
	for _, change := range set {
		change(f)
	}
	f.http = &http.Server{Handler: f, ReadHeaderTimeout: time.Second}
	var wg sync.WaitGroup
	wg.Go(func() { _ = f.http.Serve(ln) })
	wg.Go(func() { f.serveSSDP(pc) })
	t.Cleanup(func() {
		_ = f.http.Close()
		_ = pc.Close()
		wg.Wait()
	})
	return f
}

func (f *fakeIGD) serveSSDP(pc net.PacketConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return
		}
		if !strings.HasPrefix(string(buf[:n]), "M-SEARCH * HTTP/1.1\r\n") || !strings.Contains(string(buf[:n]), "ST: "+searches[0]) {
			continue
		}
		for range f.answers {
			_, _ = pc.WriteTo(ssdpAnswer(f.location()), from)
		}
	}
}

func (f *fakeIGD) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.handler != nil {
		f.handler(w, r)
		return
	}
	switch r.URL.Path {
	case "/desc.xml":
		f.calls = append(f.calls, "description")
		_, _ = io.WriteString(w, descriptionXML("", f.kind, f.control))
	case "/ctl":
		f.soap(w, r)
	default:
		http.NotFound(w, r)
	}
}

// soap serves the four actions that there are.
func (f *fakeIGD) soap(w http.ResponseWriter, r *http.Request) {
	kind, action, _ := strings.Cut(strings.Trim(r.Header.Get("SOAPAction"), `"`), "#")
	body, err := io.ReadAll(r.Body)
	if err != nil || kind != f.kind {
		http.Error(w, "no such service", http.StatusBadRequest)
		return
	}
	arg := map[string]string{}
	dec := xml.NewDecoder(strings.NewReader(string(body)))
	for name := ""; ; {
		tok, err := dec.Token()
		if err != nil {
			break
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			name = tok.Name.Local
			arg[name] = ""
		case xml.CharData:
			arg[name] += string(tok)
		case xml.EndElement:
			name = ""
		}
	}
	f.calls = append(f.calls, action)
	answer := func(s string) {
		fmt.Fprintf(w, `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>%s</s:Body></s:Envelope>`, s)
	}
	ok := func(s string) {
		answer(fmt.Sprintf(`<u:%sResponse xmlns:u="%s">%s</u:%sResponse>`, action, kind, s, action))
	}
	fail := func(code int) {
		w.WriteHeader(http.StatusInternalServerError)
		answer(fmt.Sprintf(`<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>%d</errorCode><errorDescription>no</errorDescription></UPnPError></detail></s:Fault>`, code))
	}
	if f.firewall != nil {
		if body, code := f.firewall.action(action, arg); code != 0 {
			fail(code)
		} else {
			ok(body)
		}
		return
	}
	port := arg["NewExternalPort"]
	have, found := f.table[port]
	switch {
	case action != "GetExternalIPAddress" && arg["NewProtocol"] != "UDP":
		f.t.Errorf("%s for %q", action, arg["NewProtocol"])
		fail(upnpInvalidArgs)
	case action == "GetExternalIPAddress":
		ok("<NewExternalIPAddress>" + f.external + "</NewExternalIPAddress>")
	case action == "GetSpecificPortMappingEntry" && f.noLookup:
		fail(401)
	case action == "GetSpecificPortMappingEntry" && !found, action == "DeletePortMapping" && !found:
		fail(upnpNoSuchEntry)
	case action == "GetSpecificPortMappingEntry":
		ok("<NewInternalPort>" + have.port + "</NewInternalPort><NewInternalClient>" + have.client + "</NewInternalClient><NewEnabled>1</NewEnabled>")
	case action == "DeletePortMapping":
		delete(f.table, port)
		ok("")
	case action == "AddPortMapping" && found && have.client != arg["NewInternalClient"] && !f.replace:
		fail(upnpConflict)
	case action == "AddPortMapping" && f.permanent && arg["NewLeaseDuration"] != "0":
		fail(upnpOnlyPermanent)
	case action == "AddPortMapping":
		f.table[port] = tableEntry{arg["NewInternalClient"], arg["NewInternalPort"], arg["NewPortMappingDescription"], arg["NewLeaseDuration"]}
		ok("")
	default:
		fail(401)
	}
}

// soapToo lets the handler serve all but the control URL.
func (f *fakeIGD) soapToo() {
	rest := f.handler
	f.handler = func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/ctl" {
			f.soap(w, r)
			return
		}
		rest(w, r)
	}
}

func (f *fakeIGD) entries() map[string]tableEntry {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]tableEntry{}
	for k, v := range f.table {
		out[k] = v
	}
	return out
}

// open reads the description at the usual place.
func (f *fakeIGD) open() (*igd, error) {
	u, err := url.Parse(f.location())
	if err != nil {
		f.t.Fatal(err)
	}
	return describe(f.t.Context(), loopback, loopback, u)
}

func TestIGD(t *testing.T) {
	for _, kind := range serviceTypes {
		f := newFakeIGD(t, func(f *fakeIGD) { f.kind = kind })
		c, err := discoverIGD(t.Context(), loopback, loopback, f.ssdp)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		addr, err := c.add(t.Context(), 50000, ourPort, time.Hour)
		if err != nil || addr != public {
			t.Fatalf("%s: %v, %v", kind, addr, err)
		}
		want := tableEntry{"127.0.0.1", strconv.Itoa(ourPort), "kith", "3600"}
		if e := f.entries(); len(e) != 1 || e["50000"] != want {
			t.Errorf("%s: the gateway has %v, want %v", kind, e, want)
		}
		if addr, gone, err := c.check(t.Context(), 50000, ourPort); addr != public || gone || err != nil {
			t.Errorf("%s: check: %v, %v, %v", kind, addr, gone, err)
		}
		if _, gone, err := c.check(t.Context(), 50001, ourPort); !gone || err != nil {
			t.Errorf("%s: a mapping that is not there: %v, %v", kind, gone, err)
		}
		if err := c.remove(t.Context(), 50000, ourPort); err != nil || len(f.entries()) != 0 {
			t.Errorf("%s: the gateway has %v after removal: %v", kind, f.entries(), err)
		}
	}
}

// TestOthersEntries holds that nobody else's mapping is touched, also on a
// gateway that would let us.
func TestOthersEntries(t *testing.T) {
	theirs := tableEntry{"127.0.0.9", strconv.Itoa(ourPort), "game", "0"}
	otherPort := tableEntry{"127.0.0.1", "22", "mine", "0"}
	f := newFakeIGD(t, func(f *fakeIGD) {
		f.replace = true
		f.table["50000"], f.table["50001"] = theirs, otherPort
	})
	d, err := f.open()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []uint16{50000, 50001} {
		if _, err := d.add(t.Context(), p, ourPort, time.Hour); upnpCode(err) != upnpConflict {
			t.Errorf("add: %v, want a conflict", err)
		}
		if _, gone, err := d.check(t.Context(), p, ourPort); !gone || err != nil {
			t.Errorf("check: %v, %v, want it gone", gone, err)
		}
		if err := d.remove(t.Context(), p, ourPort); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	if e := f.entries(); e["50000"] != theirs || e["50001"] != otherPort {
		t.Errorf("the gateway has %v", e)
	}
	f.mu.Lock()
	f.noLookup = true
	f.mu.Unlock()
	if _, err := d.add(t.Context(), 50002, ourPort, time.Hour); err != nil {
		t.Errorf("a gateway that does not show its table: %v", err)
	}
	if _, gone, err := d.check(t.Context(), 50002, ourPort); gone || err != nil {
		t.Errorf("a gateway that does not show its table: %v, %v", gone, err)
	}
}

func TestExternal(t *testing.T) {
	for s, want := range map[string]string{
		"203.0.113.7": "203.0.113.7", " 203.0.113.7\n": "203.0.113.7", "": "0.0.0.0", "0.0.0.0": "0.0.0.0", "none": "0.0.0.0",
		"2001:db8::1": "0.0.0.0", "::ffff:8.8.8.8": "8.8.8.8", "10.0.0.1": "10.0.0.1",
	} {
		f := newFakeIGD(t, func(f *fakeIGD) { f.external = s })
		d, err := f.open()
		if err != nil {
			t.Fatal(err)
		}
		if a, err := d.external(t.Context()); err != nil || a.String() != want {
			t.Errorf("%q: %v, %v, want %s", s, a, err, want)
		}
	}
}

// TestConnected takes, of two services, the one that has an address.
func TestConnected(t *testing.T) {
	serve := func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/desc.xml":
			_, _ = io.WriteString(w, descriptionXML("", serviceTypes[1], "/idle", serviceTypes[2], "/ppp"))
		default:
			addr := map[string]string{"/idle": "0.0.0.0", "/ppp": public.String()}[r.URL.Path]
			fmt.Fprintf(w, `<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><u:R xmlns:u="x"><NewExternalIPAddress>%s</NewExternalIPAddress></u:R></s:Body></s:Envelope>`, addr)
		}
	}
	d, err := newFakeIGD(t, func(f *fakeIGD) { f.handler = serve }).open()
	if err != nil || d.kind != serviceTypes[2] {
		t.Fatalf("%+v, %v, want the PPP connection", d, err)
	}
}

// TestHostileIGD has gateways, and neighbours that pose as one.
func TestHostileIGD(t *testing.T) {
	touched := make(chan string, 100)
	victim := newFakeIGD(t, func(f *fakeIGD) { // nobody may be sent here
		f.handler = func(_ http.ResponseWriter, r *http.Request) { touched <- r.Method + " " + r.URL.Path }
	})
	elsewhere := strings.Replace("http://"+victim.addr.String(), "127.0.0.1", "localhost", 1)

	for name, set := range map[string]func(f *fakeIGD){
		"points elsewhere":      func(f *fakeIGD) { f.location = func() string { return elsewhere + "/desc.xml" } },
		"https":                 func(f *fakeIGD) { f.location = func() string { return "https://" + f.addr.String() + "/desc.xml" } },
		"control URL elsewhere": func(f *fakeIGD) { f.control = elsewhere + "/ctl" },
		"redirects": func(f *fakeIGD) {
			f.handler = func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "http://"+victim.addr.String()+"/redirected", http.StatusFound)
			}
		},
		"redirects SOAP": func(f *fakeIGD) {
			f.handler = func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/desc.xml" {
					_, _ = io.WriteString(w, descriptionXML("", f.kind, "/ctl"))
					return
				}
				http.Redirect(w, r, "http://"+victim.addr.String()+"/redirected", http.StatusTemporaryRedirect)
			}
		},
		"endless description": func(f *fakeIGD) {
			f.handler = func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, "<root>")
				for {
					if _, err := io.WriteString(w, strings.Repeat("<x/>", 1000)); err != nil {
						return
					}
				}
			}
		},
		"endless SOAP": func(f *fakeIGD) {
			f.handler = func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/desc.xml" {
					_, _ = io.WriteString(w, descriptionXML("", f.kind, "/ctl"))
					return
				}
				_, _ = io.WriteString(w, `<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/">`)
				for {
					if _, err := io.WriteString(w, strings.Repeat("<x/>", 1000)); err != nil {
						return
					}
				}
			}
		},
		"endless header": func(f *fakeIGD) {
			f.handler = func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("X", strings.Repeat("x", 4*maxHeader))
				_, _ = io.WriteString(w, descriptionXML("", f.kind, "/ctl"))
			}
			f.soapToo()
		},
		"large description": func(f *fakeIGD) {
			f.handler = func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, descriptionXML("<x>"+strings.Repeat("x", maxBody)+"</x>", f.kind, "/ctl"))
			}
			f.soapToo()
		},
		"large SOAP": func(f *fakeIGD) { f.external = public.String() + strings.Repeat(" ", maxBody) },
		"not UPnP":   func(f *fakeIGD) { f.handler = http.NotFound },
		"nonsense": func(f *fakeIGD) {
			f.handler = func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<a><b>") }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFakeIGD(t, set)
			// Long enough for an answer; the whole search is 3 s.
			ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
			defer cancel()
			if c, err := discoverIGD(ctx, loopback, loopback, f.ssdp); err == nil {
				t.Errorf("taken: %+v", c)
			}
		})
	}
	t.Run("answers from another address", func(t *testing.T) {
		t.Parallel()
		f := newFakeIGD(t)
		other, err := net.ListenPacket("udp4", "127.0.0.2:0")
		if err != nil {
			t.Skip("only Linux has more than one loopback address: ", err)
		}
		defer other.Close()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			defer cancel() // the answer is there; nothing else will come
			buf := make([]byte, 2048)
			for range 3 {
				_, from, err := other.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = other.WriteTo(ssdpAnswer(f.location()), from)
			}
			_, _, _ = other.ReadFrom(buf) // of the second search: the answers were read
		})
		_, err = discoverIGD(ctx, loopback, loopback, netip.MustParseAddrPort(other.LocalAddr().String()))
		if !errors.Is(err, errNoIGD) {
			t.Errorf("taken from another address: %v", err)
		}
		_ = other.Close()
		wg.Wait()
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.calls) != 0 {
			t.Errorf("asked for %v", f.calls)
		}
	})
	t.Cleanup(func() {
		select {
		case what := <-touched:
			t.Errorf("the victim was asked: %s", what)
		default:
		}
	})
}

// TestManyLocations ends with a gateway that has a new description each time.
func TestManyLocations(t *testing.T) {
	n, asked := 0, 0
	f := newFakeIGD(t, func(f *fakeIGD) {
		f.answers = 10
		f.location = func() string { n++; return fmt.Sprintf("http://%s/%d", f.addr, n) }
		f.handler = func(w http.ResponseWriter, r *http.Request) { asked++; http.NotFound(w, r) }
	})
	if _, err := discoverIGD(t.Context(), loopback, loopback, f.ssdp); err == nil {
		t.Error("taken")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if asked != maxLocations {
		t.Errorf("%d descriptions read, want %d", asked, maxLocations)
	}
}

// TestGuard holds that no request leaves the gateway, whoever makes it.
func TestGuard(t *testing.T) {
	g := newGuard(loopback, loopback)
	for _, u := range []string{"http://127.0.0.2/", "http://localhost/", "https://127.0.0.1/", "http://127.0.0.1@192.0.2.1/"} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, u, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := g.RoundTrip(r)
		if err == nil {
			_ = resp.Body.Close()
			t.Errorf("%s was asked", u)
		}
	}
}

// TestSlowIGD ends with its context.
func TestSlowIGD(t *testing.T) {
	asked, release := make(chan struct{}), make(chan struct{})
	f := newFakeIGD(t, func(f *fakeIGD) {
		f.handler = func(_ http.ResponseWriter, r *http.Request) {
			close(asked)
			select {
			case <-r.Context().Done():
			case <-release:
			}
		}
	})
	defer close(release)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	start := time.Now()
	if _, err := discoverIGD(ctx, loopback, loopback, f.ssdp); err == nil {
		t.Error("taken")
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("ended %v after its context", d)
	}
}
