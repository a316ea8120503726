package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kithproject/kith/app/files"
	"github.com/kithproject/kith/internal/control"
)

func (e *env) inboxCommand() *cobra.Command {
	var f sendFlags
	var watch bool
	cmd := &cobra.Command{
		Use: "inbox", Short: "Show what other devices offer, and what is on its way", Args: noArgs,
		Long: `Show the files that other devices offer and that wait to be taken, and what is on its
way. kith inbox accept takes an offer, kith inbox decline does not, and ends a transfer
that runs. With --watch it goes on to show them, and what arrives, until it is
interrupted. Offers are kept while kith up runs.
` + exitHelp,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if watch {
				return e.watchInbox(cmd.Context(), nil, f.json)
			}
			return e.inbox(cmd.Context(), f.json)
		},
	}
	cmd.Flags().BoolVar(&f.json, "json", false, "print a JSON object; with --watch, one a line")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on, with a bar for each transfer")
	accept := &cobra.Command{
		Use: "accept NUMBER", Short: "Take an offer", Args: exactArgs(1),
		Long: `Take an offer. What is there under the same name is kept, and the new file is called
"report (1).pdf", unless --overwrite is given. With --watch it shows how far it is, and
ends when it is there.
` + exitHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.decide(cmd.Context(), control.OpAccept, args[0], f, watch)
		},
	}
	accept.Flags().StringVar(&f.dir, "to", "", "the `folder` that it goes to (default: the inbox folder)")
	accept.Flags().BoolVar(&f.overwrite, "overwrite", false, "replace what has the same name")
	accept.Flags().BoolVarP(&watch, "watch", "w", false, "wait until it is there")
	accept.Flags().BoolVar(&f.json, "json", false, "with --watch: print JSON objects, one a line")
	decline := &cobra.Command{
		Use: "decline NUMBER", Short: "Do not take an offer, or end a transfer that runs", Args: exactArgs(1),
		Long: `Do not take an offer, or end a transfer that runs; the other device is told. What has
arrived of a transfer is kept for 30 days: if it is offered and taken again, it goes on.
` + exitHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.decide(cmd.Context(), control.OpDecline, args[0], f, false)
		},
	}
	cmd.AddCommand(accept, decline)
	return cmd
}

func (e *env) decide(ctx context.Context, op, number string, f sendFlags, watch bool) error {
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return usage(fmt.Sprintf("%q is not the number of an offer", number), "kith inbox lists them")
	}
	dir := f.dir
	if dir != "" {
		if dir, err = filepath.Abs(dir); err != nil {
			return err
		}
	}
	req := control.Request{Op: op, Number: n, Dir: dir, Overwrite: f.overwrite}
	if watch {
		return e.watchInbox(ctx, &req, f.json)
	}
	if _, err := e.do(ctx, req); err != nil {
		return err
	}
	if op == control.OpAccept {
		fmt.Fprintln(e.out, "It is on its way; kith inbox shows how far it is.")
	} else {
		fmt.Fprintln(e.out, "Declined.")
	}
	return nil
}

func (e *env) inbox(ctx context.Context, asJSON bool) error {
	r, err := e.do(ctx, control.Request{Op: control.OpInbox})
	if err != nil {
		return err
	}
	if asJSON {
		return e.printJSON(inboxJSON{Folder: r.Text, Offers: r.Offers, Transfers: r.Transfers})
	}
	if len(r.Offers)+len(r.Transfers) == 0 {
		fmt.Fprintf(e.err, "Nothing waits. What other devices send goes to %s\n", r.Text)
		return nil
	}
	w := tabwriter.NewWriter(e.out, 0, 8, 2, ' ', 0)
	for _, o := range r.Offers {
		fmt.Fprintf(w, "%d\t%s offers\t%s\t%s\n", o.Number, o.Device, offered(o), sizeOf(o))
	}
	for _, t := range r.Transfers {
		fmt.Fprintf(w, "%d\t%s %s\t%s\t%s\n", t.Number, way(t), t.Device, shorten(files.ShowName(t.Name), 30), percent(t))
	}
	return w.Flush()
}

// inboxJSON is the inbox for programs.
type inboxJSON struct {
	Event     string              `json:"event,omitempty"` // of --watch
	Folder    string              `json:"folder"`
	Offers    []control.FileOffer `json:"offers"`
	Transfers []control.Transfer  `json:"transfers"`
}

func offered(o control.FileOffer) string {
	var names []string
	for _, n := range o.Names[:min(len(o.Names), 3)] {
		names = append(names, shorten(n, 30))
	}
	if len(o.Names) > 3 {
		names = append(names, fmt.Sprintf("%d more", len(o.Names)-3))
	}
	return strings.Join(names, ", ")
}

func sizeOf(o control.FileOffer) string {
	switch {
	case o.Stream:
		return "a pipe"
	case !o.Known:
		return fmt.Sprintf("over %s, %s", control.Count(o.Files), control.Bytes(o.Bytes))
	}
	return fmt.Sprintf("%s, %s", control.Count(o.Files), control.Bytes(o.Bytes))
}

func way(t control.Transfer) string {
	if t.Sending {
		return "to"
	}
	return "from"
}

func percent(t control.Transfer) string {
	if t.TotalKnown && t.TotalBytes > 0 {
		return fmt.Sprintf("%d %% of %s, %v", min(100*t.Bytes/t.TotalBytes, 100), control.Bytes(t.TotalBytes), t.State)
	}
	return fmt.Sprintf("%s, %v", control.Bytes(t.Bytes), t.State)
}

// A board shows the inbox as it changes: on a terminal as lines that are written over,
// with what is over above them, and elsewhere a line for each thing that happens.
type board struct {
	out   io.Writer
	width int    // of the terminal; 0 is none
	only  uint64 // the one transfer that is shown; 0 is all
	drawn int    // lines that are to be written over
	paces map[uint64]*pace
	said  map[uint64]string // what was said last of an offer or transfer
}

func newBoard(out io.Writer, width int, only uint64) *board {
	return &board{out: out, width: width, only: only, paces: make(map[uint64]*pace), said: make(map[uint64]string)}
}

// wipe takes the lines away that are written over.
func (b *board) wipe() {
	if b.drawn > 0 {
		fmt.Fprintf(b.out, "\r\x1b[%dA\x1b[J", b.drawn)
		b.drawn = 0
	}
}

// happened says something that stays.
func (b *board) happened(text string) {
	b.wipe()
	fmt.Fprintln(b.out, text)
}

func (b *board) show(r control.Reply, now time.Time) {
	var lines []string
	live := make(map[uint64]bool)
	say := func(number uint64, line string) {
		if b.width == 0 && b.said[number] != line {
			fmt.Fprintln(b.out, line)
		}
		b.said[number] = line
	}
	for _, o := range r.Offers {
		if b.only != 0 {
			continue
		}
		live[o.Number] = true
		line := fmt.Sprintf("%d  %s offers %s (%s): kith inbox accept %d", o.Number, o.Device, offered(o), sizeOf(o), o.Number)
		lines = append(lines, line)
		say(o.Number, line)
	}
	for _, t := range r.Transfers {
		if b.only != 0 && t.Number != b.only || b.only == 0 && t.State == files.StateFinished {
			continue
		}
		live[t.Number] = true
		p := b.paces[t.Number]
		if p == nil {
			p = &pace{}
			b.paces[t.Number] = p
		}
		p.measure(t, now)
		head := fmt.Sprintf("%d  %s %s  ", t.Number, way(t), t.Device)
		lines = append(lines, head+p.line(t, b.width-1-len([]rune(head))))
		state := "is on its way"
		switch t.State {
		case files.StateWaiting:
			state = "waits to be taken there"
		case files.StateBroken:
			state = "waits for a connection"
		case files.StateRunning, files.StateFinished, files.StateFailed:
		}
		say(t.Number, head+files.ShowName(t.Name)+" "+state)
	}
	for n := range b.said {
		if !live[n] {
			delete(b.said, n)
			delete(b.paces, n)
		}
	}
	if b.width == 0 {
		return
	}
	b.wipe()
	for _, l := range lines {
		fmt.Fprintln(b.out, cut(l, b.width-1))
	}
	b.drawn = len(lines)
}

// watchInbox shows the inbox until ctx ends; or, after it has sent accept, one transfer
// until it is there.
func (e *env) watchInbox(ctx context.Context, accept *control.Request, asJSON bool) error {
	c, end, err := e.client(ctx)
	if err != nil {
		return err
	}
	defer end()
	call, err := c.Call(ctx, control.Request{Op: control.OpWatch})
	if err != nil {
		return err
	}
	defer call.Close()
	first, err := call.Next() // before the offer is taken, so that its end is not missed
	only := uint64(0)
	if accept != nil && err == nil {
		only = accept.Number
		_, err = c.Do(ctx, *accept)
	}
	if err != nil {
		return err
	}
	return e.showInboxes(ctx, call, first, only, asJSON)
}

// showInboxes shows what a watch of the inbox says, until ctx ends or the transfer that
// only names has.
func (e *env) showInboxes(ctx context.Context, call *control.Call, r control.Reply, only uint64, asJSON bool) error {
	b := newBoard(e.out, terminalWidth(e.out), only)
	defer b.wipe()
	if b.width > 0 && only == 0 && !asJSON && len(r.Offers)+len(r.Transfers) == 0 {
		b.happened("Nothing waits. What other devices send goes to " + r.Text)
	}
	for err := error(nil); ; r, err = call.Next() {
		switch {
		case err != nil && ctx.Err() != nil && only == 0: // the ordinary way to end it
			return nil
		case err != nil && ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, new(*control.Error)):
			return err
		case err != nil || r.Done:
			return errors.New("kith up has ended")
		}
		if r.Ended == nil {
			if err := e.showInbox(b, r, asJSON); err != nil {
				return err
			}
			continue
		}
		if only != 0 && r.Ended.Number != only {
			continue
		}
		if asJSON {
			if err := e.printJSON(struct {
				Event string `json:"event"`
				*control.Ended
			}{"ended", r.Ended}); err != nil {
				return err
			}
		}
		if only == 0 && !asJSON {
			b.happened(fmt.Sprintf("%s  %s: %s", time.Now().Format(time.TimeOnly), r.Ended.Device, r.Ended.Text))
		}
		if only == 0 {
			continue
		}
		return e.ended(b, r.Ended, asJSON)
	}
}

func (e *env) showInbox(b *board, r control.Reply, asJSON bool) error {
	if !asJSON {
		b.show(r, time.Now())
		return nil
	}
	return e.printJSON(inboxJSON{Event: "inbox", Folder: r.Text, Offers: r.Offers, Transfers: r.Transfers})
}

// ended says how the one transfer ended that was shown.
func (e *env) ended(b *board, end *control.Ended, asJSON bool) error {
	b.wipe()
	if end.Error != "" {
		return errors.New(end.Text)
	}
	for _, n := range end.Notes {
		fmt.Fprintln(e.err, "note:", n)
	}
	if !asJSON {
		fmt.Fprintln(e.out, end.Text)
	}
	return nil
}
