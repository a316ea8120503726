package portmap

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

const (
	jobTimeout    = 9 * time.Second // three requests
	maxReadErrors = 64              // in a row; then the socket is made anew
)

// A packet is what a socket to the gateway gave: a datagram or an error.
type packet struct {
	conn io.ReadWriteCloser
	data []byte
	err  error
}

// A jobDone is a jobResult, with the gateway that was discovered if any.
type jobDone struct {
	jobResult
	found control
}

// A run is one Run: the core, and the sockets and goroutines around it. All of
// it belongs to Run's goroutine; the others only send to the channels.
type run struct {
	m       *Mapper
	core    *core
	changed func(Mapping, bool)
	wg      sync.WaitGroup

	conn     io.ReadWriteCloser // nil: none
	gw, self netip.Addr         // of conn
	packets  chan packet
	results  chan jobDone
	cancel   context.CancelFunc // of the last job
	igd      control            // nil: none discovered
	job      uint64             // the last
	quiet    bool               // the gateway maps nothing, and that is logged
}

func (r *run) loop(ctx context.Context) {
	// The removal comes after the end of ctx.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		end()
		r.closeConn()
		r.wg.Wait()
	}()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	r.network(life, true)
	ended := ctx.Done()
	for r.apply(life) {
		timer.Stop()
		if d := r.core.deadline(); !d.IsZero() {
			timer.Reset(time.Until(d))
		}
		select {
		case <-ended:
			ended = nil
			r.core.stop(time.Now())
		case <-r.m.refresh:
			r.network(life, true)
		case p := <-r.packets:
			r.receive(p)
		case d := <-r.results:
			if d.id == r.job && d.found != nil {
				r.igd = d.found
			}
			r.core.done(time.Now(), d.jobResult)
		case <-timer.C:
			r.core.tick(time.Now())
		}
	}
}

// apply does what the core decided, and reports whether there is more to come.
func (r *run) apply(life context.Context) bool {
	for {
		e := r.core.take()
		for _, n := range e.notices {
			r.tell(n)
		}
		if e.cancel && r.cancel != nil {
			r.cancel()
		}
		for _, p := range e.packets {
			if r.conn != nil {
				_, _ = r.conn.Write(p) // sent again if it got lost, whyever
			}
		}
		if e.job != nil {
			r.start(life, *e.job)
		}
		if quiet := r.core.phase == phaseQuiet; quiet != r.quiet {
			if r.quiet = quiet; quiet {
				r.m.log.Debug("the gateway maps no ports", "gateway", r.core.gw)
			}
		}
		if !e.lookup {
			return r.core.phase != phaseDone
		}
		r.network(life, false)
	}
}

func (r *run) tell(n notice) {
	attrs := []any{"protocol", n.mapping.Protocol, "external", n.mapping.External, "double_nat", n.mapping.DoubleNAT}
	if n.ok {
		r.m.log.Info("port mapped", attrs...)
	} else {
		r.m.log.Info("port mapping lost", attrs...)
	}
	r.changed(n.mapping, n.ok)
}

// network looks the gateway up. With fresh everything may have changed, also
// what looks the same: the socket is made anew.
func (r *run) network(life context.Context, fresh bool) {
	gw, self, ok := r.m.cfg.Gateway()
	gw, self = gw.Unmap(), self.Unmap()
	if !ok {
		r.closeConn()
	} else if fresh || r.conn == nil || gw != r.gw || self != r.self {
		r.closeConn()
		conn, err := r.m.dial(gw, self)
		if err == nil {
			r.conn, r.gw, r.self = conn, gw, self
			r.wg.Go(func() { r.read(life, conn) })
		} else {
			r.m.log.Debug("cannot reach the gateway", "gateway", gw, "err", err)
		}
	}
	r.core.network(time.Now(), gw, self, ok, fresh)
}

func (r *run) closeConn() {
	if r.conn != nil {
		_ = r.conn.Close()
		r.conn = nil
	}
}

// read hands on what the gateway sends, until conn is closed.
func (r *run) read(life context.Context, conn io.ReadWriteCloser) {
	buf := make([]byte, pcpMaxSize+1)
	for failed := 0; ; {
		n, err := conn.Read(buf)
		p := packet{conn: conn, err: err}
		if err == nil {
			p.data, failed = append([]byte(nil), buf[:n]...), 0
		} else if failed++; failed > maxReadErrors || errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) {
			p.err = net.ErrClosed
		}
		select {
		case r.packets <- p:
		case <-life.Done():
			return
		}
		if errors.Is(p.err, net.ErrClosed) {
			return
		}
	}
}

func (r *run) receive(p packet) {
	switch {
	case p.conn != r.conn:
	case p.err == nil:
		r.core.packet(time.Now(), netip.AddrPortFrom(r.gw, r.m.udpPort), p.data)
	case errors.Is(p.err, net.ErrClosed):
		r.closeConn()
	case errors.Is(p.err, syscall.ECONNREFUSED):
		r.core.unreachable(time.Now())
	}
}

// start runs a job beside the loop.
func (r *run) start(life context.Context, j job) {
	ctx, cancel := context.WithTimeout(life, jobTimeout)
	if r.cancel != nil {
		r.cancel()
	}
	r.cancel, r.job = cancel, j.id
	gw, self, igd, port := r.core.gw, r.core.self, r.igd, r.core.port
	r.wg.Go(func() {
		defer cancel()
		d := jobDone{jobResult: jobResult{id: j.id}}
		switch {
		case j.purpose == toProbe:
			if d.found, d.err = r.m.discover(ctx, gw, self); d.err == nil {
				d.found.carry(r.m.cfg.Transport)
			}
		case igd == nil:
			d.err = errNoIGD
		case j.purpose == toMap:
			d.external, d.err = igd.add(ctx, j.port, port, j.lease)
		case j.purpose == toCheck:
			d.external, d.gone, d.err = igd.check(ctx, j.port, port)
		case j.purpose == toRemove:
			d.err = igd.remove(ctx, j.port, port)
		}
		select {
		case r.results <- d:
		case <-life.Done():
		}
	})
}
