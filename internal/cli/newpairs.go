package cli

import (
	"context"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/term"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/control"
)

// undoWait is how long undoing waits for the device that has the pair.
const undoWait = 5 * time.Second

// undoKeys are the keys that undo the first, the second, … of the new pairs.
const undoKeys = "123456789abcdefghijklmnoprstuvwxyz" // without q

// newPairs lists the pairs of the last day, and has one undone: the one with the ID undo,
// or on a terminal that of the key that is pressed.
func (e *env) newPairs(ctx context.Context, undo string, asJSON bool) error {
	c, end, err := e.client(ctx)
	if err != nil {
		return err
	}
	defer end()
	if undo != "" {
		return e.undo(ctx, c, undo, asJSON)
	}
	r, err := c.Do(ctx, control.Request{Op: control.OpRecent})
	if err != nil {
		return err
	}
	if asJSON {
		return e.printJSON(r.Kin.New)
	}
	list := r.Kin.New
	if len(list) == 0 {
		fmt.Fprintln(e.err, "No new pair in the last 24 hours, here or on a device that is marked as your own (kith own).")
		return nil
	}
	ask := e.onTerminal()
	open, err := e.listNew(list, ask)
	if err != nil || !ask || open == 0 {
		return err
	}
	key, err := e.key("A key from the first column undoes that pair; any other key leaves all as it is: ")
	if err != nil {
		return err
	}
	if i := strings.IndexByte(undoKeys, key); i >= 0 && i < len(list) && !list[i].Ended {
		return e.undo(ctx, c, pairRef(list[i].OnID, list[i].ID.String()), false)
	}
	fmt.Fprintln(e.err, "Nothing was changed.")
	return nil
}

// listNew prints the table and returns how many of them can be undone.
func (e *env) listNew(list []kith.NewPair, keys bool) (open int, err error) {
	w := tabwriter.NewWriter(e.out, 0, 8, 2, ' ', 0)
	if keys {
		fmt.Fprint(w, "KEY\t")
	}
	fmt.Fprintln(w, "ID\tWHEN\tON\tDEVICE\tBY\tSTATE")
	for i, p := range list {
		key := "-"
		if !p.Ended && i < len(undoKeys) {
			key = undoKeys[i : i+1]
			open++
		}
		if keys {
			fmt.Fprintf(w, "%s\t", key)
		}
		on := p.On
		if on == "" {
			on = "this device"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", p.ID.Short(), ago(p.Paired), on, deviceWords(p), byWords(p), newState(p))
	}
	return open, w.Flush()
}

func deviceWords(p kith.NewPair) string {
	if p.OS == "" {
		return fmt.Sprintf("%q", p.Name)
	}
	return fmt.Sprintf("%q (%s)", p.Name, p.OS)
}

func byWords(p kith.NewPair) string {
	if p.Introducer != "" {
		return p.Introducer
	}
	return p.Method
}

func newState(p kith.NewPair) string {
	switch {
	case p.Ended:
		return "over"
	case p.Undo == "asked":
		return "being undone"
	case p.Undo == "refused":
		return "paired; that device does not let this one undo it"
	}
	return "paired"
}

// pairRef names a new pair of a device, zero being this one, so that no other fits.
func pairRef(on identity.DeviceID, id string) string {
	if on.IsZero() {
		return ":" + id
	}
	return on.String() + ":" + id
}

// undo ends a new pair.
func (e *env) undo(ctx context.Context, c *control.Client, id string, asJSON bool) error {
	r, err := c.Do(ctx, control.Request{Op: control.OpUndo, Wait: undoWait, Kin: &control.KinRequest{ID: strings.ToLower(id)}})
	if err != nil {
		return err
	}
	p := r.Kin.New[0]
	if asJSON {
		return e.printJSON(struct {
			ID     string            `json:"id"`
			Peer   identity.DeviceID `json:"peer"`
			On     string            `json:"on,omitempty"`
			Undone bool              `json:"undone"`
		}{p.ID.String(), p.Peer, p.On, r.Kin.Undone})
	}
	switch {
	case p.On == "":
		_, err = fmt.Fprintf(e.out, "Undone: this device is no longer paired with %q.\n", p.Name)
	case r.Kin.Undone:
		_, err = fmt.Fprintf(e.out, "Undone: %s is no longer paired with %q.\n", p.On, p.Name)
	default:
		_, err = fmt.Fprintf(e.out, "%s has been asked and has not answered yet. The request is kept for 24 hours, while kith up runs here.\n", p.On)
	}
	return err
}

// key reads one key from the terminal.
func (e *env) key(prompt string) (byte, error) {
	fmt.Fprint(e.err, prompt)
	fd := int(e.in.Fd())
	old, err := term.MakeRaw(fd)
	if err != nil {
		return 0, fmt.Errorf("read a key: %w", err)
	}
	var b [1]byte
	_, err = e.in.Read(b[:])
	if restored := term.Restore(fd, old); err == nil {
		err = restored
	}
	fmt.Fprintln(e.err)
	if err != nil && !os.IsTimeout(err) {
		return 0, fmt.Errorf("read a key: %w", err)
	}
	return b[0], nil
}

// named finds a device by its name or the start of its ID.
func named(ref string) func(kith.Device) bool {
	return func(d kith.Device) bool {
		return strings.EqualFold(d.Name, ref) || len(ref) >= 4 && strings.HasPrefix(d.ID.String(), strings.ToLower(ref))
	}
}
