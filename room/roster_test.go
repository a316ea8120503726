package room

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/kithproject/kith/internal/wire"
)

// next signs a change, and checks that it may follow.
func next(t testing.TB, prev, r *Roster, by string, err error) *Roster {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	mustSign(t, r, by)
	if err := r.Verify(prev, prev.Room); err != nil {
		t.Fatalf("version %d by %s: %v", r.Version, by, err)
	}
	raw, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := DecodeRoster(raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Verify(prev, prev.Room); err != nil {
		t.Fatalf("version %d by %s, read again: %v", r.Version, by, err)
	}
	return again
}

func TestRosterLife(t *testing.T) {
	first := found(t, "host", Approve)
	if err := first.Verify(nil, first.Room); err != nil {
		t.Fatal(err)
	}
	r := mustAdmit(t, first, "ann", "bob")
	kicked, err := r.Remove(device(t, "ann").ID(), false, nil)
	kicked = next(t, r, kicked, "host", err)
	if kicked.Epoch != r.Epoch+1 || kicked.Secret == r.Secret {
		t.Error("a kick left the secret as it was")
	}
	if _, in := kicked.Member(device(t, "ann").ID()); in {
		t.Error("ann is still there")
	}
	back, err := kicked.Admit(memberOf(t, "ann"))
	back = next(t, kicked, back, "host", err)
	if m, _ := back.Member(device(t, "ann").ID()); m.Number != 4 || back.Epoch != kicked.Epoch {
		t.Errorf("ann came back as number %d in epoch %d", m.Number, back.Epoch)
	}
	banned, err := back.Remove(device(t, "ann").ID(), true, nil)
	banned = next(t, back, banned, "host", err)
	if _, err := banned.Admit(memberOf(t, "ann")); !errors.Is(err, ErrBanned) {
		t.Errorf("a banned device: %v", err)
	}
	stranger, err := banned.Remove(device(t, "stranger").ID(), true, nil)
	stranger = next(t, banned, stranger, "host", err)
	free, err := stranger.Unban(device(t, "ann").ID())
	free = next(t, stranger, free, "host", err)
	free = next(t, free, free.Rename("  another\x1b[31m   name "), "host", nil)
	if free.Name != "another[31m name" {
		t.Errorf("the name is %q", free.Name)
	}
	open, err := free.SetMode(Open)
	open = next(t, free, open, "host", err)
	closed, err := open.Close(nil)
	closed = next(t, open, closed, "host", err)
	if _, err := closed.Admit(memberOf(t, "dan")); !errors.Is(err, ErrClosed) {
		t.Errorf("a closed room: %v", err)
	}
	if _, err := closed.Remove(closed.Founder(), true, nil); !errors.Is(err, ErrNotHost) {
		t.Errorf("the founder was removed: %v", err)
	}
	if _, err := closed.Remove(device(t, "nobody").ID(), false, nil); !errors.Is(err, ErrNoMember) {
		t.Errorf("nobody was removed: %v", err)
	}
	for m := Approve; m <= Open; m++ {
		if got, err := ParseMode(strings.ToUpper(m.String())); err != nil || got != m {
			t.Errorf("ParseMode(%q): %v, %v", m, got, err)
		}
	}
	if _, err := ParseMode("closed"); err == nil {
		t.Error("a mode that is none was taken")
	}
}

// TestRosterForged: rosters by those who may not sign, old ones, and changed ones.
func TestRosterForged(t *testing.T) {
	r := mustAdmit(t, found(t, "host", Approve), "ann", "bob")
	room := r.Room
	until := wire.Day(start) + 30
	forge := func(change func(*Roster)) *Roster {
		n := r.next()
		change(n)
		return n
	}
	signRaw := func(n *Roster, by string) *Roster {
		n.Signer = device(t, by).ID()
		body, err := n.body()
		if err != nil {
			t.Fatal(err)
		}
		n.Sig = [64]byte(device(t, by).Sign(rosterProof(body)))
		return n
	}
	ann := device(t, "ann").ID()
	for name, c := range map[string]struct {
		r    *Roster
		want error
	}{
		"by a member":               {signRaw(forge(func(*Roster) {}), "ann"), ErrNotHost},
		"by a stranger":             {signRaw(forge(func(*Roster) {}), "eve"), ErrNotHost},
		"not signed":                {forge(func(n *Roster) { n.Signer = n.Founder() }), ErrRoster},
		"signed for the founder":    {forge(func(n *Roster) { signRaw(n, "ann").Signer = n.Founder() }), ErrRoster},
		"a host named by itself":    {signRaw(forge(func(n *Roster) { n.Hosts = append(n.Hosts, HostEntry{ID: ann, Until: until}) }), "ann"), ErrNotHost},
		"another founder":           {signRaw(forge(func(n *Roster) { n.Hosts[0].ID = ann }), "ann"), ErrRoster},
		"another salt":              {signRaw(forge(func(n *Roster) { n.Salt[0] ^= 1 }), "host"), ErrRoster},
		"another room":              {signRaw(forge(func(n *Roster) { n.Room[0] ^= 1 }), "host"), ErrRoster},
		"a key that is not bob's":   {signRaw(forge(func(n *Roster) { n.Members[2].WireGuard = [32]byte{9} }), "host"), ErrRoster},
		"the founder is not in it":  {signRaw(forge(func(n *Roster) { n.Members = n.Members[1:] }), "host"), ErrRoster},
		"an older version":          {signRaw(forge(func(n *Roster) { n.Version = 1 }), "host"), ErrOlder},
		"an older epoch":            {signRaw(forge(func(n *Roster) { n.Version, n.Epoch = 99, 0 }), "host"), ErrOlder},
		"the same again":            {r, ErrOlder},
		"a changed name, signed by": {forge(func(n *Roster) { signRaw(n, "host").Name = "x" }), ErrRoster},
	} {
		if err := c.r.Verify(r, room); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if err := r.Sign(device(t, "ann")); !errors.Is(err, ErrNotHost) {
		t.Errorf("a member signs: %v", err)
	}
	mustSign(t, r, "host")
	// Who was host and is no more, or was kicked, signs nothing that is taken.
	two, err := r.AddHost(device(t, "host"), ann, wire.Day(start), until)
	two = next(t, r, two, "host", err)
	mine := next(t, two, two.Rename("by ann"), "ann", nil)
	dropped, err := mine.DropHost(ann)
	dropped = next(t, mine, dropped, "host", err)
	kicked, err := mine.Remove(ann, false, nil)
	kicked = next(t, mine, kicked, "host", err)
	for name, prev := range map[string]*Roster{"dropped": dropped, "kicked": kicked} {
		stays := mine.next()
		stays.Version, stays.Epoch = 1000, 1000
		mustSign(t, stays, "ann")
		if err := stays.Verify(prev, room); !errors.Is(err, ErrNotHost) {
			t.Errorf("a %s host's roster: %v", name, err)
		}
		if prev.IsHost(ann) {
			t.Errorf("%s, and still a host", name)
		}
	}
	// A second host does not name a third, nor bring back one that was taken off.
	third := two.next()
	third.Hosts = append(third.Hosts, HostEntry{ID: device(t, "bob").ID(), Until: until})
	mustSign(t, third, "ann")
	if err := third.Verify(two, room); !errors.Is(err, ErrNotHost) {
		t.Errorf("a host named by a second host: %v", err)
	}
	if _, err := two.AddHost(device(t, "ann"), device(t, "bob").ID(), wire.Day(start), until); !errors.Is(err, ErrNotHost) {
		t.Errorf("AddHost by a second host: %v", err)
	}
	if _, err := two.AddHost(device(t, "host"), device(t, "eve").ID(), wire.Day(start), until); !errors.Is(err, ErrNoMember) {
		t.Errorf("AddHost of a stranger: %v", err)
	}
	if _, err := two.AddHost(device(t, "host"), ann, wire.Day(start), wire.Day(start)+MaxHostDays+1); err == nil {
		t.Error("a host was named for longer than MaxHostDays")
	}
}

// TestTwoHosts: equal versions have one winner on every side, a kick beats any
// number of admissions that have not heard of it, and what both have done is
// there after Merge.
func TestTwoHosts(t *testing.T) {
	r := mustAdmit(t, found(t, "host", Approve), "ann", "bob")
	ann, bob := device(t, "ann").ID(), device(t, "bob").ID()
	r2, err := r.AddHost(device(t, "host"), ann, wire.Day(start), wire.Day(start)+30)
	base := next(t, r, r2, "host", err)

	a, err := base.Admit(memberOf(t, "carol"))
	a = next(t, base, a, "host", err)
	b, err := base.Admit(memberOf(t, "dan"))
	b = next(t, base, b, "ann", err)
	if !a.Beats(b) || b.Beats(a) || a.Beats(a) {
		t.Error("of equal versions the founder's does not win")
	}
	if err := a.Verify(b, r.Room); err != nil {
		t.Errorf("the founder's after the other host's: %v", err)
	}
	if err := b.Verify(a, r.Room); !errors.Is(err, ErrOlder) {
		t.Errorf("the other host's after the founder's: %v", err)
	}
	m1, err := Merge(a, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	m2, err := Merge(b, a, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(m1.Members) != 5 || len(m2.Members) != 5 || m1.Epoch != base.Epoch {
		t.Fatalf("merged: %d and %d members", len(m1.Members), len(m2.Members))
	}
	for i := range m1.Members {
		if m1.Members[i] != m2.Members[i] {
			t.Error("the two hosts merge to different members")
		}
	}
	merged := next(t, a, m1, "ann", nil)
	if err := merged.Verify(b, r.Room); err != nil {
		t.Errorf("the merged one does not follow the loser: %v", err)
	}
	if again, err := Merge(merged, a, nil); err != nil || again != merged {
		t.Errorf("a merge with nothing to add changes something: %v", err)
	}

	// ann kicks bob; the founder, who has not heard of it, admits ten.
	kick, err := base.Remove(bob, false, nil)
	kick = next(t, base, kick, "ann", err)
	far := base
	for i := range 10 {
		n, err := far.Admit(memberOf(t, fmt.Sprintf("late %d", i)))
		far = next(t, far, n, "host", err)
	}
	if !kick.Beats(far) || far.Verify(kick, r.Room) == nil {
		t.Error("admissions undid a kick")
	}
	m, err := Merge(far, kick, nil)
	if err != nil {
		t.Fatal(err)
	}
	m = next(t, kick, m, "host", nil)
	if _, in := m.Member(bob); in || len(m.Members) != 12 {
		t.Errorf("merged: bob %v, %d members", in, len(m.Members))
	}

	// Two kicks at once, of another each: after the merge both are out, the secret is new.
	other, err := base.Remove(ann, true, nil)
	other = next(t, base, other, "host", err)
	if err := other.Verify(kick, r.Room); !errors.Is(err, ErrBack) {
		t.Errorf("after ann's kick of bob, the founder's roster with bob: %v", err)
	}
	if err := other.Authentic(kick, r.Room); err != nil {
		t.Errorf("for the merge it is good: %v", err)
	}
	both, err := Merge(other, kick, nil)
	if err != nil {
		t.Fatal(err)
	}
	both = next(t, other, both, "host", nil)
	if err := both.Verify(kick, r.Room); err != nil {
		t.Errorf("the merged one after ann's: %v", err)
	}
	_, inA := both.Member(ann)
	_, inB := both.Member(bob)
	if inA || inB || both.IsHost(ann) || !both.Banned(ann) || both.Secret == other.Secret || both.Secret == kick.Secret {
		t.Error("two kicks: one was lost")
	}
	// A kick that the winner has forgotten by name is not undone by an old roster.
	long := next(t, base, kick.next(), "host", nil)
	for i := range maxGone + 5 {
		n, err := long.Admit(memberOf(t, fmt.Sprintf("guest %d", i)))
		long = next(t, long, n, "host", err)
		n, err = long.Remove(device(t, fmt.Sprintf("guest %d", i)).ID(), false, nil)
		long = next(t, long, n, "host", err)
	}
	stale, err := Merge(long, base, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, in := stale.Member(bob); in {
		t.Error("an old roster brought a kicked member back")
	}
	// Closing wins over an admission, too.
	closed, err := base.Close(nil)
	closed = next(t, base, closed, "ann", err)
	shut, err := Merge(a, closed, nil)
	if err != nil || !shut.Closed {
		t.Errorf("closed %v, %v", shut.Closed, err)
	}
	if _, in := shut.Member(device(t, "carol").ID()); in {
		t.Error("a closed room took somebody in")
	}
}

// TestRosterLimits: the largest roster fits, and what is larger is refused at no
// cost to speak of.
func TestRosterLimits(t *testing.T) {
	r := found(t, "host", Open)
	r.Name = strings.Repeat("n", 64)
	for i := range maxGone { // former members and bans first: their numbers count
		n, err := r.Admit(memberOf(t, fmt.Sprintf("gone %d", i)))
		if err != nil {
			t.Fatal(err)
		}
		if r, err = n.Remove(device(t, fmt.Sprintf("gone %d", i)).ID(), true, nil); err != nil {
			t.Fatal(err)
		}
	}
	for len(r.Bans) < MaxBans {
		n, err := r.Remove(device(t, fmt.Sprintf("banned %d", len(r.Bans))).ID(), true, nil)
		if err != nil {
			t.Fatal(err)
		}
		r = n
	}
	if _, err := r.Remove(device(t, "one more").ID(), true, nil); !errors.Is(err, ErrFull) {
		t.Errorf("one ban too many: %v", err)
	}
	r.Next = 1<<32 - 1 - MaxMembers
	for i := 1; i < MaxMembers; i++ {
		m := memberOf(t, fmt.Sprint(i))
		m.Name = fmt.Sprintf("%03d", i) + strings.Repeat("x", 61)
		n, err := r.Admit(m)
		if err != nil {
			t.Fatal(err)
		}
		r = n
	}
	if _, err := r.Admit(memberOf(t, "one more")); !errors.Is(err, ErrFull) {
		t.Errorf("one member too many: %v", err)
	}
	for i := 1; i < MaxHosts; i++ {
		n, err := r.AddHost(device(t, "host"), r.Members[i].ID, 20000, 20001)
		if err != nil {
			t.Fatal(err)
		}
		r = n
	}
	if _, err := r.AddHost(device(t, "host"), r.Members[20].ID, 20000, 20001); !errors.Is(err, ErrFull) {
		t.Errorf("one host too many: %v", err)
	}
	r.Version = maxChanges
	mustSign(t, r, "host")
	raw, err := r.Encode()
	if err != nil {
		t.Fatalf("the largest roster does not fit: %v", err)
	}
	if _, err := DecodeRoster(raw); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := r.Verify(nil, r.Room); err != nil {
		t.Fatal(err)
	}
	t.Logf("the largest roster: %d bytes, all signatures checked in %v", len(raw), time.Since(begin))

	// 10^6 members: over the size at once; within the size, over the count.
	w := struct {
		Members []uint8 `cbor:"10,keyasint"`
	}{make([]uint8, 1_000_000)}
	huge, err := cbor.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	w.Members = w.Members[:60_000]
	large, err := cbor.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	// A head that promises 10^6 members and has none behind it.
	promise := []byte{0xa1, 0x0a, 0x9a, 0x00, 0x0f, 0x42, 0x40}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, body := range [][]byte{huge, large, promise} {
		if _, err := DecodeRoster(append(make([]byte, 64), body...)); !errors.Is(err, ErrRoster) {
			t.Errorf("%d bytes: %v", len(body), err)
		}
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 4<<20 {
		t.Errorf("refusing them took %d bytes", used)
	}
}

func TestRosterPrintsNothing(t *testing.T) {
	r := found(t, "host", Open)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if got := fmt.Sprintf(verb, r); got != "redacted" {
			t.Errorf("%s prints %q", verb, got)
		}
	}
}

// TestPairChain: both ends agree, nobody else can, and another pair, epoch or
// room has other keys.
func TestPairChain(t *testing.T) {
	r := mustAdmit(t, found(t, "host", Open), "ann", "bob", "carol")
	ann, bob := device(t, "ann"), device(t, "bob")
	a, idA, joinerA, err := PairChain(ann, r, bob.ID())
	if err != nil {
		t.Fatal(err)
	}
	b, idB, joinerB, err := PairChain(bob, r, ann.ID())
	if err != nil {
		t.Fatal(err)
	}
	if a != b || idA != idB || joinerA == joinerB {
		t.Fatal("the two ends disagree")
	}
	if a.Day != wire.Day(start) {
		t.Errorf("the chain begins on day %d", a.Day)
	}
	seen := map[[32]byte]string{a.Key: "ann and bob"}
	add := func(what string, key [32]byte) {
		t.Helper()
		if other, ok := seen[key]; ok {
			t.Errorf("%s have the keys of %s", what, other)
		}
		seen[key] = what
	}
	c, _, _, err := PairChain(ann, r, device(t, "carol").ID())
	if err != nil {
		t.Fatal(err)
	}
	add("ann and carol", c.Key)
	// The host has the roster and its own key: with each member it gets other keys.
	for _, name := range []string{"ann", "bob"} {
		h, _, _, err := PairChain(device(t, "host"), r, device(t, name).ID())
		if err != nil {
			t.Fatal(err)
		}
		add("the host and "+name, h.Key)
	}
	if _, _, _, err := PairChain(device(t, "eve"), r, ann.ID()); !errors.Is(err, ErrNoMember) {
		t.Errorf("a stranger: %v", err)
	}
	if _, _, _, err := PairChain(ann, r, ann.ID()); !errors.Is(err, ErrNoMember) {
		t.Errorf("with itself: %v", err)
	}
	// The host says that its own key is bob's: bob's signature is not on it.
	fake := r.next()
	fake.Members[2].WireGuard = device(t, "host").WireGuardPublic()
	mustSign(t, fake, "host")
	if err := fake.Verify(r, r.Room); !errors.Is(err, ErrRoster) {
		t.Errorf("the host put its own key in bob's place: %v", err)
	}
	// Carol is kicked: what she knows gives no key of the next epoch.
	kicked, err := r.Remove(device(t, "carol").ID(), false, nil)
	kicked = next(t, r, kicked, "host", err)
	e2, id2, _, err := PairChain(ann, kicked, bob.ID())
	if err != nil {
		t.Fatal(err)
	}
	add("ann and bob after the kick", e2.Key)
	if id2 == idA {
		t.Error("the pair's id did not change with the epoch")
	}
	if _, _, _, err := PairChain(ann, kicked, device(t, "carol").ID()); !errors.Is(err, ErrNoMember) {
		t.Errorf("a kicked member: %v", err)
	}
	old := kicked.next()
	old.Secret = r.Secret // all that carol has of it
	guess, _, _, err := PairChain(ann, old, bob.ID())
	if err != nil {
		t.Fatal(err)
	}
	add("the new epoch with the old secret", guess.Key)
	low := r.next()
	low.Members[2].WireGuard = [32]byte{}
	if _, _, _, err := PairChain(ann, low, bob.ID()); err == nil {
		t.Error("a key of low order was taken")
	}
}

// TestWireGuardKeysDiffer: nobody is let in with the key of another member, and no roster
// with such a one is taken.
func TestWireGuardKeysDiffer(t *testing.T) {
	r := mustAdmit(t, found(t, "host", Open), "ann")
	ann, bob := device(t, "ann"), device(t, "bob")
	m := Member{ID: bob.ID(), WireGuard: ann.WireGuardPublic(), Name: "bob", Added: start}
	m.WGSig = [64]byte(bob.Sign(wgProof(m.ID, m.WireGuard)))
	if _, err := r.Admit(m); !errors.Is(err, ErrRoster) {
		t.Errorf("admitted: %v", err)
	}
	n := r.next()
	m.Number = n.Next
	n.Next++
	n.Members = append(n.Members, m)
	raw, err := mustSign(t, n, "host").Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeRoster(raw); !errors.Is(err, ErrRoster) {
		t.Errorf("decoded: %v", err)
	}
}
