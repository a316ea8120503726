package tunnel

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	wg "golang.zx2c4.com/wireguard/device"

	"github.com/kithproject/kith/identity"
)

// AddPeer lets a device talk from its address, and sends to it by its endpoint.
// For a device that is there already it changes what is new and keeps the session
// and the connections, unless the WireGuard key is another. It errs with ErrPeer
// for this device itself, with ErrKeyTaken, with net.ErrClosed, and if a value is
// out of range.
func (t *Tunnel) AddPeer(p Peer) error {
	if p.Keepalive < 0 || p.Keepalive > maxKeepalive {
		return fmt.Errorf("tunnel: add peer %s: keepalive %v is not between 0 and %v", p.ID.Short(), p.Keepalive, maxKeepalive)
	}
	if p.ID == t.id.ID() || p.WireGuard == t.id.WireGuardPublic() {
		return fmt.Errorf("tunnel: add this device itself: %w", ErrPeer)
	}
	t.change.Lock()
	defer t.change.Unlock()
	old, known, err := t.mayAdd(p)
	if err != nil {
		return fmt.Errorf("tunnel: add peer %s: %w", p.ID.Short(), err)
	}
	if known && old.WireGuard != p.WireGuard {
		t.remove(p.ID)
	}
	// Keepalive comes last: it sends at once, and needs the endpoint.
	err = t.configure(newSetting().key("public_key", p.WireGuard).key("preshared_key", p.PSK).
		text("replace_allowed_ips", "true").text("allowed_ip", p.ID.Addr().String()+"/128"))
	if err != nil {
		return err
	}
	peer := t.device.LookupPeer(wg.NoisePublicKey(p.WireGuard))
	if peer == nil {
		return ErrPeer
	}
	if p.Endpoint != nil {
		peer.SetEndpointFromPacket(p.Endpoint)
	}
	t.mu.Lock()
	t.peers[p.ID], t.addrs[p.ID.Addr()] = p, p.ID
	t.mu.Unlock()
	if p.Keepalive == 0 && !known {
		return nil
	}
	return t.configure(newSetting().key("public_key", p.WireGuard).text("update_only", "true").
		number("persistent_keepalive_interval", int(p.Keepalive/time.Second)))
}

// mayAdd refuses a peer with the key of another one: WireGuard would give the
// other's address and session to it, and anybody can name a public key.
func (t *Tunnel) mayAdd(p Peer) (old Peer, known bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return Peer{}, false, net.ErrClosed
	}
	for id, other := range t.peers {
		if id != p.ID && (other.WireGuard == p.WireGuard || id.Addr() == p.ID.Addr()) {
			return Peer{}, false, ErrKeyTaken
		}
	}
	old, known = t.peers[p.ID]
	return old, known, nil
}

func (t *Tunnel) peer(id identity.DeviceID) (Peer, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p, ok := t.peers[id]; ok && !t.closed {
		return p, nil
	}
	if t.closed {
		return Peer{}, net.ErrClosed
	}
	return Peer{}, ErrPeer
}

// SetPSK changes the preshared key from the next handshake on. It errs with
// ErrPeer for a device that was not added, and with net.ErrClosed.
func (t *Tunnel) SetPSK(id identity.DeviceID, psk [32]byte) error {
	t.change.Lock()
	defer t.change.Unlock()
	p, err := t.peer(id)
	if err != nil {
		return fmt.Errorf("tunnel: set preshared key of %s: %w", id.Short(), err)
	}
	if err := t.configure(newSetting().key("public_key", p.WireGuard).text("update_only", "true").key("preshared_key", psk)); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p.PSK = psk
	t.peers[id] = p
	return nil
}

// RemovePeer forgets a device and resets its connections, on which calls err with
// ErrPeer from then on.
func (t *Tunnel) RemovePeer(id identity.DeviceID) {
	t.change.Lock()
	defer t.change.Unlock()
	t.remove(id)
}

// remove is RemovePeer. The caller holds change.
func (t *Tunnel) remove(id identity.DeviceID) {
	t.mu.Lock()
	p, ok := t.peers[id]
	delete(t.peers, id)
	delete(t.addrs, id.Addr())
	conns := keys(t.conns[id])
	delete(t.conns, id)
	associations := keys(t.datagrams[id])
	delete(t.datagrams, id)
	requests := slices.DeleteFunc(keys(t.requests), func(r *request) bool { return r.from != id })
	closed := t.closed
	t.mu.Unlock()
	if !ok || closed {
		return
	}
	for _, r := range requests {
		r.end()
	}
	for _, c := range conns {
		c.abort(ErrPeer)
	}
	for _, d := range associations {
		d.abort(ErrPeer)
	}
	if len(conns) > 0 {
		time.Sleep(farewell) //nolint:forbidigo // nothing tells when a packet has left
	}
	t.device.RemovePeer(wg.NoisePublicKey(p.WireGuard))
	t.bind.forget(p.Endpoint)
	t.nic.hearing.forget(id.Addr())
}

// Peer returns the device that has an address in the tunnel.
func (t *Tunnel) Peer(addr netip.Addr) (identity.DeviceID, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	id, ok := t.addrs[addr]
	return id, ok
}

// Handshake starts a WireGuard handshake, unless one was started in the last five
// seconds: its first message is repeated meanwhile. It returns at once. It errs
// with ErrPeer for a device that was not added, with net.ErrClosed, or if the
// message could not be sent.
func (t *Tunnel) Handshake(id identity.DeviceID) error { return t.initiate(id, false) }

// HandshakeNow starts a WireGuard handshake, although one may be under way, and
// sends nothing more under the keys of earlier ones. It is for a device that does
// not answer under these keys: one that restarted has none of them, and its own
// first message does not count here while its clock is behind the time of the one
// before. It errs as Handshake does.
func (t *Tunnel) HandshakeNow(id identity.DeviceID) error { return t.initiate(id, true) }

func (t *Tunnel) initiate(id identity.DeviceID, anew bool) error {
	p, err := t.peer(id)
	if err != nil {
		return fmt.Errorf("tunnel: handshake with %s: %w", id.Short(), err)
	}
	peer := t.device.LookupPeer(wg.NoisePublicKey(p.WireGuard))
	if peer == nil {
		return fmt.Errorf("tunnel: handshake with %s: %w", id.Short(), ErrPeer)
	}
	if anew {
		peer.ExpireCurrentKeypairs()
	}
	if err := peer.SendHandshakeInitiation(false); err != nil {
		return fmt.Errorf("tunnel: handshake with %s: %w", id.Short(), err)
	}
	return nil
}
