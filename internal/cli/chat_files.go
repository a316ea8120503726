package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/kithproject/kith/app/chat"
	"github.com/kithproject/kith/app/files"
	"github.com/kithproject/kith/internal/control"
)

// fileOf returns what is known of the file in a line, or nil if it has none.
func fileOf(m *chat.Message, known []control.FileState) *control.FileState {
	if m.File == nil {
		return nil
	}
	for i := range known {
		f := &known[i]
		if f.From == m.Author && f.Offer == m.File.Offer && (!m.Mine || f.Conv == m.Conv) {
			return f
		}
	}
	return &control.FileState{From: m.Author, Offer: m.File.Offer, State: control.FileUnknown}
}

// fileLine is a file in a line: what it is, and how far.
func fileLine(m *chat.Message, known []control.FileState) string {
	text := quoted(m.File.Name)
	if m.File.Size >= 0 {
		text += ", " + control.Bytes(m.File.Size)
	}
	return text + " [" + fileWords(fileOf(m, known), m.File, m.Mine) + "]"
}

func quoted(name string) string { return `"` + chat.CleanText(name) + `"` }

// fileWords says how far a file is. What an offer says of itself counts, and not what the
// line says about it.
func fileWords(f *control.FileState, line *chat.FileRef, mine bool) string {
	note := func(text string) string {
		if f.Note != "" {
			text += ": " + chat.CleanText(f.Note)
		}
		return text
	}
	switch f.State {
	case control.FileOffered:
		switch {
		case mine:
			return note("waits to be taken")
		case line != nil && (f.Name != chat.CleanText(line.Name) || f.Total > 0 && line.Size >= 0 && f.Total != line.Size):
			return fmt.Sprintf("in truth %s, %s; waits: kith inbox accept %d", quoted(f.Name), control.Bytes(f.Total), f.Number)
		}
		return fmt.Sprintf("waits: kith inbox accept %d, or decline %d", f.Number, f.Number)
	case control.FileAccepted:
		return "accepted"
	case control.FileRunning:
		if f.Total > 0 {
			return note(fmt.Sprintf("on its way, %d %% of %s", min(100*f.Bytes/f.Total, 100), control.Bytes(f.Total)))
		}
		return note("on its way, " + control.Bytes(f.Bytes))
	case control.FileWaiting:
		return "waits for a connection"
	case control.FileExpired:
		return "expired: it is not offered any more"
	case control.FileDone, control.FileDeclined, control.FileFailed:
		return note(string(f.State))
	case control.FileUnknown:
	}
	if mine {
		return "not known any more"
	}
	return "not offered here, or not yet"
}

// said takes what a line has said of its file.
func (s *chatSession) said(known []control.FileState) {
	for _, f := range known {
		s.files[f.Conv.String()+f.From.String()+f.Offer] = f.State
	}
}

// moved tells of files that have come further: to a program all, to a person each step.
func (s *chatSession) moved(known []control.FileState) {
	for i := range known {
		f := &known[i]
		if s.flags.json {
			_ = s.e.printJSON(chatEvent{Event: chat.Event{Kind: eventFile}, In: chat.CleanText(s.conv.Name), From: nameIn(s.conv, f.From), File: f})
			continue
		}
		if key := f.Conv.String() + f.From.String() + f.Offer; s.files[key] != f.State {
			s.files[key] = f.State
			mine := f.Conv != (chat.ConvID{})
			whose := nameIn(s.conv, f.From) + "'s "
			if mine {
				whose = "your "
			}
			fmt.Fprintf(s.e.err, "-- %s%s: %s\n", whose, quoted(f.Name), fileWords(f, nil, mine))
		}
	}
}

// A roomBar shows how far a file is that goes to all members of a room.
type roomBar struct {
	e     *env
	board *board
	json  bool
	all   []control.Transfer // of each member, the last that was heard
	ended []control.Sent
}

// take takes one reply of a send to a room.
func (b *roomBar) take(r control.Reply) error {
	switch {
	case r.Transfer != nil:
		b.put(*r.Transfer)
		if b.json {
			return b.e.printJSON(struct {
				Event string `json:"event"`
				*control.Transfer
			}{"progress", r.Transfer})
		}
	case r.Sent != nil:
		s := *r.Sent
		b.put(s.Transfer)
		b.ended = append(b.ended, s)
		if b.json {
			event := "done"
			if s.Error != nil {
				event = "failed"
			}
			return b.e.printJSON(struct {
				Event string `json:"event"`
				*control.Sent
			}{event, &s})
		}
		b.board.wipe()
		if s.Error == nil {
			for _, n := range s.Notes {
				fmt.Fprintf(b.e.err, "note: %s: %s\n", s.Device, n)
			}
			fmt.Fprintln(b.e.out, sentLine(&s.Transfer))
		} else {
			fmt.Fprintf(b.e.err, "not sent to %s: %s\n", s.Device, oneLine(s.Error.Text))
		}
	}
	if !b.json {
		b.board.show(control.Reply{Transfers: b.all}, time.Now())
	}
	return nil
}

// put takes how far it is with a member; who is done is not shown any more.
func (b *roomBar) put(t control.Transfer) {
	over := t.State == files.StateFinished || t.State == files.StateFailed
	for i := range b.all {
		if b.all[i].Peer == t.Peer {
			if b.all[i] = t; over {
				b.all = append(b.all[:i], b.all[i+1:]...)
			}
			return
		}
	}
	if !over {
		b.all = append(b.all, t)
	}
}

// end says who does not have it. The exit status is that of the one reason, if there is one.
func (b *roomBar) end(c *chat.Conv) error {
	b.board.wipe()
	var without []string
	var kind control.Kind
	hint := ""
	for _, s := range b.ended {
		if s.Error == nil {
			continue
		}
		if kind == "" {
			kind, hint = s.Error.Kind, s.Error.Hint
		} else if kind != s.Error.Kind {
			kind, hint = control.KindOther, ""
		}
		without = append(without, s.Device)
	}
	if len(without) == 0 {
		return nil
	}
	do := "does"
	if len(without) > 1 {
		do = "do"
	}
	return &control.Error{
		Kind: kind, Hint: hint, Text: fmt.Sprintf("%d of %d members of %s %s not have it: %s", len(without), len(b.ended), chat.CleanText(c.Name), do, strings.Join(without, ", ")),
	}
}

// sendRoom shows how a file goes to the members of a room, from the first reply on.
func (e *env) sendRoom(ctx context.Context, call *control.Call, c *chat.Conv, f sendFlags) error {
	b := &roomBar{e: e, json: f.json, board: newBoard(e.err, terminalWidth(e.err), 0)}
	defer b.board.wipe()
	for {
		r, err := call.Next()
		switch {
		case err != nil && ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return err
		case r.Done:
			return b.end(c)
		}
		if err := b.take(r); err != nil {
			return err
		}
	}
}
