package code

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

var testNow = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func mustNew(t testing.TB, m Method, opts Options) Code {
	t.Helper()
	if opts.Now.IsZero() {
		opts.Now = testNow
	}
	c, err := New(m, opts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustParse(t testing.TB, text string) Code {
	t.Helper()
	c, err := Parse(text, testNow)
	if err != nil {
		t.Fatalf("parse: %v", err)
	}
	return c
}

func endpoints(texts ...string) (out []netip.AddrPort) {
	for _, text := range texts {
		out = append(out, netip.MustParseAddrPort(text))
	}
	return out
}

func TestEveryFormOfAnOfferGivesTheJoinerTheSameKeys(t *testing.T) {
	for _, m := range []Method{MethodWords, MethodQR, MethodNumber} {
		t.Run(m.String(), func(t *testing.T) {
			offer := mustNew(t, m, Options{Commit: [16]byte{1}, Endpoints: endpoints("192.168.1.2:7")})
			want, err := offer.OfferKeys(testNow)
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range []string{offer.Words(), offer.URI(), offer.Number()} {
				if text == "" {
					continue
				}
				joiner := mustParse(t, text)
				got, err := joiner.Keys(testNow)
				if err != nil {
					t.Fatal(err)
				}
				if !slices.ContainsFunc(want, func(k Keys) bool { return k.Topic == got.Topic && k.Frame == got.Frame && k.PSK == got.PSK }) {
					t.Errorf("%v: no key of the offer is the joiner's", joiner.Method())
				}
				if !joiner.Equal(offer) || !offer.Equal(joiner) {
					t.Errorf("%v: not equal to the offer", joiner.Method())
				}
				if got.Frame == got.PSK || bytes.HasPrefix(got.Frame[:], got.Topic[:]) {
					t.Error("the keys are not apart from each other")
				}
			}
		})
	}
}

func TestNumberIsGoodForTheDaysAroundTheOffer(t *testing.T) {
	offer := mustNew(t, MethodNumber, Options{})
	want, err := offer.OfferKeys(testNow)
	if err != nil || len(want) != 3 {
		t.Fatalf("got %d keys, %v", len(want), err)
	}
	for days, index := range map[int]int{-2: -1, -1: 0, 0: 1, 1: 2, 2: -1} {
		keys, err := offer.Keys(testNow.AddDate(0, 0, days))
		if err != nil {
			t.Fatal(err)
		}
		if got := slices.IndexFunc(want, func(k Keys) bool { return k.Topic == keys.Topic }); got != index {
			t.Errorf("joiner whose clock is %d days off: meets on topic %d, want %d", days, got, index)
		}
	}
}

func TestTwoCodesAreNotEqual(t *testing.T) {
	a, b := mustNew(t, MethodWords, Options{}), mustNew(t, MethodWords, Options{})
	n, o := mustNew(t, MethodNumber, Options{}), mustNew(t, MethodNumber, Options{})
	all := []Code{a, b, n, o, {}}
	for i, x := range all {
		for j, y := range all {
			if got, want := x.Equal(y), i == j && !x.IsZero(); got != want {
				t.Errorf("codes %d and %d: equal %v, want %v", i, j, got, want)
			}
		}
	}
}

func TestNewRefusesWhatACodeCannotSay(t *testing.T) {
	long := strings.Repeat("h", MaxHint)
	tests := map[string]struct {
		method Method
		opts   Options
		say    string
	}{
		"no time":                 {MethodWords, Options{}, "Options.Now"},
		"short lifetime":          {MethodWords, Options{Now: testNow, Lifetime: time.Second}, "lifetime 1s"},
		"long lifetime":           {MethodQR, Options{Now: testNow, Lifetime: 61 * time.Minute}, "lifetime 1h1m"},
		"long lifetime, number":   {MethodNumber, Options{Now: testNow, Lifetime: 16 * time.Minute}, "lifetime 16m"},
		"negative lifetime":       {MethodWords, Options{Now: testNow, Lifetime: -time.Minute}, "lifetime -1m"},
		"clock in 1960":           {MethodWords, Options{Now: testNow.AddDate(-66, 0, 0)}, "clock"},
		"clock in 2106":           {MethodWords, Options{Now: testNow.AddDate(80, 0, 0)}, "clock"},
		"short":                   {MethodShort, Options{Now: testNow}, "short is not a method"},
		"no method":               {0, Options{Now: testNow}, "method(0)"},
		"too many hints":          {MethodQR, Options{Now: testNow, Hints: []string{"a", "b", "c", "d", "e"}}, "5 hints"},
		"empty hint":              {MethodQR, Options{Now: testNow, Hints: []string{""}}, "hint"},
		"long hint":               {MethodQR, Options{Now: testNow, Hints: []string{long + "h"}}, "hint"},
		"hint with a space":       {MethodQR, Options{Now: testNow, Hints: []string{"a b"}}, "hint"},
		"hint with a letter":      {MethodQR, Options{Now: testNow, Hints: []string{"ü"}}, "hint"},
		"hint that is a web link": {MethodQR, Options{Now: testNow, Hints: []string{"HTTPS://example.org"}}, "hint"},
		"more than one screen":    {MethodQR, Options{Now: testNow, Hints: []string{long, long, long}}, "screen"},
		"no randomness":           {MethodWords, Options{Now: testNow, Rand: iotest.ErrReader(io.ErrUnexpectedEOF)}, "randomness"},
		"no randomness, number":   {MethodNumber, Options{Now: testNow, Rand: iotest.ErrReader(io.ErrUnexpectedEOF)}, "randomness"},
		"broken randomness":       {MethodNumber, Options{Now: testNow, Rand: bytes.NewReader(bytes.Repeat([]byte{255}, 2000))}, "randomness"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if c, err := New(tt.method, tt.opts); err == nil || !strings.Contains(err.Error(), tt.say) || !c.IsZero() {
				t.Errorf("got error %v, want one that says %q", err, tt.say)
			}
		})
	}
}

func TestLifetime(t *testing.T) {
	for want, opts := range map[time.Duration]Options{
		DefaultLifetime: {},
		time.Minute:     {Lifetime: time.Minute},
		time.Hour:       {Lifetime: time.Hour},
	} {
		offer := mustNew(t, MethodQR, opts)
		for name, c := range map[string]Code{"offer": offer, "joiner": mustParse(t, offer.URI())} {
			if got := c.Expiry().Sub(testNow); got != want {
				t.Errorf("%s: good for %v, want %v", name, got, want)
			}
			end := testNow.Add(want)
			if c.Expired(end.Add(-time.Nanosecond)) || !c.Expired(end) || !c.Valid(testNow) || c.Valid(end) {
				t.Errorf("%s: does not end at %v", name, end)
			}
		}
		if c := mustParse(t, offer.Words()); !c.Expiry().IsZero() || c.Expired(testNow.AddDate(100, 0, 0)) {
			t.Errorf("words know an expiry: %v", c.Expiry())
		}
	}
}

func TestQRCarriesWhatTheOfferSays(t *testing.T) {
	opts := Options{
		Commit: [16]byte{15: 9},
		Endpoints: endpoints("8.8.8.8:53", "192.168.1.2:4000", "[fe80::1%eth0]:1", "[::ffff:10.0.0.1]:2",
			"192.168.1.2:4000", "10.0.0.9:0", "100.64.3.4:5", "[fd00::1]:6", "127.0.0.1:7"),
		Hints: []string{"mqtts://broker.example:8883", "waku:16/32"},
	}
	want := endpoints("192.168.1.2:4000", "[fe80::1]:1", "10.0.0.1:2", "100.64.3.4:5")
	offer := mustNew(t, MethodWords, opts)
	for name, c := range map[string]Code{"offer": offer, "joiner": mustParse(t, offer.URI())} {
		if got := c.Endpoints(); !slices.Equal(got, want) {
			t.Errorf("%s: endpoints %v, want %v", name, got, want)
		}
		if got := c.Hints(); !slices.Equal(got, opts.Hints) {
			t.Errorf("%s: hints %v", name, got)
		}
		if got, ok := c.Commit(); !ok || got != opts.Commit {
			t.Errorf("%s: commitment %v %v", name, got, ok)
		}
		c.Endpoints()[0], c.Hints()[0] = netip.AddrPort{}, ""
		if !slices.Equal(c.Endpoints(), want) || !slices.Equal(c.Hints(), opts.Hints) {
			t.Errorf("%s: a caller changed the code", name)
		}
	}
	if _, ok := mustParse(t, offer.Words()).Commit(); ok {
		t.Error("words carry a commitment")
	}
	if _, ok := mustNew(t, MethodQR, Options{}).Commit(); ok {
		t.Error("a commitment that nobody gave")
	}
}

func TestZeroCodeHasNothing(t *testing.T) {
	var c Code
	if c.Words()+c.Number()+c.URI() != "" || c.Method() != 0 || c.Valid(testNow) || c.Expired(testNow) || !c.IsZero() ||
		!c.Expiry().IsZero() || c.Endpoints() != nil || c.Hints() != nil {
		t.Error("a zero code says something")
	}
	if _, ok := c.Commit(); ok {
		t.Error("a zero code has a commitment")
	}
	_, err1 := c.Keys(testNow)
	_, err2 := c.OfferKeys(testNow)
	_, err3 := c.QR()
	_, err4 := mustNew(t, MethodNumber, Options{}).QR()
	for _, err := range []error{err1, err2, err3, err4} {
		if !errors.Is(err, ErrNone) {
			t.Errorf("got %v", err)
		}
	}
}

// Whatever prints a code, its keys or what holds them must not print a secret.
func TestSecretsPrintAsRedacted(t *testing.T) {
	offer := mustNew(t, MethodQR, Options{Rand: bytes.NewReader(bytes.Repeat([]byte("S"), 16))})
	number := mustNew(t, MethodNumber, Options{Rand: bytes.NewReader(bytes.Repeat([]byte{7}, 19))})
	keys, err := offer.Keys(testNow)
	if err != nil {
		t.Fatal(err)
	}
	m, err := offer.QR()
	if err != nil {
		t.Fatal(err)
	}
	secrets := []string{
		"SSSS", "83 83 83", "0x53, 0x53", "5353", "7777", "55 55 55", "0x37, 0x37", "true true",
		fmt.Sprintf("%d", keys.PSK[:4])[1:10], fmt.Sprintf("%x", keys.Topic[:4]), fmt.Sprintf("%#v", keys.Frame[:2])[7:15],
	}
	holder := struct {
		Code   Code
		Keys   Keys
		Matrix *Matrix
		hidden Code
	}{offer, keys, m, number}
	for _, value := range []any{offer, &offer, number, keys, &keys, m, holder, &holder, []Code{offer, number}} {
		var log bytes.Buffer
		slog.New(slog.NewTextHandler(&log, nil)).Info("x", "value", value)
		slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "value", value)
		out := log.String()
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%c", "%U", "%b", "%o"} {
			out += "\n" + verb + " " + fmt.Sprintf(verb, value)
		}
		if raw, err := json.Marshal(value); err == nil {
			out += string(raw)
		}
		for _, secret := range secrets {
			if i := strings.Index(out, secret); i >= 0 {
				t.Errorf("%T prints a secret (%q): %s", value, secret, out[max(0, i-40):min(len(out), i+40)])
			}
		}
	}
	if got := fmt.Sprint(offer, keys); got != "redacted redacted" {
		t.Errorf("got %q", got)
	}
	if text, err := keys.MarshalText(); err != nil || string(text) != "redacted" {
		t.Errorf("got %q, %v", text, err)
	}
	if got := offer.String() + offer.GoString() + keys.String() + keys.GoString() + m.String() + m.GoString() +
		offer.LogValue().String() + keys.LogValue().String() + m.LogValue().String(); got != strings.Repeat("redacted", 9) {
		t.Errorf("got %q", got)
	}
}

func TestParseErrorDoesNotRepeatWhatWasTyped(t *testing.T) {
	offer := mustNew(t, MethodWords, Options{Rand: bytes.NewReader(bytes.Repeat([]byte("S"), 16))})
	words := strings.Fields(offer.Words())
	words[3] = "sekret"
	_, err := Parse(strings.Join(words, " "), testNow)
	var e *ParseError
	if !errors.As(err, &e) || e.Word != "sekret" || len(e.Suggestions) == 0 {
		t.Fatalf("got %v", err)
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "err", e)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "err", e)
	out := log.String() + fmt.Sprintf("%v %+v %#v %s %q %x %d", err, err, err, err, err, err, err)
	for _, secret := range append(words, e.Suggestions...) {
		if strings.Contains(out, secret) {
			t.Errorf("the error repeats %q", secret)
		}
	}
}

func TestMethodNamesAreThoseOfTheTranscript(t *testing.T) {
	for m, want := range map[Method]string{1: "words", 2: "qr", 3: "number", 4: "short", 5: "intro", 6: "method(6)"} {
		if got := m.String(); got != want {
			t.Errorf("method %d: %q, want %q", uint8(m), got, want)
		}
	}
}
