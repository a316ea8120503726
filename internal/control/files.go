package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/app/chat"
	"github.com/kithproject/kith/app/files"
)

// A Transfer is where a transfer of files is.
type Transfer struct {
	files.Progress
	Device string `json:"device"` // its name
}

// A Delivery is how a transfer ended.
type Delivery struct {
	Dir   string   `json:"dir,omitempty"`   // of a get: the folder with what has arrived
	Names []string `json:"names,omitempty"` // as they are called there
	Notes []string `json:"notes,omitempty"` // what did not arrive as it was
}

// A FileOffer waits for a person.
type FileOffer struct {
	files.Offer
	Device string `json:"device"` // its name
}

// filesLane is the kind of lanes for files.
const filesLane = "files"

func (s *Server) openFiles(dir string) error {
	ln, err := s.node.Listen("tcp", ":"+strconv.Itoa(files.Port))
	if err != nil {
		return err
	}
	s.inboxDir = dir
	s.files, err = files.New(files.Config{
		Dir: dir, Log: s.log, Lanes: startLanes,
		Dial: func(ctx context.Context, peer string, way files.Lane) (net.Conn, error) {
			if way.Kind == files.LaneDirect {
				return s.node.OpenLane(ctx, peer, filesLane)
			}
			return s.node.Dial(ctx, "tcp", net.JoinHostPort(peer, strconv.Itoa(files.Port)))
		},
		Policy: func(o files.Offer) files.Decision {
			d, ok := s.partner(o.Peer)
			switch {
			case !ok:
				return files.Decision{Action: files.Decline}
			case d.Rights.Files:
				return files.Decision{Action: files.Accept}
			}
			return files.Decision{}
		},
		OnAnswer: s.answered, OnTransfer: s.began,
		OnOffer: func(o files.Offer) {
			s.offered(o)
			d, err := s.node.Device(o.Peer)
			if err != nil {
				return
			}
			s.node.Publish(kith.Event{
				Time: time.Now(), Kind: kith.EventOffer, Device: d, Subject: strconv.FormatUint(o.Number, 10),
				Detail: fmt.Sprintf("offers %s; to take it: kith inbox accept %d", describeOffer(o), o.Number),
			})
		},
		OnReceived: s.received,
		Shares: func(peer string) (out []files.Share) {
			d, ok := s.partner(peer)
			if !ok {
				return nil
			}
			for _, share := range d.Rights.Shares {
				out = append(out, files.Share{Name: share.Name, Dir: share.Path})
			}
			return out
		},
	})
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	s.node.HandleLane(filesLane, func(from kith.Device, conn net.Conn) {
		if err := s.files.Handle(s.ctx, from.ID.String(), conn); err != nil {
			s.log.Debug("lane ended", "peer", from.ID.Short(), "err", err)
		}
	})
	s.wg.Go(func() {
		err := s.files.Serve(s.ctx, ln, func(conn net.Conn) (string, error) {
			peer, ok := s.caller(conn.RemoteAddr())
			if !ok {
				return "", errors.New("control: not a paired device")
			}
			return peer, nil
		})
		if err != nil {
			s.log.Error("files not served", "err", err)
		}
	})
	return nil
}

// Count is a number of files for a person.
func Count(n int64) string {
	if n == 1 {
		return "1 file"
	}
	return fmt.Sprintf("%d files", n)
}

// Bytes is a number of bytes for a person.
func Bytes(n int64) string {
	const step = 1000
	if n < step {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n), ""
	for _, unit = range []string{"kB", "MB", "GB", "TB", "PB"} {
		if f /= step; f < step {
			break
		}
	}
	return fmt.Sprintf("%.1f %s", f, unit)
}

// transfer runs one that the client asked for, and shows the client its progress; a
// client that goes away cancels it.
func (s *Server) transfer(st *stream, req Request, run func(ctx context.Context, peer string, show func(files.Progress), started func(*files.Transfer)) (files.Result, error)) (Reply, error) {
	d, err := s.node.Device(req.Device)
	if err != nil {
		return Reply{}, err
	}
	if d.Rights.Blocked {
		return Reply{}, &kith.BlockedError{Device: d}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	started := func(t *files.Transfer) { wg.Go(func() { s.steer(ctx, d.ID.String(), t) }) }
	var mu sync.Mutex // orders writes to the client
	show := func(p files.Progress) {
		mu.Lock()
		defer mu.Unlock()
		if st.send(Reply{Transfer: &Transfer{Progress: p, Device: d.Name}}) != nil {
			cancel()
		}
	}
	r, err := run(ctx, d.ID.String(), show, started)
	mu.Lock()
	defer mu.Unlock()
	final := delivery(r.Dir, r.Names, r.Notes)
	return Reply{Transfer: &Transfer{Progress: r.Progress, Device: d.Name}, Delivery: &final}, err
}

func (s *Server) sendFiles(st *stream, req Request) (Reply, error) {
	d, err := s.node.Device(req.Device)
	if err != nil {
		if c, err := s.conv(req.Device); err == nil && c.Room {
			return s.sendRoom(st, req, c)
		}
	}
	var line *offering // that the file stands in
	var sent error
	reply, err := s.transfer(st, req, func(ctx context.Context, peer string, show func(files.Progress), started func(*files.Transfer)) (r files.Result, err error) {
		defer func() { sent = err }()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		opts := files.SendOptions{GiveUp: req.Wait, Started: started, Progress: func(p files.Progress) {
			line.moved(d.ID, p)
			show(p)
		}}
		said := inputs(ctx, st)
		if !req.Stream {
			go func() { // ends with the connection or ctx
				for range said {
				}
				cancel()
			}()
			what, err := files.Look(ctx, req.Paths)
			if err != nil {
				return files.Result{}, err
			}
			line = s.pairLine(ctx, d, fileRef(what))
			return s.files.Send(ctx, peer, req.Paths, opts)
		}
		opts.Started = func(t *files.Transfer) {
			p := t.Progress()
			line = s.pairLine(ctx, d, chat.FileRef{Name: offerName([]string{p.Name}), Size: -1, Offer: p.ID.String()})
			started(t)
		}
		in, out := io.Pipe()
		go func() { // ends with the connection or the pipe's reader
			for i := range said {
				if i.End {
					out.Close()
				} else if _, err := out.Write(i.Data); err != nil {
					continue
				}
			}
			cancel() // first: whoever receives is told that it was cancelled, not that a pipe failed
			out.CloseWithError(context.Canceled)
		}()
		defer in.Close()
		return s.files.SendReader(ctx, peer, req.Name, in, opts)
	})
	line.ended(d.ID, sent)
	return reply, err
}

func (s *Server) getFiles(st *stream, req Request) (Reply, error) {
	return s.transfer(st, req, func(ctx context.Context, peer string, show func(files.Progress), started func(*files.Transfer)) (files.Result, error) {
		ctx, cancel := whileThere(ctx, st)
		defer cancel()
		return s.files.Get(ctx, peer, req.Path, files.GetOptions{Dir: req.Dir, Overwrite: req.Overwrite, Progress: show, GiveUp: req.Wait, Started: started})
	})
}

func (s *Server) listFiles(ctx context.Context, req Request) (Reply, error) {
	d, err := s.node.Device(req.Device)
	if err != nil {
		return Reply{}, err
	}
	list, err := s.files.List(ctx, d.ID.String(), req.Path)
	return Reply{Listed: list}, err
}
