package dht

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // BEP 44 prescribes it
	"encoding/binary"
	"errors"

	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/rendezvous"
)

const (
	parts    = 2                            // items that one frame needs
	partSize = rendezvous.FrameSize / parts // bytes of a frame in one item
	saltSize = 16                           // bytes
	tagSize  = rendezvous.TagSize
	nonceLen = 8  // bytes of a datagram's nonce
	gcmTag   = 16 // bytes
	// frameDatagram and probeDatagram are the lengths of both kinds of datagram.
	frameDatagram = tagSize + nonceLen + rendezvous.FrameSize + gcmTag
	probeDatagram = tagSize + nonceLen + gcmTag
	maxSeq        = 1 << 62
)

// Keys are all that a topic means in the DHT. Each is derived from the topic
// alone, one-way, so that nobody who lacks it can tell which items, announcements
// or datagrams belong to one topic, or to the same topic on another medium.
type keys struct {
	home    id // where all lies: items, and the announcement's infohash
	private ed25519.PrivateKey
	public  [32]byte
	salts   [2][parts][]byte // [slot][part]
	targets [2][parts]id
	values  []byte // key of the values' masks
	shift   int64  // what sequence numbers are ahead of the time, so that no clock is seen
	tags    [2][tagSize]byte
	seals   [2]cipher.AEAD // of datagrams, by the sender's slot
}

func derive(topic rendezvous.Topic) *keys {
	expand := func(name string, items ...[]byte) []byte { return wire.Expand(topic[:], name, items...) }
	k := &keys{
		home:    id(expand("dht home")[:20]),
		private: ed25519.NewKeyFromSeed(expand("dht mailbox")),
		values:  expand("dht value"),
		shift:   int64(binary.BigEndian.Uint64(append(make([]byte, 3), expand("dht seq")[:5]...))),
	}
	copy(k.public[:], k.private[ed25519.SeedSize:])
	for slot := range k.tags {
		s := []byte{byte(slot)}
		k.tags[slot] = [tagSize]byte(expand("dht tag", s))
		if k.tags[slot][0] == 'd' { // as KRPC starts
			k.tags[slot][0] ^= 0x80
		}
		block, err := aes.NewCipher(expand("dht datagram", s))
		if err == nil {
			k.seals[slot], err = cipher.NewGCM(block)
		}
		if err != nil {
			panic(err) // a key of 32 bytes is one
		}
		for part := range k.salts[slot] {
			salt := expand("dht salt", s, []byte{byte(part)})[:saltSize]
			k.salts[slot][part] = salt
			k.targets[slot][part] = mutableTarget(k.public, salt)
		}
	}
	return k
}

func mutableTarget(key [32]byte, salt []byte) id {
	return sha1.Sum(append(key[:], salt...)) //nolint:gosec // BEP 44
}

// signed returns the bytes that a mutable item's signature is over (BEP 44).
func signed(salt []byte, seq int64, value []byte) []byte {
	var b []byte
	if len(salt) > 0 {
		b = appendBytes(append(b, "4:salt"...), salt)
	}
	b = appendNumber(append(b, "3:seq"...), seq)
	return append(append(b, "1:v"...), value...)
}

func (it *item) verify() bool {
	return ed25519.Verify(it.key[:], signed(it.salt, it.seq, it.value), it.sig[:])
}

// mask encrypts or decrypts one part in place. What protects a frame is its own
// seal: the mask only hides that the same frame goes over other media.
func (k *keys) mask(slot, part int, seq int64, b []byte) {
	block, err := aes.NewCipher(wire.Expand(k.values, "dht mask", []byte{byte(slot)}, []byte{byte(part)}, binary.BigEndian.AppendUint64(nil, uint64(seq))))
	if err != nil {
		panic(err) // a key of 32 bytes is one
	}
	cipher.NewCTR(block, make([]byte, aes.BlockSize)).XORKeyStream(b, b)
}

// items returns a frame as the items of a slot.
func (k *keys) items(slot int, seq int64, frame []byte) [parts]*item {
	var out [parts]*item
	for part := range out {
		b := append([]byte(nil), frame[part*partSize:(part+1)*partSize]...)
		k.mask(slot, part, seq, b)
		it := &item{value: appendBytes(nil, b), mutable: true, key: k.public, salt: k.salts[slot][part], seq: seq}
		copy(it.sig[:], ed25519.Sign(k.private, signed(it.salt, seq, it.value)))
		out[part] = it
	}
	return out
}

var errItem = errors.New("dht: not an item of this topic")

// open checks what a node gave as an item, and returns its part of the frame. It
// errs with errItem for whatever this topic's key did not sign.
func (k *keys) open(slot, part int, it *item) ([]byte, error) {
	r := &reader{b: it.value}
	masked, err := r.text()
	if err != nil || len(masked) != partSize || r.off != len(it.value) || it.seq <= 0 || it.seq > maxSeq {
		return nil, errItem
	}
	own := item{value: it.value, key: k.public, salt: k.salts[slot][part], seq: it.seq, sig: it.sig}
	if !own.verify() {
		return nil, errItem
	}
	out := append([]byte(nil), masked...)
	k.mask(slot, part, it.seq, out)
	return out, nil
}

// datagram seals a frame, or nothing as a probe, for the direct way.
func (k *keys) datagram(slot int, frame []byte) []byte {
	b := append(make([]byte, 0, frameDatagram), k.tags[slot][:]...)
	b = b[:tagSize+nonceLen]
	if _, err := rand.Read(b[tagSize:]); err != nil {
		panic(err) // crypto/rand never fails
	}
	return k.seals[slot].Seal(b, gcmNonce(b), frame, b[:tagSize])
}

// openDatagram returns the frame of a datagram of the slot, which is empty for a
// probe.
func (k *keys) openDatagram(slot int, b []byte) ([]byte, bool) {
	if len(b) != frameDatagram && len(b) != probeDatagram {
		return nil, false
	}
	out, err := k.seals[slot].Open(nil, gcmNonce(b), b[tagSize+nonceLen:], b[:tagSize])
	return out, err == nil
}

func gcmNonce(b []byte) []byte {
	return append(append(make([]byte, 0, 12), b[tagSize:tagSize+nonceLen]...), 0, 0, 0, 0)
}
