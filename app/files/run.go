package files

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// A run is one try of a transfer, with one control stream. Both ends of it, and
// both ways of starting it (Send and Get), are here.
type run struct {
	ctl   *control
	meter *meter
	quiet time.Duration
}

// sendRun is the sender's end, after the offer was made: it waits for the answer,
// sends what the receiver lacks, and returns the receiver's final names. start is
// called with the session's token when lanes can come, and returns what ends them.
func (r *run) sendRun(ctx context.Context, src *source, produce func(ctx context.Context, resume bool) error,
	start func(ctx context.Context, session token) (stop func()),
) ([]string, error) {
	kind, msg, err := r.ctl.receive(ctx)
	if err != nil {
		return nil, err
	}
	var answer answerMsg
	switch kind {
	case msgAnswer:
		if err := answer.get(msg); err != nil {
			return nil, err
		}
	case msgCancel:
		return nil, parseCancel(msg)
	default:
		return nil, fmt.Errorf("files: %w: message %d", ErrProtocol, kind)
	}
	r.meter.state(StateRunning)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)

	haves := make(chan *reader, 1)
	again := make(chan []string, 1)
	done := make(chan []string, 1)
	wg.Go(func() {
		err := r.senderInbox(ctx, haves, again, done)
		src.q.stopIf(err)
		cancel(err)
	})
	if answer.verdict == verdictAccept {
		stop := start(ctx, answer.session)
		defer stop()
		src.ask = nil
		if answer.resume {
			src.ask = r.asker(haves)
		}
		src.tell = func(n Note) {
			w := writer{}
			putNote(&w, n)
			_ = r.ctl.send(msgNote, &w)
		}
		wg.Go(func() { r.tellTotals(ctx) })
		if err := r.push(ctx, src, produce, answer.resume, again, done); err != nil {
			return nil, first(context.Cause(ctx), err)
		}
	}
	select {
	case names := <-done:
		_ = r.ctl.send(msgBye, nil)
		return names, nil
	case <-ctx.Done():
		// It may have come together with the end of the stream.
		select {
		case names := <-done:
			return names, nil
		default:
			return nil, context.Cause(ctx)
		}
	}
}

// first returns the first error that says something.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
	}
	return errs[len(errs)-1]
}

// push sends all, then what is asked for again, until the receiver has it.
func (r *run) push(ctx context.Context, src *source, produce func(context.Context, bool) error, resume bool,
	again, done chan []string,
) error {
	defer context.AfterFunc(ctx, func() { src.q.stopIf(context.Cause(ctx)) })()
	if err := produce(ctx, resume); err != nil {
		return err
	}
	for {
		if err := src.q.drained(ctx); err != nil {
			return err
		}
		if err := r.ctl.send(msgEnd, nil); err != nil {
			return err
		}
		select {
		case paths := <-again:
			if err := src.again(ctx, paths); err != nil {
				return err
			}
		case names := <-done:
			done <- names
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// senderInbox hands the receiver's messages on. It errs when the stream ends.
func (r *run) senderInbox(ctx context.Context, haves chan<- *reader, again, done chan<- []string) error {
	for {
		kind, msg, err := r.ctl.receive(ctx)
		if err != nil {
			return err
		}
		switch kind {
		case msgHave:
			select {
			case haves <- msg:
			case <-ctx.Done():
				return ctx.Err()
			}
		case msgAgain, msgDone:
			list, err := parseStrings(msg, maxTops, maxPath)
			if err != nil {
				return err
			}
			to := again
			if kind == msgDone {
				to = done
			}
			select {
			case to <- list:
			default:
				return fmt.Errorf("files: %w: an answer too many", ErrProtocol)
			}
		case msgNote:
			n, err := parseNote(msg)
			if err != nil {
				return err
			}
			r.meter.note(n)
		case msgCancel:
			return parseCancel(msg)
		default:
			return fmt.Errorf("files: %w: message %d", ErrProtocol, kind)
		}
	}
}

// asker asks what the receiver has, one list at a time.
func (r *run) asker(haves <-chan *reader) func(context.Context, []item) ([]have, error) {
	return func(ctx context.Context, list []item) ([]have, error) {
		w := writer{}
		putAsk(&w, list)
		if err := r.ctl.send(msgAsk, &w); err != nil {
			return nil, err
		}
		select {
		case msg := <-haves:
			return parseHave(msg, len(list))
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// totalsEvery is how often the receiver is told what the walk has found.
const totalsEvery = 250 * time.Millisecond

func (r *run) tellTotals(ctx context.Context) {
	t := time.NewTicker(totalsEvery)
	defer t.Stop()
	var told Progress
	for {
		p := r.meter.progress()
		if p.TotalFiles != told.TotalFiles || p.TotalBytes != told.TotalBytes || p.TotalKnown != told.TotalKnown {
			w := writer{}
			w.uint(uint64(p.TotalFiles))
			w.uint(uint64(p.TotalBytes))
			w.bool(p.TotalKnown)
			if r.ctl.send(msgTotal, &w) != nil {
				return
			}
			told = p
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// stopIf stops the queue; a stream's, which goes on in the next run, it does not.
func (q *queue) stopIf(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err == nil && !q.lasting {
		q.err = first(err, context.Canceled)
	}
	q.cond.Broadcast()
}

// receiveRun is the receiver's end, after it has answered: it takes what comes over
// the lanes, and returns the final names.
func (r *run) receiveRun(ctx context.Context, sk *sink, overwrite, durable bool, tops []string,
	start func(ctx context.Context) (stop func()), fatal <-chan error,
) ([]string, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Go(func() {
		select {
		case err := <-fatal:
			r.ctl.cancel(err)
			cancel(err)
		case <-ctx.Done():
		}
	})
	stop := start(ctx)
	var once sync.Once
	defer once.Do(stop)
	told := 0
	for {
		kind, msg, err := r.ctl.receive(ctx)
		if err != nil {
			return nil, first(context.Cause(ctx), err)
		}
		switch kind {
		case msgAsk:
			err = r.answerAsk(sk, msg)
		case msgTotal:
			files, bytes, known := msg.uint(1<<50), msg.uint(1<<60), msg.bool()
			err = msg.end()
			r.meter.update(func(p *Progress) {
				p.TotalFiles, p.TotalBytes, p.TotalKnown = int64(files), int64(bytes), known
			})
		case msgNote:
			var n Note
			if n, err = parseNote(msg); err == nil {
				r.meter.note(n)
			}
		case msgCancel:
			return nil, parseCancel(msg)
		case msgEnd:
			if paths := sk.takeAgain(); len(paths) > 0 {
				w := writer{}
				putStrings(&w, paths)
				err = r.ctl.send(msgAgain, &w)
				break
			}
			once.Do(stop)
			return r.finish(ctx, sk, tops, overwrite, durable, &told)
		default:
			err = fmt.Errorf("files: %w: message %d", ErrProtocol, kind)
		}
		if err != nil {
			return nil, first(context.Cause(ctx), err)
		}
		told = r.tellNotes(told)
	}
}

// tellNotes tells the sender what could not be written.
func (r *run) tellNotes(told int) int {
	notes := r.meter.allNotes()
	for _, n := range notes[told:] {
		w := writer{}
		putNote(&w, n)
		_ = r.ctl.send(msgNote, &w)
	}
	return len(notes)
}

// finish puts all in its place.
func (r *run) finish(ctx context.Context, sk *sink, tops []string, overwrite, durable bool, told *int) ([]string, error) {
	sk.abandon()
	if err := sk.close(); err != nil {
		return nil, fmt.Errorf("files: %w", plainError(err))
	}
	names, err := sk.stage.finish(tops, overwrite, durable, r.meter.note)
	if err != nil {
		if diskFull(err) {
			err = ErrDiskFull
		}
		r.ctl.cancel(err)
		return nil, &finalError{fmt.Errorf("files: put in place: %w", err)}
	}
	r.tellNotes(*told)
	w := writer{}
	putStrings(&w, names)
	if err := r.ctl.send(msgDone, &w); err == nil {
		// The stage says that all is done until the sender has heard so.
		if r.ctl.awaitBye(ctx) {
			_ = sk.stage.remove()
		}
	}
	return names, nil
}

// awaitBye waits until the sender has heard that all is done. What it said before
// that, as its totals, may still be on the way.
func (c *control) awaitBye(ctx context.Context) bool {
	for {
		switch kind, _, err := c.receive(ctx); {
		case err != nil:
			return false
		case kind == msgBye:
			return true
		case kind != msgTotal && kind != msgNote:
			return false
		}
	}
}

func (r *run) answerAsk(sk *sink, msg *reader) error {
	list, err := parseAsk(msg)
	if err != nil {
		return err
	}
	out := make([]have, len(list))
	d := dirs{tree: sk.stage.tree, readOnly: true}
	defer d.close()
	total := 0
	for i := range list {
		if out[i], err = sk.have(&d, &list[i]); err != nil {
			return err
		}
		// An answer has its limit; what is left out is sent again.
		if total += len(out[i].ranges); total > 2*8*maxRanges {
			out[i].ranges = nil
		}
	}
	w := writer{}
	putHave(&w, out)
	return r.ctl.send(msgHave, &w)
}

// laneRunner adapts a sink's lane to a laneSet.
func (s *sink) laneRunner(quiet time.Duration) laneFunc {
	return func(ctx context.Context, conn net.Conn, stopped <-chan struct{}) error {
		return s.lane(ctx, conn, stopped, quiet)
	}
}

// laneRunner adapts a source's lane to a laneSet.
func (s *source) laneRunner(quiet time.Duration) laneFunc {
	return func(ctx context.Context, conn net.Conn, stopped <-chan struct{}) error {
		return s.lane(ctx, conn, stopped, quiet)
	}
}
