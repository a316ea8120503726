package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/code/scan"
	"github.com/kithproject/kith/internal/control"
)

// pairFlags are the flags of pair and join.
type pairFlags struct {
	words, number, qr bool
	yes, json         bool
	lifetime          time.Duration
	qrPNG             string
	codeFile, qrImage string
	wait              time.Duration
	offline, hidden   bool
	notes             string // directory
}

// offlineFlags are those of a pairing whose messages are carried by hand.
func (f *pairFlags) offlineFlags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.offline, "offline", false, "carry the messages by hand, where the two devices share no network at all")
	cmd.Flags().BoolVar(&f.hidden, "hidden", false, "do not show this device to those who run kith nearby")
	cmd.Flags().StringVar(&f.notes, "notes", "", "with --offline, also write each note to a `directory`, as text and as QR codes")
}

func (e *env) pairCommand() *cobra.Command {
	var f pairFlags
	cmd := &cobra.Command{
		Use:   "pair [--words|--number|--qr]",
		Short: "Show a code that pairs this device with another",
		Long: `Show a code and wait for the device on which it is entered with kith join. The
code works once, for ten minutes.

  --words    twelve words, and the same code as a QR code (default)
  --qr       only the QR code; it also pins this device's key
  --number   twenty digits, to say over a phone

When the other device has proved that it knows the code it shows six digits.
Type them here, or pick them from four: that proves that the two devices talk to
each other and not to somebody between them. --yes leaves this out (not for a
number): use it only where nobody else can have seen the code.

With --offline, here and for kith join, the devices need no network in common: each
prints notes, blocks of text, which you take to the other one in turn, three from
each side. A note is sealed: who finds one can do nothing with it.

With --json each event is one line: code, progress, note, check, paired or failed.
The answer to a check is a line on standard input: the six digits, or "n".
` + exitHelp,
		Example: "  kith pair\n  kith pair --number\n  kith pair --qr --qr-png code.png",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return e.pair(cmd.Context(), f) },
	}
	cmd.Flags().BoolVar(&f.words, "words", false, "twelve words and a QR code (default)")
	cmd.Flags().BoolVar(&f.number, "number", false, "twenty digits")
	cmd.Flags().BoolVar(&f.qr, "qr", false, "only the QR code")
	cmd.Flags().BoolVar(&f.yes, "yes", false, "accept the first device that knows the code, without the check number")
	cmd.Flags().BoolVar(&f.json, "json", false, "print events as JSON, one a line")
	cmd.Flags().DurationVar(&f.lifetime, "for", 0, "how `long` the code works, 1m to 60m (a number at most 15m)")
	cmd.Flags().StringVar(&f.qrPNG, "qr-png", "", "also write the QR code to an image `file`")
	f.offlineFlags(cmd)
	cmd.MarkFlagsMutuallyExclusive("words", "number", "qr")
	return cmd
}

func (e *env) joinCommand() *cobra.Command {
	var f pairFlags
	cmd := &cobra.Command{
		Use:   "join",
		Short: "Enter a code that another device shows",
		Long: `Ask for the code that another device shows with kith pair, in any of its forms:
words (their first four letters are enough), digits, or the text of the QR code.
The code comes from the prompt, from standard input, from --code-file or from an
image of the QR code - never from the arguments, which every user of this machine
can read in the list of processes. Until it is typed, kith nearby on another device
shows that this one waits for a code (not with --hidden).
` + exitHelp,
		Example: "  kith join\n  kith join --qr-image photo.png\n  kith join --code-file code.txt",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return usage("a code does not belong in the arguments: other users of this machine can see them, and the shell keeps them",
				"run kith join alone and type the code when asked, or use --code-file FILE; treat this code as seen and make a new one")
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return e.join(cmd.Context(), f) },
	}
	cmd.Flags().BoolVar(&f.yes, "yes", false, "do not ask whether to pair with the device that is found")
	cmd.Flags().BoolVar(&f.json, "json", false, "print events as JSON, one a line")
	cmd.Flags().StringVar(&f.codeFile, "code-file", "", "read the code from a `file` (- for standard input)")
	cmd.Flags().StringVar(&f.qrImage, "qr-image", "", "read the code from an image `file` (PNG or JPEG) of the QR code")
	cmd.Flags().DurationVar(&f.wait, "wait", time.Minute, "how `long` to look for the device that shows the code")
	f.offlineFlags(cmd)
	cmd.MarkFlagsMutuallyExclusive("code-file", "qr-image")
	cmd.MarkFlagsMutuallyExclusive("offline", "wait")
	return cmd
}

func (e *env) pair(ctx context.Context, f pairFlags) error {
	method := "words"
	switch {
	case f.number:
		method = "number"
	case f.qr:
		method = "qr"
	}
	if f.number && f.yes {
		return usage("--yes cannot be used with --number: a number alone does not prove enough", "leave --yes out and type the check number")
	}
	if f.number && f.qrPNG != "" {
		return usage("a number has no QR code", "leave --qr-png or --number out")
	}
	if err := f.makeNotes(); err != nil {
		return err
	}
	return e.follow(ctx, f, control.Request{Op: control.OpOffer, Method: method, Lifetime: f.lifetime, Yes: f.yes, Offline: f.offline, Hidden: f.hidden}, newLines(e.in))
}

func (e *env) join(ctx context.Context, f pairFlags) error {
	if err := f.makeNotes(); err != nil {
		return err
	}
	in := newLines(e.in)
	if f.qrImage == "" && (f.codeFile == "" || f.codeFile == "-") && !f.offline && !f.hidden {
		text, c, end, err := e.awaitCode(ctx, f, in)
		if err != nil {
			return err
		}
		if c == nil {
			return e.joinWith(ctx, f, text, in)
		}
		defer end()
		return e.joinOn(ctx, c, f, text, nil, in)
	}
	text, err := e.readCode(ctx, f, in)
	if err != nil {
		return err
	}
	return e.joinWith(ctx, f, text, in)
}

// joinWith pairs by a code that was read.
func (e *env) joinWith(ctx context.Context, f pairFlags, text string, in *lines) error {
	if _, err := code.Parse(text, time.Now()); err != nil { // said before a node is opened
		return codeError(err)
	}
	c, end, err := e.client(ctx)
	if err != nil {
		return err
	}
	defer end()
	return e.joinOn(ctx, c, f, text, nil, in)
}

// maxCodeFile is more than any form of a code needs, in bytes.
const maxCodeFile = 8 << 10

func (e *env) readCode(ctx context.Context, f pairFlags, in *lines) (string, error) {
	switch {
	case f.qrImage != "":
		file, err := os.Open(f.qrImage)
		if err != nil {
			return "", usage("cannot read the image: "+err.Error(), "")
		}
		defer file.Close()
		text, err := scan.Image(file)
		if err != nil {
			return "", usage("no QR code could be read from "+f.qrImage+": "+err.Error(), "take the picture straight, sharp and with the white margin around the code")
		}
		return text, nil
	case f.codeFile != "" && f.codeFile != "-":
		file, err := os.Open(f.codeFile)
		if err != nil {
			return "", usage("cannot read the code: "+err.Error(), "")
		}
		defer file.Close()
		raw, err := io.ReadAll(io.LimitReader(file, maxCodeFile+1))
		if err != nil || len(raw) > maxCodeFile {
			return "", usage("the code file is not a code", "it should hold twelve words, twenty digits or the text of a QR code")
		}
		return string(raw), nil
	}
	if e.onTerminal() && !f.json {
		fmt.Fprint(e.err, "Code from the other device: ")
	}
	text, err := in.next(ctx)
	if errors.Is(err, io.EOF) {
		return "", usage("no code was given", "type it when asked, pipe it in, or use --code-file FILE")
	}
	return text, err
}

func codeError(err error) error {
	if p, ok := asParse(err); ok {
		return usage(p.Error(), p.Hint)
	}
	return err
}

// follow runs an offer or a join to its end and shows each step.
func (e *env) follow(ctx context.Context, f pairFlags, req control.Request, in *lines) error {
	c, end, err := e.client(ctx)
	if err != nil {
		return err
	}
	defer end()
	return e.followOn(ctx, c, f, req, in)
}

// followOn is follow on a node that the caller has.
func (e *env) followOn(ctx context.Context, c *control.Client, f pairFlags, req control.Request, in *lines) error {
	call, err := c.Call(ctx, req)
	if err != nil {
		return err
	}
	defer call.Close()
	ui := pairUI{e: e, f: f, joining: req.Op == control.OpJoin, call: call, in: in}
	if !f.offline {
		ui.progress("looking for the other device")
	}
	paired := false
	for {
		r, err := call.Next()
		if err != nil {
			if paired { // stopped while it only stays for the other side
				return nil
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			ui.failed(err)
			return err
		}
		switch {
		case r.Offer != nil:
			if err := ui.offer(*r.Offer); err != nil {
				return err
			}
			if f.offline {
				err = ui.takeNote(ctx)
			}
		case r.Note != nil:
			err = ui.note(ctx, *r.Note)
		case r.Pair != nil:
			err = ui.step(ctx, *r.Pair)
		case r.Device != nil && !paired:
			paired = true
			err = ui.paired(r)
		}
		if err != nil || r.Done {
			return err
		}
	}
}

// lines gives standard input line by line, to a reader that can be interrupted. It reads a
// line when one is asked for, not before: the next one may be a password, which somebody
// else reads, without showing it.
type lines struct {
	in    *os.File
	ch    chan string
	ask   chan struct{} // nil before the first line is asked for
	asked bool          // for a line that has not been taken
	blank bool          // also those that are blank
}

func newLines(in *os.File) *lines { return &lines{in: in, ch: make(chan string)} }

// answer asks a question and returns the answer in small letters: "" if it is a blank line,
// or the input has ended.
func (e *env) answer(ctx context.Context, question string) (string, error) {
	fmt.Fprint(e.err, question)
	in := newLines(e.in)
	in.blank = true
	text, err := in.next(ctx)
	if errors.Is(err, io.EOF) {
		fmt.Fprintln(e.err)
		err = nil
	}
	return strings.ToLower(strings.TrimSpace(text)), err
}

// next returns the next line that is not blank, unless those are wanted, too, io.EOF at
// the end, or the context's error.
func (l *lines) next(ctx context.Context) (string, error) {
	select {
	case line, ok := <-l.lines():
		l.asked = false
		if !ok {
			return "", io.EOF
		}
		return line, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// lines asks for a line and returns where it comes; that is closed at the end. Who takes it
// there rather than by next sets asked to false.
func (l *lines) lines() <-chan string {
	if l.ask == nil {
		l.ask = make(chan struct{}, 1)
		go l.read()
	}
	if !l.asked {
		l.asked = true
		select {
		case l.ask <- struct{}{}:
		default: // standard input has ended
		}
	}
	return l.ch
}

// read ends with standard input, at the latest with the process.
func (l *lines) read() {
	defer close(l.ch)
	s := bufio.NewScanner(l.in)
	s.Buffer(make([]byte, 0, 4096), maxCodeFile)
	for range l.ask {
		more := s.Scan()
		for more && !l.blank && strings.TrimSpace(s.Text()) == "" {
			more = s.Scan()
		}
		if !more {
			return
		}
		l.ch <- s.Text()
	}
}
