package hubaddr

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func sample() Address {
	a := Address{Host: "hub.example.org", Port: DefaultPort, AltPort: DefaultPort + 1}
	for i := range a.Access {
		a.Access[i], a.Pin[i] = byte(i), byte(0xf0|i)
	}
	return a
}

const sampleText = "kith-hub:hub.example.org#aaaqeayeaudaocajbifqydiob7ypd4xt6t27n57y7h5px7h5737q"

// TestVector freezes the text, the passwords and the URLs. The passwords were
// computed with another HKDF.
func TestVector(t *testing.T) {
	a := sample()
	for name, c := range map[string][2]string{
		"text":     {a.Text(), sampleText},
		"hints":    {strings.Join(a.Hints(), " "), "hub=hub.example.org hub#AAECAwQFBgcICQoLDA0OD_Dx8vP09fb3-Pn6-_z9_v8"},
		"password": {a.MQTTPassword(), "4e821d8e0e91b31ba5ea0282ca8c6f22"},
		"secret":   {string(a.TURNSecret()), "d8496ec021843bcaa10ae0bcc2849814"},
		"mqtt":     {strings.Join(a.MQTTURLs(), " "), "mqtts://hub.example.org:443 wss://hub.example.org:443/mqtt"},
		"turn": {strings.Join(a.TURNURLs(), " "), "turn:hub.example.org:443?transport=udp " +
			"turn:hub.example.org:443?transport=tcp turns:hub.example.org:443?transport=tcp"},
		"stun": {strings.Join(a.STUNServers(), " "), "hub.example.org:443 hub.example.org:444"},
	} {
		if c[0] != c[1] {
			t.Errorf("%s: %q, want %q", name, c[0], c[1])
		}
	}
}

// TestParse reads what a person may paste.
func TestParse(t *testing.T) {
	want := sample()
	for _, text := range []string{sampleText, " " + sampleText + "\n", strings.ToUpper(sampleText)} {
		if got, err := Parse(text); err != nil || got != want {
			t.Errorf("%q: %v", text, err)
		}
	}
	secret := sampleText[strings.Index(sampleText, "#"):]
	for place, host := range map[string]string{
		"192.0.2.1": "192.0.2.1", "192.0.2.1:8443": "192.0.2.1", "[2001:db8::1]": "2001:db8::1", "[2001:db8::1]:1": "2001:db8::1",
		"a": "a", "xn--bcher-kva.example:65535": "xn--bcher-kva.example",
	} {
		if got, err := Parse(scheme + place + secret); err != nil || got.Host != host {
			t.Errorf("%q: %v %v", place, got, err)
		}
	}
	for _, bad := range []string{
		"", "kith-hub:", "kith-hub:#", sampleText[:len(sampleText)-1], sampleText + "a", "kith:" + sampleText,
		"kith-hub:" + secret, "kith-hub:2001:db8::1" + secret, "kith-hub:[192.0.2.1]" + secret, "kith-hub:[2001:db8::1" + secret,
		"kith-hub:[fe80::1%25eth0]" + secret, "kith-hub:a_b" + secret, "kith-hub:-a" + secret, "kith-hub:a..b" + secret,
		"kith-hub:1.2.3" + secret, "kith-hub:1.2.3.400" + secret, "kith-hub:a:0" + secret, "kith-hub:a:443" + secret,
		"kith-hub:a:65536" + secret, "kith-hub:a b" + secret, "kith-hub:a/b" + secret, "kith-hub:0.0.0.0" + secret,
		"kith-hub:::ffff:1.2.3.4" + secret, "kith-hub:" + strings.Repeat("a", 64) + secret, "kith-hub:" + strings.Repeat("a.", 200) + "a" + secret,
		"kith-hub:a#" + strings.Repeat("a", 200), "kith-hub:a#0189",
	} {
		if got, err := Parse(bad); !errors.Is(err, ErrAddress) || !got.IsZero() {
			t.Errorf("%q: %v %v", bad, got, err)
		}
	}
}

// TestRoundTrip holds that there is one text for an address, and that it and the
// hints give the address back.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := Address{
			Host: rapid.OneOf(rapid.StringMatching(`[a-z0-9]{1,10}(\.[a-z]{1,10}){0,3}[a-z]`),
				rapid.SampledFrom([]string{"192.0.2.1", "2001:db8::7", "::1"})).Draw(t, "host"),
			Port:    rapid.Uint16Min(1).Draw(t, "port"),
			AltPort: rapid.Uint16().Draw(t, "alt"),
		}
		copy(a.Access[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "access"))
		copy(a.Pin[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "pin"))
		if !a.Valid() {
			t.Skip("the second port is the first")
		}
		if got, err := Parse(a.Text()); err != nil || got != a {
			t.Fatalf("%s: %v %v", a.Text(), got, err)
		}
		hints := a.Hints()
		for _, h := range hints {
			if len(h) > 64 { // code.MaxHint
				t.Fatalf("the hint %q has %d bytes", h, len(h))
			}
		}
		hints = append([]string{"other"}, hints...)
		slices.Reverse(hints)
		if got, ok := FromHints(hints); !ok || got != a {
			t.Fatalf("%q: %v", hints, got)
		}
		for _, s := range append(a.STUNServers(), strings.TrimPrefix(a.MQTTURLs()[0], "mqtts://")) {
			if host, _, err := net.SplitHostPort(s); err != nil || host != a.Host {
				t.Fatalf("%q: %v", s, err)
			}
		}
	})
	if _, ok := FromHints([]string{"hub=a"}); ok {
		t.Error("an address without a secret")
	}
	if _, ok := FromHints([]string{"hub#" + strings.Repeat("A", 43)}); ok {
		t.Error("an address without a host")
	}
}

// TestRedacted holds that no way of printing shows the secret.
func TestRedacted(t *testing.T) {
	a := sample()
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "address", a, "access", a.Access, "pointer", &a)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "address", a, "access", a.Access, "pointer", &a)
	all := log.String() + a.String() + a.Access.String()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
		all += fmt.Sprintf(verb, a) + fmt.Sprintf(verb, &a) + fmt.Sprintf(verb, a.Access) +
			fmt.Sprintf(verb, struct{ A Address }{a}) + fmt.Sprintf(verb, []any{a, a.Access})
	}
	if _, err := json.Marshal(a); !errors.Is(err, ErrMarshal) {
		t.Errorf("marshalled: %v", err)
	}
	for _, secret := range []string{sampleText[30:50], "000102", "0 1 2 3", "\x00\x01\x02", "0x1, 0x2", "AAEC"} {
		if strings.Contains(all, secret) {
			t.Errorf("%q is in %s", secret, all)
		}
	}
	if !strings.Contains(all, "kith-hub:hub.example.org#redacted") {
		t.Error("the host is not shown")
	}
	if (Address{}).Text() != "" || (Address{}).Hints() != nil {
		t.Error("the zero address has a text")
	}
}

// server answers one TLS handshake at a time with a key of its own.
func server(t *testing.T) (net.Listener, Pin) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("x")) // handshakes first; the client may refuse
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = ln.Close()
		<-done
	})
	return ln, PinOf(leaf.RawSubjectPublicKeyInfo)
}

// TestPin takes the hub's key and no other, and does not ask who signed it.
func TestPin(t *testing.T) {
	ln, pin := server(t)
	a := sample()
	a.Pin = pin
	for range 2 { // the second time a session may be resumed
		c, err := tls.Dial("tcp", ln.Addr().String(), a.TLSConfig())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
	a.Pin[15] ^= 1
	c, err := tls.Dial("tcp", ln.Addr().String(), a.TLSConfig())
	if other, ok := errors.AsType[*PinError](err); !ok || PinOf(other.Certificate.RawSubjectPublicKeyInfo) != pin {
		t.Errorf("it does not say what answered: %v", err)
	}
	if !errors.Is(err, ErrPin) {
		if err == nil {
			_ = c.Close()
		}
		t.Errorf("another key: %v", err)
	}
}

// FuzzParse holds that what is read is written the same way again.
func FuzzParse(f *testing.F) {
	f.Add(sampleText)
	f.Add(strings.ToUpper(sampleText))
	f.Add("kith-hub:[2001:db8::1]:8443" + sampleText[strings.Index(sampleText, "#"):])
	f.Add("kith-hub:192.0.2.1:65535#" + strings.Repeat("a", 55))
	f.Add("kith-hub:a#")
	f.Add("kith-hub:0.0.0a0:01#" + strings.Repeat("2", 54) + "a")
	f.Fuzz(func(t *testing.T, text string) {
		a, err := Parse(text)
		if err != nil {
			return
		}
		if got := a.Text(); !a.Valid() || got != strings.ToLower(strings.TrimSpace(text)) && !strings.Contains(a.Host, ":") {
			t.Errorf("%q became %q", text, got)
		}
		if again, err := Parse(a.Text()); err != nil || again != a {
			t.Errorf("%q: %v", a.Text(), err)
		}
		if again, ok := FromHints(a.Hints()); !ok || again != a {
			t.Errorf("%q as hints: %v", text, a.Hints())
		}
		if strings.Contains(a.String(), base32Text.EncodeToString(a.Access[:5])) && !strings.Contains(a.Host, base32Text.EncodeToString(a.Access[:5])) {
			t.Error("the secret is printed")
		}
	})
}

// FuzzFromHints reads hints of anybody.
func FuzzFromHints(f *testing.F) {
	h := sample().Hints()
	f.Add(h[0], h[1])
	f.Add("hub=", "hub#")
	f.Add("hub=a:1", "hub#"+strings.Repeat("A", 46))
	f.Fuzz(func(t *testing.T, one, two string) {
		a, ok := FromHints([]string{one, two})
		if !ok {
			return
		}
		if again, ok := FromHints(a.Hints()); !ok || again != a {
			t.Errorf("%q %q: %v", one, two, a.Hints())
		}
	})
}
