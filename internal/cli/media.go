package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/kithproject/kith"
)

// lonely is how long a device looks before it says why nobody may be there.
const lonely = 8 * time.Second

// media shows how the media do while nobody has been found: a line on a terminal
// that is written anew, and after a while what may be wrong.
func (u *pairUI) media(all []kith.RendezvousStatus) error {
	if u.began.IsZero() {
		u.began = time.Now()
	}
	lost := u.joining && !u.told && time.Since(u.began) > lonely
	u.told = u.told || lost
	switch {
	case u.f.json && lost:
		return u.e.printJSON(pairEvent{Event: "progress", Text: "nobody has answered yet", Hint: noCommonMedium, Media: all})
	case u.f.json:
		return nil
	case lost:
		u.endLive()
		fmt.Fprintln(u.e.err, "… nobody has answered yet. This device looks here:")
		writeMedia(u.e.err, all)
		fmt.Fprintf(u.e.err, "  %s\n… still looking\n", noCommonMedium)
		return nil
	}
	return u.showLive(all)
}

// noCommonMedium is what to do when nobody is found.
const noCommonMedium = "Both need one of these in common. If they are in different networks: name\n" +
	"  a hub on both (kith config hub), or carry the messages by hand (--offline)."

// showLive writes the line anew, if a person is watching.
func (u *pairUI) showLive(all []kith.RendezvousStatus) error {
	out, ok := u.e.err.(*os.File)
	if !ok || !term.IsTerminal(int(out.Fd())) || u.told {
		return nil
	}
	width, _, err := term.GetSize(int(out.Fd()))
	if err != nil {
		width = 80
	}
	var parts []string
	for _, m := range all {
		parts = append(parts, m.Name+" "+mediumState(m))
	}
	line := []rune("  " + strings.Join(parts, ", "))
	u.live = true
	_, err = fmt.Fprintf(out, "\r\x1b[K%s", string(line[:min(len(line), max(width-1, 0))]))
	return err
}

// endLive leaves the line that is written anew.
func (u *pairUI) endLive() {
	if u.live {
		fmt.Fprint(u.e.err, "\r\x1b[K")
		u.live = false
	}
}

// mediumState is a medium's state in a few words.
func mediumState(m kith.RendezvousStatus) string {
	switch {
	case !m.Ready:
		return "not ready"
	case m.Frames.Received > 0 && m.Frames.First == 0:
		return "noise only"
	case m.Frames.Failed > 0 && m.Frames.Sent == 0:
		return "failing"
	case m.Frames.Joined:
		return "looking"
	}
	return "joining"
}

// writeMedia writes one line per medium, and what it carried.
func writeMedia(w io.Writer, all []kith.RendezvousStatus) {
	wide := 0
	for _, m := range all {
		wide = max(wide, len(m.Name))
	}
	for _, m := range all {
		detail := m.Detail
		if m.Error != "" {
			detail = "not working: " + m.Error
		}
		fmt.Fprintf(w, "    %-*s  %s\n", wide, m.Name, detail)
		if text := carried(m); text != "" {
			fmt.Fprintf(w, "    %-*s  %s\n", wide, "", text)
		}
	}
}

// carried says in one line what a medium carried; "" for nothing.
func carried(m kith.RendezvousStatus) string {
	f := m.Frames
	if f.Sent+f.Failed+f.Received == 0 && f.Err == "" {
		return ""
	}
	text := fmt.Sprintf("%d frames sent, %d received", f.Sent, f.Received)
	if f.Useless > 0 {
		text += fmt.Sprintf(", %d of them of no use", f.Useless)
	}
	if f.Dropped > 0 {
		text += fmt.Sprintf(", %d dropped", f.Dropped)
	}
	if f.First > 0 {
		text += fmt.Sprintf(", first answer after %s", rtt(f.First))
	}
	if f.Failed > 0 {
		text += fmt.Sprintf("; %d not taken", f.Failed)
	}
	if f.Err != "" && f.Err != m.Error {
		text += " (" + f.Err + ")"
	}
	return text
}

// found names the medium that brought the other device first.
func found(all []kith.RendezvousStatus) string {
	best := -1
	for i, m := range all {
		if m.Frames.First > 0 && (best < 0 || m.Frames.First < all[best].Frames.First) {
			best = i
		}
	}
	if best < 0 {
		return "found"
	}
	return fmt.Sprintf("found through %s after %s", all[best].Name, rtt(all[best].Frames.First))
}
