package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/internal/control"
)

// pairUI shows one pairing to a person, or to a program.
type pairUI struct {
	e       *env
	f       pairFlags
	joining bool
	call    *control.Call
	in      *lines
	shown   int // lines of the code on the terminal, to be cleared

	began time.Time // when the search for the other device began
	live  bool      // a line on the terminal says how the media do
	told  bool      // that nobody has been found yet

	carried int               // notes shown
	unshown bool              // this side's turn: its note is still to come
	later   *control.PairStep // a check to ask for after the note
}

// pairEvent is one line of --json.
type pairEvent struct {
	Event   string    `json:"event"`
	Words   string    `json:"words,omitempty"`
	Number  string    `json:"number,omitempty"`
	URI     string    `json:"uri,omitempty"`
	Expiry  time.Time `json:"expiry,omitzero"`
	Text    string    `json:"text,omitempty"`
	Check   string    `json:"check,omitempty"`
	Choices []string  `json:"choices,omitempty"`
	Ask     bool      `json:"ask,omitempty"`
	Name    string    `json:"name,omitempty"`
	ID      string    `json:"id,omitempty"`
	Device  any       `json:"device,omitempty"`
	Reason  string    `json:"reason,omitempty"`
	Hint    string    `json:"hint,omitempty"`

	QR []string `json:"qr,omitempty"` // of a note

	Media []kith.RendezvousStatus `json:"media,omitempty"`
}

func (u *pairUI) progress(text string) {
	if u.f.json {
		_ = u.e.printJSON(pairEvent{Event: "progress", Text: text})
		return
	}
	u.endLive()
	if u.joining {
		fmt.Fprintf(u.e.err, "… %s\n", text)
	}
}

func (u *pairUI) offer(o control.Offer) error {
	if u.f.qrPNG != "" {
		if err := writeQR(u.f.qrPNG, o.URI); err != nil {
			return err
		}
	}
	if u.f.qr {
		o.Words = ""
	}
	if u.f.json {
		return u.e.printJSON(pairEvent{Event: "code", Words: o.Words, Number: o.Number, URI: o.URI, Expiry: o.Expiry})
	}
	var b strings.Builder
	if u.f.offline {
		b.WriteString("On the other device run kith join --offline and enter this code:\n\n")
	} else {
		b.WriteString("On the other device run kith join and enter this code:\n\n")
	}
	switch {
	case o.Number != "":
		fmt.Fprintf(&b, "    %s\n\n", o.Number)
	case o.Words != "":
		w := strings.Fields(o.Words)
		fmt.Fprintf(&b, "    %s\n    %s\n\n", strings.Join(w[:len(w)/2], " "), strings.Join(w[len(w)/2:], " "))
	}
	if o.URI != "" && (u.f.qr || u.e.onTerminal()) {
		picture, err := code.RenderTerminal(o.URI)
		if err != nil {
			return err
		}
		b.WriteString(picture)
		b.WriteString("\n")
	}
	left := time.Until(o.Expiry).Round(time.Minute)
	fmt.Fprintf(&b, "It works once, for %s. Keep it to yourself.\n", minutes(left))
	if u.f.yes {
		b.WriteString("With --yes whoever enters it first is paired without a further question.\n")
	}
	if !u.f.offline {
		b.WriteString("… waiting for the other device\n")
	}
	u.shown = strings.Count(b.String(), "\n")
	_, err := io.WriteString(u.e.out, b.String())
	return err
}

func minutes(d time.Duration) string {
	if d == time.Minute {
		return "one minute"
	}
	return fmt.Sprintf("%d minutes", int(d.Minutes()))
}

func writeQR(path, uri string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return usage("cannot write the QR code: "+err.Error(), "choose another file with --qr-png")
	}
	if err := code.WritePNG(file, uri); err != nil {
		file.Close()
		return err
	}
	return file.Close()
}

func (u *pairUI) step(ctx context.Context, s control.PairStep) error {
	if s.Kind != "media" {
		u.endLive()
	}
	switch s.Kind {
	case "media":
		return u.media(s.Media)
	case "contact":
		u.progress(found(s.Media) + "; proving the code")
	case "prepared":
		u.progress("waiting for the other side to save the pair")
	case "second-device":
		if u.f.json {
			return u.e.printJSON(pairEvent{Event: "progress", Text: "a second device tried this code", Name: s.Name, ID: s.ID})
		}
		fmt.Fprintln(u.e.err, "warning: a second device tried this code. If you did not do that, answer n and make a new code.")
	case "wrong-note":
		if u.f.json {
			if err := u.e.printJSON(pairEvent{Event: "progress", Text: s.Reason}); err != nil {
				return err
			}
		} else {
			fmt.Fprintf(u.e.err, "%s\n", s.Reason)
		}
		return u.takeNote(ctx)
	case "wrong-check":
		if u.f.json {
			return u.e.printJSON(pairEvent{Event: "progress", Text: "the digits do not match"})
		}
		fmt.Fprintln(u.e.err, "These digits do not match.")
		return u.ask(ctx, s)
	case "check":
		if u.f.json {
			if err := u.e.printJSON(pairEvent{Event: "check", Check: checkFor(u.joining, s), Choices: s.Choices, Ask: s.Ask, Name: s.Name, ID: s.ID}); err != nil {
				return err
			}
		} else if u.joining {
			fmt.Fprintf(u.e.err, "Found %s. Its screen asks for this check number:\n\n    %s\n\n", describe(s), spaced(s.Check))
		}
		if s.Ask && u.f.offline && !u.joining && u.unshown {
			u.later = &s // the other side sees its digits when it has our note
			return nil
		}
		if s.Ask {
			return u.ask(ctx, s)
		}
	}
	return nil
}

// checkFor hides the digits from the side that has to enter them.
func checkFor(joining bool, s control.PairStep) string {
	if joining {
		return s.Check
	}
	return ""
}

func describe(s control.PairStep) string {
	if s.OS == "" {
		return fmt.Sprintf("%q", s.Name)
	}
	return fmt.Sprintf("%q (%s)", s.Name, s.OS)
}

func spaced(check string) string {
	if len(check) != 6 {
		return check
	}
	return check[:3] + " " + check[3:]
}

// ask gets the user's answer to a check and sends it.
func (u *pairUI) ask(ctx context.Context, s control.PairStep) error {
	if !u.f.json {
		switch {
		case u.joining:
			fmt.Fprintf(u.e.err, "Pair with it? It will be able to send you messages. [y/n] ")
		default:
			if s.Name != "" {
				fmt.Fprintf(u.e.err, "\n%s knows the code and shows six digits. Which?\n\n", describe(s))
				for i, c := range s.Choices {
					fmt.Fprintf(u.e.err, "    %d)  %s\n", i+1, spaced(c))
				}
			}
			fmt.Fprint(u.e.err, "\nType the digits or 1 to 4; n if none fits: ")
		}
	}
	for {
		line, err := u.in.next(ctx)
		if errors.Is(err, io.EOF) {
			_ = u.call.Send(control.Input{Cancel: true})
			return usage("no answer to the check number was given", "run it on a terminal, answer on standard input, or use --yes where nobody else can have seen the code")
		}
		if err != nil {
			return err
		}
		in, ok := readAnswer(line, u.joining, s.Choices)
		if ok {
			return u.call.Send(in)
		}
		if !u.f.json {
			fmt.Fprint(u.e.err, "Please answer as asked: ")
		}
	}
}

func readAnswer(line string, joining bool, choices []string) (control.Input, bool) {
	text := strings.ToLower(strings.Join(strings.Fields(line), ""))
	accept := func(check string) (control.Input, bool) { return control.Input{Accept: &check}, true }
	switch {
	case text == "n" || text == "no":
		return control.Input{Cancel: true}, true
	case joining && (text == "y" || text == "yes"):
		return accept("")
	case joining:
		return control.Input{}, false
	case len(text) == 1 && text >= "1" && int(text[0]-'1') < len(choices):
		return accept(choices[text[0]-'1'])
	case len(text) == 6 && strings.Trim(text, "0123456789") == "":
		return accept(text)
	}
	return control.Input{}, false
}

func (u *pairUI) paired(r control.Reply) error {
	if u.f.json {
		return u.e.printJSON(pairEvent{Event: "paired", Device: r.Device, Name: r.Device.Name, ID: r.Device.ID.String()})
	}
	u.clearCode()
	fmt.Fprintf(u.e.out, "Paired with %s.\n", r.Device.Name)
	fmt.Fprintf(u.e.out, "It may ping and message you, nothing else. To stay connected run kith up on both.\n")
	return nil
}

// clearCode removes the used code from the terminal, if it has not scrolled.
func (u *pairUI) clearCode() {
	out, ok := u.e.out.(*os.File)
	if u.shown == 0 || !ok || !term.IsTerminal(int(out.Fd())) {
		return
	}
	const answerLines = 12 // the check's question and answer stand below the code
	if _, rows, err := term.GetSize(int(out.Fd())); err != nil || rows < u.shown+answerLines {
		return
	}
	fmt.Fprintf(out, "\x1b[H\x1b[2J")
}

func (u *pairUI) failed(err error) {
	if !u.f.json {
		return
	}
	_, text, hint := classify(err)
	_ = u.e.printJSON(pairEvent{Event: "failed", Reason: text, Hint: hint})
}
