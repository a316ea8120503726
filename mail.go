package kith

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/kithproject/kith/app/mail"
	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/registry"
)

// maxMailSkew is by how many days a device's clock may be off so that letters are looked
// for at its days too.
const maxMailSkew = 3660

// recRole is this device's side of the pairing that made a record, and the other's.
func recRole(rec registry.Device) (self, other pairing.Role) {
	if rec.Joiner {
		return pairing.Joiner, pairing.Offerer
	}
	return pairing.Offerer, pairing.Joiner
}

func recChain(rec registry.Device) pairing.Chain {
	return pairing.Chain{Key: rec.Chain, Day: rec.ChainDay}
}

// keepMailKeys returns the keys of letters that may still come, of the days before next
// to which the pair's chain moves now. The other days' keys follow from the chain.
func keepMailKeys(rec registry.Device, next int64) []registry.MailKey {
	first := next - mail.LookBack
	out := slices.DeleteFunc(slices.Clone(rec.MailKeys), func(k registry.MailKey) bool { return k.Day < first || k.Day >= rec.ChainDay })
	_, other := recRole(rec)
	for d := max(first, rec.ChainDay); d < next; d++ {
		chain, err := recChain(rec).At(d)
		if err != nil {
			break // a hundred years later
		}
		token, seal := chain.MailKeys(other)
		out = append(out, registry.MailKey{Day: d, Token: token, Seal: seal})
	}
	return out
}

// mailKeys returns what letters between this device and another are left and sealed
// with, in one direction and of the days first to last, as far as this device still has
// or already has their keys.
func mailKeys(rec registry.Device, from pairing.Role, first, last int64) []mail.Key {
	var out []mail.Key
	if _, other := recRole(rec); from == other {
		for _, k := range rec.MailKeys {
			if k.Day >= first && k.Day <= last && k.Day < rec.ChainDay {
				out = append(out, mail.Key{Device: rec.ID, Day: k.Day, Token: k.Token, Seal: k.Seal})
			}
		}
	}
	chain := recChain(rec)
	for d := max(first, rec.ChainDay); d <= last; d++ {
		next, err := chain.At(d)
		if err != nil {
			break
		}
		chain = next
		token, seal := chain.MailKeys(from)
		out = append(out, mail.Key{Device: rec.ID, Day: d, Token: token, Seal: seal})
	}
	return out
}

// mailDays are the ranges of days in which a device whose clock is skew days ahead may
// have left letters, or this one for it.
func mailDays(today, skew int64) [][2]int64 {
	around := func(d int64) [2]int64 { return [2]int64{d - mail.LookBack, d + mail.LookAhead} }
	out := [][2]int64{around(today)}
	if skew < -maxMailSkew || skew > maxMailSkew || skew == 0 {
		return out
	}
	theirs := around(today + skew)
	if theirs[0] <= out[0][1] && out[0][0] <= theirs[1] { // they overlap: one range
		return [][2]int64{{min(out[0][0], theirs[0]), max(out[0][1], theirs[1])}}
	}
	return append(out, theirs)
}

// MailKeys are the keys of letters of this device's pairs (package app/mail).
type MailKeys struct{ n *Node }

var _ mail.Keys = MailKeys{}

// MailKeys returns what a mail.Service needs of this node: tokens and keys of letters,
// which tell nothing of the pairs' chains.
func (n *Node) MailKeys() MailKeys { return MailKeys{n} }

// pairs are the records whose devices may write to each other.
func (k MailKeys) pairs() []registry.Device {
	return slices.DeleteFunc(k.n.store.List(), func(d registry.Device) bool { return d.State != registry.Active || d.Rights.Blocked })
}

// To returns today's key of letters to a device. A clock that was set back gets the
// first day that this device still has. It errs if there is no pair with the device, or
// it is blocked.
func (k MailKeys) To(to identity.DeviceID, now time.Time) (mail.Key, error) {
	for _, rec := range k.pairs() {
		if rec.ID != to {
			continue
		}
		self, _ := recRole(rec)
		today := max(wire.Day(now), rec.ChainDay)
		keys := mailKeys(rec, self, today, today)
		if len(keys) == 0 {
			return mail.Key{}, fmt.Errorf("kith: letter to %s: %w", rec.Name, pairing.ErrDay)
		}
		return keys[0], nil
	}
	return mail.Key{}, fmt.Errorf("kith: letter: %w", registry.ErrNotFound)
}

// From returns the keys of letters that may wait for this device.
func (k MailKeys) From(now time.Time) []mail.Key {
	return k.all(now, func(rec registry.Device) pairing.Role { _, other := recRole(rec); return other })
}

// Sent returns the keys of letters of this device that may wait for others, but for
// those of days before the two devices last met.
func (k MailKeys) Sent(now time.Time) []mail.Key {
	return k.all(now, func(rec registry.Device) pairing.Role { self, _ := recRole(rec); return self })
}

func (k MailKeys) all(now time.Time, from func(registry.Device) pairing.Role) (out []mail.Key) {
	for _, rec := range k.pairs() {
		for _, days := range mailDays(wire.Day(now), rec.Skew) {
			out = append(out, mailKeys(rec, from(rec), days[0], days[1])...)
		}
	}
	return out
}

// NetworkChanges returns a channel that holds one token after this device's interfaces or
// addresses changed, and what ends that.
func (n *Node) NetworkChanges() (<-chan struct{}, func()) { return n.mon.Subscribe() }

// MailHubs returns the names of the hubs that this device uses, in order.
func (n *Node) MailHubs() []string {
	n.reach.mu.Lock()
	defer n.reach.mu.Unlock()
	out := make([]string, 0, len(n.reach.hubs))
	for _, h := range n.reach.hubs {
		out = append(out, hubName(h))
	}
	return out
}

func hubName(h hubaddr.Address) string { return net.JoinHostPort(h.Host, strconv.Itoa(int(h.Port))) }

// DialMailHub connects to where a hub of MailHubs keeps mail, and logs in; mail.NewClient
// says whether it was let in. It errs with registry.ErrNotFound for another name, with
// hubaddr.ErrPin if the server is not the hub, and if it cannot be reached.
func (n *Node) DialMailHub(ctx context.Context, name string) (net.Conn, error) {
	n.reach.mu.Lock()
	i := slices.IndexFunc(n.reach.hubs, func(h hubaddr.Address) bool { return hubName(h) == name })
	var hub hubaddr.Address
	if i >= 0 {
		hub = n.reach.hubs[i]
	}
	n.reach.mu.Unlock()
	if i < 0 {
		return nil, fmt.Errorf("kith: hub %s: %w", name, registry.ErrNotFound)
	}
	d := tls.Dialer{NetDialer: &net.Dialer{KeepAlive: -1}, Config: hub.TLSConfig()} // the mail asks for signs of life itself
	conn, err := d.DialContext(ctx, "tcp", name)
	if err != nil {
		return nil, fmt.Errorf("kith: mail at hub %s: %w", name, err)
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetWriteDeadline(deadline)
	}
	if _, err := conn.Write(hub.MailLogin()); err != nil {
		return nil, errors.Join(fmt.Errorf("kith: mail at hub %s: %w", name, err), conn.Close())
	}
	return conn, nil
}
