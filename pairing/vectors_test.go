package pairing

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/kithproject/kith/code"
)

var update = flag.Bool("update", false, "write the vectors anew")

const vectorFile = "../testdata/vectors/pairing.json"

// vectors is a whole handshake and what follows from it, in hexadecimal. The
// identities are those of testIdentity "phone" (joiner) and "desk" (offerer), the
// joiner's randomness is SHA-256("joiner" || i) for i = 0, 1, …, and the code's
// psk is as given. m2 holds ML-KEM randomness of the run that wrote the file.
type vectors struct {
	Method  string      `json:"method"`
	PSK     string      `json:"psk"`
	M1      string      `json:"m1"`
	SID     string      `json:"sid"`
	M2      string      `json:"m2"`
	H       string      `json:"handshake_hash"`
	KS      string      `json:"ks"`
	InfoJ   string      `json:"info_joiner"`
	M3      string      `json:"m3"`
	InfoO   string      `json:"info_offerer"`
	M4      string      `json:"m4"`
	Root    string      `json:"root"`
	PairID  string      `json:"pair_id"`
	Check   string      `json:"check_number"`
	CommitJ string      `json:"commit_joiner"`
	CommitO string      `json:"commit_offerer"`
	Days    []dayVector `json:"days"`
}

type dayVector struct {
	Day          int64  `json:"day"`
	Chain        string `json:"chain"`
	TopicJO      string `json:"topic_joiner_to_offerer"`
	TopicOJ      string `json:"topic_offerer_to_joiner"`
	FrameJO      string `json:"frame_key_joiner_to_offerer"`
	ProbeOJ      string `json:"probe_key_offerer_to_joiner"`
	WireGuardPSK string `json:"wireguard_psk"`
}

// fixedRandom is SHA-256(name || 0), SHA-256(name || 1), …
type fixedRandom struct {
	name string
	n    byte
	rest []byte
}

func (f *fixedRandom) Read(b []byte) (int, error) {
	for i := range b {
		if len(f.rest) == 0 {
			sum := sha256.Sum256(append([]byte(f.name), f.n))
			f.rest = sum[:]
			f.n++
		}
		b[i], f.rest = f.rest[0], f.rest[1:]
	}
	return len(b), nil
}

// run makes the vectors; m2 and m4 of an earlier run are used if they are given.
func runVectors(t *testing.T, frozen *vectors) vectors {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	keys := testKeys(t, "vector")
	phone, desk := testIdentity(t, "phone"), testIdentity(t, "desk")
	j, err := newJoinerHandshake(keys, code.MethodWords, &fixedRandom{name: "joiner"})
	check(err)
	m2, commitment, so, err := answerM1(keys, code.MethodWords, j.m1, &fixedRandom{name: "offerer"})
	check(err)
	infoJ, err := Info{Name: "phone", OS: "android", WireGuard: phone.WireGuardPublic(), Version: "1", Day: 20000}.encode()
	check(err)
	infoO, err := Info{Name: "desk", OS: "linux", WireGuard: desk.WireGuardPublic(), Version: "1", Day: 20001}.encode()
	check(err)
	if frozen != nil {
		m2 = unhex(t, frozen.M2)
	}
	sj, err := j.readM2(m2)
	check(err)
	m3, err := sj.writeM3(phone, infoJ)
	check(err)
	if frozen == nil {
		_, _, err = so.readM3(m3, commitment, desk.ID())
		check(err)
	} else {
		so = sj // the offerer's half is the same; its ML-KEM randomness is not in the file
	}
	m4, err := so.writeM4(desk, phone.ID(), infoO)
	check(err)
	offerer, info, err := sj.readM4(m4, phone.ID())
	check(err)
	if offerer != desk.ID() || !bytes.Equal(info, infoO) {
		t.Fatal("m4 says something else")
	}
	k := sj.finish(phone.ID(), desk.ID())
	v := vectors{
		Method: "words", PSK: hex.EncodeToString(keys.PSK[:]), M1: hex.EncodeToString(j.m1), SID: hex.EncodeToString(j.sid[:]),
		M2: hex.EncodeToString(m2), H: hex.EncodeToString(sj.h), KS: hex.EncodeToString(sj.ks),
		InfoJ: hex.EncodeToString(infoJ), M3: hex.EncodeToString(m3), InfoO: hex.EncodeToString(infoO), M4: hex.EncodeToString(m4),
		Root: hex.EncodeToString(k.root), PairID: hex.EncodeToString(k.id[:]), Check: k.check,
		CommitJ: hex.EncodeToString(k.commitJ[:]), CommitO: hex.EncodeToString(k.commitO[:]),
	}
	for _, day := range []int64{20000, 20001, 20400} {
		c, err := k.chainKey(20000).At(day)
		check(err)
		hexOf := func(b []byte) string { return hex.EncodeToString(b) }
		jo, oj, fr, pr, psk := c.Topic(Joiner), c.Topic(Offerer), c.FrameKey(Joiner), c.ProbeKey(Offerer), c.WireGuardPSK()
		v.Days = append(v.Days, dayVector{day, hexOf(c.Key[:]), hexOf(jo[:]), hexOf(oj[:]), hexOf(fr[:]), hexOf(pr[:]), hexOf(psk[:])})
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

// TestVectors freezes the handshake and the keys: whoever changes a byte of the
// protocol changes this file.
func TestVectors(t *testing.T) {
	if *update {
		raw, err := json.MarshalIndent(runVectors(t, nil), "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(vectorFile, append(raw, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	var want vectors
	if err := json.Unmarshal(raw, &want); err != nil {
		t.Fatal(err)
	}
	if got := runVectors(t, &want); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}
