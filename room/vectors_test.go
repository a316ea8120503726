package room

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"testing"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/pairing/cpace"
)

var update = flag.Bool("update", false, "write the vectors anew")

const vectorFile = "../testdata/vectors/room.json"

// vectors are a room and one join with a password, in hexadecimal. The host and
// the joiner are those of device("host") and device("ann"), whose seeds are
// SHA-256("sign " || name) and SHA-256("wg " || name). j2 to j4 hold randomness
// of the run that wrote the file; from the secrets that stand beside them all of
// it can be opened again.
type vectors struct {
	Host, Salt, Room    string
	Words, URI          string
	Topic, Frame, PSK   string
	Short               string
	ShortTopic          string
	Password, Joiner    string
	J1, J2, J3, J4      string
	SID, PakeSID, H     string
	OpenKey, Key, YH    string
	Request, Answer     string
	Day                 int64
	Chain, PairID       string
	Roster              string
	PairOfMembers       string
	ChainOfMembers      string
	WireGuardProof, Tag string
}

func writeVectors(t *testing.T) vectors {
	t.Helper()
	x := hex.EncodeToString
	r := mustAdmit(t, found(t, "host", Password), "ann", "bob")
	c := longCode(t, r.Room)
	keys, err := c.Keys()
	if err != nil {
		t.Fatal(err)
	}
	short, err := code.ParseRoom("4820634")
	for n := '0'; err != nil && n <= '9'; n++ {
		short, err = code.ParseRoom("482063" + string(n))
	}
	if err != nil {
		t.Fatal(err)
	}
	shortKeys, err := short.Keys()
	if err != nil {
		t.Fatal(err)
	}
	n := newNetwork(t)
	h := n.addHost(HostConfig{Identity: device(t, "host"), Roster: mustSign(t, found(t, "host", Password).with(t, r), "host"), Password: "p\u00e4ss"})
	j := n.addJoiner("ann", JoinerConfig{Code: c, Password: "pa\u0308ss"})
	start := j.joiner.start
	n.join(j)
	agreed(t, h, j)
	v := vectors{
		Salt: x(r.Salt[:]), Room: r.Room.String(), Words: c.Words(), URI: c.URI(),
		Topic: x(keys.Topic[:]), Frame: x(keys.Frame[:]), PSK: x(keys.PSK[:]), Short: short.Short(), ShortTopic: x(shortKeys.Topic[:]),
		Password: "p\u00e4ss", J1: x(start.j1), SID: x(start.sid[:]), Day: j.grant.Chain.Day, Chain: x(j.grant.Chain.Key[:]), PairID: x(j.grant.PairID[:]),
	}
	hostID, annID := device(t, "host").ID(), device(t, "ann").ID()
	v.Host, v.Joiner = x(hostID[:]), x(annID[:])
	for _, p := range n.seen {
		f, err := h.host.sealers[0].Open(p.frame)
		if err != nil {
			t.Fatal(err)
		}
		switch f.Type {
		case frameJ2:
			v.J2 = x(f.Body)
		case frameJ3:
			v.J3 = x(f.Body)
		case frameJ4:
			v.J4 = x(f.Body)
		}
	}
	s := h.host.settled[start.sid].s
	v.H, v.OpenKey, v.Key, v.YH = x(s.h), x(s.open), x(s.key), x(s.yH)
	j2, err := hex.DecodeString(v.J2)
	if err != nil {
		t.Fatal(err)
	}
	_, _, nH, err := start.readJ2(j2)
	if err != nil {
		t.Fatal(err)
	}
	v.PakeSID = x(pakeSID(start.j1, nH))
	j3, err := hex.DecodeString(v.J3)
	if err != nil {
		t.Fatal(err)
	}
	v.Tag = x(j3[len(j3)-tagSize:])
	_, req, err := s.readRequest(j3[:cpace.PublicSize], j3[cpace.PublicSize:len(j3)-tagSize])
	if err != nil {
		t.Fatal(err)
	}
	j4, err := hex.DecodeString(v.J4)
	if err != nil {
		t.Fatal(err)
	}
	_, ans, err := s.readJ4(j4[1:], annID)
	if err != nil {
		t.Fatal(err)
	}
	v.Request, v.Answer = x(req), x(ans)
	raw, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	v.Roster = x(raw)
	chain, pairID, _, err := PairChain(device(t, "ann"), r, device(t, "bob").ID())
	if err != nil {
		t.Fatal(err)
	}
	v.ChainOfMembers, v.PairOfMembers = x(chain.Key[:]), x(pairID[:])
	sig := SignWireGuard(device(t, "ann"))
	v.WireGuardProof = x(sig[:])
	return v
}

// TestVectors checks that the code computes what the committed file says.
func TestVectors(t *testing.T) {
	if *update {
		raw, err := json.MarshalIndent(writeVectors(t), "", "  ")
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
	var v vectors
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	un := func(s string) []byte {
		t.Helper()
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	same := func(what string, got []byte, want string) {
		t.Helper()
		if hex.EncodeToString(got) != want {
			t.Errorf("%s is %x, the file says %s", what, got, want)
		}
	}
	host, ann := device(t, "host"), device(t, "ann")
	hostID, annID := host.ID(), ann.ID()
	same("the host", hostID[:], v.Host)
	id := NewID(hostID, [SaltSize]byte(un(v.Salt)))
	same("the room", id[:], v.Room)
	c := longCode(t, id)
	if c.Words() != v.Words || c.URI() != v.URI {
		t.Error("words or URI are others")
	}
	keys, err := c.Keys()
	if err != nil {
		t.Fatal(err)
	}
	same("topic", keys.Topic[:], v.Topic)
	same("frame key", keys.Frame[:], v.Frame)
	same("psk", keys.PSK[:], v.PSK)
	short, err := code.ParseRoom(v.Short)
	if err != nil {
		t.Fatal(err)
	}
	shortKeys, err := short.Keys()
	if err != nil {
		t.Fatal(err)
	}
	same("the short code's topic", shortKeys.Topic[:], v.ShortTopic)
	sid := sidOf(un(v.J1))
	same("sid", sid[:], v.SID)
	s := &secrets{h: un(v.H), open: un(v.OpenKey), key: un(v.Key), yH: un(v.YH)}
	yJ, sealed, ok := s.splitJ3(un(v.J3))
	if !ok {
		t.Fatal("the tag of j3 does not fit")
	}
	same("tag", s.tag(append(bytes.Clone(yJ), sealed...)), v.Tag)
	joiner, body, err := s.readRequest(yJ, sealed)
	if err != nil || joiner != annID {
		t.Fatalf("j3: %v", err)
	}
	same("request", body, v.Request)
	if _, err := decodeRequest(joiner, body); err != nil {
		t.Error(err)
	}
	by, ans, err := s.readJ4(un(v.J4)[1:], annID)
	if err != nil || by != hostID {
		t.Fatalf("j4: %v", err)
	}
	same("answer", ans, v.Answer)
	chain, pairID := s.pair(annID, hostID, v.Day)
	same("chain", chain.Key[:], v.Chain)
	same("pair id", pairID[:], v.PairID)
	r, err := DecodeRoster(un(v.Roster))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Verify(nil, id); err != nil {
		t.Error(err)
	}
	members, membersID, _, err := PairChain(ann, r, device(t, "bob").ID())
	if err != nil {
		t.Fatal(err)
	}
	same("the members' chain", members.Key[:], v.ChainOfMembers)
	same("the members' pair id", membersID[:], v.PairOfMembers)
	if !annID.Verify(wgProof(annID, ann.WireGuardPublic()), un(v.WireGuardProof)) {
		t.Error("the proof of the WireGuard key does not fit")
	}
	if wire.Day(start) != r.Day() {
		t.Errorf("the founding day is %d", r.Day())
	}
}
