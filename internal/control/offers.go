package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/app/chat"
	"github.com/kithproject/kith/app/files"
	"github.com/kithproject/kith/identity"
)

// Files that are offered stand in conversations: whoever offers one writes a line of
// chat.KindFile, whose FileRef.Offer is the transfer's ID, and offers the file by app/files to
// each other member. Both sides know that ID, so each joins the line with what it knows of
// the transfer (fileBook). An ID counts together with who offers: nobody can pass off
// another one's file as his.

// openOffers reads what became of files, and keeps it.
func (s *Server) openOffers() {
	s.book = newFileBook()
	dir := s.node.Dir()
	if err := s.book.load(dir); err != nil {
		s.log.Warn("what became of offered files is not known", "err", err)
	}
	save := func() {
		if err := s.book.save(dir); err != nil {
			s.log.Warn("what became of offered files is not kept", "err", err)
		}
	}
	s.wg.Go(func() {
		for {
			select {
			case <-s.ctx.Done():
				return
			case <-s.book.dirty:
			}
			t := time.NewTimer(saveAfter)
			select {
			case <-t.C:
			case <-s.ctx.Done():
				t.Stop()
			}
			save()
		}
	})
}

// booked changes what is known of a file of another device.
func (s *Server) booked(peer string, id files.TransferID, change func(f *FileState)) {
	from, err := identity.ParseDeviceID(peer)
	if err != nil || id == (files.TransferID{}) {
		return
	}
	s.book.change(fileKey{from: from, offer: id.String()}, change)
}

// offered is files.Config.OnOffer's part in it.
func (s *Server) offered(o files.Offer) {
	s.booked(o.Peer, o.ID, func(f *FileState) {
		*f = FileState{From: f.From, Offer: f.Offer, State: FileOffered, Number: o.Number, Name: offerName(o.Names)}
		if o.Known {
			f.Total = o.Bytes
		}
	})
}

// answered is files.Config.OnAnswer.
func (s *Server) answered(o files.Offer, a files.Action) {
	s.booked(o.Peer, o.ID, func(f *FileState) {
		f.Number = 0
		switch a {
		case files.Accept:
			f.State = FileAccepted
		case files.Decline:
			f.State = FileDeclined
		case files.Wait:
			f.State = FileExpired
		}
	})
}

// began is files.Config.OnTransfer: what this device sends is known otherwise.
func (s *Server) began(t *files.Transfer) {
	if p := t.Progress(); !p.Sending {
		s.booked(p.Peer, p.ID, func(f *FileState) { f.moved(p) })
	}
}

// came is files.Config.OnReceived's part in it.
func (s *Server) came(r files.Received) {
	s.booked(r.Progress.Peer, r.Progress.ID, func(f *FileState) {
		f.moved(r.Progress)
		switch {
		case r.Err == nil:
			f.State, f.Note = FileDone, "in "+short(r.Dir)
		case r.Progress.State == files.StateBroken:
			f.State = FileWaiting
		default:
			f.State, f.Note = FileFailed, plain(r.Err)
		}
	})
}

// short is a folder for a person: below the home folder it begins with ~.
func short(dir string) string {
	home, err := os.UserHomeDir()
	if err != nil {
		return dir
	}
	if below, err := filepath.Rel(home, dir); err == nil && filepath.IsLocal(below) {
		return filepath.Join("~", below)
	}
	return dir
}

func (f *FileState) moved(p files.Progress) {
	f.State, f.Number, f.Bytes, f.Note = FileRunning, 0, p.Bytes, ""
	if p.TotalKnown {
		f.Total = p.TotalBytes
	}
}

// lookAtFiles takes how far the transfers are that come here, and reports whether any does.
func (s *Server) lookAtFiles() bool {
	any := false
	for _, t := range s.files.Transfers() {
		p := t.Progress()
		if p.Sending || p.State != files.StateRunning {
			continue
		}
		any = true
		from, err := identity.ParseDeviceID(p.Peer)
		if err != nil {
			continue
		}
		key := fileKey{from: from, offer: p.ID.String()}
		if f := s.book.state(key); f.State == FileRunning && f.Bytes != p.Bytes {
			s.book.change(key, func(f *FileState) {
				if f.State == FileRunning {
					f.moved(p)
				}
			})
		}
	}
	return any
}

// fileStates returns what is known of the files in some lines.
func (s *Server) fileStates(lines ...chat.Message) []FileState {
	var out []FileState
	for i := range lines {
		if m := &lines[i]; m.File != nil {
			key := fileKey{from: m.Author, offer: m.File.Offer}
			if m.Mine {
				key.conv = m.Conv
			}
			out = append(out, s.book.state(key))
		}
	}
	return out
}

// maxFileName is how much of a file's name is said in a line, in bytes.
const maxFileName = 200

// offerName is what an offer is called in one line: the same on both sides.
func offerName(names []string) string {
	name := chat.CleanText(describeNames(names))
	for len(name) > maxFileName || !utf8.ValidString(name) {
		name = name[:min(len(name)-1, maxFileName)]
	}
	return name
}

// An offering is a file of this device that is offered in a conversation.
type offering struct {
	s   *Server
	key fileKey
}

// reuseLines is in how many of the last lines one is looked for that says the same.
const reuseLines = 200

// announce writes the line that says that a file is offered, unless it stands among the
// last ones and not all have the file. It errs if the line cannot be kept.
func (s *Server) announce(ctx context.Context, c chat.Conv, to []kith.Device, ref chat.FileRef) (*offering, error) {
	o := &offering{s: s, key: fileKey{conv: c.ID, from: s.node.ID(), offer: ref.Offer}}
	last, err := s.chat.History(c.ID, nil, reuseLines)
	if err != nil {
		return nil, err
	}
	there := false
	for _, m := range last {
		there = there || m.Mine && m.File != nil && m.File.Offer == ref.Offer
	}
	if known := s.book.state(o.key).State; !there || known == FileDone || known == FileDeclined {
		if _, err := s.chat.SendFile(ctx, c.ID, ref); err != nil {
			return nil, err
		}
	}
	s.book.change(o.key, func(f *FileState) {
		f.Name, f.To = ref.Name, nil
		for _, d := range to {
			f.To = append(f.To, FileTaker{ID: d.ID, State: FileOffered, Total: max(ref.Size, 0)})
		}
	})
	return o, nil
}

// taker changes what is known of a member that a file was offered to; nil: it stands in no
// conversation.
func (o *offering) taker(id identity.DeviceID, change func(t *FileTaker)) {
	if o == nil {
		return
	}
	o.s.book.change(o.key, func(f *FileState) {
		for i := range f.To {
			if f.To[i].ID == id {
				change(&f.To[i])
			}
		}
	})
}

func (o *offering) moved(id identity.DeviceID, p files.Progress) {
	o.taker(id, func(t *FileTaker) {
		t.Bytes = p.Bytes
		if p.TotalKnown {
			t.Total = p.TotalBytes
		}
		switch p.State {
		case files.StateWaiting:
			t.State = FileOffered
		case files.StateRunning:
			t.State = FileRunning
		case files.StateBroken:
			if t.State = FileWaiting; p.Bytes == 0 {
				t.State = FileOffered
			}
		case files.StateFinished, files.StateFailed: // ended says how
		}
	})
}

func (o *offering) ended(id identity.DeviceID, err error) {
	o.taker(id, func(t *FileTaker) {
		switch {
		case err == nil:
			t.State, t.Note, t.Bytes = FileDone, "", t.Total
		case errors.Is(err, files.ErrDeclined):
			t.State, t.Note = FileDeclined, ""
		case errors.Is(err, context.Canceled):
			t.State, t.Note = FileFailed, "not offered any more"
		default:
			t.State, t.Note = FileFailed, plain(err)
		}
	})
}

// fileRef is the line's part of what is offered.
func fileRef(o files.Offer) chat.FileRef {
	ref := chat.FileRef{Name: offerName(o.Names), Size: -1, Offer: o.ID.String()}
	if o.Known {
		ref.Size = o.Bytes
	}
	return ref
}

// takers are who a file in a conversation is offered to: all other members but those that
// are blocked here.
func (s *Server) takers(c chat.Conv) []kith.Device {
	var out []kith.Device
	for _, m := range c.Members {
		if d, ok := s.partner(m.ID.String()); ok && m.ID != s.node.ID() {
			d.Name = chat.CleanText(m.Name)
			out = append(out, d)
		}
	}
	return out
}

// sendTo sends files to one member, until it has them or this ends.
func (s *Server) sendTo(ctx context.Context, o *offering, d kith.Device, req Request, show func(files.Progress)) (files.Result, error) {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var started *files.Transfer
	steered := false // who waits for an answer costs nothing
	r, err := s.files.Send(ctx, d.ID.String(), req.Paths, files.SendOptions{
		GiveUp:  req.Wait,
		Started: func(t *files.Transfer) { started = t },
		Progress: func(p files.Progress) {
			if p.State == files.StateRunning && !steered {
				steered = true
				wg.Go(func() { s.steer(ctx, d.ID.String(), started) })
			}
			o.moved(d.ID, p)
			show(p)
		},
	})
	o.ended(d.ID, err)
	return r, err
}

// A Sent says how it ended that a file was sent to one member of a room.
type Sent struct {
	Transfer
	Delivery
	Error *Error `json:"error,omitempty"` // why it does not have it
}

// sendRoom offers files to all members of a room, and says of each how that ends. A client
// that goes away ends it.
func (s *Server) sendRoom(st *stream, req Request, c chat.Conv) (Reply, error) {
	to := s.takers(c)
	switch {
	case req.Stream:
		return Reply{}, &Error{Kind: KindUsage, Text: "standard input goes to one device, not to a room", Hint: "write it to a file, and send that"}
	case len(to) == 0:
		return Reply{}, &Error{Kind: KindNotFound, Text: "nobody else is in the room " + c.Name}
	}
	ctx, cancel := whileThere(s.ctx, st)
	defer cancel()
	what, err := files.Look(ctx, req.Paths)
	if err != nil {
		return Reply{}, err
	}
	o, err := s.announce(ctx, c, to, fileRef(what))
	if err != nil {
		return Reply{}, err
	}
	var mu sync.Mutex // orders writes to the client
	tell := func(r Reply) {
		mu.Lock()
		defer mu.Unlock()
		if st.send(r) != nil {
			cancel()
		}
	}
	tell(Reply{Conv: &c})
	var wg sync.WaitGroup
	for _, d := range to {
		wg.Go(func() {
			r, err := s.sendTo(ctx, o, d, req, func(p files.Progress) {
				tell(Reply{Transfer: &Transfer{Progress: p, Device: d.Name}})
			})
			sent := Sent{Transfer: Transfer{Progress: r.Progress, Device: d.Name}, Delivery: delivery(r.Dir, r.Names, r.Notes)}
			if err != nil {
				sent.Error = explain(err)
			}
			tell(Reply{Sent: &sent})
		})
	}
	wg.Wait()
	return Reply{Conv: &c}, nil
}

const (
	// offerFor is how long a file is offered that nobody waits for.
	offerFor = 24 * time.Hour
	// maxOffering is to how many members files are offered so at once.
	maxOffering = 512
)

// offerFile is OpOfferFile: it begins to offer files to all others of a conversation, and
// goes on with it when the client has gone.
func (s *Server) offerFile(ctx context.Context, req Request) (Reply, error) {
	c, err := s.conv(req.Device)
	if err != nil {
		return Reply{}, err
	}
	to := s.takers(c)
	if len(to) == 0 {
		return Reply{}, &Error{Kind: KindNotFound, Text: "nobody else is in " + c.Name}
	}
	what, err := files.Look(ctx, req.Paths)
	if err != nil {
		return Reply{}, err
	}
	if n := s.offering.Add(int64(len(to))); n > maxOffering {
		s.offering.Add(-int64(len(to)))
		return Reply{}, &Error{Kind: KindOther, Text: "too many files wait to be taken already", Hint: "kith inbox lists them, and kith inbox decline ends one"}
	}
	o, err := s.announce(ctx, c, to, fileRef(what))
	if err != nil {
		s.offering.Add(-int64(len(to)))
		return Reply{}, err
	}
	req.Wait = offerFor
	for _, d := range to { // a request runs, so Close waits for these, too
		s.wg.Go(func() {
			defer s.offering.Add(-1)
			if _, err := s.sendTo(s.ctx, o, d, req, func(files.Progress) {}); err != nil {
				s.log.Debug("file not taken", "peer", d.ID.Short(), "err", err)
			}
		})
	}
	return Reply{Conv: &c}, nil
}

// pairLine writes the line of a file that goes to one device, if there is a conversation
// with it alone.
func (s *Server) pairLine(ctx context.Context, d kith.Device, ref chat.FileRef) *offering {
	c, err := s.conv(d.ID.String())
	if err != nil || c.Room {
		return nil
	}
	o, err := s.announce(ctx, c, []kith.Device{d}, ref)
	if err != nil { // the file goes all the same
		s.log.Warn("a file is not in the conversation", "err", err)
		return nil
	}
	return o
}

// offerByID finds the number of an offer that waits or a transfer that comes, by its ID and
// who offers it.
func (s *Server) offerByID(req Request) (uint64, error) {
	d, err := s.node.Device(req.Device)
	if err != nil {
		return 0, err
	}
	id := strings.ToLower(req.Offer)
	for _, o := range s.files.Offers() {
		if o.Peer == d.ID.String() && o.ID.String() == id {
			return o.Number, nil
		}
	}
	for _, t := range s.files.Transfers() {
		if p := t.Progress(); req.Op == OpDecline && !p.Sending && p.Peer == d.ID.String() && p.ID.String() == id {
			return p.Number, nil
		}
	}
	return 0, &Error{Kind: KindNotFound, Text: fmt.Sprintf("%s does not offer this file now", d.Name), Hint: "kith inbox lists what waits"}
}
