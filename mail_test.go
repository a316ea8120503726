package kith

import (
	"testing"

	"github.com/kithproject/kith/app/mail"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/registry"
)

// mailPair returns the records of two devices that have met on a day.
func mailPair(day int64) (a, b registry.Device) {
	a = registry.Device{PairID: registry.PairID{1}, State: registry.Active, ID: identity.DeviceID{2}, Name: "b", Joiner: true, ChainDay: day, Chain: [32]byte{7}}
	b = a
	b.ID, b.Name, b.Joiner = identity.DeviceID{1}, "a", false
	return a, b
}

// keysFrom returns what a device with this record looks at on a day, by day.
func keysFrom(rec registry.Device, today int64) map[int64]mail.Key {
	_, other := recRole(rec)
	out := make(map[int64]mail.Key)
	for _, days := range mailDays(today, rec.Skew) {
		for _, k := range mailKeys(rec, other, days[0], days[1]) {
			out[k.Day] = k
		}
	}
	return out
}

// keyTo returns what a device with this record leaves letters with on a day.
func keyTo(t *testing.T, rec registry.Device, today int64) mail.Key {
	t.Helper()
	self, _ := recRole(rec)
	keys := mailKeys(rec, self, today, today)
	if len(keys) != 1 {
		t.Fatalf("day %d: %d keys", today, len(keys))
	}
	return keys[0]
}

// heard moves a record's chain as a presence of the other device does.
func heard(t *testing.T, rec registry.Device, mine, theirs int64) registry.Device {
	t.Helper()
	next := min(mine, theirs) - 1
	if next <= rec.ChainDay {
		return rec
	}
	rec.MailKeys = keepMailKeys(rec, next)
	chain, err := recChain(rec).At(next)
	if err != nil {
		t.Fatal(err)
	}
	rec.Chain, rec.ChainDay = chain.Key, chain.Day
	return rec
}

// TestMailKeys holds that the receiver has the keys of all letters that may still wait:
// two devices meet on day 0, one leaves letters on days 0 to 7 while the other is away,
// which comes back on day 7, with the sender away or there, with clocks a day off.
func TestMailKeys(t *testing.T) {
	const met = 20000
	for _, skew := range []int64{-1, 0, 1} { // of the sender's clock
		for _, meets := range []bool{false, true} {
			a, b := mailPair(met - 1)
			b.Skew = skew
			b = heard(t, b, met, met+skew)
			if meets { // the sender is seen for a moment, and gone before it says anything
				b = heard(t, b, met+7, met+7+skew)
				if b.ChainDay < met+5 {
					t.Fatalf("the chain stays at day %d", b.ChainDay)
				}
			}
			keys := keysFrom(b, met+7)
			for day := int64(met); day <= met+7; day++ {
				left := keyTo(t, a, day+skew)
				if got, ok := keys[left.Day]; !ok || got.Token != left.Token || got.Seal != left.Seal {
					t.Errorf("skew %d, met again %v: letters of day %d cannot be read (have %v)", skew, meets, day-met, ok)
				}
			}
			if len(keys) > mail.LookBack+mail.LookAhead+2 {
				t.Errorf("%d boxes are looked at", len(keys))
			}
		}
	}
}

// TestMailKeysEnd holds that keys of days that no letter can be of are forgotten, however
// often the devices meet, and that what is kept leads nowhere else.
func TestMailKeysEnd(t *testing.T) {
	_, b := mailPair(100)
	for day := int64(101); day < 140; day += 3 {
		b = heard(t, b, day, day)
		for _, k := range b.MailKeys {
			if k.Day >= b.ChainDay || k.Day < b.ChainDay-mail.LookBack {
				t.Fatalf("on day %d, with the chain at %d, a key of day %d is kept", day, b.ChainDay, k.Day)
			}
		}
		if n := len(b.MailKeys); day > 115 && n != mail.LookBack {
			t.Errorf("on day %d %d keys are kept", day, n)
		}
	}
	j1, s1 := recChain(b).MailKeys(pairing.Joiner)
	j2, s2 := recChain(b).MailKeys(pairing.Offerer)
	next, err := recChain(b).At(b.ChainDay + 1)
	if err != nil {
		t.Fatal(err)
	}
	j3, s3 := next.MailKeys(pairing.Joiner)
	seen := map[[32]byte]bool{b.Chain: true}
	for _, k := range [][32]byte{j1, s1, j2, s2, j3, s3, next.Key} {
		if seen[k] {
			t.Error("two keys are the same")
		}
		seen[k] = true
	}
}

// TestMailClock holds what a sender does whose clock was set back to before the chain's
// day, and that a device with a clock that is far off is looked for at its days.
func TestMailClock(t *testing.T) {
	a, b := mailPair(20000)
	self, _ := recRole(a)
	if keys := mailKeys(a, self, 19000, 19000); len(keys) > 0 {
		t.Errorf("keys of a day before the chain's: %d", len(keys))
	}
	b.Skew = 400
	if keys := keysFrom(b, 20001); keys[20401].Token != keyTo(t, a, 20401).Token || keys[20001].Token != keyTo(t, a, 20001).Token || len(keys) > 2*(mail.LookBack+2) {
		t.Errorf("%d keys", len(keys))
	}
	b.Skew = 1 << 40
	if keys := keysFrom(b, 20001); len(keys) > mail.LookBack+2 {
		t.Errorf("with a skew that cannot be: %d keys", len(keys))
	}
	if days := mailDays(5, 0); len(days) != 1 || days[0] != [2]int64{5 - mail.LookBack, 6} {
		t.Errorf("days %v", days)
	}
}
