package files

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"lukechampine.com/blake3"
)

// SendOptions says how to send. The zero value is good.
type SendOptions struct {
	// Lanes are the streams to begin with; nil is what Config.Lanes says.
	Lanes []Lane
	// Sum is the digest of chunks.
	Sum Sum
	// Trust believes the size and time of a large file of which an earlier run sent a
	// part. Otherwise that part is read again, and sent again if it changed.
	Trust bool
	// GiveUp is after how long without a connection Send gives up; 0 is 10 minutes,
	// less than 0 after the first try, which takes 15 seconds at most.
	GiveUp time.Duration
	// Progress is called at most five times a second, never while data waits for it.
	Progress func(Progress)
	// Started is called once with the transfer.
	Started func(*Transfer)
}

// A Result says how a transfer ended that was sent or got.
type Result struct {
	Progress Progress
	Dir      string   // of a Get: the folder with what has arrived
	Names    []string // the names that it has at the receiver
	Notes    []Note   // what did not arrive as it was
}

const defaultGiveUp = 10 * time.Minute

// Send sends files and folders to a peer, and returns when they are there. It goes
// on by itself after any break of the connection; sending the same again after it
// ended goes on as well. It errs with ErrDeclined, ErrBusy, ErrLimit, ErrDiskFull or
// ErrCancelled as the receiver says, with ctx's error, and with ErrNoConnection when there
// was none for SendOptions.GiveUp. The Result is set in any case.
func (s *Service) Send(ctx context.Context, peer string, paths []string, opts SendOptions) (Result, error) {
	roots, err := openSources(paths)
	if err != nil {
		return Result{}, err
	}
	defer closeSources(roots)
	offer, err := makeOffer(ctx, roots, paths)
	if err != nil {
		return Result{}, err
	}
	offer.sum = opts.Sum
	return s.send(ctx, peer, offer, opts, func(m *meter) (*source, func(context.Context, bool) error) {
		src := newSource(roots, opts.Sum, m)
		src.trust = opts.Trust
		return src, func(ctx context.Context, _ bool) error { return src.produce(ctx) }
	})
}

// errLostStream is how a pipe ends of which the receiver has lost the beginning.
var errLostStream = errors.New("files: the other device has lost what came, and a pipe cannot be sent again")

// SendReader sends what r gives, until its end, as a file with a name. It goes on
// after a break of the connection, but not in another call. It errs as Send does,
// and with r's error.
func (s *Service) SendReader(ctx context.Context, peer, name string, r io.Reader, opts SendOptions) (Result, error) {
	if !validPath(name) || strings.Contains(name, "/") {
		return Result{}, fmt.Errorf("files: %q is not a name of a file", ShowName(name))
	}
	e := streamEntry(name, time.Now())
	offer := &offerMsg{id: TransferID(newToken()), run: newToken(), sum: opts.Sum, tops: []string{name}, stream: true}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var src *source
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	defer func() {
		if c, ok := r.(io.Closer); ok && src != nil {
			c.Close() // so that a read of it ends
		}
	}()
	return s.send(ctx, peer, offer, opts, func(m *meter) (*source, func(context.Context, bool) error) {
		begin := src == nil
		if begin {
			src = newSource(nil, opts.Sum, m)
			src.q.lasting = true
			stop := context.AfterFunc(ctx, func() { src.q.stop(context.Cause(ctx)) })
			wg.Go(func() { <-ctx.Done(); stop() })
		}
		return src, func(_ context.Context, resume bool) error {
			if !resume && m.progress().Bytes > 0 {
				return &finalError{errLostStream}
			}
			if begin {
				begin = false
				wg.Go(func() {
					if err := src.produceStream(ctx, r, e); err != nil {
						src.q.stop(err)
					}
				})
			}
			return nil
		}
	})
}

// Look returns what Send of the same paths offers: its ID, and the names and sizes as far
// as a moment goes. It errs if one of them cannot be read.
func Look(ctx context.Context, paths []string) (Offer, error) {
	roots, err := openSources(paths)
	if err != nil {
		return Offer{}, err
	}
	defer closeSources(roots)
	o, err := makeOffer(ctx, roots, paths)
	if err != nil {
		return Offer{}, err
	}
	return shownOffer("", o), nil
}

// makeOffer looks at what is to be sent, for a moment, and derives its ID.
func makeOffer(ctx context.Context, roots []*srcRoot, paths []string) (*offerMsg, error) {
	o := &offerMsg{run: newToken()}
	h := blake3.New(16, nil)
	for i, r := range roots {
		o.tops = append(o.tops, r.top)
		it, err := makeItem(r, r.dir, r.rel, r.rel, r.top)
		if err != nil {
			return nil, fmt.Errorf("files: %s %w", ShowName(r.top), err)
		}
		o.folderTops = o.folderTops || it.kind == kindDir
		abs := r.top
		if paths != nil {
			if abs, err = filepath.Abs(paths[i]); err != nil {
				return nil, fmt.Errorf("files: %w", err)
			}
		}
		var w writer
		w.string(abs)
		if it.kind == kindFile {
			it.put(&w)
		}
		_, _ = h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(w.b))))
		_, _ = h.Write(w.b)
	}
	h.Sum(o.id[:0])
	o.files, o.bytes, o.known = look(ctx, roots)
	return o, nil
}

const (
	lookFor   = 150 * time.Millisecond
	lookFiles = 20_000
)

var errLooked = errors.New("files: seen enough")

// look counts what is to be sent, as far as a moment goes.
func look(ctx context.Context, roots []*srcRoot) (files, bytes int64, all bool) {
	begin := time.Now()
	err := walk(ctx, roots, func(it item) error {
		files++
		bytes += it.size
		if files >= lookFiles || files%64 == 0 && time.Since(begin) > lookFor {
			return errLooked
		}
		return nil
	}, func(Note) {})
	return files, bytes, err == nil
}

// send runs a transfer until it is done, over as many control streams as that takes.
func (s *Service) send(ctx context.Context, peer string, offer *offerMsg, opts SendOptions,
	source func(*meter) (*source, func(context.Context, bool) error),
) (Result, error) {
	tr := &Transfer{lanes: opts.Lanes, meter: newMeter(Progress{
		ID: offer.id, Stream: offer.stream, Peer: peer, Name: ShowName(offer.tops[0]), Sending: true, Started: time.Now(),
	})}
	if tr.lanes == nil {
		tr.lanes = s.cfg.Lanes(peer)
	}
	return s.drive(ctx, peer, tr, opts.GiveUp, opts.Progress, opts.Started, func(ctx context.Context, ctl *control) ([]string, error) {
		w := writer{}
		offer.put(&w)
		if err := ctl.send(msgOffer, &w); err != nil {
			return nil, err
		}
		if !offer.stream {
			tr.meter.restart()
			tr.meter.expect(offer)
		}
		src, produce := source(tr.meter)
		r := &run{ctl: ctl, meter: tr.meter, quiet: s.cfg.Quiet}
		return r.sendRun(ctx, src, produce, func(ctx context.Context, session token) func() {
			dial := func(ctx context.Context, lane Lane) (net.Conn, error) {
				return s.dialHello(ctx, peer, lane, helloLane, session)
			}
			return tr.run(ctx, s.cfg.redial, dial, src.laneRunner(s.cfg.Quiet), func(error) {})
		})
	})
}

// run keeps the transfer's lanes open until the returned function is called.
func (t *Transfer) run(ctx context.Context, redial time.Duration, dial func(context.Context, Lane) (net.Conn, error),
	lane laneFunc, fail func(error),
) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	set := newLaneSet(ctx, redial, dial, lane, fail)
	t.use(set)
	return func() {
		t.use(nil)
		cancel()
		set.wait()
	}
}

// drive makes one run after another until one ends for good.
func (s *Service) drive(ctx context.Context, peer string, tr *Transfer, giveUp time.Duration, progress func(Progress),
	started func(*Transfer), once func(context.Context, *control) ([]string, error),
) (res Result, err error) {
	ctx, cancel, end, err := s.bind(ctx)
	if err != nil {
		return Result{}, err
	}
	defer end()
	tr.cancel = cancel
	defer s.track(tr)()
	if started != nil {
		started(tr)
	}
	var wg sync.WaitGroup
	watchCtx, stopWatch := context.WithCancel(ctx)
	wg.Go(func() { tr.watch(watchCtx, progress) })
	defer func() {
		tr.meter.state(StateFinished)
		if err != nil {
			tr.meter.state(StateFailed)
		}
		stopWatch()
		wg.Wait()
		res.Progress, res.Notes = tr.Progress(), tr.Notes()
	}()
	if giveUp == 0 {
		giveUp = defaultGiveUp
	}
	wait, last := s.cfg.redial, time.Now()
	for {
		before := tr.Progress().State
		until := last.Add(giveUp)
		if giveUp < 0 {
			until = time.Now().Add(helloWait)
		}
		res.Names, err = s.oneRun(ctx, peer, until, once)
		if err == nil {
			return res, nil
		}
		if tr.Progress().State == StateRunning && before != StateRunning {
			last, wait = time.Now(), s.cfg.redial
		}
		var final *finalError
		var remote *remoteError
		switch {
		case ctx.Err() != nil:
			return res, context.Cause(ctx)
		case errors.As(err, &final), errors.As(err, &remote), errors.Is(err, ErrProtocol), errors.Is(err, errMessage),
			errors.Is(err, ErrDiskFull), errors.Is(err, ErrLimit):
			return res, err
		case time.Since(last) >= giveUp:
			return res, fmt.Errorf("%w: %w", ErrNoConnection, err)
		}
		tr.meter.state(StateBroken)
		s.cfg.Log.InfoContext(ctx, "transfer broken", "peer", peer, "err", err)
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
		wait = min(2*wait, redialLast)
	}
}

// oneRun makes one run over one control stream. To dial may take until then: a device that
// is away is waited for.
func (s *Service) oneRun(ctx context.Context, peer string, until time.Time, once func(context.Context, *control) ([]string, error)) ([]string, error) {
	dialing, dialled := context.WithDeadline(ctx, until)
	ctl, end, err := s.dialControl(dialing, peer)
	dialled()
	if err != nil {
		return nil, err
	}
	defer end()
	runCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	// Who cancels wants the other side to know, before the stream is closed.
	told := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(told)
		cause := context.Cause(ctx)
		if reasonOf(cause) == reasonFailed {
			cause = ErrCancelled // by who called, or with this program
		}
		ctl.leave(cause)
		cancel()
	})
	names, err := once(runCtx, ctl)
	if !stop() {
		<-told
		return names, err
	}
	var final *finalError
	if errors.As(err, &final) || errors.Is(err, ErrProtocol) || errors.Is(err, errMessage) || errors.Is(err, ErrDiskFull) || errors.Is(err, ErrLimit) {
		ctl.leave(err)
	}
	return names, err
}
