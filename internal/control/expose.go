package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/app/expose"
	"github.com/kithproject/kith/app/forward"
)

// A Hosted is a port of this machine's localhost at which another device listens.
type Hosted struct {
	Device   string           `json:"device"` // its name
	Protocol forward.Protocol `json:"protocol"`
	Port     uint16           `json:"port"` // port number
	forward.Traffic
}

func (s *Server) openExpose() error {
	ln, err := s.node.Listen("tcp", ":"+strconv.Itoa(expose.Port))
	if err != nil {
		return err
	}
	refused := &refusals{s: s, last: make(map[string]refusal)}
	s.expose = expose.New(expose.Config{
		Listener: ln, Logger: s.log,
		Dial: func(ctx context.Context, protocol forward.Protocol, peer string) (net.Conn, error) {
			return s.node.Dial(ctx, string(protocol), net.JoinHostPort(peer, strconv.Itoa(expose.Port)))
		},
		Who: s.caller,
		May: func(peer string, protocol forward.Protocol, port uint16) bool {
			d, err := s.node.Device(peer)
			return err == nil && d.State == kith.Paired && d.Rights.AllowsListen(string(protocol), port)
		},
		Up: func(peer string) (time.Time, bool) {
			d, err := s.node.Device(peer)
			return d.Since, err == nil && d.Connected
		},
		Listening: func(peer string, protocol forward.Protocol, port uint16, began bool) {
			how := "on port %s of this machine"
			if !began {
				how = "no longer on port %s of this machine"
			}
			s.tell(kith.EventListening, peer, fmt.Sprintf(how, Port{string(protocol), port}))
		},
		Refused: refused.tell,
	})
	s.node.HandleUDP(expose.Port, func(from kith.Device, conn net.Conn) { s.expose.ServeUDP(from.ID.String(), conn) })
	return nil
}

func (s *Server) closeExpose() error {
	s.node.HandleUDP(expose.Port, nil)
	if s.expose == nil {
		return nil
	}
	return s.expose.Close()
}

// refusals tells the user of devices that ask for ports to which they have no right, and
// not again and again.
type refusals struct {
	s    *Server
	mu   sync.Mutex
	last map[string]refusal // by device
}

type refusal struct {
	port Port
	at   time.Time
}

// The same refusal is told once in refusedAgain, and another one after refusedPause.
const (
	refusedAgain = 10 * time.Minute
	refusedPause = 2 * time.Second
)

func (r *refusals) tell(peer string, protocol forward.Protocol, port uint16) {
	d, err := r.s.node.Device(peer)
	if err != nil {
		return
	}
	now := refusal{Port{string(protocol), port}, time.Now()}
	r.mu.Lock()
	last := r.last[peer]
	since := now.at.Sub(last.at)
	told := since < refusedPause || since < refusedAgain && last.port == now.port
	if !told {
		r.last[peer] = now
	}
	r.mu.Unlock()
	if !told {
		r.s.tell(kith.EventRefused, peer, fmt.Sprintf("it may not listen on port %s here; to allow it: kith allow %s listen:%s", now.port, d.Name, now.port))
	}
}

func (s *Server) hosted() (out []Hosted) {
	for _, h := range s.expose.Hosted() {
		out = append(out, Hosted{Device: s.nameOf(h.Peer), Protocol: h.Protocol, Port: h.Port, Traffic: h.Traffic})
	}
	return out
}

// exposeHere makes a service of this machine a port of a device's.
func (s *Server) exposeHere(st *stream, req Request, wait time.Duration) (Reply, error) {
	d, err := s.node.Device(req.Device)
	if err != nil {
		return Reply{}, err
	}
	ctx, cancel := context.WithTimeout(s.ctx, wait)
	defer cancel()
	if _, err := s.node.Ping(ctx, d.ID.String()); err != nil {
		return Reply{}, err
	}
	return s.follows(st, exposeSpec(d, req), req.Keep)
}

func exposeSpec(d kith.Device, req Request) forward.Spec {
	port := Port{req.Network, req.Port}
	return forward.Spec{
		ID: "expose " + d.ID.String() + ":" + port.String(), Direction: forward.Expose, Protocol: forward.Protocol(req.Network),
		Address: req.Address, Device: d.ID.String(), Port: req.Port,
	}
}

func (s *Server) unexpose(req Request) (Reply, error) {
	d, err := s.node.Device(req.Device)
	if err != nil {
		return Reply{}, err
	}
	missing := &Error{
		Kind: KindNotFound, Text: fmt.Sprintf("nothing is exposed at port %s of %s", Port{req.Network, req.Port}, d.Name),
		Hint: "kith expose lists what is",
	}
	return Reply{Device: &d}, s.forwards.remove(exposeSpec(d, req).ID, missing)
}

// Expose is for forwards of that direction.
func (n network) Expose(ctx context.Context, spec forward.Spec, o forward.Options, report func(string, error)) error {
	e := expose.Exposure{Peer: spec.Device, Protocol: spec.Protocol, Port: spec.Port, Address: spec.Address, Counters: o.Counters, Failed: o.Failed}
	return n.s.expose.Expose(ctx, e, func(err error) {
		if err == nil {
			report(net.JoinHostPort("localhost", strconv.Itoa(int(spec.Port))), nil)
			return
		}
		report("", n.explainExpose(spec, err))
	})
}

// explainExpose says why a device does not listen.
func (n network) explainExpose(spec forward.Spec, err error) *Error {
	name, port := n.s.nameOf(spec.Device), Port{string(spec.Protocol), spec.Port}
	self := n.s.node.Name()
	switch {
	case errors.Is(err, expose.ErrDenied):
		return &Error{
			Kind: KindDenied, Text: fmt.Sprintf("%s does not allow this device to listen on its port %s", name, port),
			Hint: fmt.Sprintf("on %s run: kith allow %s listen:%s (kith devices there shows it if this device has another name)", name, self, port),
		}
	case errors.Is(err, expose.ErrTaken):
		return &Error{Kind: KindOther, Text: fmt.Sprintf("port %s of %s is in use", port, name), Hint: fmt.Sprintf("choose another one of %s, or end the program that has it", name)}
	case errors.Is(err, expose.ErrSystem):
		return &Error{Kind: KindOther, Text: fmt.Sprintf("the system of %s does not let kith listen on port %s", name, port), Hint: "systems keep ports below 1024 for administrators: choose a higher one, for example 8080 instead of 80"}
	case errors.Is(err, expose.ErrBusy):
		return &Error{Kind: KindOther, Text: name + " listens on as many ports as it does for others", Hint: "kith expose lists those of this device"}
	case errors.Is(err, expose.ErrFailed):
		return &Error{Kind: KindOther, Text: fmt.Sprintf("%s could not listen on port %s", name, port), Hint: fmt.Sprintf("kith up --verbose on %s says why", name)}
	case errors.Is(err, expose.ErrAway):
		return &Error{Kind: KindNotConnected, Text: name + " is not connected"}
	case errors.Is(err, syscall.ECONNREFUSED):
		return &Error{Kind: KindOther, Text: name + " does not listen for other devices", Hint: "is kith up running there, and of this version?"}
	case errors.Is(err, expose.ErrBroken):
		return &Error{Kind: KindOther, Text: name + " has ended it; it is asked again"}
	}
	return explain(err)
}
