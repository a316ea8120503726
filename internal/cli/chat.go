package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/app/chat"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/control"
)

// chatFlags are those of kith chat.
type chatFlags struct {
	plain   bool
	json    bool
	wait    time.Duration
	stay    bool
	via     string
	history int
	search  string
	forget  bool
}

func (e *env) chatCommand() *cobra.Command {
	var f chatFlags
	cmd := &cobra.Command{
		Use:   "chat [DEVICE|ROOM]",
		Short: "Exchange lines of text with devices and in rooms",
		Long: `Exchange lines of text with a device, or with all members of a room. On a terminal
it takes the whole screen and shows all conversations: F1 or /help says how to use it,
Ctrl-C ends it. Otherwise, and with --plain, each line of standard input is sent; each
line that comes is printed, those first that came while nobody read.

A line is kept, sealed, on this device's disk before it is sent, and on the other one's
before it counts as delivered. If the other device is away, it is delivered once both
are there, exactly once and in order; kith chat then ends with exit status 5 and says so,
unless a hub or device that keeps mail has a sealed copy.

On a terminal --plain ends with Ctrl-D. When standard input is not a terminal it ends
at the end of the input, when all lines are delivered or --wait is over, unless --stay
is given.

With --json an object a line is printed for each event (docs/chat.md), and a line of
input may be a JSON object: {"text": "..."}.

With --via multicast lines go by multicast of this network segment alone, with no
connection between the two: also where the network lets no unicast through. Devices
that are not on the segment are not reached. Lines that come are shown whichever way
they took.

A file that is offered is a line: kith send FILE DEVICE, or ROOM, writes it. The line says
how far the file is, and, while it waits here, which command takes it.
` + exitHelp,
		Example: `  kith chat laptop
  echo done | kith chat laptop
  kith chat --history 20 laptop
  kith chat --search invoice laptop
  kith chat --via multicast laptop`,
		Args: atMostArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			plain := f.plain || f.json || f.via != "tunnel" || f.forget || cmd.Flags().Changed("history") || cmd.Flags().Changed("search")
			switch {
			case !plain && e.fullScreen():
				return e.chatScreen(cmd.Context(), strings.Join(args, ""))
			case len(args) == 0:
				return usage("which device or room?", "usage: "+cmd.UseLine())
			}
			return e.runChat(cmd, f, args[0])
		},
	}
	cmd.Flags().BoolVar(&f.plain, "plain", false, "lines alone, also on a terminal")
	cmd.Flags().BoolVar(&f.json, "json", false, "print a JSON object per event, and take JSON objects as lines")
	cmd.Flags().BoolVar(&f.stay, "stay", false, "go on receiving at the end of the input, until interrupted")
	cmd.Flags().DurationVar(&f.wait, "wait", 15*time.Second, "how `long` to wait at the end until lines are delivered; 10s by multicast, unless given")
	cmd.Flags().StringVar(&f.via, "via", "tunnel", "the `way` that lines are sent: tunnel or multicast")
	cmd.Flags().IntVar(&f.history, "history", 0, "print the last `N` lines and end")
	cmd.Flags().StringVar(&f.search, "search", "", "print the lines that contain `TEXT` and end; the last 100, or --history N")
	cmd.Flags().BoolVar(&f.forget, "forget", false, "delete on this device all lines of the conversation, also those that have not gone")
	return cmd
}

// multicastWait is how long a line by multicast may take to be acknowledged. It is
// one network segment: what is there answers in milliseconds, or after some losses.
const multicastWait = 10 * time.Second

// searchLines is how many lines a search prints, unless it is said.
const searchLines = 100

func (e *env) runChat(cmd *cobra.Command, f chatFlags, device string) error {
	ctx := cmd.Context()
	switch f.via {
	case "tunnel":
		f.via = ""
	case kith.ViaMulticast:
		if !cmd.Flags().Changed("wait") {
			f.wait = multicastWait
		}
	default:
		return usage(fmt.Sprintf("--via takes tunnel or multicast, not %q", f.via), "kith chat --help")
	}
	history, search := cmd.Flags().Changed("history"), cmd.Flags().Changed("search")
	switch {
	case f.forget && (history || search):
		return usage("--forget goes with neither --history nor --search", "kith chat --help")
	case history && f.history <= 0:
		return usage("--history takes a number of lines from 1", "kith chat --help")
	case f.forget:
		r, err := e.do(ctx, control.Request{Op: control.OpForget, Device: device})
		if err == nil {
			fmt.Fprintf(e.err, "Forgotten on this device: the conversation with %s.\n", r.Conv.Name)
		}
		return err
	case search && f.history == 0:
		f.history = searchLines
		fallthrough
	case search:
		return e.pastLines(ctx, control.Request{Op: control.OpSearch, Device: device, Text: f.search, Count: f.history}, f.json)
	case history:
		return e.pastLines(ctx, control.Request{Op: control.OpHistory, Device: device, Count: f.history}, f.json)
	}
	return e.chat(ctx, control.Request{Op: control.OpChat, Device: device, Wait: f.wait, Via: f.via, Events: f.json}, f)
}

// pastLines prints what a request for lines finds.
func (e *env) pastLines(ctx context.Context, req control.Request, asJSON bool) error {
	call, end, err := e.call(ctx, req)
	if err != nil {
		return err
	}
	defer end()
	for {
		r, err := call.Next()
		if err != nil {
			return err
		}
		for i := range r.Lines {
			if asJSON {
				err = e.printJSON(chatLine(chat.Event{Kind: chat.EventMessage, Message: &r.Lines[i]}, r.Conv, r.Files))
			} else {
				_, err = fmt.Fprintln(e.out, lineOf(&r.Lines[i], r.Conv, r.Files, time.DateTime))
			}
			if err != nil {
				return err
			}
		}
		if r.Done {
			return nil
		}
	}
}

// nameIn returns what a member is called, clean.
func nameIn(c *chat.Conv, id identity.DeviceID) string {
	if c != nil {
		for _, m := range c.Members {
			if m.ID == id {
				return chat.CleanText(m.Name)
			}
		}
	}
	return id.Short()
}

// lineOf is an entry as one line for a person.
func lineOf(m *chat.Message, c *chat.Conv, known []control.FileState, layout string) string {
	text := chat.CleanText(m.Text)
	if m.File != nil {
		text = "offers the file " + fileLine(m, known)
	}
	notes := ""
	if m.ClockDiffers {
		notes += " (clock differs)"
	}
	if m.Late {
		notes += " (late)"
	}
	return fmt.Sprintf("%s %s: %s%s", m.Time.Local().Format(layout), nameIn(c, m.Author), text, notes)
}

// A chatEvent is what --json prints: an event, and who and what is named.
type chatEvent struct {
	chat.Event
	In   string `json:"in,omitempty"`   // the conversation's name
	From string `json:"from,omitempty"` // the author's name
	Text string `json:"text,omitempty"` // of the line
	Mine bool   `json:"mine,omitempty"`

	Time time.Time `json:"time,omitzero"` // of the line, by its author's clock

	File *control.FileState `json:"file,omitempty"` // of a line with a file, and of the event "file": how far it is
}

// eventFile is the event of a file that has come further.
const eventFile chat.EventKind = "file"

func chatLine(ev chat.Event, c *chat.Conv, known []control.FileState) chatEvent {
	out := chatEvent{Event: ev}
	if ev.Conv != nil {
		out.In = chat.CleanText(ev.Conv.Name)
	} else if c != nil {
		out.In = chat.CleanText(c.Name)
	}
	if m := ev.Message; m != nil {
		out.From, out.Text, out.Mine, out.Time = nameIn(c, m.Author), chat.CleanText(m.Text), m.Mine, m.Time
		out.File = fileOf(m, known)
	}
	return out
}

func (e *env) chat(ctx context.Context, req control.Request, f chatFlags) error {
	call, end, err := e.call(ctx, req)
	if err != nil {
		return err
	}
	defer end()
	first, err := call.Next()
	if err != nil {
		return err
	}
	if e.onTerminal() {
		fmt.Fprintf(e.err, "Chat with %s. Ctrl-D ends it.\n", first.Conv.Name)
	}
	s := &chatSession{e: e, call: call, flags: f, conv: first.Conv, ended: make(chan struct{}), slots: make(chan struct{}, unanswered), files: make(map[string]control.FileStep)}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer call.Close()
	wg.Go(s.replies)
	return s.lines(ctx)
}

// unanswered is how many lines may be on the way to the disk.
const unanswered = 128

// A chatSession is one kith chat that sends and receives.
type chatSession struct {
	e     *env
	call  *control.Call
	flags chatFlags
	conv  *chat.Conv
	slots chan struct{}               // one for each line that was not answered
	ended chan struct{}               // closed after the last reply
	files map[string]control.FileStep // what was said last of a file; replies alone uses it

	mu     sync.Mutex // guards the fields below
	failed error      // what became of a line
	kept   int        // lines that are only here
	noMail string     // why nobody took them as mail
	whole  bool       // the daemon has said the end
}

// replies shows what comes.
func (s *chatSession) replies() {
	defer close(s.ended)
	for {
		r, err := s.call.Next()
		var refused *control.Error
		switch {
		case errors.As(err, &refused):
			s.answered(refused)
		case err != nil:
			return
		case r.Done:
			s.mu.Lock()
			s.kept, s.noMail, s.whole = r.Kept, r.NoMail, true
			s.mu.Unlock()
			return
		case r.ChatEvent != nil:
			if c := r.ChatEvent.Conv; c != nil && s.conv != nil && c.ID == s.conv.ID {
				s.conv = c
			}
			_ = s.e.printJSON(chatLine(*r.ChatEvent, s.conv, r.Files))
		case r.Chat == nil:
			s.moved(r.Files)
		case r.Chat.Mine:
			s.answered(nil)
		default:
			s.said(r.Files)
			fmt.Fprintln(s.e.out, lineOf(r.Chat, s.conv, r.Files, "15:04"))
		}
	}
}

func (s *chatSession) answered(err error) {
	if err != nil && s.e.onTerminal() { // a person can try again
		fmt.Fprintf(s.e.err, "not sent: %v\n", err)
		err = nil
	}
	s.mu.Lock()
	if s.failed == nil {
		s.failed = err
	}
	s.mu.Unlock()
	select {
	case <-s.slots:
	default:
	}
}

func (s *chatSession) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// lines sends the lines of the input until it ends.
func (s *chatSession) lines(ctx context.Context) error {
	in := newLines(s.e.in)
	for {
		text, err := in.next(ctx)
		switch {
		case errors.Is(err, io.EOF) && s.flags.stay:
			<-ctx.Done()
			return s.failure()
		case errors.Is(err, io.EOF):
			return s.end(ctx)
		case err != nil:
			return nil //nolint:nilerr // interrupted: the ordinary end
		}
		if err := s.failure(); err != nil {
			return err
		}
		input, err := s.input(text)
		if err != nil {
			return err
		}
		select {
		case s.slots <- struct{}{}:
		case <-s.ended:
			return control.ErrEnded
		}
		if err := s.call.Send(input); err != nil {
			return err
		}
	}
}

// input is a line as the daemon takes it: with --json a JSON object, or text.
func (s *chatSession) input(text string) (control.Input, error) {
	if !s.flags.json || !strings.HasPrefix(strings.TrimSpace(text), "{") {
		return control.Input{Text: text}, nil
	}
	var line struct {
		Text string `json:"text"`
		To   string `json:"to"`
	}
	in := json.NewDecoder(bufio.NewReader(strings.NewReader(text)))
	in.DisallowUnknownFields()
	if err := in.Decode(&line); err != nil {
		return control.Input{}, usage("a line of input is not understood: "+err.Error(), `with --json a line is {"text": "..."}, or text that does not begin with {`)
	}
	return control.Input{Text: line.Text, To: line.To}, nil
}

// end waits until lines are delivered, and says which are not.
func (s *chatSession) end(ctx context.Context) error {
	if err := s.call.Send(control.Input{Cancel: true}); err != nil {
		return err
	}
	<-s.ended
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.failed != nil:
		return s.failed
	case !s.whole && ctx.Err() != nil:
		return ctx.Err()
	case !s.whole:
		return control.ErrEnded
	case s.kept == 0:
		return nil
	}
	lines, they := "the line is", "it goes by itself"
	if s.kept > 1 {
		lines, they = fmt.Sprintf("%d lines are", s.kept), "they go by themselves"
	}
	where, hint := chat.CleanText(s.conv.Name)+" is away", they+" when kith up runs on both devices"
	if s.conv.Room {
		where, hint = "not all of the room "+chat.CleanText(s.conv.Name)+" have it", they+" when kith up runs here and on the others"
	}
	if s.noMail != "" {
		hint += "; not taken as mail by " + chat.CleanText(s.noMail)
	}
	return &control.Error{
		Kind: control.KindNotConnected, Text: fmt.Sprintf("%s kept here, and not delivered yet: %s", lines, where),
		Hint: hint,
	}
}
