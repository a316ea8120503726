package code

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden vectors anew")

const vectorFile = "../testdata/vectors/code.json"

type vectorKeys struct {
	Topic string `json:"topic"`
	Frame string `json:"frame"`
	PSK   string `json:"psk"`
}

type vectors struct {
	Comment string         `json:"comment"`
	Words   []wordsVector  `json:"words"`
	Numbers []numberVector `json:"numbers"`
	URIs    []uriVector    `json:"uris"`
	Invalid []badVector    `json:"invalid"`
}

type wordsVector struct {
	Entropy string `json:"entropy"`
	Words   string `json:"words"`
	vectorKeys
}

type numberVector struct {
	Digits string `json:"digits"`
	Day    int64  `json:"day"` // UTC days since 1970-01-01
	vectorKeys
}

type uriVector struct {
	Secret    string   `json:"secret"`
	Expiry    int64    `json:"expiry,omitempty"` // seconds since 1970
	Commit    string   `json:"commit,omitempty"`
	Endpoints []string `json:"endpoints,omitempty"`
	Hints     []string `json:"hints,omitempty"`
	Payload   string   `json:"payload"`
	Base32    string   `json:"base32"`
	Base64    string   `json:"base64"`
}

type badVector struct {
	Text string `json:"text"`
	Kind Kind   `json:"kind"`
	Why  string `json:"why"`
}

// The BIP39 vectors of 128 bits (github.com/trezor/python-mnemonic,
// vectors.json, and those of its first version).
var bip39 = [][2]string{
	{"00000000000000000000000000000000", "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about"},
	{"7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f", "legal winner thank year wave sausage worth useful legal winner thank yellow"},
	{"80808080808080808080808080808080", "letter advice cage absurd amount doctor acoustic avoid letter advice cage above"},
	{"ffffffffffffffffffffffffffffffff", "zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo wrong"},
	{"9e885d952ad362caeb4efe34a8e91bd2", "ozone drill grab fiber curtain grace pudding thank cruise elder eight picnic"},
	{"c0ba5a8e914111210f2bd131f3d5e08d", "scheme spot photo card baby mountain device kick cradle pact join borrow"},
	{"23db8160a31d3e0dca3688ed941adbf3", "cat swing flag economy stadium alone churn speed unique patch report train"},
	{"f30f8c1da665478f49b001d94c5fc452", "vessel ladder alter error federal sibling chat ability sun glass valve picture"},
	{"77c2b00716cec7213839159e404db50d", "jelly better achieve collect unaware mountain thought cargo oxygen act hood bridge"},
	{"0460ef47585604c5660618db2e6a7e7f", "afford alter spike radar gate glance object seek swamp infant panel yellow"},
	{"eaebabb2383351fd31d703840b32e9e2", "turtle front uncle idea crush write shrug there lottery flower risk shell"},
	{"18ab19a9f54a9274f03e5209a2ac8a91", "board flee heavy tunnel powder denial science ski answer betray cargo cat"},
}

func TestWordListIsThatOfBIP39(t *testing.T) {
	const want = "2f5eed53a4727b4bf8880d8f3f199efc90e58503646d9ff8eff3a2ed3b24dbda"
	if got := sha256.Sum256([]byte(wordlist)); hex.EncodeToString(got[:]) != want {
		t.Errorf("SHA-256 %x, want %s", got, want)
	}
	if len(english) != 2048 || !slices.IsSorted(english) {
		t.Errorf("%d words, sorted: %v", len(english), slices.IsSorted(english))
	}
}

func TestVectors(t *testing.T) {
	want := makeVectors(t)
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(want); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(vectorFile, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(raw, out.Bytes()) {
		t.Errorf("%s is not what the code makes: if the protocol is meant to change, run go test ./code -update", vectorFile)
	}

	var v vectors
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	for _, w := range v.Words {
		c := mustParse(t, w.Words)
		if got := hex.EncodeToString(c.get().secret[:]); got != w.Entropy || c.Words() != w.Words {
			t.Errorf("%s: got %s, %s", w.Entropy, got, c.Words())
		}
		checkKeys(t, c, testNow, w.vectorKeys)
	}
	for _, n := range v.Numbers {
		checkKeys(t, mustParse(t, n.Digits), time.Unix(n.Day*86400, 0), n.vectorKeys)
	}
	for _, u := range v.URIs {
		for _, text := range []string{u.Base32, u.Base64} {
			c, err := Parse(text, time.Time{})
			if err != nil {
				t.Fatal(err)
			}
			if got := uriVectorOf(c); got.Payload != u.Payload || got.Expiry != u.Expiry || got.Commit != u.Commit ||
				!slices.Equal(got.Endpoints, u.Endpoints) || !slices.Equal(got.Hints, u.Hints) || got.Secret != u.Secret {
				t.Errorf("%s: got %+v", text, got)
			}
		}
	}
	for _, b := range v.Invalid {
		_, err := Parse(b.Text, time.Time{})
		var e *ParseError
		if !errors.As(err, &e) || e.Kind != b.Kind {
			t.Errorf("%s: got %v, want kind %d", b.Why, err, b.Kind)
		}
	}
}

func checkKeys(t *testing.T, c Code, now time.Time, want vectorKeys) {
	t.Helper()
	if got := keysOf(t, c, now); got != want {
		t.Errorf("%v: keys %+v, want %+v", c.Method(), got, want)
	}
}

func keysOf(t *testing.T, c Code, now time.Time) vectorKeys {
	t.Helper()
	keys, err := c.Keys(now)
	if err != nil {
		t.Fatal(err)
	}
	return vectorKeys{
		Topic: hex.EncodeToString(keys.Topic[:]),
		Frame: hex.EncodeToString(keys.Frame[:]),
		PSK:   hex.EncodeToString(keys.PSK[:]),
	}
}

func uriVectorOf(c Code) uriVector {
	p := c.get()
	u := uriVector{
		Secret:  hex.EncodeToString(p.secret[:]),
		Hints:   p.hints,
		Payload: hex.EncodeToString(p.encode()),
		Base32:  c.URI(),
		Base64:  "kith:1#" + base64Text.EncodeToString(p.encode()),
	}
	if !p.expiry.IsZero() {
		u.Expiry = p.expiry.Unix()
	}
	if p.hasCommit {
		u.Commit = hex.EncodeToString(p.commit[:])
	}
	for _, e := range p.endpoints {
		u.Endpoints = append(u.Endpoints, e.String())
	}
	return u
}

// makeVectors computes what the file must hold.
func makeVectors(t *testing.T) vectors {
	v := vectors{Comment: "Codes of kith/1: package code reads and makes this file (go test ./code -update). Keys as in docs/protocol.md, everything in hexadecimal. " +
		"The entropy and words are those of BIP39."}
	for _, pair := range bip39 {
		c := mustParse(t, pair[1])
		v.Words = append(v.Words, wordsVector{Entropy: pair[0], Words: pair[1], vectorKeys: keysOf(t, c, testNow)})
	}
	for _, n := range []struct {
		digits string
		day    int64
	}{{"00000000000000000000", 0}, {"12345678901234567891", 20778}, {"12345678901234567891", 20779}} {
		c := mustParse(t, n.digits)
		v.Numbers = append(v.Numbers, numberVector{n.digits, n.day, keysOf(t, c, time.Unix(n.day*86400+86399, 0))})
	}
	full := payload{
		method:    MethodQR,
		secret:    [16]byte(bytes.Repeat([]byte{0x7f}, 16)),
		expiry:    time.Unix(1795262400, 0),
		commit:    [16]byte{0xc0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
		hasCommit: true,
		endpoints: []netip.AddrPort{
			netip.MustParseAddrPort("192.168.1.20:51820"), netip.MustParseAddrPort("100.64.0.9:4000"),
			netip.MustParseAddrPort("[fd12:3456:789a::1]:51820"), netip.MustParseAddrPort("[fe80::1]:1"),
		},
		hints: []string{"mqtts://broker.example:8883"},
	}
	plain := full
	plain.endpoints, plain.hints = nil, nil
	secret := payload{method: MethodQR, secret: plain.secret}
	for _, p := range []payload{secret, plain, full} {
		v.URIs = append(v.URIs, uriVectorOf(wrap(&p)))
	}
	v.Invalid = []badVector{
		{"legal winner thank year wave sausage worth useful legal winner thank zoo", KindWordSum, "words whose checksum does not fit"},
		{"legal winner thank year wave sausage worth useful legal winner thank", KindWordCount, "11 words"},
		{"legal winner thank year wave sausage worth useful legal winner thank yelow", KindWord, "a word that is not in the list"},
		{"12345678901234567890", KindDigitSum, "a number whose check digit does not fit"},
		{"1234567890123456789", KindDigitCount, "19 digits"},
		{items(1, secret16, 0x80, ""), KindVersion, "an unknown tag from 0x80 on"},
		{items(2, "\xff\xff\xff\xff"), KindURI, "no secret"},
		{items(1, secret16, 4, "\x04\x08\x08\x08\x08\x00\x35"), KindEndpoint, "an endpoint outside local networks"},
		{"kith:2#AA", KindVersion, "another version"},
		{"https://example.org/#kith:1", KindLink, "a web link"},
	}
	return v
}
