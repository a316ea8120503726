package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/app/forward"
	"github.com/kithproject/kith/app/proxy"
	"github.com/kithproject/kith/internal/durable"
)

// A Forward is a port of this machine that leads to one of another device, or, if its
// direction is forward.Expose, the other way round.
type Forward struct {
	forward.Status
	Name string `json:"name"` // of the device, or its ID if it is gone
	Kept bool   `json:"kept"` // through restarts
}

// forwards are those that run here.
type forwards struct {
	s    *Server
	set  *forward.Set
	file string

	order sync.Mutex // one change at a time, until the set has it; taken before mu

	mu      sync.Mutex // guards the fields below
	specs   map[string]forward.Spec
	kept    map[string]bool
	changed map[string]chan struct{} // closed when something is known of a new one
}

const (
	forwardsFile = "forwards.json"
	maxForwards  = 64 << 10 // bytes of the file
)

func newForwards(s *Server) (*forwards, error) {
	f := &forwards{
		s: s, file: filepath.Join(s.node.Dir(), forwardsFile), specs: make(map[string]forward.Spec),
		kept: make(map[string]bool), changed: make(map[string]chan struct{}),
	}
	f.set = forward.NewSet(forward.SetConfig{Network: network{s}, Changed: f.onChanged})
	kept, err := f.read()
	if err != nil {
		return nil, errors.Join(err, f.set.Close())
	}
	for _, spec := range kept {
		f.specs[spec.ID], f.kept[spec.ID] = spec, true
	}
	if err := f.set.Apply(f.wanted()); err != nil {
		return nil, errors.Join(fmt.Errorf("control: %s: %w", f.file, err), f.set.Close())
	}
	return f, nil
}

func (f *forwards) read() (specs []forward.Spec, err error) {
	file, err := os.Open(f.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	defer file.Close()
	raw, err := io.ReadAll(io.LimitReader(file, maxForwards+1))
	if err == nil && len(raw) > maxForwards {
		err = errors.New("too large")
	}
	if err == nil {
		err = json.Unmarshal(raw, &specs)
	}
	if err != nil {
		return nil, fmt.Errorf("control: %s: %w; kith forward makes it anew when it is away", f.file, err)
	}
	return specs, nil
}

// write stores those that are kept; f.mu is held.
func (f *forwards) write() error {
	var kept []forward.Spec
	for id := range f.kept {
		kept = append(kept, f.specs[id])
	}
	slices.SortFunc(kept, func(a, b forward.Spec) int { return strings.Compare(a.ID, b.ID) })
	raw, err := json.MarshalIndent(kept, "", "  ")
	if err != nil {
		return fmt.Errorf("control: %w", err)
	}
	if err := durable.WriteFile(filepath.Dir(f.file), filepath.Base(f.file), append(raw, '\n')); err != nil {
		return fmt.Errorf("control: %w", err)
	}
	return nil
}

// wanted is all there are; f.mu is held, or nobody else knows f.
func (f *forwards) wanted() []forward.Spec { return slices.Collect(maps.Values(f.specs)) }

func (f *forwards) onChanged(st forward.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ch := f.changed[st.ID]; ch != nil {
		close(ch)
		delete(f.changed, st.ID)
	}
}

// add begins a forward, and returns a channel that is closed when it is known whether it
// listens, or that it was removed.
func (f *forwards) add(spec forward.Spec, keep bool) (<-chan struct{}, error) {
	f.order.Lock()
	defer f.order.Unlock()
	f.mu.Lock()
	if _, there := f.specs[spec.ID]; there {
		f.mu.Unlock()
		return nil, f.thereAlready(spec)
	}
	known := make(chan struct{})
	f.changed[spec.ID] = known
	f.specs[spec.ID] = spec
	if keep {
		f.kept[spec.ID] = true
	}
	specs := f.wanted()
	var err error
	if keep {
		err = f.write()
	}
	f.mu.Unlock() // Apply may call onChanged
	if err == nil {
		err = f.set.Apply(specs)
	}
	if err != nil {
		_ = f.removeInOrder(spec.ID, err)
		return nil, err
	}
	return known, nil
}

func (f *forwards) thereAlready(spec forward.Spec) error {
	if spec.Direction == forward.Expose {
		name, port := f.s.nameOf(spec.Device), Port{string(spec.Protocol), spec.Port}
		return &Error{
			Kind: KindUsage, Text: fmt.Sprintf("something is exposed at port %s of %s already", port, name),
			Hint: fmt.Sprintf("kith expose lists what is; to end this one: kith expose --remove %s:%s", name, port),
		}
	}
	return &Error{Kind: KindUsage, Text: spec.ID + " is forwarded already", Hint: "kith forward lists the forwards, kith forward --remove ends one"}
}

func notForwarded(id string) error {
	return &Error{Kind: KindNotFound, Text: id + " is not forwarded", Hint: "kith forward lists the forwards"}
}

// remove ends a forward. It errs with missing if there is none, or if the file cannot be
// written.
func (f *forwards) remove(id string, missing error) error {
	f.order.Lock()
	defer f.order.Unlock()
	return f.removeInOrder(id, missing)
}

// removeInOrder is remove; f.order is held.
func (f *forwards) removeInOrder(id string, missing error) error {
	f.mu.Lock()
	if _, there := f.specs[id]; !there {
		f.mu.Unlock()
		return missing
	}
	delete(f.specs, id)
	waited := f.changed[id]
	delete(f.changed, id)
	kept := f.kept[id]
	delete(f.kept, id)
	var err error
	if kept {
		err = f.write()
	}
	specs := f.wanted()
	f.mu.Unlock()
	err = errors.Join(err, f.set.Apply(specs))
	if waited != nil {
		close(waited) // nobody else will tell who waits, and the set has it no more
	}
	return err
}

// drop ends what is exposed at a device that is gone.
func (f *forwards) drop(device string) {
	f.mu.Lock()
	var ids []string
	for id, spec := range f.specs {
		if spec.Direction == forward.Expose && spec.Device == device {
			ids = append(ids, id)
		}
	}
	f.mu.Unlock()
	for _, id := range ids {
		if err := f.remove(id, nil); err != nil {
			f.s.log.Warn("exposed port not forgotten", "err", err)
		}
	}
}

// nameOf is what a device is called here, or its ID if it is gone.
func (s *Server) nameOf(id string) string {
	if d, err := s.node.Device(id); err == nil {
		return d.Name
	}
	return id
}

func (f *forwards) list(direction forward.Direction) (out []Forward) {
	for _, st := range f.set.Status() {
		if st.Direction != direction {
			continue
		}
		one := Forward{Status: st, Name: f.s.nameOf(st.Device)}
		var told *Error
		if errors.As(st.Cause, &told) {
			one.Hint = told.Hint
		}
		f.mu.Lock()
		one.Kept = f.kept[st.ID]
		f.mu.Unlock()
		out = append(out, one)
	}
	return out
}

func (f *forwards) status(spec forward.Spec) (Forward, bool) {
	for _, one := range f.list(cmp.Or(spec.Direction, forward.Forward)) {
		if one.ID == spec.ID {
			return one, true
		}
	}
	return Forward{}, false
}

const forwardLook = 500 * time.Millisecond

// forward begins a forward. One that is not kept ends with the client, which hears of
// connections that fail.
func (s *Server) forward(st *stream, req Request) (Reply, error) {
	d, err := s.node.Device(req.Device)
	if err != nil {
		return Reply{}, err
	}
	protocol := forward.Protocol(req.Network)
	spec := forward.Spec{
		ID: req.Address + "/" + req.Network, Protocol: protocol, Address: req.Address, Device: d.ID.String(), Port: req.Port,
	}
	return s.follows(st, spec, req.Keep)
}

// follows begins a forward, and follows it until the client goes, unless it is kept.
func (s *Server) follows(st *stream, spec forward.Spec, keep bool) (Reply, error) {
	known, err := s.forwards.add(spec, keep)
	if err != nil {
		return Reply{}, err
	}
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	if !keep {
		defer func() { _ = s.forwards.remove(spec.ID, nil) }() // of a file that it is not in
	}
	select {
	case <-known:
	case <-ctx.Done():
		return Reply{}, net.ErrClosed
	}
	now, there := s.forwards.status(spec)
	if !there {
		return Reply{}, errRemoved()
	}
	if now.Err != "" {
		if keep {
			_ = s.forwards.remove(spec.ID, nil) // what cannot begin is not kept
		}
		var told *Error
		if errors.As(now.Cause, &told) {
			return Reply{}, told
		}
		return Reply{}, &Error{Kind: KindOther, Text: now.Err, Hint: now.Hint}
	}
	if keep {
		return Reply{Forwards: []Forward{now}}, nil
	}
	if st.send(Reply{Forwards: []Forward{now}}) != nil {
		return Reply{}, errTaken
	}
	in := inputs(ctx, st)
	look := time.NewTicker(forwardLook)
	defer look.Stop()
	for last := now; ; last = now {
		select {
		case <-in:
			return Reply{}, errTaken
		case <-ctx.Done():
			return Reply{}, nil
		case <-look.C:
		}
		if now, there = s.forwards.status(spec); !there {
			return Reply{}, errRemoved()
		}
		if now.FailedAt.After(last.FailedAt) && st.send(Reply{Text: now.LastFailure}) != nil {
			return Reply{}, errTaken
		}
		if now.Err != last.Err && st.send(Reply{Forwards: []Forward{now}}) != nil {
			return Reply{}, errTaken
		}
	}
}

func errRemoved() error { return &Error{Kind: KindNotFound, Text: "it was removed"} }

// network is the other devices as forwards see them.
type network struct{ s *Server }

func (n network) Dial(ctx context.Context, protocol forward.Protocol, device string, port uint16) (net.Conn, error) {
	conn, err := n.s.node.Dial(ctx, string(protocol), net.JoinHostPort(device, strconv.Itoa(int(port))))
	if errors.Is(err, syscall.ECONNREFUSED) {
		// Refused alone cannot tell "not allowed" from "nothing listens".
		if told := n.ask(ctx, protocol, device, port); told != nil {
			return nil, told
		}
	}
	return conn, err
}

func (n network) ask(ctx context.Context, protocol forward.Protocol, device string, port uint16) error {
	conn, err := n.s.node.Dial(ctx, "tcp", net.JoinHostPort(device, strconv.Itoa(forward.RightsPort)))
	if err != nil {
		return nil //nolint:nilerr // then what is known is all there is to say
	}
	return forward.AskFor(conn, protocol, port)
}

// proxy serves SOCKS5 and HTTP at an address of this machine until the client goes.
func (s *Server) proxy(st *stream, req Request) (Reply, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(s.ctx, "tcp", req.Address)
	if err != nil {
		return Reply{}, &Error{Kind: KindOther, Text: "cannot listen: " + err.Error(), Hint: "choose another address, or port 0 for any that is free"}
	}
	if err := st.send(Reply{Text: ln.Addr().String()}); err != nil {
		ln.Close()
		return Reply{}, errTaken
	}
	ctx, cancel := whileThere(s.ctx, st)
	defer cancel()
	n := network{s}
	err = proxy.Serve(ctx, ln, proxy.Config{
		Public: req.Public, Logger: s.log,
		Resolve: func(host string) (string, bool) {
			d, err := s.node.Device(strings.TrimSuffix(host, ".kith"))
			return d.ID.String(), err == nil
		},
		Dial: func(ctx context.Context, protocol forward.Protocol, peer string, port uint16) (net.Conn, error) {
			conn, err := n.Dial(ctx, protocol, peer, port)
			var away *kith.NotConnectedError
			if errors.As(err, &away) {
				err = fmt.Errorf("%w: %w", proxy.ErrNotConnected, err)
			}
			return conn, err
		},
	})
	return Reply{}, err
}
