package kith

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/kithproject/kith/app/kin"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/durable"
	"github.com/kithproject/kith/registry"
)

// kinship is what this device and others tell each other of pairs (package app/kin).
type kinship struct {
	book    *kin.Book
	service *kin.Service
	removed removed
	storing sync.Mutex        // held while the record of an introduced pair is written
	problem *registry.Problem // with the file of a run before
}

// The files of the state directory that belong to it.
const (
	kinFile     = "kin.cbor"
	removedFile = "removed"
)

// openKin opens the book and takes letters from now on.
func (n *Node) openKin() error {
	if err := n.kin.removed.open(n.cfg.Dir); err != nil {
		return err
	}
	raw, err := os.ReadFile(filepath.Join(n.cfg.Dir, kinFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("kith: %w", err)
	}
	save := func(raw []byte) error { return durable.WriteFile(n.cfg.Dir, kinFile, raw) }
	if n.kin.book, err = kin.Open(raw, kinWorld{n}, save); errors.Is(err, kin.ErrState) {
		n.kin.problem = n.aside(kinFile, err)
		n.kin.book, err = kin.Open(nil, kinWorld{n}, save)
	}
	if err != nil {
		return err
	}
	ln, err := n.tunnel.Listen("tcp", kin.Port)
	if err != nil {
		return err
	}
	n.kin.service = kin.NewService(kin.Config{
		Listener: ln,
		Dial: func(ctx context.Context, peer identity.DeviceID) (net.Conn, error) {
			return n.Dial(ctx, "tcp", net.JoinHostPort(peer.String(), strconv.Itoa(kin.Port)))
		},
		Who:     n.pairedCaller,
		Pending: func(peer identity.DeviceID) []kin.Letter { return n.kin.book.Pending(time.Now(), peer) },
		Delivered: func(peer identity.DeviceID, l kin.Letter, s kin.Status) {
			if err := n.kin.book.Delivered(time.Now(), peer, l, s); err != nil {
				n.cfg.Logger.Warn("answer not stored", "peer", peer.Short(), "err", err)
			}
		},
		Take: n.takeLetter, Logger: n.cfg.Logger,
	})
	n.wg.Go(n.followKin)
	return nil
}

// aside keeps a file that cannot be read under another name.
func (n *Node) aside(name string, why error) *registry.Problem {
	p := &registry.Problem{Path: filepath.Join(n.cfg.Dir, name), Err: why}
	if as := durable.Aside(durable.Dir(n.cfg.Dir), name); as != "" {
		p.KeptAs = filepath.Join(n.cfg.Dir, as)
	}
	return p
}

// pairedCaller returns the paired device behind a remote address. A member of a room is
// none.
func (n *Node) pairedCaller(addr net.Addr) (identity.DeviceID, bool) {
	id, ok := n.caller(addr)
	if !ok {
		return id, false
	}
	rec, ok := n.mayUse(id)
	return id, ok && !rec.Member()
}

// kinWorld is the node as the book sees it.
type kinWorld struct{ n *Node }

func (w kinWorld) Self() identity.DeviceID    { return w.n.ID() }
func (w kinWorld) Sign(message []byte) []byte { return w.n.id.Sign(message) }

func (w kinWorld) Peer(id identity.DeviceID) (kin.Peer, bool) {
	rec, ok := w.n.store.ByID(id)
	if !ok || rec.State != registry.Active {
		return kin.Peer{}, false
	}
	return kin.Peer{
		ID: id, Name: rec.Name, WireGuard: rec.WireGuard, Own: rec.Own, Vouched: !rec.VouchedBy.IsZero(), Blocked: rec.Rights.Blocked,
	}, true
}

func (w kinWorld) Removed(id identity.DeviceID) bool { return w.n.kin.removed.has(id) }

// takeLetter takes a letter of another device.
func (n *Node) takeLetter(_ context.Context, from identity.DeviceID, l kin.Letter) kin.Status {
	if l.Kind == kin.LetterUndo {
		return n.undoFor(from, l.ID)
	}
	status, ev := n.kin.book.Take(time.Now(), from, l)
	if ev != nil {
		n.tellKin(from, *ev)
	}
	return status
}

// followKin keeps the book in step with the pairs, and carries out what was accepted.
func (n *Node) followKin() {
	events, endEvents := n.events.subscribe()
	defer endEvents()
	pairs, endPairs := n.store.Watch()
	defer endPairs()
	news, endNews := n.kin.book.Watch()
	defer endNews()
	runs := meetings{n: n, all: make(map[string]*meeting)}
	defer runs.close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		n.reachKin()
		n.learnPairs()
		next, err := n.kin.book.Tick(time.Now())
		if err != nil {
			n.cfg.Logger.Warn("introductions not brought up to date", "err", err)
			next = time.Now().Add(time.Minute)
		}
		timer.Stop()
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
		runs.adjust()
		n.kin.service.Changed()
		select {
		case <-n.ctx.Done():
			return
		case <-timer.C:
		case <-pairs:
		case <-news:
		case _, ok := <-events:
			if !ok {
				return
			}
		}
	}
}

// reachKin says which devices can be written to.
func (n *Node) reachKin() {
	for _, p := range n.allPeers() {
		if p.isConnected() {
			n.kin.service.Connected(p.id)
		} else if rec, ok := n.store.ByID(p.id); !ok || rec.PairID == p.pairID {
			n.kin.service.Disconnected(p.id) // an older pair with a device does not speak for it
		}
	}
}

// learnPairs notes pairs that are new, and those that are over.
func (n *Node) learnPairs() {
	now := time.Now()
	var errs []error
	for _, rec := range n.store.List() {
		if rec.State != registry.Active {
			continue
		}
		errs = append(errs, n.kin.book.Paired(rec.ID, rec.VouchedBy))
		if now.Sub(rec.Changed) < kin.NoticeLife {
			errs = append(errs, n.kin.book.Made(rec.PairID, kin.Notice{
				Peer: rec.ID, Name: rec.Name, OS: rec.OS, Method: rec.Method, Introducer: n.introducer(rec), Paired: rec.Changed,
			}))
		}
	}
	_, pairs, _ := n.kin.book.Recent(now)
	for _, id := range pairs {
		if rec, ok := n.store.Get(id); !ok || rec.State == registry.Tomb {
			errs = append(errs, n.kin.book.Ended(id))
		}
	}
	if err := errors.Join(errs...); err != nil {
		n.cfg.Logger.Warn("pairs not noted", "err", err)
	}
}

// introducer is what this device calls the one that introduced another; "" if none did.
func (n *Node) introducer(rec registry.Device) string {
	if rec.VouchedBy.IsZero() {
		return ""
	}
	if by, ok := n.store.ByID(rec.VouchedBy); ok {
		return by.Name
	}
	for _, t := range n.store.Tombs() {
		if t.ID == rec.VouchedBy {
			return t.Name
		}
	}
	return rec.VouchedBy.Short()
}

// removed are the devices that this device's user has ended pairs with: none of them
// comes back by an introduction. The file has a line for each.
type removed struct {
	dir string

	mu  sync.Mutex // guards ids
	ids []identity.DeviceID
}

// maxRemoved is how many are remembered; the oldest go.
const maxRemoved = 10_000

// open reads the list. It errs if it cannot be read; lines that are no device are left
// out.
func (r *removed) open(dir string) error {
	r.dir = dir
	raw, err := os.ReadFile(filepath.Join(dir, removedFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("kith: %w", err)
	}
	for in := bufio.NewScanner(bytes.NewReader(raw)); in.Scan() && len(r.ids) < maxRemoved; {
		if id, err := identity.ParseDeviceID(in.Text()); err == nil {
			r.ids = append(r.ids, id)
		}
	}
	return nil
}

func (r *removed) has(id identity.DeviceID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.ids, id)
}

func (r *removed) list() []identity.DeviceID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.ids)
}

// set puts a device on the list or takes it off, durably.
func (r *removed) set(id identity.DeviceID, on bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Contains(r.ids, id) == on {
		return nil
	}
	next := slices.DeleteFunc(slices.Clone(r.ids), func(other identity.DeviceID) bool { return other == id })
	if on {
		next = append(next, id)
		next = next[max(0, len(next)-maxRemoved):]
	}
	var raw bytes.Buffer
	for _, id := range next {
		raw.WriteString(id.String() + "\n")
	}
	if err := durable.WriteFile(r.dir, removedFile, raw.Bytes()); err != nil {
		return fmt.Errorf("kith: list of removed devices: %w", err)
	}
	r.ids = next
	return nil
}
