package doctor

import (
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestPseudonyms(t *testing.T) {
	p := new(Pseudonyms)
	p.Name("anna", "device")
	p.Name("anna's laptop", "device")
	p.Name("ty3kqjx5m2", "id")
	p.Keep("nat.mapping")
	for _, test := range []struct{ in, want string }{
		{"from 192.168.7.9:4000 by 192.168.7.1.", "from private4-a-1:4000 by private4-a-2."},
		{"again 192.168.7.9", "again private4-a-1"},
		{"192.168.8.9, 100.64.0.1, 8.8.8.8", "private4-b-1, shared4-c-1, public4-d-1"},
		{"[fd00::1%eth0]:5 [2001:db8::1]:41641 fe80::1", "[private6-e-1%eth0]:5 [public6-f-1]:41641 linklocal6-g-1"},
		{"127.0.0.1 0.0.0.0 ::1 224.0.0.251 ff02::fb", "127.0.0.1 0.0.0.0 ::1 224.0.0.251 ff02::fb"},
		{"anna's laptop, anna and susanna", "device-1, device-2 and susanna"},
		{"nat.mapping of mail.example.org and v1.26", "nat.mapping of host-1 and v1.26"},
		{"at 14:30:05 (1.5 ms)", "at 14:30:05 (1.5 ms)"},
		{"02:42:ac:11:00:02 on eth0", "mac-1 on eth0"},
		{"/home/susi/.local/state/kith", "/home/user-1/.local/state/kith"},
		{"pin q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQ", "pin key-1"},
		{"ty3kqjx5m2 is it", "id-1 is it"},
		{`the certificate is for "CN=Gate 7,O=Acme\\, Inc.,L=Ulm", by "SERIALNUMBER=4,CN=Acme Root+OU=IT"`, `the certificate is for "CN=name-1,O=name-2,L=name-3", by "SERIALNUMBER=name-4,CN=name-5+OU=name-6"`},
		{`while trying to verify candidate authority certificate "Acme Root")`, `while trying to verify candidate authority certificate "name-5")`},
		{"x509: certificate is valid for acme-gate, fritzbox, not hub.acme.example", "x509: certificate is valid for name-7, not host-2"},
	} {
		if got := p.Text(test.in); got != test.want {
			t.Errorf("%q: %q, want %q", test.in, got, test.want)
		}
	}
}

// TestPseudonymsHold: no address and no name is left, the same is always called the
// same, different ones differently, and networks can be told apart.
func TestPseudonymsHold(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p := new(Pseudonyms)
		byWord := make(map[string]netip.Addr)
		for range rapid.IntRange(1, 20).Draw(rt, "n") {
			raw := rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(rt, "address")
			if rapid.Bool().Draw(rt, "six") {
				raw = rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(rt, "address")
			}
			a, _ := netip.AddrFromSlice(raw)
			a = a.Unmap()
			if a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.String() == "255.255.255.255" {
				continue
			}
			text := "at " + a.String() + ", port 1"
			if rapid.Bool().Draw(rt, "with port") {
				text = "at " + netip.AddrPortFrom(a, 41641).String() + " now"
			}
			got := p.Text(text)
			if strings.Contains(got, a.String()) {
				rt.Fatalf("%q is left in %q", a, got)
			}
			if again := p.Text(text); again != got {
				rt.Fatalf("%q, then %q", got, again)
			}
			word := strings.Trim(strings.Fields(got)[1], "[],")
			word, _, _ = strings.Cut(word, "]")
			word, _, _ = strings.Cut(word, ":")
			if was, ok := byWord[word]; ok && was != a {
				rt.Fatalf("%v and %v are both %q", was, a, word)
			}
			byWord[word] = a
		}
	})
}

func TestBundle(t *testing.T) {
	p := new(Pseudonyms)
	p.Name("susis-phone", "device")
	raw, err := Bundle(p, "v1", Report{Results: []Result{{Code: "nat.mapping", Evidence: []string{"203.0.113.9:5 of susis-phone at hub.example.org"}}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"203.0.113.9", "susis", "example"} {
		if strings.Contains(string(raw), secret) {
			t.Errorf("%q is in the bundle: %s", secret, raw)
		}
	}
	if !strings.Contains(string(raw), "public4-a-1:5 of device-1 at host-1") {
		t.Errorf("%s", raw)
	}
}
