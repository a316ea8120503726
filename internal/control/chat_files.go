package control

import (
	"slices"
	"time"

	"github.com/kithproject/kith/app/chat"
)

// filesEvery is how often a client is told how far files are. While none moves, nothing
// is looked at.
const filesEvery = 200 * time.Millisecond

// A filesWatch tells the client of a talk how far files are.
type filesWatch struct {
	t       *talk
	ready   bool   // changed is what the last look has given, or waits for soon
	number  uint64 // of the last change that was told
	changed <-chan struct{}
	soon    <-chan time.Time
	timer   *time.Timer
}

// next looks at the files when that is due; false is that the client has gone.
func (w *filesWatch) next() bool {
	if w.ready {
		return true
	}
	moving := w.t.s.lookAtFiles()
	found, number, changed := w.t.s.book.since(w.number)
	first := w.number == 0 && w.timer == nil
	w.ready, w.number, w.changed = true, number, changed
	if moving {
		w.later()
	}
	found = slices.DeleteFunc(found, func(f FileState) bool {
		return !w.t.concerns(f) || first && (f.State != FileOffered || f.Number == 0)
	})
	for len(found) > 0 {
		n := min(len(found), linesAtOnce)
		if !w.t.reply(Reply{Files: found[:n]}) {
			return false
		}
		found = found[n:]
	}
	return true
}

// later has the files looked at a little later.
func (w *filesWatch) later() {
	w.changed = nil
	w.stop()
	w.timer = time.NewTimer(filesEvery)
	w.soon = w.timer.C
}

func (w *filesWatch) due() { w.ready, w.soon = false, nil }

func (w *filesWatch) stop() {
	if w.timer != nil {
		w.timer.Stop()
	}
}

// concerns reports whether a file may be of the conversation that is shown.
func (t *talk) concerns(f FileState) bool {
	switch {
	case t.one == nil:
		return true
	case f.Conv != (chat.ConvID{}):
		return f.Conv == t.one.ID
	}
	return slices.ContainsFunc(t.one.Members, func(m chat.Member) bool { return m.ID == f.From })
}
