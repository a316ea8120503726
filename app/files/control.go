package files

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Every connection starts with 32 bytes: "kithfile", version 1, what it is, 6 zeros,
// and 16 bytes of a token, which only a lane has.
const (
	helloMagic   = "kithfile"
	helloSize    = 32
	helloControl = 1
	helloLane    = 2
)

type token [16]byte

func newToken() (t token) {
	_, _ = rand.Read(t[:]) // never fails: crypto/rand
	return t
}

// A TransferID names a transfer on both sides. It comes from the paths, sizes and
// times of what is sent, so that sending the same again goes on where it stopped.
type TransferID [16]byte

// String is the ID in hexadecimal.
func (id TransferID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText returns String; it never errs.
func (id TransferID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what MarshalText wrote. It errs if b is something else.
func (id *TransferID) UnmarshalText(b []byte) error {
	if n, err := hex.Decode(id[:], b[:min(len(b), 2*len(id))]); err != nil || n != len(id) || len(b) != 2*len(id) {
		return fmt.Errorf("files: %q is not the ID of a transfer", b)
	}
	return nil
}

func putHello(kind byte, t token) []byte {
	b := make([]byte, helloSize)
	copy(b, helloMagic)
	b[8], b[9] = 1, kind
	copy(b[16:], t[:])
	return b
}

func parseHello(b []byte) (kind byte, t token, err error) {
	if len(b) != helloSize || string(b[:8]) != helloMagic || b[8] != 1 || b[9] < helloControl || b[9] > helloLane || [6]byte(b[10:16]) != [6]byte{} {
		return 0, t, fmt.Errorf("files: hello: %w", errMessage)
	}
	copy(t[:], b[16:])
	return b[9], t, nil
}

type messageKind uint8

// Messages of a control stream: length (4 bytes, big endian, of what follows), kind
// (1 byte), fields.
const (
	msgOffer   messageKind = iota + 1 // from the sender
	msgAnswer                         // from the receiver
	msgAsk                            // from the sender: what of these do you have
	msgHave                           // from the receiver: its answer
	msgTotal                          // from the sender: files and bytes found so far, and whether that is all
	msgNote                           // either: a name that does not arrive as it was
	msgEnd                            // from the sender: all was acknowledged
	msgAgain                          // from the receiver: send these once more
	msgDone                           // from the receiver: all is in place
	msgBye                            // from the sender: done was heard
	msgCancel                         // either: the end, and why
	msgPing                           // either: nothing
	msgGet                            // from a receiver, first: offer me this path of your share
	msgList                           // first: what is in this folder of your share
	msgListing                        // a part of the answer
	msgLast    = msgListing
)

// maxMessage is the longest message in bytes.
const maxMessage = 512 << 10

// A control is one control stream. send may be called at once from several
// goroutines, receive from one.
type control struct {
	conn  net.Conn
	quiet time.Duration // without a message for this long the stream is dead
	in    chan message
	err   error // why in was closed
	wmu   sync.Mutex
	hurry atomic.Bool
}

type message struct {
	kind messageKind
	body []byte
}

func newControl(conn net.Conn, quiet time.Duration) *control {
	return &control{conn: conn, quiet: quiet, in: make(chan message, 4)}
}

// run reads messages and keeps the stream alive until ctx ends or the stream does;
// it closes the stream.
func (c *control) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer context.AfterFunc(ctx, func() { c.conn.Close() })()
	var wg sync.WaitGroup
	wg.Go(func() { c.ping(ctx) })
	c.err = c.pump(ctx)
	close(c.in)
	cancel()
	wg.Wait()
	c.conn.Close()
}

func (c *control) pump(ctx context.Context) error {
	br := bufio.NewReaderSize(c.conn, 16<<10)
	for {
		if err := c.conn.SetReadDeadline(time.Now().Add(c.quiet)); err != nil {
			return err
		}
		kind, body, err := readMessage(br)
		if err != nil {
			return err
		}
		if kind == msgPing {
			continue
		}
		select {
		case c.in <- message{kind, body}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *control) send(kind messageKind, w *writer) error {
	var body []byte
	if w != nil {
		body = w.b
	}
	b := make([]byte, 5, 5+len(body))
	binary.BigEndian.PutUint32(b, uint32(len(body)+1))
	b[4] = byte(kind)
	b = append(b, body...)
	c.wmu.Lock()
	defer c.wmu.Unlock()
	wait := c.quiet
	if c.hurry.Load() {
		wait = lastWords
	}
	if err := c.conn.SetWriteDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	_, err := c.conn.Write(b)
	return err
}

// lastWords is how long a cancel may wait for a peer that does not read.
const lastWords = time.Second

// leave tells the other side why this is the end, and waits for no write any longer
// than lastWords.
func (c *control) leave(err error) {
	c.hurry.Store(true)
	_ = c.conn.SetWriteDeadline(time.Now().Add(lastWords))
	c.cancel(err)
}

// receive returns the next message that is not a ping. It errs when ctx or the stream
// has ended, or the stream was silent for too long.
func (c *control) receive(ctx context.Context) (messageKind, *reader, error) {
	select {
	case m, ok := <-c.in:
		if !ok {
			return 0, nil, c.err
		}
		return m.kind, &reader{b: m.body}, nil
	case <-ctx.Done():
		return 0, nil, context.Cause(ctx)
	}
}

func readMessage(r io.Reader) (messageKind, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n, kind := binary.BigEndian.Uint32(head[:]), messageKind(head[4])
	if n < 1 || n > maxMessage || kind < msgOffer || kind > msgLast {
		return 0, nil, fmt.Errorf("files: %w", errMessage)
	}
	// Grown as it comes: a length alone costs nothing.
	body, err := io.ReadAll(io.LimitReader(r, int64(n)-1))
	if err == nil && len(body) < int(n)-1 {
		err = io.ErrUnexpectedEOF
	}
	return kind, body, err
}

// ping keeps the stream alive until ctx ends.
func (c *control) ping(ctx context.Context) {
	t := time.NewTicker(c.quiet / 4)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if c.send(msgPing, nil) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// cancel tells the other side why this is the end.
func (c *control) cancel(err error) {
	w := writer{}
	w.byte(byte(reasonOf(err)))
	w.string(cut(err.Error(), 512))
	_ = c.send(msgCancel, &w)
}

func cut(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}

func parseCancel(r *reader) error {
	e := &remoteError{reason: reason(r.byte()), text: r.string(1024)}
	if err := r.end(); err != nil {
		return err
	}
	if base := reasons()[e.reason]; base != nil {
		e.text = "" // the reason says it
	}
	return e
}

// An offerMsg is what a sender says first.
type offerMsg struct {
	id         TransferID
	run        token // names one call of Send, over all its runs
	sum        Sum
	tops       []string
	files      int64
	bytes      int64
	known      bool // files and bytes are all
	stream     bool
	folderTops bool  // some top-level name is a folder
	session    token // for the lanes, if the receiver dials
}

func (o *offerMsg) put(w *writer) {
	w.b = append(w.b, o.id[:]...)
	w.b = append(w.b, o.run[:]...)
	w.b = append(w.b, o.session[:]...)
	w.byte(byte(o.sum))
	w.uint(uint64(o.files))
	w.uint(uint64(o.bytes))
	w.bool(o.known)
	w.bool(o.stream)
	w.bool(o.folderTops)
	w.uint(uint64(len(o.tops)))
	for _, t := range o.tops {
		w.string(t)
	}
}

func (o *offerMsg) get(r *reader) error {
	if len(r.b) < 48 {
		return errMessage
	}
	copy(o.id[:], r.b)
	copy(o.run[:], r.b[16:])
	copy(o.session[:], r.b[32:])
	r.b = r.b[48:]
	o.sum = Sum(r.byte())
	o.files = int64(r.uint(1 << 50))
	o.bytes = int64(r.uint(1 << 60))
	o.known, o.stream, o.folderTops = r.bool(), r.bool(), r.bool()
	n := r.count(maxTops)
	seen := make(map[string]bool, n)
	for range n {
		t := r.string(maxName)
		if !validPath(t) || top(t) != t || seen[t] {
			r.fail()
		}
		seen[t] = true
		o.tops = append(o.tops, t)
	}
	if n == 0 || o.sum > SumCRC32C || o.stream && n != 1 {
		r.fail()
	}
	return r.end()
}

type verdict uint8

const (
	verdictAccept verdict = iota + 1
	verdictDone           // it is all there since an earlier run
)

// An answerMsg is what a receiver says to an offer that it takes; it says no with
// a cancel.
type answerMsg struct {
	verdict verdict
	session token // for the lanes
	resume  bool  // ask me what I have
}

func (a *answerMsg) put(w *writer) {
	w.byte(byte(a.verdict))
	w.b = append(w.b, a.session[:]...)
	w.bool(a.resume)
}

func (a *answerMsg) get(r *reader) error {
	a.verdict = verdict(r.byte())
	if len(r.b) < len(a.session) || a.verdict < verdictAccept || a.verdict > verdictDone {
		return errMessage
	}
	copy(a.session[:], r.b)
	r.b = r.b[len(a.session):]
	a.resume = r.bool()
	return r.end()
}

func putAsk(w *writer, list []item) {
	w.uint(uint64(len(list)))
	for i := range list {
		list[i].put(w)
	}
}

func parseAsk(r *reader) ([]entry, error) {
	n := r.count(maxAsk)
	list := make([]entry, 0, min(n, 64))
	for range n {
		var e entry
		e.get(r)
		if r.bad {
			break
		}
		list = append(list, e)
	}
	return list, r.end()
}

// maxRanges is how many runs of chunks one answer names of one file at most.
const maxRanges = 1000

func putHave(w *writer, list []have) {
	w.uint(uint64(len(list)))
	for _, h := range list {
		w.bool(h.all)
		w.uint(uint64(len(h.ranges) / 2))
		for _, v := range h.ranges {
			w.uint(uint64(v))
		}
	}
}

func parseHave(r *reader, want int) ([]have, error) {
	n := r.count(maxAsk)
	list := make([]have, 0, min(n, 64))
	for range n {
		h := have{all: r.bool()}
		last := int64(0)
		for range r.count(maxRanges) {
			first, count := int64(r.uint(maxSize/chunkSize)), int64(r.uint(maxSize/chunkSize))
			if first < last || count < 1 {
				r.fail()
				break
			}
			last = first + count
			h.ranges = append(h.ranges, first, count)
		}
		if r.bad {
			break
		}
		list = append(list, h)
	}
	if err := r.end(); err != nil {
		return nil, err
	}
	if len(list) != want {
		return nil, errMessage
	}
	return list, nil
}

func putNote(w *writer, n Note) {
	w.byte(byte(n.Problem))
	w.string(cut(n.Path, maxPath))
	w.string(cut(n.Detail, 512))
}

func parseNote(r *reader) (Note, error) {
	n := Note{Problem: Problem(r.byte()), Path: r.string(maxPath), Detail: r.string(512)}
	return n, r.end()
}

func putStrings(w *writer, list []string) {
	w.uint(uint64(len(list)))
	for _, s := range list {
		w.string(s)
	}
}

func parseStrings(r *reader, limit, each int) ([]string, error) {
	var list []string
	for range r.count(limit) {
		list = append(list, r.string(each))
	}
	return list, r.end()
}
