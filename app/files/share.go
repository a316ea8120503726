package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// GetOptions says how to get. The zero value is good.
type GetOptions struct {
	Dir       string          // where it goes; empty is Config.Dir
	Overwrite bool            // replace what has the same name; otherwise "report (1).pdf"
	MaxBytes  int64           // bytes at most; 0 is Config.MaxBytes
	Lanes     []Lane          // as in SendOptions
	GiveUp    time.Duration   // as in SendOptions
	Progress  func(Progress)  // as in SendOptions
	Started   func(*Transfer) // as in SendOptions
}

// Get gets a file or folder of a peer's share: path is the share's name, and what
// is below with slashes. It errs with ErrNotShared, and as Send does.
func (s *Service) Get(ctx context.Context, peer, path string, opts GetOptions) (Result, error) {
	if !validPath(path) {
		return Result{}, fmt.Errorf("files: %q is not a path of a share", ShowName(path))
	}
	dir := opts.Dir
	if dir == "" {
		dir = s.cfg.Dir
	}
	if dir == "" {
		return Result{}, errors.New("files: no folder to get it into is given")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Result{}, fmt.Errorf("files: %w", err)
	}
	tr := &Transfer{lanes: opts.Lanes, meter: newMeter(Progress{Peer: peer, Name: ShowName(path), Started: time.Now()})}
	if tr.lanes == nil {
		tr.lanes = s.cfg.Lanes(peer)
	}
	res, err := s.drive(ctx, peer, tr, opts.GiveUp, opts.Progress, opts.Started, func(ctx context.Context, ctl *control) ([]string, error) {
		tr.meter.restart()
		return s.getRun(ctx, peer, path, dir, opts, tr, ctl)
	})
	res.Dir = dir
	return res, err
}

func (s *Service) getRun(ctx context.Context, peer, path, dir string, opts GetOptions, tr *Transfer, ctl *control) ([]string, error) {
	w := writer{}
	w.string(path)
	if err := ctl.send(msgGet, &w); err != nil {
		return nil, err
	}
	kind, msg, err := ctl.receive(ctx)
	if err != nil {
		return nil, err
	}
	if kind == msgCancel {
		return nil, parseCancel(msg)
	}
	var o offerMsg
	if kind != msgOffer {
		return nil, fmt.Errorf("files: %w: message %d", ErrProtocol, kind)
	}
	if err := o.get(msg); err != nil {
		return nil, err
	}
	// Only what was asked for, under its own name.
	if len(o.tops) != 1 || o.tops[0] != filepath.Base(path) {
		return nil, fmt.Errorf("files: %w: another name was offered", ErrProtocol)
	}
	tr.meter.update(func(p *Progress) { p.ID = o.id })
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	key := stageKey(peer, o.id)
	leave, err := s.replace(ctx, dir+"\x00"+key, func() { cancel(&finalError{errReplaced}) }) // or both go on for ever in turns
	if err != nil {
		return nil, err
	}
	defer leave()
	st, t, err := s.findStage(dir, key, &o)
	if err != nil {
		return nil, err
	}
	in := &incoming{
		peer: peer, ctl: ctl, offer: &o, stage: st, ticket: t, key: key, transfer: tr,
		decision: Decision{Dir: dir, Overwrite: opts.Overwrite, MaxBytes: opts.MaxBytes},
		dial: func(ctx context.Context, lane Lane) (net.Conn, error) {
			return s.dialHello(ctx, peer, lane, helloLane, o.session)
		},
	}
	err = s.receive(ctx, cancel, in)
	return in.names, err
}

// shared opens what a path of a share names.
func (s *Service) shared(peer, path string) (*srcRoot, error) {
	if s.cfg.Shares == nil || !validPath(path) || unfinished(path) {
		return nil, ErrNotShared
	}
	name, rel, below := strings.Cut(path, "/")
	for _, sh := range s.cfg.Shares(peer) {
		if sh.Name != name {
			continue
		}
		dir, err := os.OpenRoot(sh.Dir)
		if err != nil {
			return nil, ErrNotShared
		}
		if !below {
			rel = "."
		}
		return &srcRoot{top: path[strings.LastIndexByte(path, '/')+1:], dir: dir, rel: rel, shared: sh.Dir}, nil
	}
	return nil, ErrNotShared
}

// unfinished reports whether a path leads to what is hidden until it is whole.
func unfinished(path string) bool {
	return slices.ContainsFunc(strings.Split(path, "/"), func(name string) bool { return strings.EqualFold(name, partialName) })
}

// shares reports whether a path of a share is one of a folder, still.
func (s *Service) shares(peer, path, dir string) bool {
	return slices.Contains(s.cfg.Shares(peer), Share{Name: top(path), Dir: dir})
}

// serveGet offers a path of a share to the peer that asked for it, and sends it.
func (s *Service) serveGet(ctx context.Context, peer string, ctl *control, msg *reader) error {
	path := msg.string(maxPath)
	if err := msg.end(); err != nil {
		return err
	}
	root, err := s.shared(peer, path)
	if err != nil {
		return err
	}
	roots := []*srcRoot{root}
	defer closeSources(roots)
	dirs := dirs{tree: root.dir, readOnly: true}
	defer dirs.close()
	dirName, name := split(root.rel)
	dir, err := dirs.get(dirName)
	if err != nil {
		return ErrNotShared
	}
	if name == "" {
		name = "."
	}
	it, err := makeItem(root, dir, name, root.rel, root.top)
	if err != nil || it.kind == kindLink {
		return ErrNotShared
	}
	offer := &offerMsg{run: newToken(), sum: s.cfg.Sum, session: newToken(), tops: []string{root.top}, folderTops: it.kind == kindDir}
	offer.id = shareID(path, &it)
	offer.files, offer.bytes, offer.known = look(ctx, roots)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tr := &Transfer{cancel: cancel, meter: newMeter(Progress{
		ID: offer.id, Peer: peer, Name: ShowName(root.top), Sending: true, Started: time.Now(),
	})}
	tr.allow = func() bool { return s.shares(peer, path, root.shared) }
	tr.meter.expect(offer)
	defer s.track(tr)()
	if !tr.allowed() {
		return withdrawnHere()
	}
	src := newSource(roots, s.cfg.Sum, tr.meter)
	stop := s.open(ctx, peer, offer.session, func(ctx context.Context, conn net.Conn) {
		_ = src.lane(ctx, conn, nil, s.cfg.Quiet)
	})
	defer stop()
	w := writer{}
	offer.put(&w)
	if err := ctl.send(msgOffer, &w); err != nil {
		return err
	}
	r := &run{ctl: ctl, meter: tr.meter, quiet: s.cfg.Quiet}
	_, err = r.sendRun(ctx, src, func(ctx context.Context, _ bool) error { return src.produce(ctx) },
		func(context.Context, token) func() { return func() {} })
	if err != nil {
		src.q.stop(err)
		tr.meter.state(StateFailed)
		return err
	}
	src.q.stop(context.Canceled)
	tr.meter.state(StateFinished)
	return nil
}

func shareID(path string, it *item) (id TransferID) {
	var w writer
	w.string(path)
	if it.kind == kindFile {
		it.put(&w)
	}
	sum := hashID("kith files v1 share", w.b)
	return TransferID(sum)
}

// A Listed is one name of a folder of a share.
type Listed struct {
	Name    string    `json:"name"` // fit to be shown; the path to Get it by, if ShowName changed nothing
	Folder  bool      `json:"folder"`
	Size    int64     `json:"size"` // bytes
	ModTime time.Time `json:"modified"`
}

// Bounds of a listing.
const (
	listPage = 200
	maxList  = 100_000
)

// List returns what is in a folder of a peer's share; an empty path lists the
// shares. It errs with ErrNotShared, when there are more than 100,000 names, and
// with the connection's error.
func (s *Service) List(ctx context.Context, peer, path string) ([]Listed, error) {
	ctx, _, end, err := s.bind(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	ctl, stop, err := s.dialControl(ctx, peer)
	if err != nil {
		return nil, err
	}
	defer stop()
	w := writer{}
	w.string(path)
	if err := ctl.send(msgList, &w); err != nil {
		return nil, err
	}
	var out []Listed
	for {
		kind, msg, err := ctl.receive(ctx)
		if err != nil {
			return nil, first(ctx.Err(), err)
		}
		if kind == msgCancel {
			return nil, parseCancel(msg)
		}
		if kind != msgListing {
			return nil, fmt.Errorf("files: %w: message %d", ErrProtocol, kind)
		}
		page, last, err := parseListing(msg)
		if err != nil {
			return nil, err
		}
		if out = append(out, page...); len(out) > maxList {
			return nil, fmt.Errorf("files: %s has more than %d names", ShowName(path), maxList)
		}
		if last {
			return out, nil
		}
	}
}

func putListing(w *writer, list []Listed, last bool) {
	w.bool(last)
	w.uint(uint64(len(list)))
	for _, l := range list {
		w.string(l.Name)
		w.bool(l.Folder)
		w.uint(uint64(l.Size))
		w.int(l.ModTime.UnixNano())
	}
}

func parseListing(r *reader) (list []Listed, last bool, err error) {
	last = r.bool()
	for range r.count(listPage) {
		l := Listed{Name: ShowName(r.string(maxName)), Folder: r.bool(), Size: int64(r.uint(1 << 60))}
		l.ModTime = time.Unix(0, r.int())
		list = append(list, l)
	}
	return list, last, r.end()
}

// serveList answers a List.
func (s *Service) serveList(peer string, ctl *control, msg *reader) error {
	path := msg.string(maxPath)
	if err := msg.end(); err != nil {
		return err
	}
	send := func(list []Listed, last bool) error {
		w := writer{}
		putListing(&w, list, last)
		return ctl.send(msgListing, &w)
	}
	if path == "" {
		var list []Listed
		if s.cfg.Shares != nil {
			for _, sh := range s.cfg.Shares(peer) {
				list = append(list, Listed{Name: sh.Name, Folder: true, ModTime: time.Unix(0, 0)})
			}
		}
		return send(list[:min(len(list), listPage)], true)
	}
	root, err := s.shared(peer, path)
	if err != nil {
		return err
	}
	defer root.dir.Close()
	f, err := root.dir.OpenFile(root.rel, os.O_RDONLY|openNonblock, 0)
	if err != nil {
		return ErrNotShared
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return ErrNotShared
	}
	if !fi.IsDir() {
		return send([]Listed{{Name: root.top, Size: fi.Size(), ModTime: fi.ModTime()}}, true)
	}
	dir, err := root.dir.OpenRoot(root.rel)
	if err != nil {
		return ErrNotShared
	}
	defer dir.Close()
	for n := 0; n <= maxList; {
		names, err := f.Readdirnames(listPage)
		var list []Listed
		for _, name := range names {
			fi, err := dir.Lstat(name)
			if err != nil || !fi.IsDir() && !fi.Mode().IsRegular() || name == partialName {
				continue
			}
			list = append(list, Listed{Name: name, Folder: fi.IsDir(), Size: fi.Size(), ModTime: fi.ModTime()})
		}
		n += len(list)
		last := errors.Is(err, io.EOF)
		if err := send(list, last); err != nil || last {
			return err
		}
		if err != nil {
			return err
		}
	}
	return nil
}
