package lan

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const (
	// nearbyLife is how long an announcement counts.
	nearbyLife = 10 * time.Second
	// maxNearbyDevices is how many devices are listed, in number; a device has an
	// entry per address that it sends from.
	maxNearbyDevices = 64
	maxNearbyEntries = 2 * maxNearbyDevices
	// maxPerSource is how many announcements of one address count, so that one
	// machine cannot fill the list.
	maxPerSource = 4
	// maxDeviceAddrs is how many addresses of one device are kept.
	maxDeviceAddrs = 16
)

// A nearbyTable is who was heard announcing pairing. An entry belongs to the
// address that it came from: nobody else can take it back or change it. It does
// no locking.
type nearbyTable struct {
	entries map[nearbyKey]*nearbyEntry
	count   uint64
}

type nearbyKey struct {
	from     netip.Addr
	instance string
}

type nearbyEntry struct {
	device Device // as announced, without addresses
	addr   netip.AddrPort
	order  uint64 // who came first
	seen   time.Time
}

// heard takes an announcement and reports whether the list changes.
func (t *nearbyTable) heard(now time.Time, from netip.Addr, r pairRecord) bool {
	key := nearbyKey{from, r.instance}
	e, known := t.entries[key]
	if r.bye {
		delete(t.entries, key)
		return known
	}
	if !known {
		if !t.room(from) {
			return false
		}
		t.count++
		e = &nearbyEntry{order: t.count}
		if t.entries == nil {
			t.entries = make(map[nearbyKey]*nearbyEntry)
		}
		t.entries[key] = e
	}
	d, addr := r.device, netip.AddrPortFrom(from, r.port)
	d.Instance = r.instance
	changed := !known || e.addr != addr || !sameDevice(e.device, d)
	e.device, e.addr, e.seen = d, addr, now
	return changed
}

// room reports whether one more of an address may come; it makes room by dropping
// the address's own that was silent longest.
func (t *nearbyTable) room(from netip.Addr) bool {
	own := 0
	var oldest nearbyKey
	for k, e := range t.entries {
		if k.from != from {
			continue
		}
		if own++; own == 1 || e.seen.Before(t.entries[oldest].seen) {
			oldest = k
		}
	}
	if own >= maxPerSource {
		delete(t.entries, oldest)
		return true
	}
	return len(t.entries) < maxNearbyEntries
}

func sameDevice(a, b Device) bool {
	return a.Instance == b.Instance && a.Name == b.Name && a.Kind == b.Kind && a.ShowsCode == b.ShowsCode
}

// expire drops what was not refreshed. It reports whether the list changes, and
// when to look again; that is zero if nothing is left.
func (t *nearbyTable) expire(now time.Time) (changed bool, next time.Time) {
	for k, e := range t.entries {
		end := e.seen.Add(nearbyLife)
		if !end.After(now) {
			delete(t.entries, k)
			changed = true
			continue
		}
		if next.IsZero() || end.Before(next) {
			next = end
		}
	}
	return changed, next
}

// list returns the devices by name. Announcements that say the same of the same
// instance are one device with several addresses.
func (t *nearbyTable) list() []Device {
	entries := make([]*nearbyEntry, 0, len(t.entries))
	for _, e := range t.entries {
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b *nearbyEntry) int { return cmp.Compare(a.order, b.order) })
	out := []Device{}
	for _, e := range entries {
		i := slices.IndexFunc(out, func(d Device) bool { return sameDevice(d, e.device) })
		switch {
		case i < 0 && len(out) < maxNearbyDevices:
			d := e.device
			d.Addrs, d.Seen = []netip.AddrPort{e.addr}, e.seen
			out = append(out, d)
		case i >= 0:
			if e.seen.After(out[i].Seen) {
				out[i].Seen = e.seen
			}
			if len(out[i].Addrs) < maxDeviceAddrs {
				out[i].Addrs = append(out[i].Addrs, e.addr)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b Device) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Instance, b.Instance))
	})
	return out
}
