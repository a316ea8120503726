package code

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// items builds a payload: tag, then value, and so on.
func items(tagsAndValues ...any) string {
	var out []byte
	for i := 0; i < len(tagsAndValues); i += 2 {
		var value []byte
		switch v := tagsAndValues[i+1].(type) {
		case string:
			value = []byte(v)
		case []byte:
			value = v
		}
		out = append(append(out, byte(tagsAndValues[i].(int)), byte(len(value))), value...)
	}
	return "KITH:1/" + base32Text.EncodeToString(out)
}

const secret16 = "0123456789abcdef"

func TestPayloadIsReadWithinItsBounds(t *testing.T) {
	v4 := "\x04\xc0\xa8\x01\x02\x00\x07" // 192.168.1.2:7
	tests := map[string]struct {
		uri  string
		kind Kind // 0 = readable
		say  string
	}{
		"secret alone":               {items(1, secret16), 0, ""},
		"all items":                  {items(1, secret16, 2, "\xff\xff\xff\xff", 3, secret16, 4, v4+v4+v4+v4, 5, "a", 5, "b", 5, "c", 5, "d"), 0, ""},
		"unknown tags":               {items(0, "", 1, secret16, 6, "x", 6, "", 0x7f, "y"), 0, ""},
		"no endpoints in the item":   {items(1, secret16, 4, ""), 0, ""},
		"nothing":                    {items(), KindURI, "no secret"},
		"no secret":                  {items(2, "\xff\xff\xff\xff"), KindURI, "no secret"},
		"short secret":               {items(1, secret16[1:]), KindURI, "not as it must be"},
		"long secret":                {items(1, secret16+"0"), KindURI, "not as it must be"},
		"two secrets":                {items(1, secret16, 1, secret16), KindURI, "out of order"},
		"tags out of order":          {items(3, secret16, 1, secret16), KindURI, "out of order"},
		"unknown tags out of order":  {items(1, secret16, 7, "", 6, ""), KindURI, "out of order"},
		"short expiry":               {items(1, secret16, 2, "\xff\xff\xff"), KindURI, "not as it must be"},
		"short commitment":           {items(1, secret16, 3, "x"), KindURI, "not as it must be"},
		"five endpoints":             {items(1, secret16, 4, v4+v4+v4+v4+v4), KindURI, "address"},
		"endpoint cut off":           {items(1, secret16, 4, v4[:6]), KindURI, "address"},
		"family 5":                   {items(1, secret16, 4, "\x05"+v4[1:]), KindURI, "address"},
		"IPv6 cut off":               {items(1, secret16, 4, "\x06\xfd\x00"), KindURI, "address"},
		"port 0":                     {items(1, secret16, 4, v4[:5]+"\x00\x00"), KindEndpoint, "outside"},
		"address of the Internet":    {items(1, secret16, 4, "\x04\x08\x08\x08\x08\x00\x35"), KindEndpoint, "outside"},
		"broadcast address":          {items(1, secret16, 4, "\x04\xff\xff\xff\xff\x00\x35"), KindEndpoint, "outside"},
		"multicast address":          {items(1, secret16, 4, "\x04\xe0\x00\x00\xfb\x00\x35"), KindEndpoint, "outside"},
		"address 0":                  {items(1, secret16, 4, "\x04\x00\x00\x00\x00\x00\x35"), KindEndpoint, "outside"},
		"IPv4 in IPv6":               {items(1, secret16, 4, "\x06"+strings.Repeat("\x00", 10)+"\xff\xff\xc0\xa8\x01\x02\x00\x35"), KindEndpoint, "outside"},
		"five hints":                 {items(1, secret16, 5, "a", 5, "b", 5, "c", 5, "d", 5, "e"), KindURI, "not as it must be"},
		"empty hint":                 {items(1, secret16, 5, ""), KindURI, "not as it must be"},
		"hint that moves the cursor": {items(1, secret16, 5, "\x1b[2J"), KindURI, "not as it must be"},
		"hint that is a web link":    {items(1, secret16, 5, "http://169.254.169.254/"), KindURI, "not as it must be"},
		"tag that must be known":     {items(1, secret16, 0x80, ""), KindVersion, "newer"},
		"last tag":                   {items(1, secret16, 0xff, "x"), KindVersion, "newer"},
		"as long as can be":          {items(1, secret16, 6, make([]byte, 255), 6, make([]byte, maxRead-18-257-2)), 0, ""},
		"one byte more":              {items(1, secret16, 6, make([]byte, 255), 6, make([]byte, maxRead-18-257-1)), KindURI, "damaged"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := Parse(tt.uri, testNow)
			if tt.kind == 0 {
				if err != nil || c.Method() != MethodQR {
					t.Errorf("got %v", err)
				}
				return
			}
			var e *ParseError
			if !errors.As(err, &e) || e.Kind != tt.kind || !strings.Contains(e.Error(), tt.say) || !c.IsZero() {
				t.Errorf("got %v, want kind %d and %q", err, tt.kind, tt.say)
			}
		})
	}
}

func TestPayloadCutAnywhereIsNotReadAsAnother(t *testing.T) {
	offer := mustNew(t, MethodQR, Options{
		Commit: [16]byte{1}, Endpoints: endpoints("10.0.0.1:1", "[fd00::1]:2"), Hints: []string{"waku:16/32"},
	})
	whole := offer.get().encode()
	for n := range whole {
		c, err := Parse("KITH:1/"+base32Text.EncodeToString(whole[:n]), testNow)
		if err == nil && (!c.Equal(offer) || !bytes.HasPrefix(whole, c.get().encode())) {
			t.Errorf("the first %d bytes are another code", n)
		}
	}
}

func TestLocalEndpoint(t *testing.T) {
	for text, want := range map[string]bool{
		"10.0.0.1:1": true, "172.16.0.1:1": true, "172.31.255.255:1": true, "192.168.0.1:65535": true, "169.254.1.1:1": true,
		"100.64.0.0:1": true, "100.127.255.255:1": true, "127.0.0.1:1": true, "[::1]:1": true, "[fe80::1]:1": true, "[fc00::1]:1": true,
		"10.0.0.1:0": false, "172.32.0.1:1": false, "192.169.0.1:1": false, "100.128.0.0:1": false, "100.63.255.255:1": false,
		"8.8.8.8:1": false, "0.0.0.0:1": false, "255.255.255.255:1": false, "224.0.0.251:1": false, "[::]:1": false,
		"[2001:db8::1]:1": false, "[ff02::fb]:1": false, "[fe80::1%eth0]:1": false, "[::ffff:10.0.0.1]:1": false, "[64:ff9b::a00:1]:1": false,
	} {
		if got := LocalEndpoint(netip.MustParseAddrPort(text)); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
	if LocalEndpoint(netip.AddrPort{}) {
		t.Error("no address at all is local")
	}
}

// drawCode makes any code that New can make.
func drawCode(t *rapid.T) Code {
	opts := Options{
		Now:      time.Unix(rapid.Int64Range(1, 1<<32-1-7200).Draw(t, "now"), 0),
		Lifetime: time.Duration(rapid.Int64Range(60, 900).Draw(t, "lifetime")) * time.Second,
		Rand:     bytes.NewReader(rapid.SliceOfN(rapid.ByteMax(249), 20, 20).Draw(t, "random")),
		Commit:   [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "commit")),
	}
	for range rapid.IntRange(0, 6).Draw(t, "endpoints") {
		addr, _ := netip.AddrFromSlice(rapid.OneOf(
			rapid.SliceOfN(rapid.Byte(), 4, 4),
			rapid.SliceOfN(rapid.Byte(), 16, 16),
			rapid.Just([]byte{10, 1, 2, 3}),
			rapid.Map(rapid.SliceOfN(rapid.Byte(), 14, 14), func(b []byte) []byte { return append([]byte{0xfe, 0x80}, b...) }),
		).Draw(t, "ip"))
		opts.Endpoints = append(opts.Endpoints, netip.AddrPortFrom(addr, rapid.Uint16().Draw(t, "port")))
	}
	opts.Hints = rapid.SliceOfN(rapid.StringMatching(`[!-gi-~][!-~]{0,10}`), 0, MaxHints).Draw(t, "hints")
	m := rapid.SampledFrom([]Method{MethodWords, MethodQR, MethodNumber}).Draw(t, "method")
	c, err := New(m, opts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestEveryCodeComesBackFromItsText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		offer := drawCode(t)
		forms := map[Method]string{MethodWords: offer.Words(), MethodQR: offer.URI(), MethodNumber: offer.Number()}
		for m, text := range forms {
			if (text != "") != (offer.strong() == (m != MethodNumber)) {
				t.Fatalf("%v: %d characters for a code of method %v", m, len(text), offer.Method())
			}
			if text == "" {
				continue
			}
			c, err := Parse(text, time.Time{})
			if err != nil || c.Method() != m || !c.Equal(offer) || c.form() != text {
				t.Fatalf("%v: came back as %v, %v", m, c.Method(), err)
			}
			if m == MethodQR && (c.Expiry().Unix() != offer.Expiry().Unix() || !slices.Equal(c.Endpoints(), offer.Endpoints()) || !slices.Equal(c.Hints(), offer.Hints())) {
				t.Fatal("what the URI carries has changed")
			}
		}
	})
}

// Whoever mistypes one word or one letter of a URI never gets the offer's keys.
func TestChangedTextIsNeverTheSameCode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		offer := drawCode(t)
		text := offer.form()
		at := rapid.IntRange(0, len(text)-1).Draw(t, "at")
		changed := []byte(text)
		changed[at] = rapid.SampledFrom([]byte("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")).Draw(t, "letter")
		c, err := Parse(string(changed), time.Time{})
		if err != nil || strings.EqualFold(string(changed), text) || !c.Equal(offer) {
			return
		}
		// The same secret is fine where the letter was not part of it: beside
		// the secret in a URI, or beyond the first letters of a word.
		if offer.Method() == MethodNumber || c.form() == text && c.Method() != MethodWords {
			t.Fatalf("%s is read as %s", changed, text)
		}
	})
}
