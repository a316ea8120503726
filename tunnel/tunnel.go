package tunnel

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	wg "golang.zx2c4.com/wireguard/device"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/kithproject/kith/identity"
)

// DefaultMTU is the MTU inside the tunnel, in bytes. Its packets make datagrams
// of 1460 bytes, which fit an Ethernet path, and of which a batch stays below what
// the kernel can segment in one go.
const DefaultMTU = 1400

// ErrPeer reports an operation on a device that the tunnel does not know.
var ErrPeer = errors.New("tunnel: no such peer")

// Config is what New needs. Identity and Bind must be set.
type Config struct {
	Identity *identity.Identity
	Bind     conn.Bind // carries the encrypted packets; the Tunnel opens and closes it
	Port     uint16    // UDP port number that Bind opens; default 0: any
	MTU      int       // of packets inside, in bytes; default DefaultMTU
	Logger   *slog.Logger
}

// A Peer is a device that may talk through the tunnel.
type Peer struct {
	ID        identity.DeviceID
	WireGuard [32]byte // its public key
	PSK       [32]byte // preshared key of the pair
	Endpoint  conn.Endpoint
	Keepalive time.Duration // WireGuard's persistent keepalive; default none
}

// PeerStats are what WireGuard counts.
type PeerStats struct {
	LastHandshake    time.Time // zero: none yet
	RxBytes, TxBytes uint64    // encrypted bytes
}

// A Tunnel is a user-mode WireGuard interface. It is safe for concurrent use.
// Close ends it.
type Tunnel struct {
	id     *identity.Identity
	nic    *nic
	bind   *resendBind
	device *wg.Device

	mu       sync.Mutex // guards the fields below; not held while calling out
	closed   bool
	peers    map[identity.DeviceID]Peer
	addrs    map[netip.Addr]identity.DeviceID
	conns    map[identity.DeviceID]map[io.Closer]struct{}
	fallback Fallback
}

// New opens the interface. It errs if the Bind cannot be opened.
func New(cfg Config) (*Tunnel, error) {
	if cfg.MTU == 0 {
		cfg.MTU = DefaultMTU
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	n, err := newNIC(cfg.Identity.ID().Addr(), cfg.MTU)
	if err != nil {
		return nil, err
	}
	t := &Tunnel{
		id: cfg.Identity, nic: n, bind: newResendBind(cfg.Bind), peers: make(map[identity.DeviceID]Peer),
		addrs: make(map[netip.Addr]identity.DeviceID), conns: make(map[identity.DeviceID]map[io.Closer]struct{}),
	}
	forwarder := tcp.NewForwarder(n.stack, 0, maxInFlight, t.incoming)
	n.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, forwarder.HandlePacket)
	t.device = wg.NewDevice(device{n}, t.bind, &wg.Logger{
		Verbosef: func(format string, args ...any) { cfg.Logger.Debug("wireguard", "text", fmt.Sprintf(format, args...)) },
		Errorf: func(format string, args ...any) {
			cfg.Logger.Debug("wireguard", "failed", fmt.Sprintf(format, args...))
		},
	})
	key := cfg.Identity.WireGuardPrivate()
	err = t.configure(fmt.Sprintf("private_key=%x\nlisten_port=%d\n", key, cfg.Port))
	if err == nil {
		if err = t.device.Up(); err != nil {
			err = fmt.Errorf("tunnel: %w", err)
		}
	}
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// configure speaks WireGuard's configuration protocol. The text holds keys and
// is never part of an error.
func (t *Tunnel) configure(text string) error {
	if err := t.device.IpcSet(text); err != nil {
		var ipc *wg.IPCError
		if errors.As(err, &ipc) {
			return fmt.Errorf("tunnel: WireGuard refuses the configuration (code %d)", ipc.ErrorCode())
		}
		return errors.New("tunnel: WireGuard refuses the configuration")
	}
	return nil
}

// Close ends all connections and waits for the interface's goroutines. It is
// idempotent; its error is always nil.
func (t *Tunnel) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	t.mu.Unlock()
	t.device.Close()
	t.nic.Close()
	t.nic.stack.Close()
	t.nic.stack.Wait()
	t.nic.drain()
	return nil
}

// AddPeer lets a device talk from its address, and sends to it by its endpoint.
// It errs if WireGuard refuses the keys.
func (t *Tunnel) AddPeer(p Peer) error {
	addr := p.ID.Addr()
	err := t.configure(fmt.Sprintf("public_key=%x\npreshared_key=%x\nreplace_allowed_ips=true\nallowed_ip=%s/128\npersistent_keepalive_interval=%d\n",
		p.WireGuard, p.PSK, addr, int(p.Keepalive.Seconds())))
	if err != nil {
		return err
	}
	peer := t.device.LookupPeer(wg.NoisePublicKey(p.WireGuard))
	if peer == nil {
		return ErrPeer // its key is this device's own
	}
	peer.SetEndpointFromPacket(p.Endpoint)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.peers[p.ID], t.addrs[addr] = p, p.ID
	return nil
}

func (t *Tunnel) peer(id identity.DeviceID) (Peer, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, ok := t.peers[id]
	if !ok {
		return Peer{}, ErrPeer
	}
	return p, nil
}

// SetPSK changes the preshared key from the next handshake on. It errs with
// ErrPeer for a device that was not added.
func (t *Tunnel) SetPSK(id identity.DeviceID, psk [32]byte) error {
	p, err := t.peer(id)
	if err != nil {
		return err
	}
	if p.PSK == psk {
		return nil
	}
	if err := t.configure(fmt.Sprintf("public_key=%x\nupdate_only=true\npreshared_key=%x\n", p.WireGuard, psk)); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p.PSK = psk
	t.peers[id] = p
	return nil
}

// RemovePeer forgets a device and ends its connections.
func (t *Tunnel) RemovePeer(id identity.DeviceID) {
	t.mu.Lock()
	p, ok := t.peers[id]
	delete(t.peers, id)
	delete(t.addrs, id.Addr())
	conns := t.conns[id]
	delete(t.conns, id)
	t.mu.Unlock()
	if !ok {
		return
	}
	t.device.RemovePeer(wg.NoisePublicKey(p.WireGuard))
	t.bind.forget(p.Endpoint)
	for c := range conns {
		c.Close()
	}
}

// Peer returns the device that has an address in the tunnel.
func (t *Tunnel) Peer(addr netip.Addr) (identity.DeviceID, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	id, ok := t.addrs[addr]
	return id, ok
}

// Handshake starts a WireGuard handshake, unless one was started in the last five
// seconds. It returns at once. It errs with ErrPeer for a device that was not
// added, or if the initiation could not be sent.
func (t *Tunnel) Handshake(id identity.DeviceID) error {
	p, err := t.peer(id)
	if err != nil {
		return err
	}
	peer := t.device.LookupPeer(wg.NoisePublicKey(p.WireGuard))
	if peer == nil {
		return ErrPeer
	}
	if err := peer.SendHandshakeInitiation(false); err != nil {
		return fmt.Errorf("tunnel: handshake: %w", err)
	}
	return nil
}

// Stats returns what WireGuard counts for a device; it reports false for one that
// was not added.
func (t *Tunnel) Stats(id identity.DeviceID) (PeerStats, bool) {
	p, err := t.peer(id)
	if err != nil {
		return PeerStats{}, false
	}
	var text bytes.Buffer
	if err := t.device.IpcGetOperation(&text); err != nil {
		return PeerStats{}, false
	}
	defer clear(text.Bytes()) // it holds keys
	return parseStats(&text, hex.EncodeToString(p.WireGuard[:]))
}

// parseStats reads the section of one public key from WireGuard's configuration
// protocol.
func parseStats(r io.Reader, key string) (PeerStats, bool) {
	var st PeerStats
	var sec, nsec int64
	found, here := false, false
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), "=")
		if name == "public_key" {
			here = value == key
			found = found || here
		}
		if !here {
			continue
		}
		n, err := strconv.ParseUint(value, 10, 63)
		if err != nil {
			continue
		}
		switch name {
		case "last_handshake_time_sec":
			sec = int64(n)
		case "last_handshake_time_nsec":
			nsec = int64(n)
		case "rx_bytes":
			st.RxBytes = n
		case "tx_bytes":
			st.TxBytes = n
		}
	}
	if sec != 0 || nsec != 0 {
		st.LastHandshake = time.Unix(sec, nsec)
	}
	return st, found
}
