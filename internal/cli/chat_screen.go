package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
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
	b := &chatBackend{c: c, self: "", out: make(chan chatui.Event)}
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
	self string // this device's ID
	out  chan chatui.Event
	wg   sync.WaitGroup // of what Events and SendFile began
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

func screenMessage(m chat.Message) chatui.Message {
	out := chatui.Message{
		Conv: m.Conv.String(), Author: m.Author.String(), Log: m.Log.String(), Seq: m.Seq, Lamport: m.Lamport, Time: m.Time,
		ClockDiffers: m.ClockDiffers, Kind: string(m.Kind), Text: m.Text, Mine: m.Mine, State: string(m.State),
		Delivered: m.Delivered, Read: m.Read, Late: m.Late,
	}
	if m.File != nil {
		out.File = &chatui.File{Name: m.File.Name, Size: m.File.Size, Offer: m.File.Offer}
	}
	return out
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
			out = append(out, screenMessage(m))
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
	return screenMessage(*r.Chat), nil
}

// Accept is for offers that are lines, of which there are none: offers are notices.
func (b *chatBackend) Accept(context.Context, string) error { return errNoOffer }

// Decline is as Accept.
func (b *chatBackend) Decline(context.Context, string) error { return errNoOffer }

var errNoOffer = errors.New("this offer does not wait any more: kith inbox lists those that do")

// SendFile offers a file to all members who are there; notices say what becomes of it.
func (b *chatBackend) SendFile(ctx context.Context, conv, path string) error {
	if _, err := os.Stat(path); err != nil {
		return err
	}
	all, err := b.Convs(ctx)
	if err != nil {
		return err
	}
	var to []chatui.Member
	for _, c := range all {
		if c.ID == conv {
			to = c.Members
		}
	}
	var calls []*control.Call
	var names []string
	for _, m := range to {
		if !m.Online {
			continue
		}
		call, err := b.c.Call(context.WithoutCancel(ctx), control.Request{Op: control.OpSend, Device: m.ID, Paths: []string{path}})
		if err != nil {
			return err
		}
		calls, names = append(calls, call), append(names, m.Name)
	}
	if len(calls) == 0 {
		return errors.New("nobody is there to take it; kith send waits for a device")
	}
	for i, call := range calls {
		b.wg.Go(func() { b.follow(conv, names[i], path, call) })
	}
	return nil
}

// follow says what becomes of a file.
func (b *chatBackend) follow(conv, name, path string, call *control.Call) {
	defer call.Close()
	for {
		r, err := call.Next()
		switch {
		case err != nil:
			b.note(conv, fmt.Sprintf("%s was not sent to %s: %v", path, name, err), nil)
			return
		case r.Done:
			b.note(conv, fmt.Sprintf("%s has %s", name, path), nil)
			return
		}
	}
}

// note shows a line of this device, if the screen is still there.
func (b *chatBackend) note(conv, text string, act *chatui.Action) {
	select {
	case b.out <- chatui.Event{Kind: chatui.EventNotice, Notice: &chatui.Notice{Conv: conv, Time: time.Now(), Text: oneLine(text), Action: act}}:
	case <-time.After(noteTime):
	}
}

// noteTime is how long the end of the screen waits for a notice that nobody takes.
const noteTime = time.Second

// Act does what a notice promised.
func (b *chatBackend) Act(ctx context.Context, action string) error {
	verb, rest, _ := strings.Cut(action, " ")
	switch verb {
	case "take":
		n, err := strconv.ParseUint(rest, 10, 64)
		if err != nil {
			return errNoOffer
		}
		_, err = b.c.Do(ctx, control.Request{Op: control.OpAccept, Number: n})
		return err
	case "admit":
		ref, member, _ := strings.Cut(rest, " ")
		q := control.RoomRequest{Verb: control.RoomApprove, Room: ref, Member: member}
		_, err := b.c.Do(ctx, control.Request{Op: control.OpRoom, Room: &q})
		return err
	case "undo":
		_, err := b.c.Do(ctx, control.Request{Op: control.OpUndo, Kin: &control.KinRequest{ID: rest}})
		return err
	}
	return errNoOffer
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
			if err != nil || r.Done || r.ChatEvent != nil && !put(b.chatEvent(*r.ChatEvent)) {
				return
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
	wg.Go(func() { // what SendFile has to say
		for {
			select {
			case ev := <-b.out:
				if !put(ev) {
					return
				}
			case <-ctx.Done():
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

func (b *chatBackend) chatEvent(ev chat.Event) chatui.Event {
	switch ev.Kind {
	case chat.EventMessage, chat.EventState:
		m := screenMessage(*ev.Message)
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
	case kith.EventOffer:
		n.Text = fmt.Sprintf("%s offers %s", ev.Device.Name, ev.Detail)
		act("take "+ev.Subject, "takes it")
	case kith.EventReceived:
		n.Text = ev.Detail
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
