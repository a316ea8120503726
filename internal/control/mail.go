package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/app/mail"
	"github.com/kithproject/kith/identity"
)

// What this device keeps for others, once its user has allowed that.
const (
	keepBytes     = 256 << 20 // bytes in all
	keepPerDevice = 64 << 20  // bytes of one device's letters
	keepConns     = 4         // connections of one device
	mailFolder    = "mail"    // in the state directory
	hubPing       = 4 * time.Minute
	mailStatusFor = time.Second // how long a status waits for keepers
)

// Mail is what a status says of letters.
type Mail struct {
	// Keepers are where letters of this device wait, and may.
	Keepers []mail.PlaceStatus `json:"keepers,omitempty"`
	// Kept is what this device keeps for others; nil if it does not.
	Kept *mail.Stats `json:"kept,omitempty"`
}

// A post is a daemon's mail: its own letters, and what it keeps for others.
type post struct {
	s       *Server
	service *mail.Service
	kick    chan struct{} // hubs may have changed

	mu      sync.Mutex // guards the fields below
	arrived func()
	ready   func()
	store   *mail.Store // nil: nothing is kept for others
	keeper  *mail.Server
	ln      net.Listener
	wg      sync.WaitGroup // of the keeper's connections
}

// openMail begins to look for keepers.
func (s *Server) openMail() {
	p := &post{s: s, kick: make(chan struct{}, 1)}
	call := func(f *func()) func() {
		return func() {
			p.mu.Lock()
			do := *f
			p.mu.Unlock()
			if do != nil {
				do()
			}
		}
	}
	p.service = mail.NewService(mail.ServiceConfig{Keys: s.node.MailKeys(), Arrived: call(&p.arrived), Ready: call(&p.ready), Logger: s.log})
	s.post = p
	s.wg.Go(p.follow)
}

// close ends it; what is kept stays. The goroutines of the server have ended.
func (p *post) close() error {
	errs := []error{p.service.Close()}
	if p.ln != nil {
		errs = append(errs, p.ln.Close(), p.keeper.Close())
		p.wg.Wait()
		errs = append(errs, p.store.Close())
	}
	return errors.Join(errs...)
}

// Mail is the mail of this device, for apps.
func (s *Server) Mail() mail.Mail { return s.post.service }

// HandleMail has arrived called when Mail has something to fetch, and ready when a
// keeper has become usable, where leaving a letter may have failed before. Neither may
// block; nil is nobody. What may have arrived before is told at once.
func (s *Server) HandleMail(arrived, ready func()) {
	s.post.mu.Lock()
	s.post.arrived, s.post.ready = arrived, ready
	s.post.mu.Unlock()
	if arrived != nil {
		arrived()
	}
}

// follow keeps the list of keepers.
func (p *post) follow() {
	events, stop := p.s.node.Events()
	defer stop()
	network, end := p.s.node.NetworkChanges()
	defer end()
	p.service.SetPlaces(p.places())
	for {
		select {
		case <-p.s.ctx.Done():
			return
		case <-network:
			p.service.Changed()
		case <-p.kick:
			p.service.SetPlaces(p.places())
		case ev, ok := <-events:
			if !ok {
				return
			}
			switch ev.Kind {
			case kith.EventConnected, kith.EventDisconnected:
				p.service.SetPlaces(p.places())
			case kith.EventPaired, kith.EventUnpaired, kith.EventRights:
				p.endKept(ev.Device)
				p.service.SetPlaces(p.places())
				p.service.Changed() // there are other boxes
			}
		}
	}
}

// places are the hubs, and the devices that are connected.
func (p *post) places() []mail.Place {
	node := p.s.node
	var out []mail.Place
	for _, hub := range node.MailHubs() {
		out = append(out, mail.Place{
			ID: "hub " + hub, Name: "hub " + hub, Ping: hubPing,
			Dial: func(ctx context.Context) (net.Conn, error) { return node.DialMailHub(ctx, hub) },
		})
	}
	for _, d := range node.Devices() {
		if !d.Connected || !sharesMail(d) {
			continue
		}
		out = append(out, mail.Place{
			// A new connection to the device may be to another run of it.
			ID: d.ID.String() + " " + strconv.FormatInt(d.Since.UnixNano(), 10), Name: d.Name, Device: d.ID,
			Dial: func(ctx context.Context) (net.Conn, error) { return dialKeeper(ctx, node, d.ID) },
		})
	}
	return out
}

// sharesMail reports whether a device may leave letters here, and this one there. Members
// of a room may not: they are anybody who has the code.
func sharesMail(d kith.Device) bool { return d.State == kith.Paired && !d.Rights.Blocked }

func dialKeeper(ctx context.Context, node *kith.Node, id identity.DeviceID) (net.Conn, error) {
	conn, err := node.Dial(ctx, "tcp", net.JoinHostPort(id.String(), strconv.Itoa(mail.Port)))
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("%w: its user allows it with: kith config mail on", mail.ErrOff)
	}
	return conn, err
}

// rehub has the hubs looked at again.
func (p *post) rehub() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// KeepMail keeps sealed letters for the paired devices, which they leave for others, from
// now on. It errs if the state directory or the port cannot be used.
func (s *Server) KeepMail() error {
	p := s.post
	store, err := mail.OpenStore(mail.StoreConfig{
		Dir: filepath.Join(s.node.Dir(), mailFolder), MaxBytes: keepBytes, PerDepositor: keepPerDevice, Logger: s.log,
	})
	if err != nil {
		return err
	}
	ln, err := s.node.Listen("tcp", ":"+strconv.Itoa(mail.Port))
	if err != nil {
		return errors.Join(err, store.Close())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.store, p.ln = store, ln
	p.keeper = mail.NewServer(mail.ServerConfig{Store: store, ConnsPerDepositor: keepConns, Displace: true, Idle: -1, Logger: s.log})
	p.wg.Go(func() { p.serve(ln, p.keeper) })
	return nil
}

// serve takes connections of paired devices.
func (p *post) serve(ln net.Listener, keeper *mail.Server) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return // closed
		}
		d, err := p.s.node.WhoIs(conn.RemoteAddr())
		if err != nil || !sharesMail(d) {
			_ = conn.Close()
			continue
		}
		p.wg.Go(func() {
			if err := keeper.Serve(conn, d.ID.String()); err != nil {
				p.s.log.Debug("mail connection ended", "peer", d.Name, "err", err)
			}
		})
	}
}

// endKept ends the connections of a device that may no longer leave letters here.
func (p *post) endKept(d kith.Device) {
	p.mu.Lock()
	keeper := p.keeper
	p.mu.Unlock()
	if now, err := p.s.node.Device(d.ID.String()); keeper != nil && (err != nil || !sharesMail(now)) {
		keeper.End(d.ID.String())
	}
}

// refusal says who of those that keep mail did not take the last letter, and why; "": all
// took it.
func (p *post) refusal() string {
	ctx, cancel := context.WithCancel(p.s.ctx)
	cancel() // what waits there is not asked for
	for _, k := range p.service.Status(ctx) {
		if k.Ready && k.Error != "" {
			return k.Name + ": " + strings.TrimPrefix(k.Error, "mail: ")
		}
	}
	return ""
}

// mailStatus says what waits where.
func (s *Server) mailStatus(ctx context.Context) *Mail {
	ctx, cancel := context.WithTimeout(ctx, mailStatusFor)
	defer cancel()
	m := &Mail{Keepers: s.post.service.Status(ctx)}
	s.post.mu.Lock()
	store := s.post.store
	s.post.mu.Unlock()
	if store != nil {
		stats := store.Stats()
		m.Kept = &stats
	}
	return m
}
