package link

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/kithproject/kith/signaling"
)

// A Candidate is one address that may lead to the peer, and what came of it since the
// Link was made or reset.
type Candidate struct {
	Remote   netip.AddrPort // the peer's
	Local    netip.AddrPort // ours on the way there; the zero address if nothing was answered, or the platform does not tell
	Via      string         // the relay that carries it; "" for none
	Origin   signaling.Kind // as the peer names it; 0: it does not, it was heard from there
	Kind     PathKind       // of the path that it is, or would be
	Usable   bool           // it answers
	Selected bool           // data goes there
	Sent     uint64         // pings that were sent there, a count
	Failed   uint64         // pings that the system refused to send, a count
	Answered uint64         // pings that were answered in time, a count
	Late     uint64         // pings that were answered too late to count, a count
	Received uint64         // pings of the peer that came from there, a count
	Small    bool           // pings of data size were lost, smaller ones were not
	Sizing   bool           // its size is being found out
	Size     int            // largest datagram that was answered, in bytes of UDP payload
	RTT      time.Duration  // smoothed round trip, or that of the last late answer
}

// counts are what a candidate has seen.
type counts struct {
	sent, failed, answered, late, received uint64
	slow                                   time.Duration // round trip of the last late answer
}

// ping counts one that was sent, or was not.
func (n *counts) ping(err error) {
	if err != nil {
		n.failed++
		return
	}
	n.sent++
}

// maxGone is how many pings without an answer are remembered per candidate, and goneFor
// for how long, so that a late answer is known as such.
const (
	maxGone = 64
	goneFor = 30 * time.Second
)

// expire remembers pings whose time is over.
func (cand *candidate) expire(list []pending) {
	cand.gone = append(cand.gone, list...)
	if over := len(cand.gone) - maxGone; over > 0 {
		cand.gone = slices.Delete(cand.gone, 0, over)
	}
}

// tooLate counts an answer that proves nothing any more.
func (cand *candidate) tooLate(now time.Time, tx txid) {
	for _, list := range []*[]pending{&cand.gone, &cand.pending} {
		i := slices.IndexFunc(*list, func(q pending) bool { return q.tx == tx })
		if i < 0 {
			continue
		}
		if took := now.Sub((*list)[i].sent); took > pongWait && took < goneFor {
			cand.counts.late++
			cand.counts.slow = took
		}
		*list = slices.Delete(*list, i, i+1)
		return
	}
}

// candidates describes all that is known, the selected one first.
func (c *checker) candidates() []Candidate {
	out := make([]Candidate, 0, len(c.all))
	for _, cand := range c.all {
		kind, n := cand.network, cand.counts
		if cand.usable {
			kind = cand.kind
		}
		rtt := cand.rtt
		if rtt == 0 {
			rtt = n.slow
		}
		out = append(out, Candidate{
			Remote: cand.place.addr, Local: localAddr(cand.local, c.port), Via: c.via(cand.place.carrier), Origin: cand.origin, Kind: kind,
			Usable: cand.usable, Selected: cand == c.selected, Sent: n.sent, Failed: n.failed, Answered: n.answered,
			Late: n.late, Received: n.received, Small: cand.small, Sizing: cand.usable && !cand.anew && !cand.sizeNext.IsZero(), Size: cand.size, RTT: rtt,
		})
	}
	slices.SortFunc(out, func(a, b Candidate) int {
		return cmp.Or(cmp.Compare(btoi(b.Selected), btoi(a.Selected)), cmp.Compare(btoi(b.Usable), btoi(a.Usable)),
			cmp.Compare(b.Kind.rank(), a.Kind.rank()), a.Remote.Compare(b.Remote), cmp.Compare(a.Via, b.Via))
	})
	return out
}

// Candidates returns every address at which the peer may be reached, the selected one
// first, with what came of it. It errs with net.ErrClosed after Close, and with the
// context's error.
func (l *Link) Candidates(ctx context.Context) ([]Candidate, error) {
	ch := make(chan []Candidate, 1)
	l.order(func(o *orders) { o.lists = append(o.lists, ch) })
	select {
	case all := <-ch:
		return all, nil
	case <-l.done:
		return nil, fmt.Errorf("link: %w", net.ErrClosed)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// ProbeSizes finds out anew what datagrams pass, on every path: what passed once may not
// any more, and nothing tells. It does not block; Candidate.Sizing says that it goes on.
func (l *Link) ProbeSizes() { l.order(func(o *orders) { o.sizes = true }) }
