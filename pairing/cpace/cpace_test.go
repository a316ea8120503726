package cpace

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"os"
	"strings"
	"testing"

	"github.com/gtank/ristretto255"
)

type vectors struct {
	LV []struct {
		Items []string `json:"items"`
		Out   string   `json:"out"`
	} `json:"length_value"`
	Runs []struct {
		PRS       string `json:"prs"`
		CI        string `json:"ci"`
		SID       string `json:"sid"`
		Generator string `json:"generator"`
		SecretA   string `json:"ya"`
		ADA       string `json:"ada"`
		PublicA   string `json:"Ya"`
		SecretB   string `json:"yb"`
		ADB       string `json:"adb"`
		PublicB   string `json:"Yb"`
		K         string `json:"k"`
		ISK       string `json:"isk_ir"`
	} `json:"runs"`
	Mult struct {
		S       string   `json:"s"`
		X       string   `json:"x"`
		Out     string   `json:"out"`
		Invalid []string `json:"invalid"`
	} `json:"scalar_mult"`
}

func load(t testing.TB) vectors {
	t.Helper()
	raw, err := os.ReadFile("../../testdata/vectors/cpace.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func scalar(t testing.TB, s string) *ristretto255.Scalar {
	t.Helper()
	y := ristretto255.NewScalar()
	if err := y.Decode(unhex(t, s)); err != nil {
		t.Fatal(err)
	}
	return y
}

func same(t *testing.T, what string, got []byte, want string) {
	t.Helper()
	if hex.EncodeToString(got) != want {
		t.Errorf("%s is\n%x, the draft says\n%s", what, got, want)
	}
}

// TestDraftVectors runs the vectors of the draft.
func TestDraftVectors(t *testing.T) {
	v := load(t)
	if len(v.Runs) != 2 || len(v.LV) != 5 {
		t.Fatal("the vectors are not all there")
	}
	for _, lv := range v.LV {
		var items [][]byte
		for _, i := range lv.Items {
			items = append(items, unhex(t, i))
		}
		same(t, "lv_cat", AppendLV(nil, items...), lv.Out)
	}
	for _, r := range v.Runs {
		prs, ci, sid, adA, adB := unhex(t, r.PRS), unhex(t, r.CI), unhex(t, r.SID), unhex(t, r.ADA), unhex(t, r.ADB)
		same(t, "generator", generator(prs, ci, sid).Encode(nil), r.Generator)
		a, err := start(Initiator, prs, ci, sid, adA, scalar(t, r.SecretA))
		if err != nil {
			t.Fatal(err)
		}
		b, err := start(Responder, prs, ci, sid, adB, scalar(t, r.SecretB))
		if err != nil {
			t.Fatal(err)
		}
		same(t, "Ya", a.Public(), r.PublicA)
		same(t, "Yb", b.Public(), r.PublicB)
		k, err := multiply(scalar(t, r.SecretA), b.Public())
		if err != nil {
			t.Fatal(err)
		}
		if r.K != "" {
			same(t, "K", k, r.K)
		}
		keyA, err := a.Finish(b.Public(), adB)
		if err != nil {
			t.Fatal(err)
		}
		keyB, err := b.Finish(a.Public(), adA)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "ISK of A", keyA, r.ISK)
		same(t, "ISK of B", keyB, r.ISK)
		if _, err := a.Finish(b.Public(), adB); !errors.Is(err, ErrDone) {
			t.Errorf("a second Finish: %v, want ErrDone", err)
		}
	}
	out, err := multiply(scalar(t, v.Mult.S), unhex(t, v.Mult.X))
	if err != nil {
		t.Fatal(err)
	}
	same(t, "scalar_mult", out, v.Mult.Out)
	for _, bad := range v.Mult.Invalid {
		if _, err := multiply(scalar(t, v.Mult.S), unhex(t, bad)); !errors.Is(err, ErrPeer) {
			t.Errorf("the invalid point %s was taken: %v", bad, err)
		}
	}
}

// TestNotCanonical gives encodings that are not the one of their point: values
// of the field's prime and above, negative values, the wrong length.
func TestNotCanonical(t *testing.T) {
	e, err := Start(Initiator, []byte("p"), nil, []byte("sid"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	le := func(n *big.Int) []byte {
		b := n.FillBytes(make([]byte, 32))
		for i, j := 0, 31; i < j; i, j = i+1, j-1 {
			b[i], b[j] = b[j], b[i]
		}
		return b
	}
	p := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	bad := map[string][]byte{
		"empty": nil, "short": make([]byte, 31), "long": make([]byte, 33),
		"prime": le(p), "prime and one": le(new(big.Int).Add(p, big.NewInt(1))),
		"prime and two": le(new(big.Int).Add(p, big.NewInt(2))),
		"minus one":     le(new(big.Int).Sub(p, big.NewInt(1))),
		"one":           le(big.NewInt(1)), // odd: negative
		"all bits":      bytes.Repeat([]byte{0xff}, 32),
	}
	high := e.Public()
	high[31] |= 0x80
	bad["a point with the unused bit set"] = high
	for name, peer := range bad {
		if _, err := e.Finish(peer, nil); !errors.Is(err, ErrPeer) {
			t.Errorf("%s was taken: %v", name, err)
		}
	}
	if _, err := e.Finish(e.Public(), nil); err != nil {
		t.Errorf("after refused values the run is not over: %v", err)
	}
}

// TestKeysDiffer changes one input at a time: no two runs may agree.
func TestKeysDiffer(t *testing.T) {
	type in struct{ prs, ci, sid, ad string }
	base := in{"password", "ci", "sid", "ad"}
	run := func(a, b in, sides [2]Side) bool {
		t.Helper()
		x, err := Start(sides[0], []byte(a.prs), []byte(a.ci), []byte(a.sid), []byte(a.ad), nil)
		if err != nil {
			t.Fatal(err)
		}
		y, err := Start(sides[1], []byte(b.prs), []byte(b.ci), []byte(b.sid), []byte("peer"), nil)
		if err != nil {
			t.Fatal(err)
		}
		kx, err := x.Finish(y.Public(), []byte("peer"))
		if err != nil {
			t.Fatal(err)
		}
		ky, err := y.Finish(x.Public(), []byte(b.ad))
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Equal(kx, ky)
	}
	both := [2]Side{Initiator, Responder}
	if !run(base, base, both) {
		t.Fatal("two sides with the same inputs disagree")
	}
	for name, other := range map[string]in{
		"password": {"Password", "ci", "sid", "ad"}, "channel": {"password", "cj", "sid", "ad"},
		"session": {"password", "ci", "sie", "ad"}, "associated data": {"password", "ci", "sid", "ae"},
	} {
		if run(base, other, both) {
			t.Errorf("another %s gives the same key", name)
		}
	}
	if run(base, base, [2]Side{Initiator, Initiator}) {
		t.Error("two initiators agree: a reflected message would be taken")
	}
}

func TestStartErrs(t *testing.T) {
	if _, err := Start(Initiator, nil, nil, nil, nil, nil); err == nil {
		t.Error("an empty password was taken")
	}
	if _, err := Start(0, []byte("p"), nil, nil, nil, nil); err == nil {
		t.Error("no side was taken")
	}
	if _, err := Start(Initiator, []byte("p"), nil, nil, nil, strings.NewReader("short")); err == nil {
		t.Error("short randomness was taken")
	}
}

func TestPrintsNothing(t *testing.T) {
	e, err := Start(Initiator, []byte("p"), nil, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
		if got := fmt.Sprintf(verb, e); got != "redacted" {
			t.Errorf("%s prints %q", verb, got)
		}
	}
}

func FuzzFinish(f *testing.F) {
	f.Add(make([]byte, 32))
	f.Add(bytes.Repeat([]byte{0xff}, 32))
	e, err := Start(Responder, []byte("p"), nil, nil, nil, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(e.Public())
	f.Fuzz(func(t *testing.T, peer []byte) {
		e, err := Start(Initiator, []byte("p"), nil, nil, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		key, err := e.Finish(peer, nil)
		if (err == nil) != (len(key) == KeySize) {
			t.Errorf("%d bytes of key, %v", len(key), err)
		}
		if err != nil && !errors.Is(err, ErrPeer) {
			t.Errorf("err is %v", err)
		}
	})
}
