package pairing

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"reflect"
	"testing"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/internal/wire"
)

var update = flag.Bool("update", false, "write the vectors anew")

const vectorFile = "../testdata/vectors/pairing.json"

// vectors is a whole handshake and what follows from it, in hexadecimal. The
// identities are those of testIdentity "phone" (joiner) and "desk" (offerer); the
// joiner's randomness is given, so that it can be rebuilt and read m2, which holds
// the ML-KEM randomness of the run that wrote the file. The days in both infos are
// 20000 and 20001: the chain begins on the first.
type vectors struct {
	Method    string      `json:"method"`
	PSK       string      `json:"psk"`
	Ephemeral string      `json:"joiner_ephemeral"` // X25519 private key
	NJ        string      `json:"n_joiner"`
	KEMSeed   string      `json:"joiner_mlkem_seed"` // d || z (FIPS 203)
	IDJ       string      `json:"id_joiner"`
	IDO       string      `json:"id_offerer"`
	PreparedJ string      `json:"commit_body_prepared_joiner"`
	UnpairO   string      `json:"commit_body_unpair_offerer"`
	RejectO   string      `json:"reject_body_refused_offerer"`
	M1        string      `json:"m1"`
	SID       string      `json:"sid"`
	M2        string      `json:"m2"`
	H         string      `json:"handshake_hash"`
	KS        string      `json:"ks"`
	InfoJ     string      `json:"info_joiner"`
	M3        string      `json:"m3"`
	InfoO     string      `json:"info_offerer"`
	M4        string      `json:"m4"`
	Root      string      `json:"root"`
	PairID    string      `json:"pair_id"`
	Check     string      `json:"check_number"`
	Long      string      `json:"verify_number"`
	CommitJ   string      `json:"commit_joiner"`
	CommitO   string      `json:"commit_offerer"`
	Days      []dayVector `json:"days"`
}

type dayVector struct {
	Day          int64  `json:"day"`
	Chain        string `json:"chain"`
	TopicJO      string `json:"topic_joiner_to_offerer"`
	TopicOJ      string `json:"topic_offerer_to_joiner"`
	FrameJO      string `json:"frame_key_joiner_to_offerer"`
	FrameOJ      string `json:"frame_key_offerer_to_joiner"`
	ProbeJO      string `json:"probe_key_joiner_to_offerer"`
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

// runVectors makes the vectors, with m2 of an earlier run if one is given.
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
		Root: hex.EncodeToString(k.root), PairID: hex.EncodeToString(k.id[:]), Check: k.check, Long: k.long,
		CommitJ: hex.EncodeToString(k.commitJ[:]), CommitO: hex.EncodeToString(k.commitO[:]),
	}
	idJ, idO := phone.ID(), desk.ID()
	v.Ephemeral, v.NJ = hex.EncodeToString(j.seed[:]), hex.EncodeToString(j.nJ[:])
	v.KEMSeed, v.IDJ, v.IDO = hex.EncodeToString(j.dk.Bytes()), hex.EncodeToString(idJ[:]), hex.EncodeToString(idO[:])
	commitBody := func(role Role, say func(*Commit)) string {
		c, err := NewCommit(Prepared, k.id, role, k.commitJ, k.commitO, &fixedRandom{name: "commit"})
		check(err)
		say(c)
		a, ok := c.Poll()
		if !ok || a.Kind != CommitSend {
			t.Fatalf("the commit phase wants %+v", a)
		}
		return hex.EncodeToString(a.Body)
	}
	v.PreparedJ = commitBody(Joiner, func(c *Commit) { c.sendState() })
	v.UnpairO = commitBody(Offerer, func(c *Commit) { c.state = Tomb; c.sendState() })
	rejection, err := wire.SealMessage(wire.Expand(sj.ks, "ctl O"), sj.h, []byte{byte(Refused)}, &fixedRandom{name: "reject"})
	check(err)
	v.RejectO = hex.EncodeToString(rejection)
	for _, day := range []int64{20000, 20001, 20400} {
		c, err := k.chainKey(20000).At(day)
		check(err)
		hexOf := func(b []byte) string { return hex.EncodeToString(b) }
		topicJ, topicO, psk := c.Topic(Joiner), c.Topic(Offerer), c.WireGuardPSK()
		frameJ, frameO, probeJ, probeO := c.FrameKey(Joiner), c.FrameKey(Offerer), c.ProbeKey(Joiner), c.ProbeKey(Offerer)
		v.Days = append(v.Days, dayVector{
			Day: day, Chain: hexOf(c.Key[:]), TopicJO: hexOf(topicJ[:]), TopicOJ: hexOf(topicO[:]),
			FrameJO: hexOf(frameJ[:]), FrameOJ: hexOf(frameO[:]), ProbeJO: hexOf(probeJ[:]), ProbeOJ: hexOf(probeO[:]),
			WireGuardPSK: hexOf(psk[:]),
		})
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
	want := readVectors(t)
	if got := runVectors(t, &want); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}
