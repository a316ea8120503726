package identity

import (
	"encoding/hex"
	"errors"
	"testing"
)

// TestWireGuardDH: both ends agree, and keys of low order are refused. The
// second key is Bob's of RFC 7748 section 6.1.
func TestWireGuardDH(t *testing.T) {
	hex32 := func(s string) [32]byte {
		t.Helper()
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return [32]byte(b)
	}
	alice, err := FromSeeds([32]byte{1}, hex32("77076d0a7318a57d3c16c17251b26645df4a6c2f3f3f0f8b1e7a1d2e5c4b3a29"))
	if err != nil {
		t.Fatal(err)
	}
	bob, err := FromSeeds([32]byte{2}, hex32("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
	if err != nil {
		t.Fatal(err)
	}
	if pub := bob.WireGuardPublic(); hex.EncodeToString(pub[:]) != "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f" {
		t.Fatalf("Bob's public key is %x", pub)
	}
	x, err := alice.WireGuardDH(bob.WireGuardPublic())
	if err != nil {
		t.Fatal(err)
	}
	y, err := bob.WireGuardDH(alice.WireGuardPublic())
	if err != nil || x != y {
		t.Fatalf("the two ends disagree: %v", err)
	}
	for _, low := range [][32]byte{{}, {1}, hex32("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")} {
		if _, err := alice.WireGuardDH(low); !errors.Is(err, ErrPeerKey) {
			t.Errorf("a key of low order was taken: %v", err)
		}
	}
}
