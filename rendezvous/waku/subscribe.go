package waku

import (
	"context"
	"errors"
	"slices"
	"time"
)

// follow keeps the subscriptions as they are wanted, and asks the node now and
// then whether it still has them. It calls begin once, when the node has the first
// ones: what is said before, the answer to that would not be heard.
func (u *uplink) follow(ctx context.Context, l *link, begin func()) error {
	have := make(map[string]bool)
	u.takeDirty()
	next := u.o.topics()
	quiet := time.NewTimer(pingInterval)
	defer quiet.Stop()
	for {
		wait := pingInterval
		fresh, err := u.subscribe(ctx, l, have, next)
		if err != nil && !errors.Is(err, errRefused) {
			return err
		}
		if begin != nil {
			begin()
			begin = nil
		}
		for _, b := range fresh {
			if err := u.fetch(ctx, l, b.pubsub, b.topics); err != nil {
				return err
			}
		}
		u.setRefused(explain(u.addr.text, err)) // its words are shown; what it takes, it has
		if err != nil {
			wait = subscribeRetry
		}
		quiet.Reset(wait)
		select {
		case <-ctx.Done():
			return errors.New("the node closed the connection")
		case <-quiet.C:
			forgot, err := u.ping(ctx, l, len(have) > 0)
			if err != nil {
				return err
			}
			if forgot {
				u.log.Debug("node forgot the subscriptions")
				clear(have)
			}
			next = u.missing(have)
		case <-u.wake:
			next = u.takeDirty()
			if u.takeForgot() {
				clear(have)
			} else if err == nil {
				continue
			}
			next = append(next, u.missing(have)...)
			slices.Sort(next)
			next = slices.Compact(next)
		}
	}
}

// takeDirty returns the topics that have changed since it was called last.
func (u *uplink) takeDirty() (out []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for t := range u.dirty {
		out = append(out, t)
	}
	clear(u.dirty)
	return out
}

func (u *uplink) takeForgot() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	was := u.forgot
	u.forgot = false
	return was
}

func (u *uplink) setRefused(err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.refused = err
}

func (u *uplink) missing(have map[string]bool) (out []string) {
	for _, t := range u.o.topics() {
		if !have[t] {
			out = append(out, t)
		}
	}
	return out
}

// A batch are content topics of one pubsub topic.
type batch struct {
	pubsub string
	topics []string
}

// subscribe brings the topics that changed in order, and returns those that are new:
// the node may keep something of them.
func (u *uplink) subscribe(ctx context.Context, l *link, have map[string]bool, changed []string) (fresh []batch, err error) {
	type group struct{ on, off []string }
	groups := make(map[string]*group) // by pubsub topic
	for _, t := range changed {
		pubsub, err := u.net.pubsub(t)
		if err != nil || u.o.wants(t) == have[t] {
			continue
		}
		g := groups[pubsub]
		if g == nil {
			g = new(group)
			groups[pubsub] = g
		}
		if have[t] {
			g.off = append(g.off, t)
		} else {
			g.on = append(g.on, t)
		}
	}
	for pubsub, g := range groups {
		for topics := range slices.Chunk(g.off, topicsAtOnce) {
			if err := u.filter(ctx, l, filterUnsubscribe, pubsub, topics); err != nil && !errors.Is(err, errRefused) {
				return fresh, err
			}
			for _, t := range topics {
				delete(have, t)
			}
		}
		for topics := range slices.Chunk(g.on, topicsAtOnce) {
			if err := u.filter(ctx, l, filterSubscribe, pubsub, topics); err != nil {
				return fresh, err
			}
			for _, t := range topics {
				have[t] = true
			}
			fresh = append(fresh, batch{pubsub, topics})
		}
	}
	return fresh, nil
}
