package kith_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/rendezvous"
)

// mediaNames are what each medium shows of a topic, as docs/protocol.md says it. The
// drivers' own tests hold that they do.
func mediaNames(t rendezvous.Topic) map[string][]byte {
	names := map[string][]byte{
		"lan tag":   t[:rendezvous.TagSize],
		"lan group": wire.Expand(t[:], "lan-group"),
		"mqtt":      wire.Expand(t[:], "mqtt topic")[:20],
		"dht home":  wire.Expand(t[:], "dht home")[:20],
		"dht key":   wire.Expand(t[:], "dht mailbox"),
		"waku":      wire.Expand(t[:], "waku content topic")[:20],
		"paper":     wire.Expand(t[:], "paper")[:8],
	}
	for slot := range byte(2) {
		names[fmt.Sprint("dht tag ", slot)] = wire.Expand(t[:], "dht tag", []byte{slot})[:8]
		for part := range byte(2) {
			names[fmt.Sprint("dht salt ", slot, part)] = wire.Expand(t[:], "dht salt", []byte{slot}, []byte{part})[:16]
		}
	}
	return names
}

// TestUnlinkable holds that who records every medium can link neither two days of a
// pair nor one day's media: all names of 30 days, both directions and of the code are
// different, none holds a part of another, and no key of an earlier day follows from a
// later one.
func TestUnlinkable(t *testing.T) {
	const days, first = 30, 20_000
	chain := pairing.Chain{Key: [32]byte{1, 2, 3}, Day: first}
	seen := make(map[string]string)
	var all [][]byte
	note := func(what string, name []byte) {
		const part = 6 // bytes: by chance none in these few names
		if old, ok := seen[string(name)]; ok {
			t.Fatalf("%s and %s have one name", what, old)
		}
		seen[string(name)] = what
		for _, other := range all {
			for i := 0; i+part <= len(name); i++ {
				if bytes.Contains(other, name[i:i+part]) {
					t.Fatalf("%s shares bytes with %s", what, seen[string(other)])
				}
			}
		}
		all = append(all, name)
	}
	for day := range int64(days) {
		c, err := chain.At(first + day)
		if err != nil {
			t.Fatal(err)
		}
		for _, from := range []pairing.Role{pairing.Offerer, pairing.Joiner} {
			for medium, name := range mediaNames(c.Topic(from)) {
				note(fmt.Sprintf("%s of day %d, %v", medium, day, from), name)
			}
			key := c.FrameKey(from)
			note(fmt.Sprintf("frame key of day %d, %v", day, from), key[:])
		}
		if _, err := c.At(first + day - 1); err == nil {
			t.Fatalf("the key of day %d gives that of the day before", day)
		}
	}
	if want := days * 2 * (len(mediaNames(rendezvous.Topic{})) + 1); len(all) != want {
		t.Errorf("%d names, want %d", len(all), want)
	}
}
