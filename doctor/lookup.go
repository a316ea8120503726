package doctor

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"time"
)

// lookupWait is how long a name is looked up for.
const lookupWait = 3 * time.Second

// A lookup is that of one name, for which others wait, too.
type lookup struct {
	done  chan struct{} // closed when the rest is there
	addrs []netip.Addr
	err   error
	cut   bool // it was given up early: err says nothing of the name
}

// resolve looks a host up, once in a run; an address is its own. It errs also if ctx ends.
func resolve(ctx context.Context, env *Env, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	host = strings.ToLower(host)
	for {
		l, first := env.lookupOf(host)
		if first {
			l.addrs, l.err = lookUp(ctx, env, host)
			l.cut = l.err != nil && ctx.Err() != nil
			if l.cut { // the next one who wants it tries again
				env.Remember("lookup "+host, nil)
			}
			close(l.done)
			return l.addrs, l.err
		}
		select {
		case <-l.done:
			if !l.cut {
				return l.addrs, l.err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// lookupOf returns the lookup of a name, and whether it is new and the caller's to do.
func (e *Env) lookupOf(host string) (l *lookup, first bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if l, ok := e.facts["lookup "+host].(*lookup); ok {
		return l, false
	}
	if e.facts == nil {
		e.facts = make(map[string]any)
	}
	l = &lookup{done: make(chan struct{})}
	e.facts["lookup "+host] = l
	return l, true
}

func lookUp(ctx context.Context, env *Env, host string) ([]netip.Addr, error) {
	if err := env.Pacer.Wait(ctx, 2); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lookupWait)
	defer cancel()
	ask := env.lookup
	if ask == nil {
		ask = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	list, err := ask(ctx, host)
	for i := range list {
		list[i] = list[i].Unmap()
	}
	return list, err
}
