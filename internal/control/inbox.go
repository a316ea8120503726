package control

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/app/files"
)

// An Ended says how a transfer ended that another device sent here.
type Ended struct {
	Transfer
	Delivery
	Error string `json:"error,omitempty"` // why not all is there; empty if it is
	Text  string `json:"text"`            // the same for a person
}

// ends tells watchers of the inbox what has ended.
type ends struct {
	mu   sync.Mutex
	subs map[chan Ended]struct{}
}

// maxEnds is how many a slow watcher may lag behind; later ones are lost to it.
const maxEnds = 64

func (e *ends) subscribe() (<-chan Ended, func()) {
	ch := make(chan Ended, maxEnds)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.subs == nil {
		e.subs = make(map[chan Ended]struct{})
	}
	e.subs[ch] = struct{}{}
	return ch, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.subs, ch)
	}
}

func (e *ends) publish(end Ended) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for ch := range e.subs {
		select {
		case ch <- end:
		default:
		}
	}
}

// received says how a transfer ended that came from another device.
func (s *Server) received(r files.Received) {
	s.came(r)
	d, err := s.node.Device(r.Progress.Peer)
	if err != nil {
		d = kith.Device{Name: "a device that is no longer paired"}
	}
	end := Ended{Transfer: Transfer{Progress: r.Progress, Device: d.Name}, Delivery: delivery(r.Dir, r.Names, r.Notes)}
	end.Text = describeEnd(r, d.Name)
	if r.Err != nil {
		end.Error = plain(r.Err)
	}
	s.ends.publish(end)
	if err == nil {
		s.node.Publish(kith.Event{Time: time.Now(), Kind: kith.EventReceived, Device: d, Detail: end.Text})
	}
}

func delivery(dir string, names []string, notes []files.Note) Delivery {
	out := Delivery{Dir: dir, Names: names}
	for _, n := range notes {
		out.Notes = append(out.Notes, n.String())
	}
	return out
}

// plain is an error without the name of the package that it comes from.
func plain(err error) string {
	text := err.Error()
	for _, prefix := range []string{"kith: ", "files: ", "room: "} {
		text = strings.TrimPrefix(text, prefix)
	}
	return text
}

// describeEnd says in one line how a transfer ended.
func describeEnd(r files.Received, device string) string {
	p := r.Progress
	name := files.ShowName(p.Name)
	came := Bytes(p.Bytes)
	if p.TotalKnown {
		came += " of " + Bytes(p.TotalBytes)
	}
	switch {
	case r.Err == nil:
		took := max(time.Since(p.Started), time.Millisecond).Round(time.Millisecond)
		text := fmt.Sprintf("%s is in %s: %s, %s in %s", describeNames(r.Names), r.Dir, Count(p.Files), Bytes(p.Bytes), took)
		if n := len(r.Notes); n > 0 {
			text += fmt.Sprintf("; %s", r.Notes[0])
			if n > 1 {
				text += fmt.Sprintf(", and %d more notes", n-1)
			}
		}
		return text
	case p.State == files.StateBroken:
		return fmt.Sprintf("%s stopped at %s: the connection broke; it goes on when %s is there again", name, came, device)
	}
	text := fmt.Sprintf("%s stopped at %s: %s", name, came, plain(r.Err))
	if !p.Stream && !errors.Is(r.Err, files.ErrDiskFull) { // which says so itself
		text += "; it goes on when " + device + " sends it again"
	}
	return text
}

func (s *Server) tell(kind kith.EventKind, peer, detail string) {
	if d, err := s.node.Device(peer); err == nil {
		s.node.Publish(kith.Event{Time: time.Now(), Kind: kind, Device: d, Detail: detail})
	}
}

func describeNames(names []string) string {
	switch len(names) {
	case 0:
		return "nothing"
	case 1:
		return files.ShowName(names[0])
	}
	return fmt.Sprintf("%s and %d more", files.ShowName(names[0]), len(names)-1)
}

func describeOffer(o files.Offer) string {
	if o.Stream {
		return describeNames(o.Names)
	}
	more := ""
	if !o.Known {
		more = " so far"
	}
	return fmt.Sprintf("%s (%s, %s%s)", describeNames(o.Names), Count(o.Files), Bytes(o.Bytes), more)
}

// inbox says what waits, and what goes on.
func (s *Server) inbox() Reply {
	r := Reply{Text: s.inboxDir, Offers: []FileOffer{}, Transfers: []Transfer{}}
	for _, o := range s.files.Offers() {
		if d, err := s.node.Device(o.Peer); err == nil {
			r.Offers = append(r.Offers, FileOffer{Offer: o, Device: d.Name})
		}
	}
	for _, t := range s.files.Transfers() {
		p := t.Progress()
		if d, err := s.node.Device(p.Peer); err == nil {
			r.Transfers = append(r.Transfers, Transfer{Progress: p, Device: d.Name})
		}
	}
	return r
}

// inboxEvery is how often a watcher is told what has changed.
const inboxEvery = 200 * time.Millisecond

// watchInbox says what waits and what goes on whenever that changes, and what ends,
// until the client goes.
func (s *Server) watchInbox(st *stream) (Reply, error) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	in := inputs(ctx, st)
	ended, stop := s.ends.subscribe()
	defer stop()
	tick := time.NewTicker(inboxEvery)
	defer tick.Stop()
	var last Reply
	for first := true; ; {
		now := s.inbox()
		if first || !reflect.DeepEqual(now, last) {
			first, last = false, now
			if st.send(now) != nil {
				return Reply{}, errTaken
			}
		}
		select {
		case <-tick.C:
		case end := <-ended:
			if st.send(Reply{Ended: &end}) != nil {
				return Reply{}, errTaken
			}
		case _, ok := <-in:
			if !ok {
				return Reply{}, errTaken
			}
		case <-ctx.Done():
			return Reply{}, nil
		}
	}
}

// decide takes an offer, or says no to it or to a transfer that goes on.
func (s *Server) decide(req Request) (Reply, error) {
	if req.Offer != "" {
		n, err := s.offerByID(req)
		if err != nil {
			return Reply{}, err
		}
		req.Number = n
	}
	if req.Op == OpAccept {
		if s.files.Accept(req.Number, files.Decision{Action: files.Accept, Dir: req.Dir, Overwrite: req.Overwrite}) {
			return Reply{}, nil
		}
		return Reply{}, &Error{Kind: KindNotFound, Text: fmt.Sprintf("no offer %d waits", req.Number), Hint: "kith inbox lists those that do"}
	}
	if s.files.Decline(req.Number) {
		return Reply{}, nil
	}
	return Reply{}, &Error{Kind: KindNotFound, Text: fmt.Sprintf("no offer %d waits, and no such transfer runs", req.Number), Hint: "kith inbox lists both"}
}

// farewell is how long a device is given to hear that it may not go on, before it is
// blocked or unpaired and hears nothing any more.
const farewell = 500 * time.Millisecond

// dismiss ends all transfers with a device that is about to be blocked or unpaired, and
// says why.
func (s *Server) dismiss(ctx context.Context, device, why string) {
	d, err := s.node.Device(device)
	if err != nil {
		return // the caller's next call says so
	}
	ctx, cancel := context.WithTimeout(ctx, farewell)
	defer cancel()
	s.files.EndPeer(d.ID.String(), why)
	s.files.Idle(ctx, d.ID.String())
}

// Why transfers with a device end, all of them.
const (
	endBlocked  = "the device was blocked"
	endUnpaired = "the devices are no longer paired"
)
