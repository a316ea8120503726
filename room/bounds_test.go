package room

import (
	"errors"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/wire"
)

// TestWithin holds what the word of a host that the founder named counts for.
func TestWithin(t *testing.T) {
	founder, ann, bob := device(t, "host"), device(t, "ann"), device(t, "bob")
	base := mustAdmit(t, mustAdmit(t, found(t, "host", Open), "ann"), "bob")
	day := wire.Day(start)
	base, err := base.AddHost(founder, ann.ID(), day, day+30)
	if err != nil {
		t.Fatal(err)
	}
	mustSign(t, base, "host")
	by := func(name string, change func(*Roster)) *Roster {
		n := base.Rename("x")
		change(n)
		mustSign(t, n, name)
		return n
	}
	nothing := func(*Roster) {}
	for name, c := range map[string]struct {
		r    *Roster
		base *Roster
		day  int64
		want error
	}{
		"the founder's":               {by("host", func(n *Roster) { n.Epoch, n.Version = maxEpoch, maxChanges }), base, day + 1000, nil},
		"the first one":               {by("host", nothing), nil, day, nil},
		"a change":                    {by("ann", nothing), base, day, nil},
		"on the last day":             {by("ann", nothing), base, day + 30 + untilSlack, nil},
		"a day later":                 {by("ann", nothing), base, day + 31 + untilSlack, ErrNotHost},
		"without the founder's":       {by("ann", nothing), nil, day, ErrNotHost},
		"as many epochs as there are": {by("ann", func(n *Roster) { n.Epoch = base.Epoch + HostEpochs }), base, day, nil},
		"one more":                    {by("ann", func(n *Roster) { n.Epoch = base.Epoch + HostEpochs + 1 }), base, day, ErrNotHost},
		"the last epoch":              {by("ann", func(n *Roster) { n.Epoch = maxEpoch }), base, day, ErrNotHost},
		"the last version":            {by("ann", func(n *Roster) { n.Version = maxChanges }), base, day, ErrNotHost},
		"the last number":             {by("ann", func(n *Roster) { n.Next = 1<<32 - 1 }), base, day, ErrNotHost},
		"of another day":              {by("ann", func(n *Roster) { n.Created = n.Created.Add(-time.Hour) }), base, day, ErrNotHost},
	} {
		if err := c.r.Within(c.base, bob.ID(), c.day); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if err := by("ann", nothing).Within(base, founder.ID(), day+100); err != nil {
		t.Errorf("the founder goes on from there: %v", err)
	}

	// The founder gets past all that she could make, also what he has not seen.
	far := by("ann", func(n *Roster) { n.Epoch, n.Version = base.Epoch+HostEpochs, base.Version+hostChanges })
	out, err := base.DropHost(ann.ID())
	if err != nil {
		t.Fatal(err)
	}
	out.Outrun()
	mustSign(t, out, "host")
	if err := out.Verify(far, base.Room); err != nil {
		t.Errorf("who has hers does not take the founder's: %v", err)
	}
	if err := far.Verify(out, base.Room); !errors.Is(err, ErrNotHost) {
		t.Errorf("hers undoes it: %v", err)
	}

	// What cannot be counted further is not signed, and not read.
	for _, change := range []func(*Roster){
		func(n *Roster) { n.Epoch = maxEpoch + 1 }, func(n *Roster) { n.Version = maxChanges + 1 },
		func(n *Roster) { n.Epoch = 0 }, func(n *Roster) { n.Version = 0 },
	} {
		n := base.Rename("x")
		change(n)
		if err := n.Sign(founder); !errors.Is(err, ErrFull) {
			t.Errorf("epoch %d, version %d: %v", n.Epoch, n.Version, err)
		}
		n.Signer = founder.ID()
		body, err := n.body()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeRoster(append(founder.Sign(rosterProof(body)), body...)); !errors.Is(err, ErrRoster) {
			t.Errorf("epoch %d, version %d was read: %v", n.Epoch, n.Version, err)
		}
	}
}
