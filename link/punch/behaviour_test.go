package punch

import (
	"errors"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

func TestBehaviourEncoding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := anyBehaviour(t, "b")
		raw, err := want.MarshalBinary()
		if err != nil || len(raw) != EncodedSize {
			t.Fatalf("%d bytes, %v", len(raw), err)
		}
		var got Behaviour
		if err := got.UnmarshalBinary(raw); err != nil || got != want {
			t.Fatalf("%+v became %+v, %v", want, got, err)
		}
	})
	for name, b := range map[string]Behaviour{
		"rule":         {Mapping: rules},
		"filter":       {Filtering: 7},
		"delta":        {Delta: 128},
		"half a block": {BlockLow: 5},
		"block":        {BlockLow: 5, BlockHigh: 4},
		"IPv6":         {Public: netip.MustParseAddr("2001:db8::1")},
		"multicast":    {Public: netip.MustParseAddr("224.0.0.1")},
		"loopback":     {Public: netip.MustParseAddr("127.0.0.1")},
		"broadcast":    {Public: netip.MustParseAddr("255.255.255.255")},
	} {
		if raw, err := b.MarshalBinary(); err == nil {
			t.Errorf("%s: encoded as %x", name, raw)
		}
	}
}

func FuzzBehaviour(f *testing.F) {
	for _, b := range []Behaviour{{}, {Mapping: AddressAndPortDependent, Delta: -3, BlockLow: 1024, BlockHigh: 2047, LastPort: 1500, Public: publicA, SampledPorts: 9, Preserves: true}} {
		raw, err := b.MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
		f.Add(raw[:5])
	}
	f.Add([]byte{2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		before := Behaviour{LastPort: 7}
		b := before
		if err := b.UnmarshalBinary(raw); err != nil {
			if !errors.Is(err, ErrEncoding) || b != before {
				t.Fatalf("%v, and now %+v", err, b)
			}
			return
		}
		again, err := b.MarshalBinary()
		if err != nil || string(again) != string(raw) {
			t.Fatalf("%x became %x, %v", raw, again, err)
		}
		// Whatever a peer says can be decided on and probed.
		p := Decide(Behaviour{Mapping: EndpointIndependent}, b)
		if _, err := NewAttempt(p, NewPorts(b, 1), 1, epoch); err != nil && p.Role == RoleProber {
			t.Fatal(err)
		}
	})
}
