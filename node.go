package kith

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kithproject/kith/app/forward"
	"github.com/kithproject/kith/app/measure"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/netmon"
	"github.com/kithproject/kith/lane/carry"
	"github.com/kithproject/kith/link"
	"github.com/kithproject/kith/registry"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/dht"
	"github.com/kithproject/kith/rendezvous/lan"
	"github.com/kithproject/kith/tunnel"
)

// A Node is this device on the network: it pairs, keeps a link to every paired
// device, and carries connections to and from them. It is safe for concurrent
// use. Close ends it.
type Node struct {
	cfg       Config
	bootID    [8]byte // tells this run from every other; new at each start
	lock      *os.File
	id        *identity.Identity
	store     *registry.Store
	media     *rendezvous.Racer
	lan       *lan.Exchange  // nil if it is left out
	dht       *dht.Exchange  // nil if it is left out
	via       *multicastOnly // nil if the LAN is left out
	mon       *netmon.Monitor
	socket    *link.Socket
	tunnel    *tunnel.Tunnel
	events    events
	lanes     lanes
	carries   carries
	laneMap   laneMap
	rooms     *rooms
	datagrams datagrams
	live      *forward.Live[identity.DeviceID] // who reaches which port of this machine
	reach     *reach
	relayed   traffic // of relays that are closed
	notes     atomic.Pointer[func(from Device, body []byte) bool]
	kin       kinship
	measure   *measure.Service
	own       ownLook
	suspicion suspicion

	ctx    context.Context    //nolint:containedctx // ends every goroutine of the node; Close cancels it
	cancel context.CancelFunc // idempotent
	wg     sync.WaitGroup

	attaching sync.Mutex                  // guards attached, and the order of its changes in the tunnel
	attached  map[identity.DeviceID]*peer // the one that the tunnel has of each device

	mu       sync.Mutex // guards the fields below; never held while calling out
	closed   bool
	peers    map[registry.PairID]*peer
	ending   map[registry.PairID]*peer // those that stopPeer waits for
	pairings map[*Pairing]struct{}
}

// Open starts this device: it loads or makes the identity, takes hold of the
// state directory, opens the tunnel's UDP port and begins to look for every
// paired device. ctx bounds the call only. It errs with ErrInUse if another
// process holds the directory, with an *identity.PermissionError if others can
// read it, and with the reason if the directory cannot be used.
func Open(ctx context.Context, cfg Config) (*Node, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	n := &Node{
		cfg: cfg, peers: make(map[registry.PairID]*peer), ending: make(map[registry.PairID]*peer),
		attached: make(map[identity.DeviceID]*peer), pairings: make(map[*Pairing]struct{}),
		live: forward.NewLive[identity.DeviceID](maxReached),
		carries: carries{
			conns: make(map[*carry.Conn]carried), names: make(map[carryName]*carry.Conn),
			older: make(map[identity.DeviceID]<-chan struct{}), bytes: make(map[identity.DeviceID]*laneBytes),
		},
	}
	n.reach, n.rooms = newReach(n), newRooms(n)
	n.ctx, n.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := n.open(); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

func (n *Node) open() (err error) {
	if _, err := rand.Read(n.bootID[:]); err != nil {
		return fmt.Errorf("kith: %w", err)
	}
	if n.id, err = identity.Open(n.cfg.Dir); err != nil {
		return err
	}
	if err := n.takeDir(); err != nil {
		return err
	}
	if n.store, err = registry.Open(n.cfg.Dir); err != nil {
		return err
	}
	if err := n.store.Sweep(time.Now()); err != nil {
		n.cfg.Logger.Warn("old records stay", "err", err)
	}
	n.mon = netmon.New(netmon.Config{Logger: n.cfg.Logger})
	n.wg.Go(func() { _ = n.mon.Run(n.ctx) })
	if err := n.openMedia(); err != nil {
		return err
	}
	n.openVia()
	if err := n.openTunnel(); err != nil {
		return err
	}
	n.reach.start()
	n.wg.Go(n.followNetwork)
	if err := n.openRooms(); err != nil { // before anybody is connected, who may be a member
		return err
	}
	for _, dev := range append(n.store.List(), n.store.Tombs()...) {
		n.startPeer(dev)
	}
	return n.openKin()
}

// takeDir locks the state directory. The lock ends with the process, so that a
// kill leaves nothing to clean up.
func (n *Node) takeDir() error {
	f, err := os.OpenFile(filepath.Join(n.cfg.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("kith: state directory: %w", err)
	}
	if err := lockFile(f); err != nil {
		f.Close()
		if errors.Is(err, ErrInUse) {
			return fmt.Errorf("%w: %s", ErrInUse, n.cfg.Dir)
		}
		return fmt.Errorf("kith: lock the state directory: %w", err)
	}
	n.lock = f
	return nil
}

func (n *Node) openTunnel() error {
	port, err := n.openOn(n.wantedPort())
	if err != nil && n.cfg.Port == 0 {
		port, err = n.openOn(0) // the port of the last run is taken
	}
	if err != nil {
		return err
	}
	n.rememberPort(port)
	n.tunnel.SetFallback(n.acceptForward)
	n.tunnel.SetUDPFallback(tunnel.UDPFallback{May: n.mayReachUDP, Serve: n.serveUDP})
	return errors.Join(n.serveRights(), n.openLanes(), n.openMeasure())
}

func (n *Node) openOn(port uint16) (uint16, error) {
	socket := link.NewSocket(link.SocketConfig{
		Port: port, Logger: n.cfg.Logger, Loopback: n.cfg.Loopback, Changed: n.addressesChanged,
	})
	tun, err := tunnel.New(tunnel.Config{Identity: n.id, Bind: socket, Port: port, Logger: n.cfg.Logger})
	if err != nil {
		return 0, fmt.Errorf("kith: open UDP port %d: %w", port, err)
	}
	n.socket, n.tunnel = socket, tun
	return socket.Port(), nil
}

// wantedPort is the configured port or that of the last run: peers try the
// addresses that worked before even when every medium is down.
func (n *Node) wantedPort() uint16 {
	if n.cfg.Port != 0 {
		return n.cfg.Port
	}
	raw, err := os.ReadFile(filepath.Join(n.cfg.Dir, "port"))
	if err != nil || len(raw) > 8 {
		return 0
	}
	port, err := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 16)
	if err != nil {
		return 0
	}
	return uint16(port)
}

func (n *Node) rememberPort(port uint16) {
	if n.wantedPort() == port {
		return
	}
	err := os.WriteFile(filepath.Join(n.cfg.Dir, "port"), fmt.Appendf(nil, "%d\n", port), 0o600)
	if err != nil { // only a hint: the next run picks another port
		n.cfg.Logger.Warn("port not remembered", "err", err)
	}
}

// followNetwork tells every peer when this device's addresses change.
func (n *Node) followNetwork() {
	changes, cancel := n.mon.Subscribe()
	defer cancel()
	for {
		select {
		case <-n.ctx.Done():
			return
		case _, ok := <-changes:
			if !ok {
				return
			}
			n.cfg.Logger.Info("network changed")
			n.reach.networkChanged()
			n.forgetLanes()
			n.leaveLanes(nil)
			for _, p := range n.allPeers() {
				p.post(p.networkChanged)
			}
		}
	}
}

func (n *Node) allPeers() []*peer {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := make([]*peer, 0, len(n.peers))
	for _, p := range n.peers {
		all = append(all, p)
	}
	return all
}

// ID returns this device's public name.
func (n *Node) ID() identity.DeviceID { return n.id.ID() }

// Name returns what this device calls itself.
func (n *Node) Name() string { return n.cfg.Name }

// Dir returns the state directory.
func (n *Node) Dir() string { return n.cfg.Dir }

// Addr returns this device's address inside every tunnel.
func (n *Node) Addr() netip.Addr { return n.id.ID().Addr() }

// Events returns what happens from now on, and a function that ends the
// subscription. A subscriber that lags more than 64 events behind loses some.
func (n *Node) Events() (<-chan Event, func()) { return n.events.subscribe() }

// Problems returns the files of the state directory that could not be read and
// were kept aside.
func (n *Node) Problems() []registry.Problem {
	all := n.store.Problems()
	if n.kin.problem != nil {
		all = append(all, *n.kin.problem)
	}
	return all
}

// Close says goodbye to connected devices, ends every connection and waits for
// the node's goroutines. It is idempotent; the error is that of releasing the
// system's resources.
func (n *Node) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	n.mu.Unlock()

	n.sayGoodbye()
	n.cancel()
	var errs []error
	if n.kin.service != nil {
		errs = append(errs, n.kin.service.Close())
	}
	if n.measure != nil {
		errs = append(errs, n.measure.Close())
	}
	n.wg.Wait()
	n.events.close()
	errs = append(errs, n.rooms.close())
	if n.lanes.service != nil {
		errs = append(errs, n.lanes.service.Close())
	}
	if n.tunnel != nil {
		errs = append(errs, n.tunnel.Close())
	}
	if n.via != nil {
		errs = append(errs, n.via.Close())
	}
	if n.media != nil {
		errs = append(errs, n.media.Close())
	} else {
		for _, ex := range n.cfg.Exchanges {
			errs = append(errs, ex.Close())
		}
	}
	if n.lock != nil {
		errs = append(errs, n.lock.Close())
	}
	return errors.Join(errs...)
}

// goodbyeTimeout bounds how long Close spends on telling peers.
const goodbyeTimeout = 500 * time.Millisecond

func (n *Node) sayGoodbye() {
	ctx, cancel := context.WithTimeout(context.Background(), goodbyeTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for _, p := range n.allPeers() {
		wg.Go(func() { p.goodbye(ctx) })
	}
	wg.Wait()
}

// start runs f as one of the node's goroutines, unless the node is closed.
func (n *Node) start(f func()) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return fmt.Errorf("kith: %w", net.ErrClosed)
	}
	n.wg.Go(f)
	return nil
}
