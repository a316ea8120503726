package dht

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kithproject/kith/internal/durable"
	"github.com/kithproject/kith/rendezvous"
)

const (
	nodesHeader = "kith dht nodes 1"
	maxNodes    = 200              // nodes of a nodes file
	maxFile     = 64 << 10         // bytes of a nodes file
	lookupLimit = 10 * time.Second // of one name
	lookupFirst = 5 * time.Second  // until names are looked up again that were not found
	lookupMost  = 5 * time.Minute
)

var (
	// ErrBootstrap reports a bootstrap node that is not host:port.
	ErrBootstrap = errors.New("dht: a bootstrap node must be host:port, for example 192.0.2.1:6881")
	// ErrNoNodes reports that there is nobody to ask.
	ErrNoNodes = errors.New("dht: no node is known: add bootstrap nodes, or wait until a name can be looked up")
	// ErrSilent reports that none of the nodes that are known answers.
	ErrSilent = errors.New("dht: no DHT node answered")
	// ErrNames reports names of bootstrap nodes that were not found.
	ErrNames = errors.New("dht: names not found")
)

type hostPort struct {
	host string
	port uint16
}

// bootstrap takes the addresses of a list, and returns its names.
func (e *Exchange) bootstrap(list []string) ([]hostPort, error) {
	var names []hostPort
	for _, text := range list {
		if p, err := netip.ParseAddrPort(text); err == nil && usable(p) {
			e.named = append(e.named, contact{addr: netip.AddrPortFrom(p.Addr().Unmap(), p.Port())})
			continue
		}
		host, port, err := net.SplitHostPort(text)
		n, err2 := strconv.ParseUint(port, 10, 16)
		if err != nil || err2 != nil || host == "" || n == 0 || strings.ContainsAny(host, "/@ ") {
			return nil, fmt.Errorf("%w: %q", ErrBootstrap, text)
		}
		names = append(names, hostPort{host, uint16(n)})
	}
	return names, nil
}

// lookUp looks names up, until one is found, and again when Check asks for it
// while no node answers.
func (e *Exchange) lookUp(names []hostPort) {
	literal := e.named
	for wait := lookupFirst; ; wait = min(2*wait, lookupMost) {
		var found []contact
		var bad []string
		for _, n := range names {
			ctx, cancel := context.WithTimeout(e.ctx, lookupLimit)
			addrs, err := e.cfg.LookupHost(ctx, n.host)
			cancel()
			if err != nil {
				bad = append(bad, n.host)
			}
			for _, a := range addrs {
				if p := netip.AddrPortFrom(a.Unmap(), n.port); usable(p) && len(found) < keepContact {
					found = append(found, contact{addr: p})
				}
			}
		}
		if e.ctx.Err() != nil {
			return
		}
		e.mu.Lock()
		if e.named, e.nameErr = append(found, literal...), nil; len(bad) > 0 {
			e.nameErr = fmt.Errorf("%w: %s", ErrNames, strings.Join(bad, ", "))
		}
		e.mu.Unlock()
		for _, eng := range e.engines {
			poke(eng.kick)
		}
		var again <-chan time.Time
		timer := time.NewTimer(wait)
		if len(found) == 0 {
			again = timer.C
		}
		for waiting := true; waiting; {
			select {
			case <-e.ctx.Done():
				timer.Stop()
				return
			case <-again:
				waiting = false
			case <-e.resolve:
				waiting = e.Health().Ready
			}
		}
		timer.Stop()
	}
}

// seeds returns the nodes to begin with that an engine can reach.
func (e *Exchange) seeds(eng *engine) (out []contact) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range append(append([]contact(nil), e.named...), e.saved...) {
		if c.addr.Addr().Is4() != eng.six {
			out = append(out, c)
		}
	}
	return out
}

func (e *engine) goodOnes(n int) []contact {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.table.closest(time.Now(), e.table.self, n, true)
}

// saveNowAndThen saves the nodes until Close.
func (e *Exchange) saveNowAndThen() {
	for pause(e.ctx, saveEvery) == nil {
		if err := e.save(); err != nil {
			e.log.Warn("nodes not saved", "exchange", e.Name(), "err", err)
		}
	}
}

// save writes the good nodes, if there are any: an outage empties no file.
func (e *Exchange) save() error {
	if e.cfg.NodesFile == "" {
		return nil
	}
	var good []contact
	for _, eng := range e.engines {
		good = append(good, eng.goodOnes(maxNodes/len(e.engines))...)
	}
	if len(good) == 0 {
		return nil
	}
	if err := durable.WriteFile(filepath.Dir(e.cfg.NodesFile), filepath.Base(e.cfg.NodesFile), formatNodes(good)); err != nil {
		return fmt.Errorf("dht: save nodes: %w", err)
	}
	return nil
}

func formatNodes(nodes []contact) []byte {
	b := []byte(nodesHeader + "\n")
	for _, c := range nodes[:min(len(nodes), maxNodes)] {
		b = append(hex.AppendEncode(b, c.id[:]), ' ')
		b = append(c.addr.AppendTo(b), '\n')
	}
	return b
}

// parseNodes reads a nodes file. Lines that it does not understand are skipped.
func parseNodes(b []byte) (out []contact) {
	lines := bufio.NewScanner(bytes.NewReader(b[:min(len(b), maxFile)]))
	if !lines.Scan() || lines.Text() != nodesHeader {
		return nil
	}
	for lines.Scan() && len(out) < maxNodes {
		first, second, ok := strings.Cut(lines.Text(), " ")
		raw, err := hex.DecodeString(first)
		p, err2 := netip.ParseAddrPort(second)
		if !ok || err != nil || err2 != nil || len(raw) != len(id{}) || !usable(p) || p.Addr().Zone() != "" {
			continue
		}
		out = append(out, contact{id(raw), netip.AddrPortFrom(p.Addr().Unmap(), p.Port())})
	}
	return out
}

func loadNodes(name string, log *slog.Logger) []contact {
	if name == "" {
		return nil
	}
	f, err := os.Open(name)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			log.Warn("nodes not loaded", "exchange", "dht", "err", err)
		}
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		log.Warn("nodes not loaded", "exchange", "dht", "err", err)
		return nil
	}
	return parseNodes(b)
}

// A Node is a full DHT node and nothing else, for a hub and for private networks.
// It is safe for concurrent use.
type Node struct{ e *Exchange }

// NewNode starts a full node. It takes Config as New does, and errs as New does;
// Serve is set and sessions are not possible.
func NewNode(cfg Config) (*Node, error) {
	cfg.Serve, cfg.NoShortcut = true, true
	e, err := New(cfg)
	if err != nil {
		return nil, err
	}
	return &Node{e}, nil
}

// Addr returns the address of the node's first socket.
func (n *Node) Addr() netip.AddrPort { return n.e.Addrs()[0] }

// Health says how many good nodes it knows.
func (n *Node) Health() rendezvous.Health { return n.e.Health() }

// Stats returns its counts.
func (n *Node) Stats() Stats { return n.e.Stats() }

// AddNodes gives it other nodes to begin with.
func (n *Node) AddNodes(nodes ...netip.AddrPort) { n.e.AddNodes(nodes...) }

// Close stops the node and waits for its goroutines. It errs if the nodes file
// cannot be written.
func (n *Node) Close() error { return n.e.Close() }

// anotherRate is how many questions a second another Exchange of the same settings
// sends on average: it is for a few frames.
const anotherRate = 25

// Another opens a device of the same DHT that only asks, on sockets of its own. It
// knows the nodes that this one found good, keeps none, and sends nothing straight, so
// that its frames go through others. It errs as New does.
func (e *Exchange) Another() (rendezvous.Exchange, error) {
	cfg := e.cfg
	cfg.Conn, cfg.Port, cfg.NodesFile, cfg.Serve, cfg.NoShortcut = nil, 0, "", false, true
	cfg.Rate = min(cfg.Rate, anotherRate)
	x, err := New(cfg)
	if err != nil {
		return nil, err
	}
	x.AddNodes(e.Nodes(bucketSize)...)
	return x, nil
}

// Servers returns Config.Bootstrap.
func (e *Exchange) Servers() []string { return slices.Clone(e.cfg.Bootstrap) }
