package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/app/chat"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/chatui"
	"github.com/kithproject/kith/internal/control"
)

// fullScreen reports whether chat has a terminal that it can take over.
func (e *env) fullScreen() bool { return e.onTerminal() && os.Getenv("TERM") != "dumb" }

// chatScreen shows all conversations, at first the one with a device or of a room, or any
// if that is empty.
func (e *env) chatScreen(ctx context.Context, start string) error {
	c, end, err := e.client(ctx)
	if err != nil {
		return err
	}
	defer end()
	opts := chatui.Options{In: e.in, Out: e.out, Env: os.Environ()}
	if start != "" {
		r, err := c.Do(ctx, control.Request{Op: control.OpHistory, Device: start, Count: 1})
		if err != nil {
			return err
		}
		opts.Start = r.Conv.ID.String()
	}
	b := &chatBackend{c: c, seen: make(map[string]seenAs)}
	st, err := c.Do(ctx, control.Request{Op: control.OpStatus})
	if err != nil {
		return err
	}
	b.self = st.Status.ID.String()
	defer b.wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return chatui.Run(ctx, b, opts)
}

// A chatBackend brings the daemon's conversations to the full-screen chat.
type chatBackend struct {
	c    *control.Client
	self string         // this device's ID
	wg   sync.WaitGroup // of what Events began

	mu   sync.Mutex
	seen map[string]seenAs // offers that the screen shows
}

// seenAs is how the screen shows an offer.
type seenAs int

const (
	seenNot seenAs = iota
	seenLine
	seenNotice
)

// see takes that an offer is shown, and returns how it was before. A line is more than a
// notice.
func (b *chatBackend) see(offer string, as seenAs) seenAs {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := b.seen[offer]
	if before != seenLine {
		b.seen[offer] = as
	}
	return before
}

var _ chatui.Backend = (*chatBackend)(nil)

// Convs returns the conversations.
func (b *chatBackend) Convs(ctx context.Context) ([]chatui.Conv, error) {
	r, err := b.c.Do(ctx, control.Request{Op: control.OpConvs})
	if err != nil {
		return nil, err
	}
	return b.convs(r.Convs), nil
}

func (b *chatBackend) convs(all []chat.Conv) []chatui.Conv {
	out := make([]chatui.Conv, 0, len(all))
	for _, c := range all {
		out = append(out, b.conv(c))
	}
	return out
}

func (b *chatBackend) conv(c chat.Conv) chatui.Conv {
	out := chatui.Conv{ID: c.ID.String(), Room: c.Room, Name: c.Name, Kept: c.Kept, Unread: c.Unread, Last: c.Last, Muted: c.Muted}
	for _, m := range c.Members {
		if m.ID.String() != b.self {
			out.Members = append(out.Members, chatui.Member{ID: m.ID.String(), Name: m.Name, Online: m.Online})
		}
	}
	return out
}

func (b *chatBackend) message(m chat.Message, known []control.FileState) chatui.Message {
	out := chatui.Message{
		Conv: m.Conv.String(), Author: m.Author.String(), Log: m.Log.String(), Seq: m.Seq, Lamport: m.Lamport, Time: m.Time,
		ClockDiffers: m.ClockDiffers, Kind: string(m.Kind), Text: m.Text, Mine: m.Mine, State: string(m.State),
		Delivered: m.Delivered, Read: m.Read, Late: m.Late,
	}
	if m.File != nil {
		now := screenTransfer(*fileOf(&m, known))
		if now.Offer = m.Author.String() + " " + m.File.Offer; m.Mine {
			now.Offer = m.Conv.String() + " " + m.File.Offer
		}
		out.File = &chatui.File{Name: m.File.Name, Size: m.File.Size, Offer: now.Offer, Now: &now}
		b.see(now.Offer, seenLine)
	}
	return out
}

// screenTransfer is how far a file is. What names it has who offers it, so that nobody can
// write a line about the offer of another: or, of a file of this device, the conversation.
func screenTransfer(f control.FileState) chatui.Transfer {
	of := f.From.String()
	if f.Conv != (chat.ConvID{}) {
		of = f.Conv.String()
	}
	return chatui.Transfer{
		Offer: of + " " + f.Offer, State: string(f.State), Name: f.Name, Bytes: f.Bytes, Total: f.Total, Note: f.Note,
	}
}

// place names a line to the daemon.
func place(m chatui.Message) (*chat.Message, error) {
	out := &chat.Message{Seq: m.Seq, Lamport: m.Lamport}
	author, err := identity.ParseDeviceID(m.Author)
	if err = errors.Join(err, out.Conv.UnmarshalText([]byte(m.Conv)), out.Log.UnmarshalText([]byte(m.Log))); err != nil {
		return nil, err
	}
	out.Author = author
	return out, nil
}

// lines collects what a request for lines finds.
func (b *chatBackend) lines(ctx context.Context, req control.Request) ([]chatui.Message, error) {
	call, err := b.c.Call(ctx, req)
	if err != nil {
		return nil, err
	}
	defer call.Close()
	var out []chatui.Message
	for {
		r, err := call.Next()
		if err != nil {
			return nil, err
		}
		for _, m := range r.Lines {
			out = append(out, b.message(m, r.Files))
		}
		if r.Done {
			return out, nil
		}
	}
}

// History returns lines before one.
func (b *chatBackend) History(ctx context.Context, conv string, before *chatui.Message, n int) ([]chatui.Message, error) {
	req := control.Request{Op: control.OpHistory, Device: conv, Count: n}
	if before != nil {
		var err error
		if req.Line, err = place(*before); err != nil {
			return nil, err
		}
	}
	return b.lines(ctx, req)
}

// Search returns lines that contain a text.
func (b *chatBackend) Search(ctx context.Context, conv, query string, n int) ([]chatui.Message, error) {
	return b.lines(ctx, control.Request{Op: control.OpSearch, Device: conv, Text: query, Count: n})
}

// Read tells that lines were seen.
func (b *chatBackend) Read(ctx context.Context, conv string, upTo chatui.Message) error {
	line, err := place(upTo)
	if err == nil {
		_, err = b.c.Do(ctx, control.Request{Op: control.OpRead, Device: conv, Line: line})
	}
	return err
}

// Send keeps a line.
func (b *chatBackend) Send(ctx context.Context, conv, text string) (chatui.Message, error) {
	r, err := b.c.Do(ctx, control.Request{Op: control.OpSay, Device: conv, Text: text})
	if err != nil {
		return chatui.Message{}, err
	}
	return b.message(*r.Chat, r.Files), nil
}

// Accept takes a file.
func (b *chatBackend) Accept(ctx context.Context, offer string) error {
	return b.answer(ctx, control.OpAccept, offer)
}

// Decline refuses a file.
func (b *chatBackend) Decline(ctx context.Context, offer string) error {
	return b.answer(ctx, control.OpDecline, offer)
}

func (b *chatBackend) answer(ctx context.Context, op, offer string) error {
	from, id, _ := strings.Cut(offer, " ")
	_, err := b.c.Do(ctx, control.Request{Op: op, Device: from, Offer: id})
	return err
}

// SendFile offers a file to all others. It is offered as long as the daemon runs, a day at
// most, whether or not the screen stays.
func (b *chatBackend) SendFile(ctx context.Context, conv, path string) error {
	_, err := b.c.Do(ctx, control.Request{Op: control.OpOfferFile, Device: conv, Paths: []string{path}})
	return err
}

// Act does what a notice promised.
func (b *chatBackend) Act(ctx context.Context, action string) error {
	verb, rest, _ := strings.Cut(action, " ")
	switch verb {
	case "take":
		return b.Accept(ctx, rest)
	case "admit":
		ref, member, _ := strings.Cut(rest, " ")
		q := control.RoomRequest{Verb: control.RoomApprove, Room: ref, Member: member}
		_, err := b.c.Do(ctx, control.Request{Op: control.OpRoom, Room: &q})
		return err
	case "undo":
		_, err := b.c.Do(ctx, control.Request{Op: control.OpUndo, Kin: &control.KinRequest{ID: rest}})
		return err
	}
	return fmt.Errorf("this cannot be done: %s", verb)
}

// Events follows what happens until ctx ends.
func (b *chatBackend) Events(ctx context.Context) (<-chan chatui.Event, error) {
	talk, err := b.c.Call(ctx, control.Request{Op: control.OpChat, Events: true, Peek: true})
	if err != nil {
		return nil, err
	}
	node, err := b.c.Call(ctx, control.Request{Op: control.OpEvents})
	if err != nil {
		talk.Close()
		return nil, err
	}
	out := make(chan chatui.Event)
	var wg sync.WaitGroup
	put := func(ev chatui.Event) bool {
		select {
		case out <- ev:
			return true
		case <-ctx.Done():
			return false
		}
	}
	wg.Go(func() {
		defer talk.Close()
		for {
			r, err := talk.Next()
			if err != nil || r.Done || r.ChatEvent != nil && !put(b.chatEvent(*r.ChatEvent, r.Files)) {
				return
			}
			if r.ChatEvent != nil {
				continue
			}
			for _, f := range r.Files {
				t := screenTransfer(f)
				if !put(chatui.Event{Kind: chatui.EventTransfer, Transfer: &t}) {
					return
				}
				if f.Conv == (chat.ConvID{}) {
					wg.Go(func() { b.lineless(ctx, f, put) })
				}
			}
		}
	})
	wg.Go(func() {
		defer node.Close()
		for {
			r, err := node.Next()
			if err != nil || r.Done {
				return
			}
			if r.Event == nil {
				continue
			}
			if n := b.notice(*r.Event); n != nil && !put(chatui.Event{Kind: chatui.EventNotice, Notice: n}) {
				return
			}
		}
	})
	b.wg.Go(func() {
		wg.Wait()
		close(out)
	})
	return out, nil
}

// lineTime is how long the line of a file may take that is offered.
const lineTime = 2 * time.Second

// lineless tells of a file of another device that has no line on the screen: its sender is
// in no conversation with this device, or in one that was not looked at yet.
func (b *chatBackend) lineless(ctx context.Context, f control.FileState, put func(chatui.Event) bool) {
	n := chatui.Notice{Time: time.Now()}
	of := screenTransfer(f).Offer
	switch f.State {
	case control.FileOffered:
		late := time.NewTimer(lineTime)
		defer late.Stop()
		select {
		case <-late.C:
		case <-ctx.Done():
			return
		}
		if b.see(of, seenNotice) != seenNot {
			return
		}
		name := f.From.Short()
		if r, err := b.c.Do(ctx, control.Request{Op: control.OpInbox}); err == nil {
			for _, o := range r.Offers {
				if o.Number == f.Number {
					name = o.Device
				}
			}
		}
		n.Text = fmt.Sprintf("%s offers %s (%s)", name, quoted(f.Name), control.Bytes(f.Total))
		n.Action = &chatui.Action{ID: "take " + of, Label: "takes it"}
	case control.FileDone, control.FileFailed:
		if b.see(of, seenNotice) == seenLine {
			return
		}
		n.Text = fmt.Sprintf("%s: %s: %s", quoted(f.Name), f.State, f.Note)
	default:
		return
	}
	put(chatui.Event{Kind: chatui.EventNotice, Notice: &n})
}

func (b *chatBackend) chatEvent(ev chat.Event, known []control.FileState) chatui.Event {
	switch ev.Kind {
	case chat.EventMessage, chat.EventState:
		m := b.message(*ev.Message, known)
		return chatui.Event{Kind: chatui.EventMessage, Message: &m}
	case chat.EventConv:
		return chatui.Event{Kind: chatui.EventConv, Convs: []chatui.Conv{b.conv(*ev.Conv)}}
	case chat.EventGone:
		return chatui.Event{Kind: chatui.EventGone, Convs: []chatui.Conv{b.conv(*ev.Conv)}}
	case chat.EventLost:
	}
	return chatui.Event{Kind: chatui.EventMissed}
}

// notice is what a person in the chat wants to know of an event, or nil.
func (b *chatBackend) notice(ev kith.Event) *chatui.Notice {
	n := &chatui.Notice{Time: ev.Time}
	act := func(id, label string) {
		if ev.Subject != "" {
			n.Action = &chatui.Action{ID: id, Label: label}
		}
	}
	if ev.Room != nil {
		n.Conv = chat.ConvID(ev.Room.ID).String()
	} else if id, err := identity.ParseDeviceID(b.self); err == nil && ev.Device.State == kith.Paired {
		n.Conv = chat.PairConv(id, ev.Device.ID).String()
	}
	switch ev.Kind {
	case kith.EventConnected:
		if ev.Device.State != kith.Paired {
			return nil
		}
		n.Text = fmt.Sprintf("%s is connected: %s", ev.Device.Name, ev.Detail)
	case kith.EventRoomAsked:
		n.Text = fmt.Sprintf("%q asks to be let into the room", ev.Detail)
		act("admit "+ev.Room.ID.String()+" "+ev.Subject, "lets it in")
	case kith.EventRoomGuess, kith.EventRoomLeft:
		n.Text = ev.Detail
	case kith.EventNewPair:
		n.Conv, n.Text = "", fmt.Sprintf("%s: %s", ev.Device.Name, ev.Detail)
		act("undo "+pairRef(ev.Device.ID, ev.Subject), "undoes the pairing")
	default:
		return nil
	}
	return n
}
