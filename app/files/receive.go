package files

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"
)

// A Received says how a transfer ended that another device sent here.
type Received struct {
	Progress Progress
	Dir      string   // the folder with what has arrived
	Names    []string // final names there
	Notes    []Note
	Err      error // nil: all is there but what the notes say
}

// recentDone is how long a finished transfer whose sender did not hear so is
// remembered as finished for another call of Send.
const recentDone = time.Hour

// doneNames returns the final names of a stage that is finished or was about to be.
func (s *stage) doneNames(t *ticket, o *offerMsg, durable bool, note func(Note)) ([]string, bool, error) {
	b, err := s.readFile("done", 1<<20)
	if errors.Is(err, fs.ErrNotExist) || len(b) == 0 {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	if fi, err := s.home.Stat("done"); t.run != o.run && (err != nil || time.Since(fi.ModTime()) > recentDone) {
		return nil, false, nil
	}
	names, err := s.finish(t.tops, t.overwrite, durable, note)
	return names, err == nil, err
}

func shownOffer(peer string, o *offerMsg) Offer {
	out := Offer{
		ID: o.id, Peer: peer, Files: o.files, Bytes: o.bytes, Known: o.known, Stream: o.stream, Folder: o.folderTops, Since: time.Now(),
	}
	for _, t := range o.tops {
		out.Names = append(out.Names, ShowName(t))
	}
	return out
}

// receiveOffer takes one offer of a peer from the first question to the last byte.
func (s *Service) receiveOffer(ctx context.Context, peer string, ctl *control, o *offerMsg) error {
	if s.cfg.Dir == "" {
		return ErrDeclined
	}
	key := stageKey(peer, o.id)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	leave, err := s.replace(ctx, key, func() { cancel(errReplaced) })
	if err != nil {
		return err
	}
	defer leave()
	st, t, err := s.findStage(s.cfg.Dir, key, o)
	if err != nil {
		return err
	}
	offer := shownOffer(peer, o)
	d := s.cfg.Policy(offer)
	in := &incoming{peer: peer, ctl: ctl, offer: o, stage: st, ticket: t, key: key}
	if in.byPolicy = d.Action == Accept; d.Action == Wait && (t == nil || t.ask) {
		d, in.number, err = s.wait(ctx, ctl, offer)
	}
	if err == nil && d.Action == Decline {
		err = ErrDeclined
	}
	if err != nil {
		if st != nil {
			st.close()
		}
		return err
	}
	in.decision = d
	return s.receive(ctx, cancel, in)
}

var errReplaced = errors.New("files: the same transfer has begun again")

// replace ends an older run of the same transfer, whose connection may be dead
// without anybody knowing, and takes its place. It errs when ctx ends.
func (s *Service) replace(ctx context.Context, key string, cancel func()) (leave func(), err error) {
	own := &receiving{cancel: cancel, done: make(chan struct{})}
	for {
		s.mu.Lock()
		old := s.active[key]
		if old == nil {
			s.active[key] = own
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.active, key)
				s.mu.Unlock()
				close(own.done)
			}, nil
		}
		s.mu.Unlock()
		old.cancel()
		select {
		case <-old.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// wait lets an offer wait until somebody decides or the sender leaves.
// It returns the offer's number, too.
func (s *Service) wait(ctx context.Context, ctl *control, o Offer) (Decision, uint64, error) {
	w := s.inbox.add(o, s.cfg.MaxWaiting)
	if w == nil {
		return Decision{}, 0, ErrBusy
	}
	d, err := s.decided(ctx, ctl, w)
	return d, w.offer.Number, err
}

func (s *Service) decided(ctx context.Context, ctl *control, w *waitingOffer) (d Decision, err error) {
	defer func() {
		s.inbox.remove(w)
		if s.cfg.OnAnswer != nil {
			s.cfg.OnAnswer(w.offer, d.Action)
		}
	}()
	if s.cfg.OnOffer != nil {
		s.cfg.OnOffer(w.offer)
	}
	select {
	case d := <-w.decided:
		return d, nil
	case <-ctx.Done():
		return Decision{}, context.Cause(ctx)
	case m, ok := <-ctl.in:
		if ok && m.kind == msgCancel {
			return Decision{}, parseCancel(&reader{b: m.body})
		}
		if ok {
			return Decision{}, fmt.Errorf("files: %w: message %d before the answer", ErrProtocol, m.kind)
		}
		return Decision{}, ctl.err
	}
}

// An incoming is an accepted transfer; its stage and ticket are nil the first time.
type incoming struct {
	peer     string
	ctl      *control
	offer    *offerMsg
	stage    *stage
	ticket   *ticket
	decision Decision
	key      string
	number   uint64    // of the offer, if it waited
	byPolicy bool      // nobody was asked
	transfer *Transfer // of a Get; otherwise made here
	dial     func(ctx context.Context, lane Lane) (net.Conn, error)
	names    []string // the final names, once all is in place
}

// prepare opens the stage of a transfer that begins.
func (s *Service) prepare(in *incoming) error {
	if in.stage != nil {
		return nil
	}
	dir := in.decision.Dir
	if dir == "" {
		dir = s.cfg.Dir
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	limit := in.decision.MaxBytes
	if limit == 0 {
		limit = s.cfg.MaxBytes
	}
	if limit > 0 && in.offer.bytes > limit {
		return fmt.Errorf("%w: %d bytes", ErrLimit, limit)
	}
	if full(dir) {
		return fmt.Errorf("%w, or are not finished", ErrBusy)
	}
	if in.stage, err = openStage(dir, in.key, s.cfg.Names); err != nil {
		return err
	}
	in.ticket = &ticket{
		run: in.offer.run, peer: in.peer, sum: in.offer.sum, tops: in.offer.tops, overwrite: in.decision.Overwrite,
		maxBytes: limit, boot: bootID(),
	}
	if s.cfg.Dir != "" && dir != s.cfg.Dir && in.transfer == nil {
		// So that the stage is found again; a Get names its folder.
		if err := os.MkdirAll(filepath.Join(s.cfg.Dir, partialName, in.key), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(s.cfg.Dir, partialName, in.key+".at"), []byte(dir), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// maxStages is how many transfers a folder keeps that are not finished.
const maxStages = 1000

// full reports whether a folder has too many transfers that are not finished.
func full(dir string) bool {
	f, err := os.Open(filepath.Join(dir, partialName))
	if err != nil {
		return false // openStage says why
	}
	defer f.Close()
	names, _ := f.Readdirnames(maxStages)
	return len(names) == maxStages
}

// receive runs one run of an accepted transfer.
func (s *Service) receive(ctx context.Context, cancel context.CancelCauseFunc, in *incoming) (err error) {
	resume := in.ticket != nil
	if err := s.prepare(in); err != nil {
		if in.stage != nil {
			in.stage.close()
		}
		return err
	}
	st, t, o := in.stage, in.ticket, in.offer
	defer st.close()
	tr := in.transfer
	if tr == nil {
		tr = &Transfer{cancel: cancel, meter: newMeter(Progress{
			ID: o.id, Number: in.number, Stream: o.stream, Peer: in.peer, Name: ShowName(o.tops[0]), Started: time.Now(),
		})}
		if in.byPolicy {
			tr.allow = func() bool { return s.cfg.Policy(shownOffer(in.peer, o)).Action == Accept }
		}
		defer s.track(tr)()
	}
	tr.meter.update(func(p *Progress) {
		p.State, p.TotalFiles, p.TotalBytes, p.TotalKnown = StateRunning, o.files, o.bytes, o.known
	})
	defer func() {
		if p := tr.Progress(); err != nil && !resume && p.Files == 0 && p.Bytes == 0 {
			_ = st.remove() // nothing is lost with it
			s.forgetPlace(st)
		}
		if in.transfer != nil {
			return
		}
		if here := (*hereError)(nil); errors.As(err, &here) {
			t.ask = true
			_ = st.save(t) // if it cannot be written, it goes on as one that was accepted
		}
		s.received(tr, st, in.names, err)
	}()
	if !tr.allowed() {
		return withdrawnHere()
	}
	answer := answerMsg{verdict: verdictAccept, resume: resume, session: newToken()}
	if resume {
		final, done, err := st.doneNames(t, o, s.cfg.Durable, tr.meter.note)
		if err != nil {
			return err
		}
		if done {
			in.names = final
			return s.answerDone(ctx, in, st, final)
		}
		_ = st.home.Remove("done")
	}
	t.run, t.ask = o.run, in.byPolicy
	if err := st.save(t); err != nil {
		return &finalError{fmt.Errorf("files: %w", plainError(err))}
	}
	if free, ok := freeSpace(st.target.Name()); ok && !resume && o.bytes > free-spaceReserve && !o.stream {
		// A sparse file needs less than its size, but who can know.
		_ = st.remove()
		return fmt.Errorf("%w (%d bytes are needed, %d free)", ErrDiskFull, o.bytes, max(free-spaceReserve, 0))
	}
	sk, err := newSink(st, st.target.Name(), o.sum, o.tops, tr.meter)
	if err != nil {
		return err
	}
	defer sk.close()
	sk.maxBytes, sk.maxFiles = t.maxBytes, s.cfg.MaxFiles
	r := &run{ctl: in.ctl, meter: tr.meter, quiet: s.cfg.Quiet}
	fatal := make(chan error, 1)
	fail := func(err error) {
		select {
		case fatal <- err:
		default:
		}
	}
	start := func(ctx context.Context) func() {
		stopSync := s.keepSynced(ctx, st, t)
		if in.dial == nil {
			stop := s.open(ctx, in.peer, answer.session, func(ctx context.Context, conn net.Conn) {
				var fatal *sinkError
				if err := sk.lane(ctx, conn, nil, s.cfg.Quiet); errors.As(err, &fatal) {
					fail(fatal.err)
				}
			})
			w := writer{}
			answer.put(&w)
			_ = in.ctl.send(msgAnswer, &w)
			return func() { stop(); stopSync() }
		}
		w := writer{}
		answer.put(&w)
		_ = in.ctl.send(msgAnswer, &w)
		stop := tr.run(ctx, s.cfg.redial, in.dial, sk.laneRunner(s.cfg.Quiet), fail)
		return func() { stop(); stopSync() }
	}
	in.names, err = r.receiveRun(ctx, sk, t.overwrite, s.cfg.Durable, o.tops, start, fatal)
	return err
}

// answerDone tells a sender that all is there already.
func (s *Service) answerDone(ctx context.Context, in *incoming, st *stage, names []string) error {
	w := writer{}
	(&answerMsg{verdict: verdictDone}).put(&w)
	if err := in.ctl.send(msgAnswer, &w); err != nil {
		return err
	}
	w = writer{}
	putStrings(&w, names)
	if err := in.ctl.send(msgDone, &w); err != nil {
		return err
	}
	if in.ctl.awaitBye(ctx) {
		_ = st.remove()
	}
	return nil
}

// forgetPlace removes what says that a stage is in another folder than Config.Dir.
func (s *Service) forgetPlace(st *stage) {
	if s.cfg.Dir == "" {
		return
	}
	dir := filepath.Join(s.cfg.Dir, partialName)
	key := filepath.Base(st.path)
	if os.Remove(filepath.Join(dir, key+".at")) == nil {
		_ = os.Remove(filepath.Join(dir, key))
		_ = os.Remove(dir)
	}
}

// received tells how a transfer ended.
func (s *Service) received(tr *Transfer, st *stage, names []string, err error) {
	state := StateFinished
	if err != nil {
		state = StateBroken
		var final *finalError
		var remote *remoteError
		if errors.As(err, &final) || errors.As(err, &remote) || reasonOf(err) != reasonFailed || errors.Is(err, errMessage) {
			state = StateFailed
		}
	}
	tr.meter.state(state)
	if err == nil {
		s.forgetPlace(st)
	}
	if s.cfg.OnReceived != nil {
		s.cfg.OnReceived(Received{
			Progress: tr.Progress(), Dir: st.target.Name(), Names: names, Notes: tr.Notes(), Err: err,
		})
	}
}

// syncEvery is how often what arrives is brought to the disk, so that little is to
// be sent again after a power cut.
const syncEvery = time.Minute

// keepSynced notes now and then up to when all is on the disk, until stop.
func (s *Service) keepSynced(ctx context.Context, st *stage, t *ticket) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(syncEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			if st.sync(t) != nil {
				return
			}
		}
	}()
	return func() { cancel(); <-done }
}

// sync brings the stage to the disk and notes it in the ticket.
func (s *stage) sync(t *ticket) error {
	now := time.Now()
	f, err := s.target.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := syncAll(f); err != nil {
		return err
	}
	if t.since != 0 {
		// Of what was written before the restart nothing more is known than before.
		return nil
	}
	t.synced = now.UnixNano()
	return s.save(t)
}
