package control

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/paper"
)

// notes are those of one pairing that is carried by hand. A nil *notes is of one
// that is not.
type notes struct {
	paper *paper.Exchange
	ch    chan Note
	stop  context.CancelFunc
	wg    sync.WaitGroup
}

func newNotes(ctx context.Context) *notes {
	n := &notes{paper: paper.New(), ch: make(chan Note)}
	ctx, n.stop = context.WithCancel(ctx)
	n.wg.Go(func() {
		for {
			note, err := n.paper.Take(ctx)
			if err != nil {
				return
			}
			select {
			case n.ch <- Note{Text: note.Text(), QR: note.QR()}:
			case <-ctx.Done():
				return
			}
		}
	})
	return n
}

// exchange is the medium to use; nil: those of the node.
func (n *notes) exchange() rendezvous.Exchange {
	if n == nil {
		return nil
	}
	return n.paper
}

// out brings the notes to carry.
func (n *notes) out() <-chan Note {
	if n == nil {
		return nil
	}
	return n.ch
}

// give takes a note of the other device, if there is one.
func (n *notes) give(text string) error {
	switch {
	case text == "":
		return nil
	case n == nil:
		return errors.New("this pairing takes no notes")
	}
	note, err := paper.Parse(text)
	if err != nil {
		return err
	}
	return n.paper.Give(note)
}

// lastNote is how long a note may take that the other device needs although this
// one is done.
const lastNote = time.Second

// last returns the note that the other device still needs, if it does.
func (n *notes) last(ctx context.Context, p *kith.Pairing) (Note, bool) {
	if n == nil {
		return Note{}, false
	}
	ctx, cancel := context.WithTimeout(ctx, lastNote)
	defer cancel()
	settled := make(chan struct{})
	go func() { // ends with ctx
		defer close(settled)
		p.Settle(ctx)
	}()
	select {
	case note := <-n.ch:
		note.Last = true
		return note, true
	case <-settled:
		return Note{}, false
	}
}

func (n *notes) close() {
	n.stop()
	n.wg.Wait()
	_ = n.paper.Close() // never errs
}
