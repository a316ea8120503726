package wire

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"reflect"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20"
	"golang.org/x/crypto/chacha20poly1305"
)

var update = flag.Bool("update", false, "write the vectors anew")

const vectorFile = "../../testdata/vectors/wire.json"

// vectors are the frame and the derivations, bytes in hexadecimal.
type vectors struct {
	Extract []extractVector `json:"extract"`
	Expand  []expandVector  `json:"expand"`
	Frames  []frameVector   `json:"frames"`
	Days    []dayVector     `json:"days"`
}

type extractVector struct {
	Salt   string `json:"salt"`
	Secret string `json:"secret"`
	Key    string `json:"key"`
}

type expandVector struct {
	Key   string   `json:"key"`
	Name  string   `json:"name"`
	Items []string `json:"items"`
	Info  string   `json:"info"`
	Out   string   `json:"out"`
}

type frameVector struct {
	Key   string `json:"key"`
	Nonce string `json:"nonce"`
	Type  byte   `json:"type"`
	SID   string `json:"sid"`
	Body  string `json:"body"`
	Frame string `json:"frame"`
}

type dayVector struct {
	Unix int64  `json:"unix"` // seconds
	Day  int64  `json:"day"`
	Item string `json:"item"`
}

func pattern(n int, first byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = first + byte(i)
	}
	return b
}

func makeVectors(t *testing.T) vectors {
	t.Helper()
	x := hex.EncodeToString
	var v vectors
	for _, in := range [][2][]byte{{[]byte("kith/1 code/strong"), pattern(16, 0)}, {pattern(32, 1), pattern(96, 2)}, {{}, {}}} {
		v.Extract = append(v.Extract, extractVector{x(in[0]), x(in[1]), x(Extract(in[0], in[1]))})
	}
	for _, in := range []struct {
		name  string
		items [][]byte
	}{
		{"topic", [][]byte{}},
		{"topic", [][]byte{[]byte("joiner->offerer")}},
		{"root", [][]byte{pattern(32, 3), pattern(32, 4), pattern(32, 5)}},
		{"chain", [][]byte{DayItem(20778)}},
		{"chain", [][]byte{{}, DayItem(20778)}},
		{"chain", [][]byte{DayItem(20778), {}}},
	} {
		e := expandVector{Key: x(pattern(32, 9)), Name: in.name, Items: []string{}, Out: x(Expand(pattern(32, 9), in.name, in.items...))}
		for _, item := range in.items {
			e.Items = append(e.Items, x(item))
		}
		e.Info = x(AppendItems([]byte(Label(in.name)), in.items...))
		v.Expand = append(v.Expand, e)
	}
	for _, f := range []Frame{
		{Type: 1, SID: SID(pattern(8, 7)), Body: []byte("hello")},
		{Type: 0x10, Body: []byte{}},
		{Type: 0xff, SID: SID(pattern(8, 0xf8)), Body: pattern(MaxBody, 0)},
	} {
		s, err := NewSealer(pattern(32, 9))
		if err != nil {
			t.Fatal(err)
		}
		nonce := pattern(24, f.Type)
		raw, err := s.Seal(bytes.NewReader(nonce), f)
		if err != nil {
			t.Fatal(err)
		}
		v.Frames = append(v.Frames, frameVector{x(pattern(32, 9)), x(nonce), f.Type, x(f.SID[:]), x(f.Body), x(raw)})
	}
	for _, s := range []int64{0, 1, 86399, 86400, 1795219200, 1795219199, -1, -86400, -86401} {
		day := Day(time.Unix(s, 0))
		v.Days = append(v.Days, dayVector{s, day, x(DayItem(day))})
	}
	return v
}

// TestVectors freezes the frame and the derivations.
func TestVectors(t *testing.T) {
	got := makeVectors(t)
	if *update {
		raw, err := json.MarshalIndent(got, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(vectorFile, append(raw, '\n'), 0o644); err != nil { // part of the source
			t.Fatal(err)
		}
	}
	if want := readVectors(t); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func readVectors(t *testing.T) vectors {
	t.Helper()
	raw, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestVectorsByTheBook reads the vectors with nothing of this package: HKDF from
// HMAC (RFC 5869 section 2), XChaCha20-Poly1305 from HChaCha20 and
// ChaCha20-Poly1305 (draft-irtf-cfrg-xchacha section 2.3), and the layout of
// docs/protocol.md.
func TestVectorsByTheBook(t *testing.T) {
	mac := func(key []byte, parts ...[]byte) []byte {
		h := hmac.New(sha256.New, key)
		for _, p := range parts {
			h.Write(p)
		}
		return h.Sum(nil)
	}
	v := readVectors(t)
	for _, e := range v.Extract {
		if got := hex.EncodeToString(mac(unhex(t, e.Salt), unhex(t, e.Secret))); got != e.Key {
			t.Errorf("extract: got %s, want %s", got, e.Key)
		}
	}
	for _, e := range v.Expand {
		info := []byte("kith/1 " + e.Name)
		for _, item := range e.Items {
			b := unhex(t, item)
			info = append(append(info, 0, 0, byte(len(b)>>8), byte(len(b))), b...)
		}
		if got := hex.EncodeToString(info); got != e.Info {
			t.Errorf("info: got %s, want %s", got, e.Info)
		}
		if got := hex.EncodeToString(mac(unhex(t, e.Key), info, []byte{1})); got != e.Out {
			t.Errorf("expand %s: got %s, want %s", e.Name, got, e.Out)
		}
	}
	for _, f := range v.Frames {
		raw, nonce := unhex(t, f.Frame), unhex(t, f.Nonce)
		sub, err := chacha20.HChaCha20(unhex(t, f.Key), nonce[:16])
		if err != nil {
			t.Fatal(err)
		}
		aead, err := chacha20poly1305.New(sub)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := aead.Open(nil, append(make([]byte, 4), nonce[16:]...), raw[24:], []byte("kith/1 frame"))
		if err != nil || len(raw) != 1340 || len(plain) != 1300 || !bytes.Equal(raw[:24], nonce) {
			t.Fatalf("frame of %d bytes, plaintext of %d: %v", len(raw), len(plain), err)
		}
		body := unhex(t, f.Body)
		want := binary.BigEndian.AppendUint16(nil, uint16(9+len(body)))
		want = append(append(append(want, f.Type), unhex(t, f.SID)...), body...)
		want = append(want, make([]byte, 1300-len(want))...)
		if !bytes.Equal(plain, want) {
			t.Errorf("plaintext %x\nwant      %x", plain, want)
		}
	}
	for _, d := range v.Days {
		if start := d.Day * 86400; d.Unix < start || d.Unix >= start+86400 {
			t.Errorf("%d s is not on day %d", d.Unix, d.Day)
		}
		if got := int64(binary.BigEndian.Uint64(unhex(t, d.Item))); got != d.Day {
			t.Errorf("item of day %d says %d", d.Day, got)
		}
	}
}

// TestItemsAreUnambiguous holds what the length prefixes are for.
func TestItemsAreUnambiguous(t *testing.T) {
	seen := map[string]bool{}
	for _, items := range [][][]byte{
		nil, {{}}, {{}, {}}, {[]byte("ab")}, {[]byte("a"), []byte("b")}, {[]byte("ab"), {}}, {{}, []byte("ab")}, {{0, 0, 0, 0}},
	} {
		out := string(Expand(make([]byte, 32), "x", items...))
		if seen[out] {
			t.Errorf("%q gives the key of another list", items)
		}
		seen[out] = true
	}
}
