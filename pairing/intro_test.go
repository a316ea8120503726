package pairing

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
)

var introSecret = sha256.Sum256([]byte("introduction"))

// introduced returns the configurations of two devices that a third has introduced, and
// that of the third one in the role of either, with the secret that it gave them.
func introduced(t testing.TB) (offerer, joiner, third Config) {
	t.Helper()
	keys := []code.Keys{code.IntroKeys(introSecret)}
	side := func(role Role, own, other string) Config {
		id := testIdentity(t, own)
		return Config{
			Role: role, Identity: id, Keys: keys, Method: code.MethodIntro, AutoAccept: true, Lifetime: 7 * 24 * time.Hour,
			Info: Info{Name: own, OS: "linux", Day: 20778, WireGuard: id.WireGuardPublic()}, Pin: pinOf(t, other),
		}
	}
	return side(Offerer, "desk", "phone"), side(Joiner, "phone", "desk"), side(Joiner, "laptop", "desk")
}

func pinOf(t testing.TB, name string) *Pin {
	id := testIdentity(t, name)
	return &Pin{ID: id.ID(), WireGuard: id.WireGuardPublic()}
}

func TestIntroduction(t *testing.T) {
	oc, jc, _ := introduced(t)
	o, j := newSide(t, oc), newSide(t, jc)
	exchange(o, j, t0)
	wantPaired(t, o, j)
	for _, s := range []*side{o, j} {
		if s.disk.CheckVerified || s.disk.Method != code.MethodIntro {
			t.Errorf("recorded as verified %v, by %v", s.disk.CheckVerified, s.disk.Method)
		}
	}
	if o.disk.Check != j.disk.Check || len(o.disk.Check) != 12 {
		t.Errorf("check numbers %q and %q", o.disk.Check, j.disk.Check)
	}
}

// TestIntroductionConfig holds that a pin and the method of introductions come together.
func TestIntroductionConfig(t *testing.T) {
	oc, _, _ := introduced(t)
	words, _ := configs(t)
	for name, change := range map[string]func() Config{
		"an introduction without a pin": func() Config { c := oc; c.Pin = nil; return c },
		"words with a pin":              func() Config { c := words; c.Pin = oc.Pin; return c },
		"a method that is not made":     func() Config { c := words; c.Method = code.MethodShort; return c },
	} {
		if _, err := New(change(), t0); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v, want ErrConfig", name, err)
		}
	}
}

// TestIntroductionPins holds that nobody but the pinned device is paired with, whoever
// knows the secret, and that this neither ends the introduction nor tells him anything:
// the pinned device is paired afterwards.
func TestIntroductionPins(t *testing.T) {
	for name, change := range map[string]func(o, j *Config){
		"the joiner is the introducer":  func(_, j *Config) { j.Identity, j.Info.WireGuard = keysOf(t, "laptop") },
		"the offerer is the introducer": func(o, _ *Config) { o.Identity, o.Info.WireGuard = keysOf(t, "laptop") },
		"the joiner's tunnel key is another's": func(_, j *Config) {
			_, j.Info.WireGuard = keysOf(t, "laptop")
		},
		"the offerer's tunnel key is another's": func(o, _ *Config) {
			_, o.Info.WireGuard = keysOf(t, "laptop")
		},
	} {
		t.Run(name, func(t *testing.T) {
			oc, jc, _ := introduced(t)
			honestO, honestJ := oc, jc
			change(&oc, &jc)
			o, j := newSide(t, oc), newSide(t, jc)
			exchange(o, j, t0)
			now := t0
			for range 40 { // seconds, in which both repeat what they say
				now = now.Add(time.Second)
				o.tick(now)
				j.tick(now)
				exchange(o, j, now)
			}
			honest, said := o, 0
			if jc.Identity == honestJ.Identity && jc.Info.WireGuard == honestJ.Info.WireGuard {
				honest = j
			}
			if honest.disk != nil {
				t.Fatal("a pair was stored")
			}
			for _, e := range honest.events {
				if e.Kind == EventSecondDevice {
					said++
				}
				if e.Kind == EventFailed || e.Kind == EventCheck {
					t.Errorf("event %v", e.Kind)
				}
			}
			if said != 1 {
				t.Errorf("the user was warned %d times, want once", said)
			}
			if honest == j {
				o = newSide(t, honestO)
			} else {
				j = newSide(t, honestJ)
			}
			for range 400 {
				now = now.Add(time.Second)
				o.tick(now)
				j.tick(now)
				exchange(o, j, now)
			}
			wantPaired(t, o, j)
		})
	}
}

func keysOf(t testing.TB, name string) (*identity.Identity, [32]byte) {
	id := testIdentity(t, name)
	return id, id.WireGuardPublic()
}

func (s *side) tick(now time.Time) {
	if next := s.m.Next(); !next.IsZero() && !now.Before(next) {
		s.m.Tick(now)
		s.drain(now)
	}
}

// TestIntroducerBetween holds that the introducer cannot stand between the two: what the
// joiner has proved to it is no proof to the offerer.
func TestIntroducerBetween(t *testing.T) {
	oc, jc, bc := introduced(t)
	o, j := newSide(t, oc), newSide(t, jc)
	bo := bc
	bo.Role = Offerer
	bo.Pin = pinOf(t, "phone")
	toJoiner := newSide(t, bo)
	bc.Pin = pinOf(t, "desk")
	toOfferer := newSide(t, bc)

	// With the joiner: it proves itself to the introducer, who poses as an offerer.
	m1 := j.out[0]
	toJoiner.m.Receive(t0, 0, m1.frame)
	toJoiner.drain(t0)
	for _, f := range toJoiner.out {
		j.m.Receive(t0, 0, f.frame)
		j.drain(t0)
	}
	var sealed []byte
	for _, f := range j.out {
		if fr, err := j.m.sealers[0].Open(f.frame); err == nil && fr.Type == frameM3 {
			sealed = fr.Body
		}
	}
	if sealed == nil {
		t.Fatal("the joiner sends no m3")
	}
	s := toJoiner.m.offerer.sessions[j.m.sid].secrets
	proof, err := s.once(keyJoinerToOfferer, false, sealed)
	if err != nil {
		t.Fatal(err)
	}
	// With the offerer: the introducer gives that proof as its own.
	o.m.Receive(t0, 0, toOfferer.out[0].frame)
	o.drain(t0)
	for _, f := range o.out {
		toOfferer.m.Receive(t0, 0, f.frame)
	}
	if toOfferer.m.secrets == nil {
		t.Fatal("the offerer sends no m2")
	}
	forged, err := toOfferer.m.secrets.once(keyJoinerToOfferer, true, proof)
	if err != nil {
		t.Fatal(err)
	}
	frame, err := toOfferer.m.sealers[0].Seal(rand.Reader, wire.Frame{Type: frameM3, SID: toOfferer.m.sid, Body: forged})
	if err != nil {
		t.Fatal(err)
	}
	o.m.Receive(t0, 0, frame)
	o.drain(t0)
	if _, bound := o.event(EventCheck); bound || o.disk != nil || j.disk != nil {
		t.Fatal("the introducer stands between")
	}
}

// TestIntroducerCannotDerive holds that with all that the introducer has (the secret, what
// it gives both, every frame of the pairing) it opens the outer frames and m1, as it must,
// and nothing that holds keys: no value that it can compute is the key of m3, m4 or a
// commit body. The same search with the two ephemeral secrets finds it.
func TestIntroducerCannotDerive(t *testing.T) {
	oc, jc, _ := introduced(t)
	o, j := newSide(t, oc), newSide(t, jc)
	seed, dk := j.m.joiner.hs.seed, j.m.joiner.hs.dk
	var frames [][]byte
	for range 10 {
		for _, s := range []struct{ from, to *side }{{o, j}, {j, o}} {
			out := s.from.out
			s.from.out = nil
			for _, f := range out {
				frames = append(frames, f.frame)
				s.to.m.Receive(t0, f.topic, f.frame)
				s.to.drain(t0)
			}
		}
	}
	wantPaired(t, o, j)

	keys := code.IntroKeys(introSecret)
	sealer, err := wire.NewSealer(keys.Frame[:])
	if err != nil {
		t.Fatal(err)
	}
	body := make(map[byte][]byte)
	for _, f := range frames {
		fr, err := sealer.Open(f)
		if err != nil {
			t.Fatal("the introducer does not open a frame, so that this shows nothing")
		}
		if body[fr.Type] == nil {
			body[fr.Type] = fr.Body
		}
	}
	if body[frameM1] == nil || body[frameM4] == nil || body[frameCommit] == nil {
		t.Fatal("frames are missing")
	}
	m1, m2 := body[frameM1][1:], body[frameM2]
	name := sha256.Sum256([]byte("Noise_NNpsk0_25519_ChaChaPoly_SHA256"))
	b := &bookNoise{ck: bytes.Clone(name[:]), h: bytes.Clone(name[:])}
	b.mixHash([]byte("kith/1 NNpsk0 method=intro"))
	var temp []byte
	b.ck, temp, b.k = b.hkdf(keys.PSK[:])
	b.mixHash(temp)
	b.mixHash(m1[:32])
	b.mixKey(m1[:32])
	payload, err := b.decryptAndHash(m1[32:])
	if err != nil {
		t.Fatalf("m1: %v", err)
	}
	b.mixHash(m2[:32])
	b.mixKey(m2[:32])
	before := bytes.Clone(b.ck)
	b.mixHash(m2[32:])
	h := b.h

	own, err := ecdh.X25519().NewPrivateKey(introSecret[:]) // a key of its own choice
	if err != nil {
		t.Fatal(err)
	}
	shared := func(priv *ecdh.PrivateKey, pub []byte) []byte {
		p, err := ecdh.X25519().NewPublicKey(pub)
		if err != nil {
			t.Fatal(err)
		}
		s, err := priv.ECDH(p)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	idJ, idO := jc.Identity.ID(), oc.Identity.ID()
	wgJ, wgO := jc.Identity.WireGuardPublic(), oc.Identity.WireGuardPublic()
	known := [][]byte{
		make([]byte, 32), introSecret[:], keys.PSK[:], keys.Frame[:], h, before, b.k, temp, payload[:32], payload[32:64], m1[:32], m2[:32],
		idJ[:], idO[:], wgJ[:], wgO[:], shared(own, m1[:32]), shared(own, m2[:32]), shared(own, wgJ[:]), shared(own, wgO[:]),
	}
	opens := func(key []byte) bool {
		for _, typ := range []byte{frameM3, frameM4} {
			for _, ad := range [][]byte{h, nil} {
				if _, err := bookOpen(key, 0, ad, body[typ]); err == nil {
					return true
				}
			}
		}
		aead, err := chacha20poly1305.NewX(key)
		if err != nil {
			t.Fatal(err)
		}
		ad := append([]byte("kith/1 commit"), o.disk.PairID[:]...) // which it does not know, either
		_, err = aead.Open(nil, body[frameCommit][:24], body[frameCommit][24:], ad)
		return err == nil
	}
	names := []string{keyJoinerToOfferer, keyOffererToJoiner, "root", "commit J", "commit O", "frame", "psk", "chain", "ctl J"}
	// try tries a value for each secret that the introducer lacks.
	try := func(ee, kem []byte) bool {
		c := &bookNoise{ck: bytes.Clone(before), h: bytes.Clone(h)}
		c.mixKey(ee)
		k1, k2, _ := c.hkdf(nil)
		ks := bookMAC(h, k1, k2, kem)
		root := bookExpand(ks, "root", h, idJ[:], idO[:])
		for _, base := range [][]byte{ks, root, k1, k2, c.k, c.ck} {
			if opens(base) {
				return true
			}
			for _, n := range names {
				if opens(bookExpand(base, n)) {
					return true
				}
			}
		}
		return false
	}
	for _, ee := range known {
		for _, kem := range known {
			if try(ee, kem) {
				t.Fatal("the introducer has a key of the pair")
			}
		}
	}
	for _, k := range known {
		for _, n := range names {
			if opens(k) || opens(bookExpand(k, n)) {
				t.Fatal("the introducer has a key of the pair")
			}
		}
	}
	// The control: with what only the two have, the same search finds it.
	priv, err := ecdh.X25519().NewPrivateKey(seed[:])
	if err != nil {
		t.Fatal(err)
	}
	full := &bookNoise{ck: bytes.Clone(before), h: nil}
	full.mixKey(shared(priv, m2[:32]))
	p2, err := openPayload(m1, m2, keys.PSK[:], seed[:])
	if err != nil {
		t.Fatal(err)
	}
	kem, err := dk.Decapsulate(p2[16:])
	if err != nil {
		t.Fatal(err)
	}
	if !try(shared(priv, m2[:32]), kem) {
		t.Fatal("the search does not even find the key with all secrets: it shows nothing")
	}
	// Half of them is not enough: neither X25519 nor ML-KEM alone is broken open.
	if try(shared(priv, m2[:32]), make([]byte, 32)) || try(make([]byte, 32), kem) {
		t.Error("one of both secrets is enough")
	}
}

func openPayload(m1, m2, psk, ephemeral []byte) ([]byte, error) {
	_, p2, _, _, _, err := bookNNpsk0([]byte("kith/1 NNpsk0 method=intro"), psk, ephemeral, m1, m2)
	return p2, err
}

// TestCallWakes holds that a joiner that has waited for days hears at once of an offerer
// that comes, says little until then, and that a call that is replayed costs one frame.
func TestCallWakes(t *testing.T) {
	oc, jc, _ := introduced(t)
	j := newSide(t, jc)
	now, sent := t0, 0
	for now.Before(t0.Add(3 * 24 * time.Hour)) {
		now = j.m.Next()
		j.m.Tick(now)
		j.drain(now)
		sent += len(j.out)
		j.out = nil
	}
	if most := 3*24*12*4/3 + 30; sent > most { // one in 3.75 minutes at most
		t.Errorf("%d frames in three days, want at most %d", sent, most)
	}
	jw := newSideAt(t, oc, now)
	calls := jw.out
	if len(calls) != 1 {
		t.Fatalf("the offerer says %d frames at first, want its call", len(calls))
	}
	exchange(jw, j, now)
	wantPaired(t, jw, j)

	j = newSide(t, jc)
	j.out = nil
	for range 100 { // outside the joiner's memory of frames nothing else holds a replayer back
		fr, err := j.m.sealers[0].Open(calls[0].frame)
		if err != nil {
			t.Fatal(err)
		}
		again, err := j.m.sealers[0].Seal(rand.Reader, fr)
		if err != nil {
			t.Fatal(err)
		}
		j.m.Receive(t0.Add(time.Minute), 0, again)
		j.drain(t0)
	}
	if len(j.out) != 1 {
		t.Errorf("100 calls cost %d frames, want one", len(j.out))
	}
}

func newSideAt(t testing.TB, cfg Config, now time.Time) *side {
	t.Helper()
	m, err := New(cfg, now)
	if err != nil {
		t.Fatal(err)
	}
	s := &side{t: t, m: m}
	s.drain(now)
	return s
}

// TestOffererRestarts holds that a joiner that has proved itself to an offerer that is gone
// begins anew with the next one.
func TestOffererRestarts(t *testing.T) {
	oc, jc, _ := introduced(t)
	o, j := newSide(t, oc), newSide(t, jc)
	for _, f := range j.out {
		o.m.Receive(t0, 0, f.frame)
		o.drain(t0)
	}
	for _, f := range o.out {
		j.m.Receive(t0, 0, f.frame)
		j.drain(t0)
	}
	if j.m.joiner.m3 == nil {
		t.Fatal("the joiner has not proved itself")
	}
	later := t0.Add(10 * time.Second)
	o = newSideAt(t, oc, later) // restarted
	j.out = nil
	exchange(o, j, later)
	for range 5 {
		later = later.Add(time.Second)
		o.tick(later)
		j.tick(later)
		exchange(o, j, later)
	}
	wantPaired(t, o, j)
}

// TestNumbersAreFixedEarly holds that the numbers that people compare follow from what both
// sides have fixed before either nonce is known, the handshake's hash and the nonces: not
// from identities, which each side shows after it could know the other's nonce. Somebody
// between the two could otherwise search for an identity whose number fits, a million tries.
func TestNumbersAreFixedEarly(t *testing.T) {
	s := &secrets{h: bytes.Repeat([]byte{1}, 32), ks: bytes.Repeat([]byte{2}, 32), nJ: bytes.Repeat([]byte{3}, nonceSize), nO: bytes.Repeat([]byte{4}, nonceSize)}
	honest := s.finish(testIdentity(t, "phone").ID(), testIdentity(t, "desk").ID())
	for _, name := range []string{"a", "b", "c"} {
		for _, k := range []*pairKeys{s.finish(testIdentity(t, name).ID(), honest.offerer), s.finish(honest.joiner, testIdentity(t, name).ID())} {
			if k.check != honest.check || k.long != honest.long {
				t.Error("an identity that is chosen late changes a number")
			}
			if k.id == honest.id || bytes.Equal(k.root, honest.root) {
				t.Error("another identity has the same pair")
			}
		}
	}
	s.nO[0]++
	if k := s.finish(honest.joiner, honest.offerer); k.check == honest.check || k.long == honest.long {
		t.Error("the numbers do not depend on the nonces")
	}
}
