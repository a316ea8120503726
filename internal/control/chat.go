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
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/app/chat"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/registry"
	"github.com/kithproject/kith/room"
)

const (
	// linesAtOnce is how many lines a reply has: each may take 24 KiB as JSON.
	linesAtOnce = 32
	// pipelined is how many lines of a client are being kept at once.
	pipelined = 256
)

// openChat starts the chat service.
func (s *Server) openChat() error {
	ln, err := s.node.Listen("tcp", ":"+strconv.Itoa(chat.Port))
	if err != nil {
		return err
	}
	s.chat, err = chat.New(chat.Config{
		Dir: filepath.Join(s.node.Dir(), "chat"), Key: s.node.StateKey("chat"), Self: s.node, Listener: ln,
		Dial: func(ctx context.Context, peer identity.DeviceID) (net.Conn, error) {
			return s.node.Dial(ctx, "tcp", net.JoinHostPort(peer.String(), strconv.Itoa(chat.Port)))
		},
		Who: func(remote net.Addr) (identity.DeviceID, bool) {
			d, err := s.node.WhoIs(remote)
			if err != nil {
				return identity.DeviceID{}, false
			}
			_, ok := s.partner(d.ID.String())
			return d.ID, ok
		},
		Pass: func(conv chat.ConvID, author identity.DeviceID) []identity.DeviceID {
			return s.node.PassOn(room.ID(conv), author)
		},
		Convs:  s.convs,
		Mail:   chatMail{s.Mail()},
		Logger: s.log,
	})
	return err
}

// convs are the conversations that there are: one with every paired device, and one for
// every room.
func (s *Server) convs() []chat.Conv {
	self := s.node.ID()
	var out []chat.Conv
	for _, d := range s.node.Devices() {
		if d.State != kith.Paired || d.Rights.Blocked {
			continue
		}
		out = append(out, chat.Conv{
			ID: chat.PairConv(self, d.ID), Name: d.Name,
			Members: []chat.Member{{ID: self, Name: s.node.Name(), Online: true}, {ID: d.ID, Name: d.Name, Online: d.Connected}},
		})
	}
	for _, r := range s.node.Rooms() {
		if r.Closed {
			continue
		}
		c := chat.Conv{ID: chat.ConvID(r.ID), Room: true, Name: r.Name}
		for _, m := range r.Members {
			c.Members = append(c.Members, chat.Member{ID: m.ID, Name: m.Name, Online: m.Self || m.Direct})
		}
		out = append(out, c)
	}
	return out
}

// watchChat tells the chat service who comes and goes.
func (s *Server) watchChat() {
	events, stop := s.node.Events()
	defer stop()
	s.chat.Changed() // what happened before this followed
	for {
		select {
		case <-s.ctx.Done():
			return
		case ev, ok := <-events:
			switch {
			case !ok:
				return
			case ev.Kind == kith.EventConnected:
				s.chat.Connected(ev.Device.ID)
			default:
				s.chat.Changed()
			}
		}
	}
}

// takeChatNote is Node.HandleNotes's take.
func (s *Server) takeChatNote(from kith.Device, body []byte) bool {
	return s.chat.TakeNote(from.ID, body)
}

// conv finds a conversation: that with a device, by whatever names one, or a room by its
// name, if it is the only one that is called so; or either by its ID.
func (s *Server) conv(ref string) (chat.Conv, error) {
	all := s.convs()
	var id chat.ConvID
	byID := id.UnmarshalText([]byte(ref)) == nil
	d, err := s.node.Device(ref)
	if err == nil {
		id, byID = chat.PairConv(s.node.ID(), d.ID), true
	}
	var named []chat.Conv
	for _, c := range all {
		switch {
		case byID && c.ID == id:
			return c, nil
		case err != nil && c.Room && strings.EqualFold(c.Name, ref):
			named = append(named, c)
		}
	}
	switch {
	case len(named) == 1:
		return named[0], nil
	case len(named) > 1:
		return chat.Conv{}, &Error{Kind: KindNotFound, Text: "several rooms are called " + named[0].Name, Hint: "kith room lists their IDs"}
	case err == nil && d.State == kith.Member:
		return chat.Conv{}, &Error{Kind: KindUsage, Text: d.Name + " is a member of a room, and not paired", Hint: "kith chat ROOM writes to all of its members"}
	case err == nil && d.Rights.Blocked:
		return chat.Conv{}, &kith.BlockedError{Device: d}
	case err == nil:
		return chat.Conv{}, &Error{Kind: KindNotConnected, Text: "the pairing with " + d.Name + " is not finished", Hint: "kith devices shows how far it is"}
	case errors.Is(err, registry.ErrNotFound):
		return chat.Conv{}, &Error{Kind: KindNotFound, Text: fmt.Sprintf("no such device or room: %q", ref), Hint: "kith devices and kith room list what there is"}
	}
	return chat.Conv{}, err
}

// listConvs is OpConvs.
func (s *Server) listConvs() (Reply, error) {
	convs, err := s.chat.Convs()
	return Reply{Convs: convs}, err
}

// say is OpSay.
func (s *Server) say(ctx context.Context, req Request) (Reply, error) {
	c, err := s.conv(req.Device)
	if err != nil {
		return Reply{}, err
	}
	m, err := s.chat.Send(ctx, c.ID, req.Text)
	return Reply{Chat: &m}, err
}

// lines is OpHistory, OpSearch, OpRead and OpForget.
func (s *Server) lines(st *stream, req Request) (Reply, error) {
	c, err := s.conv(req.Device)
	if err != nil {
		return Reply{}, err
	}
	var found []chat.Message
	switch req.Op {
	case OpHistory:
		found, err = s.chat.History(c.ID, req.Line, req.Count)
	case OpSearch:
		found, err = s.chat.Search(s.ctx, c.ID, req.Text, req.Count)
	case OpForget:
		return Reply{Conv: &c}, s.chat.Forget(c.ID)
	case OpRead:
		if req.Line == nil {
			return Reply{}, &Error{Kind: KindUsage, Text: "up to which line?"}
		}
		return Reply{}, s.chat.MarkRead(c.ID, *req.Line)
	}
	if err != nil {
		return Reply{}, err
	}
	for len(found) > linesAtOnce {
		if st.send(Reply{Conv: &c, Lines: found[:linesAtOnce], Files: s.fileStates(found[:linesAtOnce]...)}) != nil {
			return Reply{}, errTaken
		}
		found = found[linesAtOnce:]
	}
	return Reply{Conv: &c, Lines: found, Files: s.fileStates(found...)}, nil
}

// A talk is one OpChat.
type talk struct {
	s    *Server
	req  Request
	wait time.Duration
	ctx  context.Context //nolint:containedctx // of one request
	st   *stream
	one  *chat.Conv // nil: all conversations

	out    sync.Mutex                   // orders writes to the client
	shown  map[logOf]uint64             // up to which line
	mu     sync.Mutex                   // guards sent
	latest map[chat.ConvID]chat.Message // the last line of each that this request wrote
	number int                          // of lines that it wrote
}

// logOf names a log for good: who writes one may have chosen the LogID of another's.
type logOf struct {
	conv   chat.ConvID
	author identity.DeviceID
	log    chat.LogID
}

// converse is OpChat.
func (s *Server) converse(st *stream, req Request, wait time.Duration) (Reply, error) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	t := &talk{
		s: s, req: req, wait: wait, ctx: ctx, st: st, shown: make(map[logOf]uint64), latest: make(map[chat.ConvID]chat.Message),
	}
	first := Reply{}
	if req.Device != "" {
		c, err := s.conv(req.Device)
		if err != nil {
			return Reply{}, err
		}
		t.one, first.Conv = &c, &c
		if d, err := s.node.Device(req.Device); err == nil {
			first.Device = &d
		}
	} else {
		convs, err := s.chat.Convs()
		if err != nil {
			return Reply{}, err
		}
		first.Convs = convs
	}
	events, stop := s.chat.Events()
	defer stop()
	if !t.reply(first) {
		return Reply{}, errTaken
	}
	return t.run(events, inputs(ctx, st), cancel)
}

func (t *talk) reply(r Reply) bool {
	t.out.Lock()
	defer t.out.Unlock()
	return t.st.send(r) == nil
}

// run serves a talk until the client goes, or ends it and knows what has become of its
// lines.
func (t *talk) run(events <-chan chat.Event, in <-chan Input, cancel func()) (Reply, error) {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	settled := make(chan struct{}) // closed when all lines have been answered
	ended := make(chan struct{})   // closed when the client has said all
	answers := make(chan func() Reply, pipelined)
	wg.Go(func() {
		defer close(settled)
		for answer := range answers {
			if !t.reply(answer()) {
				cancel()
			}
		}
	})
	wg.Go(func() {
		defer close(answers)
		for in := range in {
			if in.Cancel {
				close(ended)
				return
			}
			answers <- t.input(in)
		}
		cancel()
	})
	if !t.unread() {
		return Reply{}, errTaken
	}
	var over <-chan struct{}
	watch := filesWatch{t: t}
	defer watch.stop()
	for {
		if !watch.next() {
			return Reply{}, errTaken
		}
		select {
		case <-watch.changed:
			watch.later()
			continue
		case <-watch.soon:
			watch.due()
			continue
		case ev, ok := <-events:
			if !ok || !t.event(ev) {
				return Reply{}, errTaken
			}
			continue
		case <-ended:
			ended = nil
			done := make(chan struct{})
			over = done
			wg.Go(func() {
				defer close(done)
				<-settled
				t.await()
			})
			continue
		case <-over:
		case <-t.ctx.Done():
			return Reply{}, errTaken
		}
		return t.end(events)
	}
}

// end shows what has come, and says what has not gone.
func (t *talk) end(events <-chan chat.Event) (Reply, error) {
	for {
		select {
		case ev := <-events:
			if !t.event(ev) {
				return Reply{}, errTaken
			}
			continue
		default:
		}
		kept := 0
		for _, m := range t.latest {
			if t.far(m) == chat.StateKept {
				convs, err := t.s.chat.Convs()
				if err != nil {
					return Reply{}, err
				}
				for _, c := range convs {
					if c.ID == m.Conv {
						kept += min(c.Kept, t.number)
					}
				}
			}
		}
		r := Reply{Kept: kept}
		if kept > 0 {
			r.NoMail = t.s.post.refusal()
		}
		return r, nil
	}
}

// far returns how far a line is.
func (t *talk) far(m chat.Message) chat.State {
	now, err := t.s.chat.Wait(t.ctx, m, chat.StateKept)
	if err != nil {
		return chat.StateKept
	}
	return now.State
}

// await waits a while until the lines of this talk are with the others, or with who
// keeps mail.
func (t *talk) await() {
	ctx, cancel := context.WithTimeout(t.ctx, t.wait)
	defer cancel()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range t.latest {
		if _, err := t.s.chat.Wait(ctx, m, chat.StateSent); err != nil {
			return
		}
	}
}

// input begins to write a line, and returns what waits until it is kept.
func (t *talk) input(in Input) func() Reply {
	refuse := func(err error) func() Reply {
		return func() Reply { return Reply{Text: in.Text, Error: explain(err)} }
	}
	to := t.one
	if in.To != "" || to == nil {
		c, err := t.s.conv(in.To)
		if err != nil {
			return refuse(err)
		}
		to = &c
	}
	if t.req.Via != "" {
		return func() Reply { return t.wrote(t.note(*to, in.Text)) }
	}
	wait, err := t.s.chat.Submit(to.ID, in.Text)
	if err != nil {
		return refuse(err)
	}
	return func() Reply {
		m, err := wait(t.ctx)
		if err != nil {
			return refuse(err)()
		}
		return t.wrote(m, nil)
	}
}

func (t *talk) wrote(m chat.Message, err error) Reply {
	if err != nil {
		return Reply{Text: m.Text, Error: explain(err)}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.latest[m.Conv] = m
	t.number++
	return Reply{Chat: &m}
}

// note sends a line as notes.
func (t *talk) note(c chat.Conv, text string) (chat.Message, error) {
	if c.Room {
		return chat.Message{}, &Error{Kind: KindUsage, Text: "lines of a room do not go by " + t.req.Via}
	}
	peer := c.Members[1].ID
	ctx, cancel := context.WithTimeout(t.ctx, t.wait)
	defer cancel()
	return t.s.chat.SendNotes(ctx, c.ID, text, func(ctx context.Context, note []byte) error {
		return t.s.node.NoteVia(ctx, peer.String(), t.req.Via, note)
	})
}

// unread shows what nobody has been shown.
func (t *talk) unread() bool {
	convs := []chat.Conv{}
	if t.one != nil {
		convs = append(convs, *t.one)
	} else {
		convs = t.s.convs()
	}
	for _, c := range convs {
		for {
			lines, err := t.s.chat.Unread(c.ID, linesAtOnce)
			if err != nil || len(lines) == 0 {
				break
			}
			for _, m := range lines {
				if !t.show(chat.Event{Kind: chat.EventMessage, Message: &m}) {
					return false
				}
			}
			if t.req.Peek || t.s.chat.MarkRead(c.ID, lines[len(lines)-1]) != nil {
				break
			}
		}
	}
	return true
}

// event shows what has happened.
func (t *talk) event(ev chat.Event) bool {
	switch {
	case ev.Kind == chat.EventLost:
		return t.show(ev) && t.unread()
	case t.one != nil && ev.Message != nil && ev.Message.Conv != t.one.ID, t.one != nil && ev.Conv != nil && ev.Conv.ID != t.one.ID:
		return true
	case ev.Kind != chat.EventMessage || ev.Message.Mine:
		return t.show(ev)
	case !t.show(ev):
		return false
	case !t.req.Peek:
		_ = t.s.chat.MarkRead(ev.Message.Conv, *ev.Message) // it is shown again if this fails
	}
	return true
}

// show gives an event to the client, once.
func (t *talk) show(ev chat.Event) bool {
	m := ev.Message
	if ev.Kind == chat.EventMessage && !m.Mine {
		log := logOf{m.Conv, m.Author, m.Log}
		if t.shown[log] >= m.Seq {
			return true
		}
		t.shown[log] = m.Seq
	}
	switch {
	case t.req.Events && m != nil:
		return t.reply(Reply{ChatEvent: &ev, Files: t.s.fileStates(*m)})
	case t.req.Events:
		return t.reply(Reply{ChatEvent: &ev})
	case ev.Kind == chat.EventMessage && !m.Mine:
		return t.reply(Reply{Chat: m, Files: t.s.fileStates(*m)})
	}
	return true
}
