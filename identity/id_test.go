package identity

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write the golden vectors anew")

const vectorFile = "../testdata/vectors/identity.json"

type vectors struct {
	Comment    string   `json:"comment"`
	Identities []vector `json:"identities"`
}

type vector struct {
	SignSeed         string `json:"sign_seed"`
	WireGuardPrivate string `json:"wireguard_private"`
	Public           string `json:"public"`
	ID               string `json:"id"`
	Short            string `json:"short"`
	Addr             string `json:"addr"`
	Commitment       string `json:"commitment"`
	WireGuardPublic  string `json:"wireguard_public"`
	Signature        string `json:"signature"` // of the ASCII text "kith"
	KeyFile          string `json:"key_file"`
}

func vectorOf(t *testing.T, id *Identity) vector {
	t.Helper()
	public, commitment := id.ID(), id.ID().Commitment()
	private, wgPublic := id.WireGuardPrivate(), id.WireGuardPublic()
	return vector{
		SignSeed:         hex.EncodeToString(id.sign.Seed()),
		WireGuardPrivate: hex.EncodeToString(private[:]),
		Public:           hex.EncodeToString(public[:]),
		ID:               public.String(),
		Short:            public.Short(),
		Addr:             public.Addr().String(),
		Commitment:       hex.EncodeToString(commitment[:]),
		WireGuardPublic:  hex.EncodeToString(wgPublic[:]),
		Signature:        hex.EncodeToString(id.Sign([]byte("kith"))),
		KeyFile:          string(id.keyFile()),
	}
}

// The second identity has the keys of test 2 in RFC 8032 section 7.1 and of Bob
// in RFC 7748 section 6.1, so that its public keys can be looked up there.
func TestVectors(t *testing.T) {
	v := vectors{Comment: "Device identities of kith/1: package identity reads and makes this file (go test ./identity -update). " +
		"Bytes are in hexadecimal. The second has the keys of RFC 8032 section 7.1 test 2 and of Bob in RFC 7748 section 6.1."}
	for _, secrets := range [][2]string{
		{"9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60", strings.Repeat("01", 32)},
		{"4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb", "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"},
		{strings.Repeat("00", 32), strings.Repeat("ff", 32)},
	} {
		var sign, wg [32]byte
		n, err1 := hex.Decode(sign[:], []byte(secrets[0]))
		m, err2 := hex.Decode(wg[:], []byte(secrets[1]))
		if err := errors.Join(err1, err2); err != nil || n != 32 || m != 32 {
			t.Fatal(err, n, m)
		}
		id, err := FromSeeds(sign, wg)
		if err != nil {
			t.Fatal(err)
		}
		v.Identities = append(v.Identities, vectorOf(t, id))
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
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
		t.Errorf("%s is not what the code makes: if the protocol is meant to change, run go test ./identity -update", vectorFile)
	}
	var read vectors
	if err := json.Unmarshal(raw, &read); err != nil {
		t.Fatal(err)
	}
	for _, want := range read.Identities {
		id, err := parseKeyFile([]byte(want.KeyFile))
		if err != nil {
			t.Fatal(err)
		}
		if got := vectorOf(t, id); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		parsed, err := ParseDeviceID(want.ID)
		if err != nil || parsed != id.ID() {
			t.Errorf("%s: got %v, %v", want.ID, parsed, err)
		}
		sig, err := hex.DecodeString(want.Signature)
		if err != nil || !parsed.Verify([]byte("kith"), sig) || parsed.Verify([]byte("Kith"), sig) || parsed.Verify([]byte("kith"), sig[1:]) {
			t.Errorf("%s: the signature is not told from others, %v", want.ID, err)
		}
	}
}

func TestPublicKeysAreThoseOfTheRFCs(t *testing.T) {
	raw, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	if got, want := v.Identities[1].Public, "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"; got != want {
		t.Errorf("Ed25519: %s, want %s", got, want)
	}
	if got, want := v.Identities[1].WireGuardPublic, "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"; got != want {
		t.Errorf("X25519: %s, want %s", got, want)
	}
}

func TestDeviceIDComesBackFromItsText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := DeviceID(rapid.SliceOfN(rapid.Byte(), IDSize, IDSize).Draw(t, "id"))
		text := id.String()
		for _, form := range []string{text, strings.ToUpper(text), " " + text + "\n"} {
			if got, err := ParseDeviceID(form); err != nil || got != id {
				t.Fatalf("%q: %v, %v", form, got, err)
			}
		}
		if len(text) != 52 || !strings.HasPrefix(text, id.Short()) || len(id.Short()) != 8 {
			t.Fatalf("%q, %q", text, id.Short())
		}
		if !Prefix().Contains(id.Addr()) || !id.Addr().IsPrivate() {
			t.Fatalf("address %v", id.Addr())
		}
	})
}

func TestParseDeviceIDRefusesOtherText(t *testing.T) {
	text := seeds(t).ID().String()
	for name, bad := range map[string]string{
		"nothing":              "",
		"a letter too few":     text[1:],
		"a letter too much":    text + "a",
		"a digit not in it":    "1" + text[1:],
		"padded":               text + "====",
		"a space in it":        text[:20] + " " + text[20:],
		"a line break in it":   text[:20] + "\n" + text[20:],
		"loose bits":           strings.Repeat("a", 51) + "b",
		"hexadecimal":          strings.Repeat("ab", 32),
		"a megabyte of text":   strings.Repeat("a", 1<<20),
		"letters of elsewhere": "é" + text[2:],
	} {
		if id, err := ParseDeviceID(bad); !errors.Is(err, ErrID) || !id.IsZero() {
			t.Errorf("%s: got %v, %v", name, id, err)
		}
	}
}

func TestPrefixSpellsKith(t *testing.T) {
	if got := Prefix(); got != netip.MustParsePrefix("fd6b:6974:6800::/40") {
		t.Errorf("got %v", got)
	}
}

func TestIdentityPrintsAsRedacted(t *testing.T) {
	id, err := FromSeeds([32]byte(bytes.Repeat([]byte("S"), 32)), [32]byte(bytes.Repeat([]byte("W"), 32)))
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "id", id)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "id", id)
	out := log.String() + id.String() + id.GoString() + id.LogValue().String()
	holder := struct{ ID *Identity }{id}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%c"} {
		out += fmt.Sprintf(verb, id) + fmt.Sprintf(verb, holder)
	}
	for _, secret := range []string{"SSSS", "WWWW", "83 83", "87 87", "5353", "5757", "0x53", "0x57"} {
		if strings.Contains(out, secret) {
			t.Errorf("prints %q", secret)
		}
	}
	if raw, err := json.Marshal(id); err != nil || string(raw) != "{}" { //nolint:staticcheck // that it writes nothing is the test
		t.Errorf("JSON: %s, %v", raw, err)
	}
}

func FuzzParseDeviceID(f *testing.F) {
	f.Add(seeds(f).ID().String())
	f.Add("")
	f.Add(strings.Repeat("A", 52))
	f.Fuzz(func(t *testing.T, text string) {
		id, err := ParseDeviceID(text)
		if err != nil {
			return
		}
		if !strings.EqualFold(id.String(), strings.TrimSpace(text)) {
			t.Fatalf("%q is read as %v", text, id)
		}
	})
}
