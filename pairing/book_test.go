package pairing

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/mlkem"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/flynn/noise"
	"golang.org/x/crypto/chacha20poly1305"
)

// What follows is the protocol a second time, from docs/protocol.md and the Noise
// specification (revision 34), with nothing of this package: it reads the vectors.

func bookMAC(key []byte, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

func bookItems(out []byte, items ...[]byte) []byte {
	for _, item := range items {
		out = append(binary.BigEndian.AppendUint32(out, uint32(len(item))), item...)
	}
	return out
}

func bookExpand(key []byte, name string, items ...[]byte) []byte {
	return bookMAC(key, bookItems([]byte("kith/1 "+name), items...), []byte{1})
}

// bookNoise is the SymmetricState of the Noise specification, section 5.2.
type bookNoise struct {
	ck, h, k []byte
	n        uint64
}

func (b *bookNoise) mixHash(data []byte) {
	sum := sha256.Sum256(append(bytes.Clone(b.h), data...))
	b.h = sum[:]
}

func (b *bookNoise) hkdf(ikm []byte) (o1, o2, o3 []byte) {
	temp := bookMAC(b.ck, ikm)
	o1 = bookMAC(temp, []byte{1})
	o2 = bookMAC(temp, o1, []byte{2})
	return o1, o2, bookMAC(temp, o2, []byte{3})
}

func (b *bookNoise) mixKey(ikm []byte) {
	b.ck, b.k, _ = b.hkdf(ikm)
	b.n = 0
}

func bookOpen(k []byte, n uint64, ad, sealed []byte) ([]byte, error) {
	aead, err := chacha20poly1305.New(k)
	if err != nil {
		return nil, err
	}
	return aead.Open(nil, binary.LittleEndian.AppendUint64(make([]byte, 4), n), sealed, ad)
}

func (b *bookNoise) decryptAndHash(sealed []byte) ([]byte, error) {
	plain, err := bookOpen(b.k, b.n, b.h, sealed)
	b.mixHash(sealed)
	b.n++
	return plain, err
}

// bookNNpsk0 reads both messages of NNpsk0 with the initiator's ephemeral key.
func bookNNpsk0(prologue, psk, ephemeral, m1, m2 []byte) (p1, p2, h, k1, k2 []byte, err error) {
	name := sha256.Sum256([]byte("Noise_NNpsk0_25519_ChaChaPoly_SHA256")) // longer than a hash
	b := &bookNoise{ck: bytes.Clone(name[:]), h: bytes.Clone(name[:])}
	b.mixHash(prologue)
	var temp []byte
	b.ck, temp, b.k = b.hkdf(psk) // MixKeyAndHash
	b.mixHash(temp)
	own, err := ecdh.X25519().NewPrivateKey(ephemeral)
	if err != nil {
		return nil, nil, nil, nil, nil, err
	}
	if !bytes.Equal(own.PublicKey().Bytes(), m1[:32]) {
		return nil, nil, nil, nil, nil, fmt.Errorf("m1 begins with another ephemeral key")
	}
	b.mixHash(m1[:32])
	b.mixKey(m1[:32])
	if p1, err = b.decryptAndHash(m1[32:]); err != nil {
		return nil, nil, nil, nil, nil, fmt.Errorf("message 1: %w", err)
	}
	b.mixHash(m2[:32])
	b.mixKey(m2[:32])
	peer, err := ecdh.X25519().NewPublicKey(m2[:32])
	if err != nil {
		return nil, nil, nil, nil, nil, err
	}
	ee, err := own.ECDH(peer)
	if err != nil {
		return nil, nil, nil, nil, nil, err
	}
	b.mixKey(ee)
	if p2, err = b.decryptAndHash(m2[32:]); err != nil {
		return nil, nil, nil, nil, nil, fmt.Errorf("message 2: %w", err)
	}
	k1, k2, _ = b.hkdf(nil)
	return p1, p2, b.h, k1, k2, nil
}

// noiseVectors are those of github.com/flynn/noise for the one suite used here.
type noiseVectors struct {
	Protocol string `json:"protocol"`
	Vectors  []struct {
		Prologue  string `json:"prologue"`
		PSK       string `json:"psk"`
		Initiator string `json:"initiator_ephemeral"`
		Responder string `json:"responder_ephemeral"`
		Messages  []struct {
			Payload    string `json:"payload"`
			Ciphertext string `json:"ciphertext"`
		} `json:"messages"`
	} `json:"vectors"`
}

// TestNoiseVectors holds the library, with the suite that this package chooses,
// and the implementation above to the published vectors.
func TestNoiseVectors(t *testing.T) {
	raw, err := os.ReadFile("../testdata/vectors/noise.json")
	if err != nil {
		t.Fatal(err)
	}
	var file noiseVectors
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Vectors) != 4 {
		t.Fatalf("%d vectors, want 4", len(file.Vectors))
	}
	for i, v := range file.Vectors {
		if len(v.Messages) != 4 {
			t.Fatalf("vector %d: %d messages, want 4", i, len(v.Messages))
		}
		prologue, psk := unhex(t, v.Prologue), unhex(t, v.PSK)
		side := func(initiator bool, ephemeral string) *noise.HandshakeState {
			hs, err := noise.NewHandshakeState(noise.Config{
				CipherSuite: cipherSuite(), Pattern: noise.HandshakeNN, Initiator: initiator, Prologue: prologue,
				Random: bytes.NewReader(unhex(t, ephemeral)), PresharedKey: psk, PresharedKeyPlacement: 0,
			})
			if err != nil {
				t.Fatal(err)
			}
			return hs
		}
		a, b := side(true, v.Initiator), side(false, v.Responder)
		m1, _, _, err := a.WriteMessage(nil, unhex(t, v.Messages[0].Payload))
		if err != nil || !bytes.Equal(m1, unhex(t, v.Messages[0].Ciphertext)) {
			t.Fatalf("vector %d: message 1 is %x, %v", i, m1, err)
		}
		if _, _, _, err := b.ReadMessage(nil, m1); err != nil {
			t.Fatal(err)
		}
		m2, c1, c2, err := b.WriteMessage(nil, unhex(t, v.Messages[1].Payload))
		if err != nil || !bytes.Equal(m2, unhex(t, v.Messages[1].Ciphertext)) {
			t.Fatalf("vector %d: message 2 is %x, %v", i, m2, err)
		}
		p1, p2, h, k1, k2, err := bookNNpsk0(prologue, psk, unhex(t, v.Initiator), m1, m2)
		if err != nil {
			t.Fatalf("vector %d by the book: %v", i, err)
		}
		u1, u2 := c1.UnsafeKey(), c2.UnsafeKey()
		if !bytes.Equal(p1, unhex(t, v.Messages[0].Payload)) || !bytes.Equal(p2, unhex(t, v.Messages[1].Payload)) ||
			!bytes.Equal(h, b.ChannelBinding()) || !bytes.Equal(k1, u1[:]) || !bytes.Equal(k2, u2[:]) {
			t.Errorf("vector %d: the book and the library differ", i)
		}
		for j, k := range [][]byte{k1, k2} { // message 3 with the first key, message 4 with the second
			m := v.Messages[2+j]
			if got, err := bookOpen(k, 0, nil, unhex(t, m.Ciphertext)); err != nil || !bytes.Equal(got, unhex(t, m.Payload)) {
				t.Errorf("vector %d, message %d: %x, %v", i, 3+j, got, err)
			}
		}
	}
}

// TestVectorsByTheBook reads pairing.json as another implementation would.
func TestVectorsByTheBook(t *testing.T) {
	if *update {
		t.Skip("TestVectors is about to write the file anew")
	}
	v := readVectors(t)
	x := func(s string) []byte { return unhex(t, s) }
	same := func(what string, got []byte, want string) {
		t.Helper()
		if !bytes.Equal(got, x(want)) {
			t.Errorf("%s: got %x, want %s", what, got, want)
		}
	}
	sid := sha256.Sum256(x(v.M1))
	same("sid", sid[:8], v.SID)
	p1, p2, h, k1, k2, err := bookNNpsk0([]byte("kith/1 NNpsk0 method="+v.Method), x(v.PSK), x(v.Ephemeral), x(v.M1), x(v.M2))
	if err != nil {
		t.Fatal(err)
	}
	same("handshake hash", h, v.H)
	dk, err := mlkem.NewDecapsulationKey768(x(v.KEMSeed))
	if err != nil {
		t.Fatal(err)
	}
	if len(p1) != 32+1184 || len(p2) != 16+1088 {
		t.Fatalf("payloads of %d and %d bytes", len(p1), len(p2))
	}
	commitment := sha256.Sum256(append([]byte("kith/1 sas-commit"), x(v.NJ)...))
	if !bytes.Equal(p1[:32], commitment[:]) || !bytes.Equal(p1[32:], dk.EncapsulationKey().Bytes()) {
		t.Error("m1 carries something else")
	}
	nJ, nO := x(v.NJ), p2[:16]
	shared, err := dk.Decapsulate(p2[16:])
	if err != nil {
		t.Fatal(err)
	}
	ks := bookMAC(h, k1, k2, shared)
	same("ks", ks, v.KS)

	p3, err := bookOpen(bookExpand(ks, "k joiner->offerer"), 0, h, x(v.M3))
	if err != nil || len(p3) < 112 {
		t.Fatalf("m3: %d bytes, %v", len(p3), err)
	}
	idJ, sigJ, infoJ := p3[16:48], p3[48:112], p3[112:]
	same("n_J in m3", p3[:16], v.NJ)
	same("joiner", idJ, v.IDJ)
	same("info of the joiner", infoJ, v.InfoJ)
	if !ed25519.Verify(idJ, bookItems([]byte("kith/1 id-proof joiner"), h, nJ, idJ, nil, infoJ), sigJ) {
		t.Error("the joiner's proof is not valid")
	}
	p4, err := bookOpen(bookExpand(ks, "k offerer->joiner"), 0, h, x(v.M4))
	if err != nil || len(p4) < 96 {
		t.Fatalf("m4: %d bytes, %v", len(p4), err)
	}
	idO, sigO, infoO := p4[:32], p4[32:96], p4[96:]
	same("offerer", idO, v.IDO)
	same("info of the offerer", infoO, v.InfoO)
	if !ed25519.Verify(idO, bookItems([]byte("kith/1 id-proof offerer"), h, nO, idO, idJ, infoO), sigO) {
		t.Error("the offerer's proof is not valid")
	}

	root := bookExpand(ks, "root", h, idJ, idO)
	same("root", root, v.Root)
	same("pair id", bookExpand(root, "pair-id")[:16], v.PairID)
	sas := binary.BigEndian.Uint64(bookExpand(ks, "sas", h, nJ, nO)[:8]) % 1_000_000
	if got := fmt.Sprintf("%06d", sas); got != v.Check {
		t.Errorf("check number %s, want %s", got, v.Check)
	}
	long := binary.BigEndian.Uint64(bookExpand(ks, "sas long", h, nJ, nO)[:8]) % 1_000_000_000_000
	if got := fmt.Sprintf("%012d", long); got != v.Long {
		t.Errorf("number to verify %s, want %s", got, v.Long)
	}
	same("commit J", bookExpand(root, "commit J"), v.CommitJ)
	same("commit O", bookExpand(root, "commit O"), v.CommitO)
	openX := func(key, ad, sealed []byte) []byte {
		t.Helper()
		aead, err := chacha20poly1305.NewX(key)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := aead.Open(nil, sealed[:24], sealed[24:], ad)
		if err != nil {
			t.Errorf("message under a lasting key: %v", err)
		}
		return plain
	}
	ad := append([]byte("kith/1 commit"), x(v.PairID)...)
	if got := openX(x(v.CommitJ), ad, x(v.PreparedJ)); !bytes.Equal(got, append([]byte{1}, x(v.PairID)...)) {
		t.Errorf("PREPARED says %x", got)
	}
	if got := openX(x(v.CommitO), ad, x(v.UnpairO)); !bytes.Equal(got, append([]byte{3}, x(v.PairID)...)) {
		t.Errorf("UNPAIR says %x", got)
	}
	if got := openX(bookExpand(ks, "ctl O"), h, x(v.RejectO)); !bytes.Equal(got, []byte{4}) {
		t.Errorf("reject says %x", got)
	}

	day := int64(20000) // the earlier of the days in both infos
	chain := bookExpand(root, "chain", binary.BigEndian.AppendUint64(nil, uint64(day)))
	jo, oj := []byte("joiner->offerer"), []byte("offerer->joiner")
	for _, d := range v.Days {
		for ; day < d.Day; day++ {
			chain = bookExpand(chain, "chain+1")
		}
		same("chain", chain, d.Chain)
		same("topic J", bookExpand(chain, "topic", jo)[:20], d.TopicJO)
		same("topic O", bookExpand(chain, "topic", oj)[:20], d.TopicOJ)
		same("frame key J", bookExpand(chain, "frame", jo), d.FrameJO)
		same("frame key O", bookExpand(chain, "frame", oj), d.FrameOJ)
		same("probe key J", bookExpand(chain, "probe", jo), d.ProbeJO)
		same("probe key O", bookExpand(chain, "probe", oj), d.ProbeOJ)
		same("preshared key", bookExpand(chain, "wg-psk"), d.WireGuardPSK)
	}
}
