package chatui

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// began is when the conversations of the fake begin.
var began = time.Date(2026, 11, 20, 9, 58, 0, 0, time.UTC)

// A fake is a Backend in memory.
type fake struct {
	mu      sync.Mutex
	convs   []Conv
	lines   map[string][]Message
	events  []chan Event
	lamport uint64
	fail    error    // what Send and SendFile return
	calls   []string // what was asked, but for reads of history
	now     func() time.Time
}

func newFake() *fake {
	f := &fake{lines: make(map[string][]Message)}
	at := began
	f.now = func() time.Time { at = at.Add(time.Minute); return at }
	return f
}

func (f *fake) note(format string, args ...any) {
	f.mu.Lock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	f.mu.Unlock()
}

func (f *fake) add(conv, author, text string) Message {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lamport++
	m := Message{
		Conv: conv, Author: author, Log: "1", Seq: f.lamport, Lamport: f.lamport, Time: f.now(),
		Kind: KindText, Text: text, Mine: author == "me",
	}
	if m.Mine {
		m.State = StateKept
	}
	f.lines[conv] = append(f.lines[conv], m)
	return m
}

func (f *fake) tell(e Event) {
	f.mu.Lock()
	all := slices.Clone(f.events)
	f.mu.Unlock()
	for _, ch := range all {
		ch <- e
	}
}

// unread tells that a conversation has one more line that was not seen.
func (f *fake) unread(conv string) Event {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := Event{Kind: EventConv}
	for i := range f.convs {
		if f.convs[i].ID == conv {
			f.convs[i].Unread++
			e.Convs = append(e.Convs, f.convs[i])
		}
	}
	return e
}

func (f *fake) Convs(context.Context) ([]Conv, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.convs), nil
}

func (f *fake) Events(context.Context) (<-chan Event, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ch := make(chan Event, 1000)
	f.events = append(f.events, ch)
	return ch, nil
}

func (f *fake) Send(_ context.Context, conv, text string) (Message, error) {
	f.note("send %s %s", conv, text)
	if f.fail != nil {
		return Message{}, f.fail
	}
	m := f.add(conv, "me", text)
	f.tell(Event{Kind: EventMessage, Message: &m})
	return m, nil
}

func (f *fake) SendFile(_ context.Context, conv, path string) error {
	f.note("file %s %s", conv, path)
	return f.fail
}

func (f *fake) Accept(_ context.Context, offer string) error {
	f.note("accept %s", offer)
	f.tell(Event{Kind: EventTransfer, Transfer: &Transfer{Offer: offer, State: TransferRunning, Bytes: 1_300_000, Total: 3_200_000}})
	return nil
}

func (f *fake) Decline(_ context.Context, offer string) error {
	f.note("decline %s", offer)
	f.tell(Event{Kind: EventTransfer, Transfer: &Transfer{Offer: offer, State: TransferDeclined}})
	return nil
}

func (f *fake) Act(_ context.Context, action string) error {
	f.note("act %s", action)
	return nil
}

func (f *fake) History(_ context.Context, conv string, before *Message, n int) ([]Message, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := f.lines[conv]
	if before != nil {
		i, _ := slices.BinarySearchFunc(all, before.key(), func(m Message, k key) int { return m.key().compare(k) })
		all = all[:i]
	}
	return slices.Clone(all[max(len(all)-n, 0):]), nil
}

func (f *fake) Search(_ context.Context, conv, query string, n int) ([]Message, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []Message
	for _, m := range f.lines[conv] {
		if strings.Contains(strings.ToLower(m.Text), strings.ToLower(query)) {
			out = append(out, m)
		}
	}
	return out[max(len(out)-n, 0):], nil
}

func (f *fake) Read(_ context.Context, conv string, upTo Message) error {
	f.note("read %s %d", conv, upTo.Seq)
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.convs {
		if f.convs[i].ID == conv {
			f.convs[i].Unread = 0
		}
	}
	return nil
}

var errFull = errors.New("control: the disk is full")

// demo is a fake with something of everything.
func demo() *fake {
	f := newFake()
	f.convs = []Conv{
		{ID: "c1", Name: "laptop", Kept: 1, Members: []Member{{ID: "aa11", Name: "laptop", Online: true}}},
		{ID: "c2", Name: "phone", Members: []Member{{ID: "bb22", Name: "phone"}}, Unread: 2},
		{ID: "c3", Name: "hiking", Room: true, Unread: 7, Muted: true, Members: []Member{
			{ID: "cc33", Name: "anna", Online: true}, {ID: "dd44", Name: "Bob the builder", Online: true}, {ID: "ee55", Name: "天野", Online: false},
		}},
	}
	f.add("c1", "aa11", "good morning")
	m := f.add("c1", "me", "hello, this is written on the desk and is long enough that no window of eighty columns holds it in one line")
	f.mark(m, StateRead, 1, 1)
	f.now = func() func() time.Time {
		at := began.Add(23 * time.Hour)
		return func() time.Time { at = at.Add(time.Minute); return at }
	}()
	f.add("c1", "aa11", "wide: 日本語の文章はここにあります and a family 👨‍👩‍👧 and a heart ❤️ and a flag 🇩🇪")
	f.add("c1", "aa11", "שלום עולם, that was Hebrew; e\u0301 combines")
	late := f.add("c1", "aa11", "this one came late")
	f.change("c1", late.Seq, func(m *Message) { m.Late = true })
	file := f.add("c1", "aa11", "")
	f.change("c1", file.Seq, func(m *Message) {
		m.Kind, m.File = KindFile, &File{Name: "holiday photos.zip", Size: 3_200_000, Offer: "o1"}
	})
	m = f.add("c1", "me", "one")
	f.mark(m, StateDelivered, 1, 0)
	m = f.add("c1", "me", "two")
	f.mark(m, StateSent, 0, 0)
	f.add("c1", "me", "three")
	f.add("c2", "bb22", "are you there?")
	f.add("c2", "bb22", "call me")
	for i := range 7 {
		f.add("c3", []string{"cc33", "dd44", "ee55"}[i%3], fmt.Sprintf("line %d of the hike: who brings the map, and who brings the tea?", i+1))
	}
	m = f.add("c3", "me", "I bring both")
	f.mark(m, StateKept, 2, 0)
	return f
}

// files writes a line for each state of a file, own ones too, as they come of history.
func files(r *rig, conv string) {
	for i, now := range []Transfer{
		{State: TransferAccepted}, {State: TransferRunning, Bytes: 700, Total: 1000}, {State: TransferWaiting}, {State: TransferDone, Note: "in /home/me/Downloads"},
		{State: TransferDeclined}, {State: TransferFailed, Note: "the disk is full"}, {State: TransferExpired}, {State: TransferUnknown},
		{State: TransferOffered, Name: "x.zip", Total: 1000}, {State: TransferOffered, Name: "run me.exe", Total: 5_000_000},
		{State: TransferOffered, Note: "1 of 3 has it"}, {State: TransferDone, Note: "2 of 3 have it, 1 declined"}, {State: TransferUnknown},
	} {
		author := "cc33"
		if i > 9 {
			author = "me"
		}
		m := r.f.add(conv, author, "")
		now.Offer = fmt.Sprint(author, " ", i)
		r.f.change(conv, m.Seq, func(m *Message) {
			m.Kind, m.File = KindFile, &File{Name: "x.zip", Size: 1000, Offer: now.Offer, Now: &now}
		})
	}
}

func (f *fake) change(conv string, seq uint64, do func(*Message)) Message {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.lines[conv] {
		if m := &f.lines[conv][i]; m.Seq == seq {
			do(m)
			return *m
		}
	}
	return Message{}
}

func (f *fake) mark(m Message, state string, delivered, read int) Message {
	return f.change(m.Conv, m.Seq, func(m *Message) { m.State, m.Delivered, m.Read = state, delivered, read })
}

// say are the events of the demo that are no lines.
func (f *fake) say() []Event {
	return []Event{
		{Kind: EventTransfer, Transfer: &Transfer{Offer: "o1", State: TransferOffered}},
		{Kind: EventStatus, Status: &Status{Conv: "c1", Text: "direct, 12 ms"}},
		{Kind: EventStatus, Status: &Status{Text: "not connected"}},
	}
}
