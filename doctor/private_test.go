package doctor

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/link/relay"
)

func TestServerNames(t *testing.T) {
	for in, want := range map[string][]Name{
		"raspi-anna:3478":                            {{"raspi-anna", "host"}},
		"turn:attic:3478?transport=tcp":              {{"attic", "host"}},
		"turns:attic":                                {{"attic", "host"}},
		"mqtts://anna@attic:8883/mqtt":               {{"anna", "user"}, {"attic", "host"}},
		"/dns4/attic/tcp/60000/p2p/12D3KooWExample":  {{"attic", "host"}},
		"hub.example.org.":                           {{"hub.example.org", "host"}},
		"192.0.2.1:1":                                nil,
		"[2001:db8::1]:1":                            nil,
		"/ip4/192.0.2.7/tcp/60000":                   nil,
		"/":                                          {{"/", "host"}},
		"http://[::1%25eth0]:80/":                    nil,
		"turn:[2001:db8::1]:3478?transport=udp":      nil,
		"stun:attic.example.org:3478":                {{"attic.example.org", "host"}},
		"wss://attic/mqtt":                           {{"attic", "host"}},
		"http://":                                    nil,
		"mqtt://user:password@192.0.2.3:1883":        {{"user", "user"}},
		"/dns/attic":                                 {{"attic", "host"}},
		"one.two.example:99999999999999999999999999": {{"one.two.example", "host"}},
	} {
		got := ServerNames(in)
		if !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestInterfaceNames(t *testing.T) {
	for _, plain := range []string{
		"lo", "lo0", "eth0", "eth0.20", "enp0s31f6", "eno1", "ens18", "wlp2s0", "wlan0", "wwan0", "docker0", "br-0123456789ab", "br0", "br-1a2b3c4d5e6f",
		"vetha1b2c3d", "virbr0", "utun4", "en0", "awdl0", "tun0", "wg0", "tailscale0", "ppp0", "Ethernet 2", "Wi-Fi", "vEthernet (WSL)", "enx00e04c680102",
		"clat", "rmnet_data0", "v4-rmnet_data0", "dummy0", "Loopback Pseudo-Interface 1", "Local Area Connection* 2",
	} {
		if kind, named := interfaceKind(plain); named {
			t.Errorf("%s is named: %s", plain, kind)
		}
	}
	for name, want := range map[string]string{
		"wg-company": "wg-interface", "company": "interface", "br-anna": "br-interface", "vEthernet (Company)": "interface", "tun_office": "tun-interface",
		"zt7nnig34k": "zt-interface",
	} {
		if kind, named := interfaceKind(name); !named || kind != want {
			t.Errorf("%s: %q %v, want %q", name, kind, named, want)
		}
	}
}

// A secret is something that no bundle may have, in the ways in which it is written.
type secret struct {
	written []string
	left    []string // what of it must not be left
}

// drawSecrets makes some of each kind, and settings and devices that name those that are
// known only by name.
func drawSecrets(rt *rapid.T) (secrets []secret, env *Env) {
	env = &Env{Dir: "/var/lib/" + drawWord(rt) + "/kith"}
	secrets = append(secrets, secret{[]string{env.Dir, env.Dir + "/config.json"}, []string{env.Dir}})
	add := func(left string, written ...string) { secrets = append(secrets, secret{written, []string{left}}) }
	n := 0
	names := func(what string) string {
		n++
		return drawWord(rt) + string(rune('a'+n)) + what
	}
	for _, blocked := range []bool{false, true} {
		name := names("'s laptop")
		env.Peers = append(env.Peers, Peer{Name: name, Blocked: blocked})
		add(name, name, strings.ToUpper(name), name+" cannot be reached", "("+name+")")
	}
	hub, stun, broker, turn, user, face := names(""), names(""), names(""), names(""), names(""), "wg-"+names("")
	env.Hubs = []hubaddr.Address{{Host: hub}}
	env.STUN = []string{stun + ":3478"}
	env.Media = []Medium{{Name: "mqtt " + broker + ":1883", Servers: []string{broker + ":1883"}}}
	env.TURN = []relay.Config{{URL: "turn:" + turn + ":3478", User: user}}
	env.Interfaces = func() ([]netmon.Interface, error) { return []netmon.Interface{{Name: face}}, nil }
	for _, n := range []string{hub, stun, broker, turn} {
		add(n, n, "TCP to "+n+":1883", strings.ToUpper(n)+":443", "mqtt://"+n+"/mqtt")
	}
	add(user, user, "the user "+user+" is not known")
	add(face, face, face+": up")
	site := names(".example.org")
	add(site, site, "of "+site+".", strings.ToUpper(site))
	six := rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(rt, "mac")
	var two []string
	for _, b := range six {
		two = append(two, hex.EncodeToString([]byte{b}))
	}
	bare := strings.Join(two, "")
	secrets = append(secrets, secret{
		[]string{strings.Join(two, ":"), strings.ToUpper(strings.Join(two, "-")), "enx" + bare + ": up", "wlx" + bare},
		[]string{strings.Join(two, ":"), strings.Join(two, "-"), bare},
	})
	four := netip.AddrFrom4([4]byte(append([]byte{rapid.ByteRange(11, 126).Draw(rt, "net")}, rapid.SliceOfN(rapid.ByteRange(10, 250), 3, 3).Draw(rt, "v4")...)))
	add(four.String(), four.String(), "from "+four.String()+":41641.", "x"+four.String(), "::ffff:"+four.String())
	wide := netip.AddrFrom16([16]byte(append([]byte{0x20, 0x01, 0x0d, 0xb8, 0x77, 0x66, 0x55, 0x44}, rapid.SliceOfN(rapid.ByteRange(1, 255), 8, 8).Draw(rt, "v6")...)))
	add(wide.String(), wide.String(), "DNS:"+wide.String()+" x", "address:"+strings.ToUpper(wide.String())+".", "["+wide.String()+"%eth0]:443", "IP Address:"+wide.String())
	person := strings.ToUpper(names("")[:1]) + names("") + " " + names("")
	add(person, `C:\Users\`+person+`\kith`, `c:\users\`+person+`\AppData`)
	resident := names("")
	add(resident, "/home/"+resident+"/.local", "/Users/"+resident)
	text := rapid.StringMatching(`[a-z2-7]{32}`).Draw(rt, "key")
	add(text, text, "pin "+text)
	return secrets, env
}

// drawWord makes a word that is in no text of the table.
func drawWord(rt *rapid.T) string {
	return "q" + rapid.StringMatching(`[a-z]{3,6}`).Draw(rt, "word") + "zq" + rapid.StringMatching(`[a-z]{2,4}x`).Draw(rt, "word end")
}

// TestBundleTellsNobody: a report that is full of what tells who somebody is, in every
// field and in every way of writing, has nothing of it as a bundle; the same is always
// called the same, and different things are not.
func TestBundleTellsNobody(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		secrets, env := drawSecrets(rt)
		zone := time.FixedZone("here", 7*3600)
		r := Report{Started: time.Date(2026, 11, 22, 3, 0, 0, 0, zone), System: "linux"}
		var all []string
		for _, s := range secrets {
			all = append(all, s.written...)
		}
		one := Result{Code: "device.dns", Asks: "Is it so?", State: No, Finding: "silent", Severity: Fault, Because: "nat.mapping/hard"}
		for _, text := range all {
			one.Subject, one.Cause, one.Fix, one.Evidence = text, "It is "+text+".", "Mend "+text+".", []string{text, "seen: " + text}
			r.Results, r.Causes = append(r.Results, one), append(r.Causes, one)
		}
		r.Verdict = Verdict{Severity: Fault, State: strings.Join(all, ", "), Cause: strings.Join(all, "; "), Fix: strings.Join(all, " or ")}
		p := new(Pseudonyms)
		for _, n := range env.Names() {
			p.Name(n.Text, n.Kind)
		}
		raw, err := Bundle(p, "v1", r)
		if err != nil {
			rt.Fatal(err)
		}
		low := strings.ToLower(string(raw))
		for _, s := range secrets {
			for _, left := range s.left {
				quoted, _ := json.Marshal(strings.ToLower(left))
				if strings.Contains(low, strings.ToLower(left)) || strings.Contains(low, strings.Trim(string(quoted), `"`)) {
					rt.Fatalf("%q is left: %s", left, around(low, strings.ToLower(left)))
				}
			}
		}
		var got struct{ Report Report }
		if err := json.Unmarshal(raw, &got); err != nil {
			rt.Fatal(err)
		}
		if _, off := got.Report.Started.Zone(); off != 0 || !got.Report.Started.Equal(r.Started) {
			rt.Fatalf("started %v", got.Report.Started)
		}
		of := make(map[string]int) // what is written → whose it is
		for i, s := range secrets {
			for _, text := range s.written {
				of[text] = i
			}
		}
		words := make(map[string]int)
		for i, res := range got.Report.Results {
			if res.Code != one.Code || res.Because != one.Because || res.Asks != one.Asks {
				rt.Fatalf("what is of the table has changed: %+v", res)
			}
			if c := got.Report.Causes[i]; c.Subject != res.Subject || !slices.Equal(c.Evidence, res.Evidence) || res.Evidence[0] != res.Subject || "Mend "+res.Subject+"." != res.Fix {
				rt.Fatalf("%q is called %q, %q and %q", all[i], res.Subject, res.Evidence, res.Fix)
			}
			if was, ok := words[res.Subject]; ok && was != of[all[i]] {
				rt.Fatalf("%q and %q are both %q", secrets[was].written, all[i], res.Subject)
			}
			words[res.Subject] = of[all[i]]
		}
	})
}

func around(s, part string) string {
	i := strings.Index(s, part)
	return s[max(0, i-30):min(len(s), max(i, 0)+len(part)+30)]
}

// TestNamesThatAreWords: names that are words of pseudonyms, or parts of addresses, spoil
// neither.
func TestNamesThatAreWords(t *testing.T) {
	p := new(Pseudonyms)
	for i, n := range []string{"device", "10", "key", "private4", "anna", "box at 10.0.0.9", "kith", "localhost"} {
		p.Name(n, "device")
		p.Name(n, fmt.Sprint("other", i)) // the first counts
	}
	for _, test := range []struct{ in, want string }{
		{"anna and Device", "device-2 and device-1"},
		{"10.0.0.1 is on 10", "private4-a-1 is on device-3"},
		{"box at 10.0.0.9: no", "device-4: no"},
		{"private4 key-1", "device-5 device-6-1"},
		{"and again Anna", "and again device-2"},
		{"kith up on localhost, anna", "kith up on localhost, device-2"},
	} {
		if got := p.Text(test.in); got != test.want {
			t.Errorf("%q: %q, want %q", test.in, got, test.want)
		}
	}
}

func FuzzPseudonyms(f *testing.F) {
	for _, s := range []string{
		"DNS:2001:db8::1", "::::::::::", "1.2.3.4.5.6.7.8", "enx00e04c680102", `C:\Users\John Smith\x`, "4.3.2.1.in-addr.arpa", "fe80::1%eth0", "aa:bb:cc:dd:ee:ff:00:11",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p := new(Pseudonyms)
		p.Name("anna", "device")
		once := p.Text(s)
		if again := p.Text(s); again != once {
			t.Errorf("%q, then %q", once, again)
		}
		for _, word := range strings.FieldsFunc(once, func(r rune) bool { return strings.ContainsRune(" ,;()[]", r) }) {
			a, err := netip.ParseAddr(word)
			a = a.WithZone("").Unmap()
			if err == nil && !a.IsLoopback() && !a.IsUnspecified() && !a.IsMulticast() && a.String() != "255.255.255.255" {
				t.Errorf("%q: %v is left in %q", s, a, once)
			}
		}
	})
}
