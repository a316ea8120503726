package portmap

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRequests compares with datagrams put together by hand from the RFCs.
func TestRequests(t *testing.T) {
	nonce := [12]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
	v4 := "00000000 00000000 0000ffff c0a80117"
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"pcp announce": {pcpAnnounceRequest(selfAddr), "02 00 0000 00000000" + v4},
		"pcp map": {
			pcpMapRequest(UDP, selfAddr, nonce, 41641, netip.AddrPortFrom(netip.Addr{}, 41641), 2*time.Hour),
			"02 01 0000 00001c20" + v4 + "01020304 05060708 090a0b0c 11 000000 a2a9 a2a9 00000000 00000000 0000ffff 00000000",
		},
		"pcp renew": {
			pcpMapRequest(UDP, selfAddr, nonce, 41641, netip.AddrPortFrom(public, 50000), time.Hour),
			"02 01 0000 00000e10" + v4 + "01020304 05060708 090a0b0c 11 000000 a2a9 c350 00000000 00000000 0000ffff cb007107",
		},
		"pcp delete": {
			pcpMapRequest(UDP, selfAddr, nonce, 41641, netip.AddrPort{}, 0),
			"02 01 0000 00000000" + v4 + "01020304 05060708 090a0b0c 11 000000 a2a9 0000 00000000 00000000 0000ffff 00000000",
		},
		"pcp map, IPv6": {
			pcpMapRequest(UDP, netip.MustParseAddr("2001:db8::5"), nonce, 1, netip.AddrPortFrom(netip.Addr{}, 1), time.Second/2),
			"02 01 0000 00000001 20010db8 00000000 00000000 00000005 01020304 05060708 090a0b0c 11 000000 0001 0001 00000000 00000000 00000000 00000000",
		},
		"pcp map of TCP": {
			pcpMapRequest(TCP, selfAddr, nonce, 41641, netip.AddrPortFrom(netip.Addr{}, 41641), 2*time.Hour),
			"02 01 0000 00001c20" + v4 + "01020304 05060708 090a0b0c 06 000000 a2a9 a2a9 00000000 00000000 0000ffff 00000000",
		},
		"nat-pmp map of TCP": {pmpMapRequest(TCP, 41641, 50000, 2*time.Hour), "00 02 0000 a2a9 c350 00001c20"},
		"nat-pmp address":    {pmpAddressRequest(), "00 00"},
		"nat-pmp map":        {pmpMapRequest(UDP, 41641, 50000, 2*time.Hour), "00 01 0000 a2a9 c350 00001c20"},
		"nat-pmp delete":     {pmpMapRequest(UDP, 41641, 50000, 0), "00 01 0000 a2a9 0000 00000000"},
	} {
		if want := unhex(t, c.want); !bytes.Equal(c.got, want) {
			t.Errorf("%s:\ngot  %x\nwant %x", name, c.got, want)
		}
	}
}

const (
	pcpMapHex = "02 81 00 00 00000e10 00000064 000000000000000000000000" +
		"01020304 05060708 090a0b0c 11 000000 a2a9 c350 00000000 00000000 0000ffff cb007107"
	pmpMapHex = "00 81 0000 00000064 a2a9 c350 00000e10"
)

func TestAnswers(t *testing.T) {
	a, err := parsePCP(unhex(t, pcpMapHex))
	want := pcpAnswer{
		op: pcpMap, transport: UDP, lifetime: time.Hour, epoch: 100, nonce: [12]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12},
		internal: 41641, external: netip.AddrPortFrom(public, 50000),
	}
	if err != nil || a != want {
		t.Errorf("pcp: %+v, %v, want %+v", a, err, want)
	}
	p, err := parsePMP(unhex(t, pmpMapHex))
	if want := (pmpAnswer{op: pmpMapUDP, epoch: 100, internal: 41641, external: 50000, lifetime: time.Hour}); err != nil || p != want {
		t.Errorf("nat-pmp: %+v, %v, want %+v", p, err, want)
	}
	p, err = parsePMP(unhex(t, "00 80 0000 00000064 cb007107"))
	if want := (pmpAnswer{op: pmpAddress, epoch: 100, address: public}); err != nil || p != want {
		t.Errorf("nat-pmp: %+v, %v, want %+v", p, err, want)
	}
	for name, s := range map[string]string{
		"short":          strings.TrimSuffix(pcpMapHex, "cb007107"),
		"odd":            pcpMapHex + "00",
		"a request":      strings.Replace(pcpMapHex, "02 81", "02 01", 1),
		"version":        strings.Replace(pcpMapHex, "02 81", "01 81", 1),
		"sctp":           strings.Replace(pcpMapHex, "11 000000", "84 000000", 1),
		"port 0":         strings.Replace(pcpMapHex, "c350", "0000", 1),
		"large":          pcpMapHex + strings.Repeat("00", pcpMaxSize),
		"empty":          "",
		"half a header":  "02 80 00 00",
		"nothing behind": "02 81 00 00 00000e10 00000064 000000000000000000000000",
	} {
		if a, err := parsePCP(unhex(t, s)); err == nil {
			t.Errorf("pcp: %s was taken as %+v", name, a)
		}
	}
	for name, s := range map[string]string{
		"short": "00 81 0000 00000064 a2a9 c350", "a request": "00 01 0000 00000064 a2a9 c350 00000e10",
		"version": "02 81 0000 00000064 a2a9 c350 00000e10", "port 0": "00 81 0000 00000064 a2a9 0000 00000e10",
		"opcode": "00 83 0000 00000064 a2a9 c350 00000e10", "address short": "00 80 0000 00000064 cb0071", "empty": "", "header": "00 80",
	} {
		if a, err := parsePMP(unhex(t, s)); err == nil {
			t.Errorf("nat-pmp: %s was taken as %+v", name, a)
		}
	}
}

func TestEpoch(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		first, second uint32
		elapsed       time.Duration
		pcp, pmp      bool
	}{
		"in step":             {1000, 1060, time.Minute, true, true},
		"one back":            {1000, 999, 0, true, true},
		"two back":            {1000, 998, 0, false, true},
		"three back":          {1000, 997, 0, false, false},
		"restarted":           {1000, 3, time.Minute, false, false},
		"a slow clock":        {1000, 1055, time.Minute, true, true},
		"a very slow clock":   {1000, 1051, time.Minute, false, true},
		"stands still":        {1000, 1000, time.Minute, false, false},
		"a fast clock":        {1000, 1065, time.Minute, true, true},
		"a very fast clock":   {1000, 1070, time.Minute, false, true},
		"restarted, long ago": {10, 5000, 3 * time.Hour, false, false},
		"at the end":          {1<<32 - 60, 1<<32 - 1, time.Minute, true, true},
	} {
		var a, b epoch
		if !a.pcp(start, c.first) || !b.pmp(start, c.first) {
			t.Errorf("%s: the first is no change", name)
		}
		if got := a.pcp(start.Add(c.elapsed), c.second); got != c.pcp {
			t.Errorf("%s: pcp %v, want %v", name, got, c.pcp)
		}
		if got := b.pmp(start.Add(c.elapsed), c.second); got != c.pmp {
			t.Errorf("%s: nat-pmp %v, want %v", name, got, c.pmp)
		}
	}
}

const routes = `Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
wlan0	00000000	0101A8C0	0003	0	0	600	00000000	0	0	0
eth0	00000000	FE01A8C0	0003	0	0	100	00000000	0	0	0
tun0	00000000	00000000	0001	0	0	50	00000000	0	0	0
eth1	00000000	0100000A	0002	0	0	1	00000000	0	0	0
eth0	0001A8C0	00000000	0001	0	0	100	00FFFFFF	0	0	0
`

func TestRoutes(t *testing.T) {
	if gw, ok := parseRoutes([]byte(routes)); !ok || gw != netip.MustParseAddr("192.168.1.254") {
		t.Errorf("%v, %v, want the gateway of the smallest metric that is up", gw, ok)
	}
	for name, s := range map[string]string{
		"empty": "", "no default": routes[:strings.IndexByte(routes, '\n')+1] + "eth0	0001A8C0	0101A8C0	0003	0	0	100	00FFFFFF	0	0	0\n",
		"nonsense": "a b c d e f g h\n", "cut": "eth0	00000000	FE01A8C0	0003\n", "half a default": "eth0	00000000	FE01A8C0	0003	0	0	100	00000080	0	0	0\n",
		"no gateway": "eth0	00000000	00000000	0003	0	0	100	00000000	0	0	0\n",
	} {
		if gw, ok := parseRoutes([]byte(s)); ok {
			t.Errorf("%s: %v", name, gw)
		}
	}
}

// TestDefaultGateway only holds what is true on every machine.
func TestDefaultGateway(t *testing.T) {
	gw, self, ok := DefaultGateway()
	if ok != gw.IsValid() || ok != self.IsValid() || ok && gw == self {
		t.Errorf("gateway %v, self %v, %v", gw, self, ok)
	}
	t.Logf("gateway found: %v", ok)
}

func ssdpAnswer(location string) []byte {
	return []byte("HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: " + searches[0] + "\r\nLOCATION: " + location + "\r\n\r\n")
}

func TestSSDP(t *testing.T) {
	for _, u := range []string{"http://192.168.1.1/desc.xml", "http://192.168.1.1:5000/rootDesc.xml?x=1"} {
		got, err := parseSSDP(ssdpAnswer(u), gwAddr)
		if err != nil || got.String() != u {
			t.Errorf("%s: %v, %v", u, got, err)
		}
	}
	for _, u := range []string{
		"", "/desc.xml", "http://192.168.1.2/desc.xml", "http://192.168.1.1@evil.example/", "http://evil.example/", "https://192.168.1.1/",
		"http://user@192.168.1.1/", "http://192.168.1.1.evil.example/", "file:///etc/passwd", "http://192.168.1.1:0/", "http://192.168.1.1:99999/",
		"http://[::ffff:192.168.1.1]/", "http:192.168.1.1", "http://0300.0250.1.1/", "http://3232235777/", "//192.168.1.1/", "http://%31/",
	} {
		if got, err := parseSSDP(ssdpAnswer(u), gwAddr); err == nil {
			t.Errorf("%q was taken as %v", u, got)
		}
	}
	good := string(ssdpAnswer("http://192.168.1.1/"))
	for name, s := range map[string]string{
		"a search": string(ssdpRequest(ssdpGroup4, "x")), "not found": strings.Replace(good, "200 OK", "404 no", 1),
		"large": strings.Replace(good, "ST:", "X: "+strings.Repeat("x", ssdpMaxSize)+"\r\nST:", 1), "empty": "", "cut": good[:20],
	} {
		if got, err := parseSSDP([]byte(s), gwAddr); err == nil {
			t.Errorf("%s was taken as %v", name, got)
		}
	}
}

// descriptionXML is of an IGD with the WANIPConnection where it belongs.
func descriptionXML(base string, services ...string) string {
	var b strings.Builder
	b.WriteString(`<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0">` + base +
		`<device><deviceType>` + searches[0] + `</deviceType><serviceList><service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType>` +
		`<controlURL>/l3f</controlURL></service></serviceList><deviceList><device><deviceList><device><serviceList>`)
	for i := 0; i+1 < len(services); i += 2 {
		b.WriteString("<service><serviceType>" + services[i] + "</serviceType><controlURL>" + services[i+1] + "</controlURL></service>")
	}
	b.WriteString(`</serviceList></device></deviceList></device></deviceList></device></root>`)
	return b.String()
}

func TestDescription(t *testing.T) {
	location, err := url.Parse("http://192.168.1.1:5000/a/desc.xml")
	if err != nil {
		t.Fatal(err)
	}
	ip2, ip1, ppp := serviceTypes[0], serviceTypes[1], serviceTypes[2]
	for name, c := range map[string]struct {
		xml  string
		want []string
	}{
		"absolute path": {descriptionXML("", ip1, "/ctl"), []string{"http://192.168.1.1:5000/ctl"}},
		"relative":      {descriptionXML("", ip1, "ctl"), []string{"http://192.168.1.1:5000/a/ctl"}},
		"with base":     {descriptionXML("<URLBase>http://192.168.1.1:80/</URLBase>", ip1, "ctl"), []string{"http://192.168.1.1:80/ctl"}},
		"foreign base":  {descriptionXML("<URLBase>http://evil.example/</URLBase>", ip1, "ctl"), []string{"http://192.168.1.1:5000/a/ctl"}},
		"full":          {descriptionXML("", ip1, "http://192.168.1.1:81/ctl"), []string{"http://192.168.1.1:81/ctl"}},
		"order":         {descriptionXML("", ppp, "/p", ip1, "/1", ip2, "/2"), []string{"http://192.168.1.1:5000/2", "http://192.168.1.1:5000/1", "http://192.168.1.1:5000/p"}},
		"many":          {descriptionXML("", ip1, "/1", ip1, "/2", ip1, "/3", ip1, "/4", ip1, "/5"), []string{"http://192.168.1.1:5000/1", "http://192.168.1.1:5000/2", "http://192.168.1.1:5000/3", "http://192.168.1.1:5000/4"}},
		"one is good":   {descriptionXML("", ip2, "http://evil.example/", ip1, "/1"), []string{"http://192.168.1.1:5000/1"}},
		"other charset": {strings.Replace(descriptionXML("<x>\xe4</x>", ip1, "/ctl"), `"1.0"`, `"1.0" encoding="iso-8859-1"`, 1), nil},
		"foreign":       {descriptionXML("", ip1, "http://192.168.1.2/ctl"), nil},
		"https":         {descriptionXML("", ip1, "https://192.168.1.1/ctl"), nil},
		"scheme-less":   {descriptionXML("", ip1, "//evil.example/ctl"), nil},
		"no service":    {descriptionXML(""), nil},
		"another":       {descriptionXML("", "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1", "/6"), nil},
		"not xml":       {"<html><body>login", nil},
		"empty":         {"", nil},
		"large":         {descriptionXML("<x>"+strings.Repeat("x", maxBody)+"</x>", ip1, "/ctl"), nil},
		"deep":          {strings.Repeat("<device><deviceList>", 3000), nil},
		"entities":      {`<!DOCTYPE r [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>` + descriptionXML("<x>&b;</x>", ip1, "/ctl"), nil},
	} {
		got, err := parseDescription([]byte(c.xml), location, gwAddr)
		var urls []string
		for _, s := range got {
			urls = append(urls, s.control.String())
		}
		if !slices.Equal(urls, c.want) || (err == nil) != (len(c.want) > 0) {
			t.Errorf("%s: %v, %v, want %v", name, urls, err, c.want)
		}
	}
}

func FuzzPCP(f *testing.F) {
	f.Add(unhex(f, pcpMapHex))
	f.Add(unhex(f, "02 80 00 00 00000000 00000064 000000000000000000000000"))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parsePCP(b)
		if err == nil && (a.lifetime < 0 || a.lifetime > maxLifetime || a.op == pcpMap && a.result == 0 && a.lifetime > 0 && a.external.Port() == 0) {
			t.Fatalf("taken: %+v", a)
		}
	})
}

func FuzzPMP(f *testing.F) {
	f.Add(unhex(f, pmpMapHex))
	f.Add(unhex(f, "00 80 0000 00000064 cb007107"))
	f.Add(unhex(f, "00 ff 0001 00000064"))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parsePMP(b)
		if err == nil && (a.lifetime < 0 || a.lifetime > maxLifetime || a.result == 0 && a.op == pmpAddress && !a.address.Is4()) {
			t.Fatalf("taken: %+v", a)
		}
	})
}

func FuzzSSDP(f *testing.F) {
	f.Add(ssdpAnswer("http://192.168.1.1:5000/desc.xml"))
	f.Add(ssdpAnswer("http://192.168.1.2/"))
	f.Fuzz(func(t *testing.T, b []byte) {
		u, err := parseSSDP(b, gwAddr)
		if err == nil && (u.Scheme != "http" || u.Hostname() != gwAddr.String()) {
			t.Fatalf("taken: %v", u)
		}
	})
}

func FuzzDescription(f *testing.F) {
	f.Add([]byte(descriptionXML("", serviceTypes[0], "/ctl")))
	f.Add([]byte(descriptionXML("<URLBase>http://192.168.1.1/</URLBase>", serviceTypes[1], "http://192.168.1.1:1/x")))
	location := &url.URL{Scheme: "http", Host: "192.168.1.1:5000", Path: "/desc.xml"}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parseDescription(b, location, gwAddr)
		if (err == nil) != (len(got) > 0) || len(got) > maxServices {
			t.Fatalf("%d services, %v", len(got), err)
		}
		for _, s := range got {
			if s.control.Scheme != "http" || s.control.Hostname() != gwAddr.String() {
				t.Fatalf("leaves the gateway: %v", s.control)
			}
		}
	})
}

func FuzzRoutes(f *testing.F) {
	f.Add([]byte(routes))
	f.Fuzz(func(t *testing.T, b []byte) {
		if gw, ok := parseRoutes(b); ok && (!gw.Is4() || gw.IsUnspecified() || gw.IsMulticast()) {
			t.Fatalf("taken: %v", gw)
		}
	})
}

// FuzzCore throws datagrams at a core that holds a mapping.
func FuzzCore(f *testing.F) {
	f.Add(unhex(f, pcpMapHex), true)
	f.Add(unhex(f, pmpMapHex), false)
	f.Fuzz(func(t *testing.T, b []byte, pcp bool) {
		s := newSim(t, &fakeGateway{pcp: pcp, pmp: !pcp, external: public})
		s.network()
		s.c.packet(s.now, s.c.server, b)
		s.apply()
		s.run(time.Hour)
		s.c.packet(s.now, s.c.server, b)
		s.apply()
		s.run(time.Hour)
	})
}
