package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/code/scan"
	"github.com/kithproject/kith/internal/control"
	"github.com/kithproject/kith/rendezvous/paper"
)

// note shows a note to carry, asks what was to be asked after it, and then for the
// other side's.
func (u *pairUI) note(ctx context.Context, n control.Note) error {
	u.carried++
	u.unshown = false
	files, err := u.writeNote(n)
	if err != nil {
		return err
	}
	if u.f.json {
		err = u.e.printJSON(pairEvent{Event: "note", Text: n.Text, QR: n.QR})
	} else {
		fmt.Fprintf(u.e.err, "\nTake this note to the other device")
		if len(files) > 0 {
			fmt.Fprintf(u.e.err, " (also in %s)", strings.Join(files, ", "))
		}
		fmt.Fprint(u.e.err, ":\n\n")
		_, err = io.WriteString(u.e.out, n.Text)
	}
	if err != nil {
		return err
	}
	if n.Last {
		return nil
	}
	if check := u.later; check != nil {
		u.later = nil
		if err := u.ask(ctx, *check); err != nil {
			return err
		}
	}
	return u.takeNote(ctx)
}

// makeNotes makes the directory for notes.
func (f pairFlags) makeNotes() error {
	switch {
	case f.notes == "":
		return nil
	case !f.offline:
		return usage("--notes is for a pairing that is carried by hand", "add --offline, or leave --notes out")
	}
	if err := os.MkdirAll(f.notes, 0o700); err != nil {
		return usage("cannot make the directory for notes: "+err.Error(), "choose another with --notes")
	}
	return nil
}

// writeNote writes a note into the directory for notes, if there is one, and
// returns the names of the files.
func (u *pairUI) writeNote(n control.Note) (files []string, err error) {
	if u.f.notes == "" {
		return nil, nil
	}
	base := filepath.Join(u.f.notes, fmt.Sprintf("note-%d", u.carried))
	fail := func(err error) ([]string, error) {
		return nil, usage("cannot write the note: "+err.Error(), "choose another directory with --notes")
	}
	if err := os.WriteFile(base+".txt", []byte(n.Text), 0o600); err != nil {
		return fail(err)
	}
	files = []string{base + ".txt"}
	for i, text := range n.QR {
		name := fmt.Sprintf("%s-%d.png", base, i+1)
		var picture bytes.Buffer
		if err := code.WritePNG(&picture, text); err != nil {
			return nil, err
		}
		if err := os.WriteFile(name, picture.Bytes(), 0o600); err != nil {
			return fail(err)
		}
		files = append(files, name)
	}
	return files, nil
}

// takeNote asks for the other side's note until one can be read, and hands it over.
func (u *pairUI) takeNote(ctx context.Context) error {
	for {
		if !u.f.json {
			fmt.Fprint(u.e.err, "\nNote of the other device (paste it, or name a file or pictures of its QR codes): ")
		}
		text, err := u.readNote(ctx)
		if errors.Is(err, io.EOF) {
			_ = u.call.Send(control.Input{Cancel: true})
			if !u.f.json {
				fmt.Fprintln(u.e.err)
			}
			return usage("no note of the other device was given", "take the last note there, and its answer here")
		}
		if err == nil {
			u.unshown = true
			return u.call.Send(control.Input{Note: text})
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if u.f.json {
			if err := u.e.printJSON(pairEvent{Event: "progress", Text: err.Error()}); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintln(u.e.err, err)
	}
}

const (
	noteBegin = "-----BEGIN "
	noteEnd   = "-----END "
)

// readNote reads one note: lines up to its end, or the names of files. It errs with
// io.EOF at the end of the input.
func (u *pairUI) readNote(ctx context.Context) (string, error) {
	line, err := u.in.next(ctx)
	if err != nil {
		return "", err
	}
	line = strings.TrimSpace(line)
	if strings.Contains(strings.ToUpper(line), "KITH:NOTE/") {
		return line, nil
	}
	if !strings.HasPrefix(line, noteBegin) {
		return notesFromFiles(strings.Fields(line), line)
	}
	var text strings.Builder
	for {
		text.WriteString(line + "\n")
		if strings.HasPrefix(strings.TrimSpace(line), noteEnd) || text.Len() > paper.MaxText {
			return text.String(), nil
		}
		if line, err = u.in.next(ctx); err != nil {
			return "", err
		}
	}
}

// notesFromFiles puts the frames of several files together into one note; whole is
// the name if there is only one, with blanks in it.
func notesFromFiles(names []string, whole string) (string, error) {
	if _, err := os.Stat(whole); err == nil {
		names = []string{whole}
	}
	var all paper.Note
	for _, name := range names {
		n, err := noteFromFile(name)
		if err != nil {
			return "", err
		}
		all.Frames = append(all.Frames, n.Frames...)
	}
	return all.Text(), nil
}

func noteFromFile(name string) (paper.Note, error) {
	f, err := os.Open(name)
	if err != nil {
		return paper.Note{}, fmt.Errorf("this is neither a note nor a file: %w", err)
	}
	defer f.Close()
	var text string
	switch strings.ToLower(filepath.Ext(name)) {
	case ".png", ".jpg", ".jpeg":
		text, err = scan.Image(f)
	default:
		var raw []byte
		raw, err = io.ReadAll(io.LimitReader(f, paper.MaxText+1))
		text = string(raw)
	}
	if err != nil {
		return paper.Note{}, fmt.Errorf("%s: %w", name, err)
	}
	n, err := paper.Parse(text)
	if err != nil {
		return paper.Note{}, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}
