package dht

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"testing"

	"github.com/anacrolix/dht/v2/bep44"
	"pgregory.net/rapid"

	"github.com/kithproject/kith/rendezvous"
)

func unhex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestVector is the vector of docs/protocol.md.
func TestVector(t *testing.T) {
	var topic rendezvous.Topic
	for i := range topic {
		topic[i] = byte(i)
	}
	f := make([]byte, rendezvous.FrameSize)
	for i := range f {
		f[i] = byte(i)
	}
	k := derive(topic)
	items := k.items(1, 1_700_000_000_000+k.shift, f)
	datagram := append(append([]byte(nil), k.tags[1][:]...), 0, 1, 2, 3, 4, 5, 6, 7)
	datagram = k.seals[1].Seal(datagram, gcmNonce(datagram), f, datagram[:tagSize])
	sum := func(b []byte) []byte { s := sha256.Sum256(b); return s[:] }
	for _, c := range []struct {
		name string
		got  []byte
		want string
	}{
		{"home", k.home[:], vectorHome},
		{"public key", k.public[:], vectorPublic},
		{"shift", appendNumber(nil, k.shift), hex.EncodeToString([]byte(vectorShift))},
		{"salt 1 0", k.salts[1][0], vectorSalt10},
		{"salt 1 1", k.salts[1][1], vectorSalt11},
		{"target 1 0", k.targets[1][0][:], vectorTarget10},
		{"target 1 1", k.targets[1][1][:], vectorTarget11},
		{"tag 1", k.tags[1][:], vectorTag1},
		{"value 1 0", sum(items[0].value), vectorValue10},
		{"value 1 1", sum(items[1].value), vectorValue11},
		{"signature 1 0", items[0].sig[:], vectorSig10},
		{"datagram 1", sum(datagram), vectorDatagram1},
	} {
		if !bytes.Equal(c.got, unhex(t, c.want)) {
			t.Errorf("%s: %x, want %s", c.name, c.got, c.want)
		}
	}
	if got, ok := k.openDatagram(1, datagram); !ok || !bytes.Equal(got, f) {
		t.Error("the datagram does not open")
	}
}

func TestItems(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var topic rendezvous.Topic
		copy(topic[:], rapid.SliceOfN(rapid.Byte(), 20, 20).Draw(rt, "topic"))
		k := derive(topic)
		f := rapid.SliceOfN(rapid.Byte(), rendezvous.FrameSize, rendezvous.FrameSize).Draw(rt, "frame")
		slot, seq := rapid.IntRange(0, 1).Draw(rt, "slot"), rapid.Int64Range(1, maxSeq).Draw(rt, "seq")
		items := k.items(slot, seq, f)
		var got []byte
		for part, it := range items {
			if len(it.value) > maxValue || !bep44.Verify(it.key[:], it.salt, it.seq, it.value, it.sig[:]) || !it.verify() {
				rt.Fatal("not an item of BEP 44")
			}
			if bytes.Contains(it.value, f[part*partSize:part*partSize+16]) {
				rt.Fatal("the frame can be seen in the value")
			}
			half, err := k.open(slot, part, it)
			if err != nil {
				rt.Fatal(err)
			}
			got = append(got, half...)
			for _, wrong := range []struct{ slot, part int }{{1 - slot, part}, {slot, 1 - part}} {
				if _, err := k.open(wrong.slot, wrong.part, it); err == nil {
					rt.Fatal("an item opens in another place")
				}
			}
			other := *it
			other.seq--
			if _, err := k.open(slot, part, &other); err == nil {
				rt.Fatal("an item opens under another number")
			}
		}
		if !bytes.Equal(got, f) {
			rt.Fatal("another frame came out")
		}
	})
}

// TestUnlinkable holds that nothing in the DHT is the same for two topics, for
// two uses of a topic, or as the topic: 30 days, two directions.
func TestUnlinkable(t *testing.T) {
	seen := make(map[string]string)
	note := func(what string, b []byte) {
		for i := 0; i+8 <= len(b) && len(b) <= 64; i += 4 {
			if old, known := seen[string(b[i:i+8])]; known {
				t.Errorf("%s has 8 bytes in common with %s", what, old)
			}
		}
		for i := 0; i+8 <= len(b) && len(b) <= 64; i += 4 {
			seen[string(b[i:i+8])] = what
		}
	}
	f := frame(7)
	for day := range 30 {
		for range 2 {
			topic := newTopic(t)
			note("topic", topic[:])
			k := derive(topic)
			note("home", k.home[:])
			note("key", k.public[:])
			for slot := range 2 {
				note("tag", k.tags[slot][:])
				if k.tags[slot][0] == 'd' {
					t.Error("a datagram may look like KRPC")
				}
				for part := range parts {
					note("salt", k.salts[slot][part])
					note("target", k.targets[slot][part][:])
				}
				items := k.items(slot, int64(1+day)+k.shift, f)
				note("signature", items[0].sig[:])
				note("value", items[0].value[4:60])
				one, two := k.datagram(slot, f), k.datagram(slot, f)
				note("datagram", one[tagSize+nonceLen:tagSize+nonceLen+40])
				note("datagram", two[tagSize+nonceLen:tagSize+nonceLen+40])
				if len(one) != frameDatagram || len(k.datagram(slot, nil)) != probeDatagram {
					t.Error("datagrams differ in length")
				}
			}
		}
	}
}

// TestSpecification has the vectors of BEP 44 and BEP 42.
func TestSpecification(t *testing.T) {
	it := item{value: []byte("12:Hello World!"), mutable: true, salt: []byte("foobar"), seq: 1}
	copy(it.key[:], unhex(t, "77ff84905a91936367c01360803104f92432fcd904a43511876df5cdf3e7e548"))
	copy(it.sig[:], unhex(t, "6834284b6b24c3204eb2fea824d82f88883a3d95e8b4a21b8c0ded553d17d17ddf9a8a7104b1258f30bed3787e6cb896fca78c58f8e03b5f18f14951a87d9a08"))
	if !it.verify() {
		t.Error("the signature of BEP 44 does not verify")
	}
	if target := mutableTarget(it.key, it.salt); hex.EncodeToString(target[:]) != "411eba73b6f087ca51a3795d9c8c938d365e32c1" {
		t.Errorf("target %x", target)
	}
	for _, c := range []struct{ addr, id string }{
		{"124.31.75.21", "5fbfbff10c5d6a4ec8a88e4c6ab4c28b95eee401"},
		{"21.75.31.124", "5a3ce9c14e7a08645677bbd1cfe7d8f956d53256"},
		{"65.23.51.170", "a5d43220bc8f112a3d426c84764f8c2a1150e616"},
		{"84.124.73.14", "1b0321dd1bb1fe518101ceef99462b947a01ff41"},
		{"43.213.53.83", "e56f6cbf5b7c4be0237986d5243b87aa6d51305a"},
	} {
		a, other := netip.MustParseAddr(c.addr), netip.MustParseAddr("9.9.9.9")
		if i := id(unhex(t, c.id)); !fits(i, a) || fits(i, other) {
			t.Errorf("%s: fits %v, at another address %v", c.addr, fits(i, a), fits(i, other))
		}
		if !fits(idFor(a), a) {
			t.Errorf("%s: an id made for it does not fit", c.addr)
		}
	}
}

const (
	vectorHome      = "4a197ff7c6395d9596ad48ecd56cf76fb6b679fb"
	vectorPublic    = "f51562c7c30fa7993af87b250a8c4e0a9a92da8b9145e8f34c3abde619f4c02c"
	vectorShift     = "i1940870252e"
	vectorSalt10    = "6c728a914d7eb51092eb40e9f715cc5e"
	vectorSalt11    = "6353b024cc91bd83d0bf930df77adfb3"
	vectorTarget10  = "7354610be5c148abb32d2d60b9e611b485ac1b57"
	vectorTarget11  = "69df7c92a004953520b06a634590e588dc42a0e7"
	vectorTag1      = "6297bfa40d440059"
	vectorValue10   = "9816224ec28362239398ad18994376999bad0b7ec43c132875eaed4e42d5ad62"
	vectorValue11   = "8fc7d2528ba15e42c6224d6f4b6e1ad7cbd6ce66d09a149d87d473b2eb02f091"
	vectorSig10     = "e25e6788917e6d9b5b6b41aa2a0a3fb6d5931b37deba3c2b5a5c25e73b926d23c38498df65e021e5f7903d32783fda45843d13e1af505e570d3aa0e491740805"
	vectorDatagram1 = "0651801bb918304f90e82c4f2a42b455277c1d58d99d0703cd5ba4ad3a9cabab"
)
