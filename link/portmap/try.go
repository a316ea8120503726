package portmap

import (
	"context"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

// Protocols are what Try knows, the better first.
func Protocols() []string {
	return []string{kindPCP.String(), kindPMP.String(), kindUPnP.String()}
}

var (
	// ErrAbsent is returned by Try when no gateway speaks the protocol.
	ErrAbsent = errors.New("portmap: no gateway speaks this protocol")
	// ErrRefused is wrapped by what Try returns when the gateway speaks the protocol and
	// maps nothing.
	ErrRefused = errors.New("portmap: the gateway does not map ports")
)

// tryLife is for how long Try asks, so that what is left behind soon ends.
const tryLife = 2 * time.Minute

// tryPauses are between the packets of one question.
var tryPauses = []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second} //nolint:gochecknoglobals // a table

// Try asks the gateway by one protocol alone to map a port, calls use while it is mapped,
// and has it removed. It is for finding out what a gateway does; Run is for being reached.
// It errs with ErrConfig, ErrAbsent, an error that is ErrRefused, or because ctx ended.
func (m *Mapper) Try(ctx context.Context, protocol string, port uint16, use func(Mapping)) error {
	if port == 0 || m.cfg.Gateway == nil {
		return ErrConfig
	}
	gw, self, ok := m.cfg.Gateway()
	if !ok {
		return ErrAbsent
	}
	gw, self = gw.Unmap(), self.Unmap()
	mapping := Mapping{Protocol: protocol, Internal: port, Gateway: gw}
	var err error
	var remove func(context.Context)
	switch protocol {
	case kindPCP.String():
		mapping.External, remove, err = m.tryPCP(ctx, gw, self, port)
	case kindPMP.String():
		mapping.External, remove, err = m.tryPMP(ctx, gw, self, port)
	case kindUPnP.String():
		mapping.External, remove, err = m.tryUPnP(ctx, gw, self, port)
	default:
		return ErrConfig
	}
	if err != nil {
		return errors.Join(err, ctx.Err())
	}
	mapping.DoubleNAT = natted(mapping.External.Addr())
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		remove(ctx)
	}()
	use(mapping)
	return nil
}

// asked sends a packet to the gateway, by a socket of its own, until take reports that an
// answer is the one.
func (m *Mapper) asked(ctx context.Context, gw, self netip.Addr, packet []byte, take func([]byte) bool) error {
	conn, err := m.dial(gw, self)
	if err != nil {
		return ErrAbsent
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer conn.Close()
	answers, done := make(chan []byte), make(chan struct{})
	defer close(done)
	wg.Go(func() {
		defer close(answers)
		buf := make([]byte, pcpMaxSize+1)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return // closed, or nobody listens there
			}
			select {
			case answers <- append([]byte(nil), buf[:n]...):
			case <-done:
				return
			}
		}
	})
	timer := time.NewTimer(0)
	defer timer.Stop()
	for try := 0; ; {
		select {
		case b, open := <-answers:
			switch {
			case !open:
				return ErrAbsent
			case take(b):
				return nil
			}
		case <-timer.C:
			if try == len(tryPauses) {
				return ErrAbsent
			}
			_, _ = conn.Write(packet) // sent again if it got lost
			timer.Reset(tryPauses[try])
			try++
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func refusal(code int) error { return fmt.Errorf("%w: it answers with the code %d", ErrRefused, code) }

// tryPCP asks whether there is a server at all, and then for the mapping.
func (m *Mapper) tryPCP(ctx context.Context, gw, self netip.Addr, port uint16) (netip.AddrPort, func(context.Context), error) {
	nonce := m.nonce(port)(gw, self)
	mine := func(a pcpAnswer) bool {
		return a.op == pcpMap && a.nonce == nonce && a.transport.number() == m.cfg.Transport.number() && a.internal == port
	}
	var got pcpAnswer
	ask := func(ctx context.Context, packet []byte, fits func(pcpAnswer) bool) error {
		return m.asked(ctx, gw, self, packet, func(b []byte) bool {
			a, err := parsePCP(b)
			got = a
			return err == nil && fits(a)
		})
	}
	if err := ask(ctx, pcpAnnounceRequest(self), func(a pcpAnswer) bool { return a.op == pcpAnnounce }); err != nil {
		return netip.AddrPort{}, nil, err
	}
	if got.result == pcpUnsuppVers {
		return netip.AddrPort{}, nil, ErrAbsent // it speaks NAT-PMP
	}
	request := func(life time.Duration) []byte {
		return pcpMapRequest(m.cfg.Transport, self, nonce, port, netip.AddrPortFrom(netip.Addr{}, port), life)
	}
	err := ask(ctx, request(tryLife), mine)
	switch {
	case err != nil:
		return netip.AddrPort{}, nil, fmt.Errorf("%w: it does not answer", ErrRefused)
	case got.result != 0:
		return netip.AddrPort{}, nil, refusal(int(got.result))
	}
	return got.external, func(ctx context.Context) { _ = ask(ctx, request(0), mine) }, nil
}

// tryPMP asks for the external address, and then for the mapping.
func (m *Mapper) tryPMP(ctx context.Context, gw, self netip.Addr, port uint16) (netip.AddrPort, func(context.Context), error) {
	var got pmpAnswer
	ask := func(ctx context.Context, packet []byte, op byte) error {
		return m.asked(ctx, gw, self, packet, func(b []byte) bool {
			a, err := parsePMP(b)
			got = a
			return err == nil && a.op == op && (op == pmpAddress || a.result != 0 || a.internal == port)
		})
	}
	if err := ask(ctx, pmpAddressRequest(), pmpAddress); err != nil {
		return netip.AddrPort{}, nil, err
	}
	if got.result == pmpUnsuppVersion {
		return netip.AddrPort{}, nil, ErrAbsent // it speaks PCP
	}
	if got.result != 0 {
		return netip.AddrPort{}, nil, refusal(int(got.result))
	}
	address, op := got.address, pmpMap(m.cfg.Transport)
	err := ask(ctx, pmpMapRequest(m.cfg.Transport, port, port, tryLife), op)
	switch {
	case err != nil:
		return netip.AddrPort{}, nil, fmt.Errorf("%w: it does not answer", ErrRefused)
	case got.result != 0:
		return netip.AddrPort{}, nil, refusal(int(got.result))
	}
	return netip.AddrPortFrom(address, got.external), func(ctx context.Context) {
		_ = ask(ctx, pmpMapRequest(m.cfg.Transport, port, 0, 0), op)
	}, nil
}

// tryUPnP searches a gateway, and tries a few external ports if others have them.
func (m *Mapper) tryUPnP(ctx context.Context, gw, self netip.Addr, port uint16) (netip.AddrPort, func(context.Context), error) {
	g, err := m.discover(ctx, gw, self)
	if err != nil {
		return netip.AddrPort{}, nil, ErrAbsent
	}
	g.carry(m.cfg.Transport)
	external, life := port, tryLife
	for range len(tryPauses) {
		addr, err := g.add(ctx, external, port, life)
		if err == nil {
			return netip.AddrPortFrom(addr, external), func(ctx context.Context) { _ = g.remove(ctx, external, port) }, nil
		}
		switch code := upnpCode(err); code {
		case upnpOnlyPermanent:
			life = 0
		case upnpConflict:
			external = uint16(1024 + mathrand.N(65536-1024)) //nolint:gosec // any free port will do
		case 0:
			return netip.AddrPort{}, nil, fmt.Errorf("%w: it does not answer as it should", ErrRefused)
		default:
			return netip.AddrPort{}, nil, refusal(code)
		}
	}
	return netip.AddrPort{}, nil, fmt.Errorf("%w: all ports that were tried belong to others", ErrRefused)
}
