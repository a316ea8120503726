package mail

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

// A Client is one connection to a keeper. It may be used by many at once. Close ends
// it.
type Client struct {
	conn  net.Conn
	keep  time.Duration
	news  chan struct{}
	ended chan struct{}
	wg    sync.WaitGroup

	wmu sync.Mutex // orders frames

	mu      sync.Mutex // guards the fields below
	next    uint32
	pending map[uint32]*request
	err     error // why it ended
}

var _ Keeper = (*Client)(nil)

// request waits for its answer.
type request struct {
	items bool // it takes items
	got   []Item
	bytes int
	body  []byte // of Counts, or of Ok
	err   error
	done  chan struct{}
}

// NewClient greets the keeper at the other end of a connection, which it closes in the
// end. It errs with ErrOff, ErrLogin or ErrBusy if the keeper says so, with ErrProtocol,
// and if the connection ends; the connection is closed then.
func NewClient(ctx context.Context, conn net.Conn) (*Client, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	_ = conn.SetReadDeadline(time.Now().Add(helloTime))
	keep, err := readHello(conn)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, errors.Join(firstOf(ctx.Err(), err), ignoreClosed(conn.Close()))
	}
	_ = conn.SetReadDeadline(time.Time{})
	c := &Client{conn: conn, keep: keep, news: make(chan struct{}, 1), ended: make(chan struct{}), pending: make(map[uint32]*request)}
	c.wg.Go(c.read)
	return c, nil
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// readHello reads the keeper's first frame.
func readHello(conn net.Conn) (time.Duration, error) {
	f, n, err := readHead(conn)
	if err != nil {
		return 0, err
	}
	if f.kind != fHello || f.id != 0 || n < 4 || n > 64 { // a later version may say more
		return 0, fmt.Errorf("%w: it does not begin with a greeting", ErrProtocol)
	}
	body, err := readBody(conn, n)
	if err != nil {
		return 0, err
	}
	if err := status(body[1]).err(); err != nil {
		return 0, err
	}
	if body[0] != version {
		return 0, fmt.Errorf("%w: version %d", ErrProtocol, body[0])
	}
	return time.Duration(binary.BigEndian.Uint16(body[2:])) * day, nil
}

// KeptFor returns for how long the keeper keeps letters, as it said.
func (c *Client) KeptFor() time.Duration { return c.keep }

// News receives when something is in a box that is watched: once until the next Take.
func (c *Client) News() <-chan struct{} { return c.news }

// Ended is closed when the connection is.
func (c *Client) Ended() <-chan struct{} { return c.ended }

// Err returns why the connection ended, once it has: ErrClosed after Close.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection and waits. It is idempotent, and always returns nil.
func (c *Client) Close() error {
	c.fail(ErrClosed)
	c.wg.Wait()
	return nil
}

// fail ends the connection, for the first reason given.
func (c *Client) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	pending := c.pending
	c.pending = nil
	close(c.ended)
	c.mu.Unlock()
	_ = c.conn.Close()
	for _, r := range pending {
		r.err = err
		close(r.done)
	}
}

func (c *Client) read() {
	r := bufio.NewReaderSize(c.conn, 4<<10)
	for {
		f, err := readFrame(r)
		if err == nil {
			err = c.take(f)
		}
		if err != nil {
			c.fail(err)
			return
		}
	}
}

// take takes in one frame. It errs if the keeper is not to be understood.
func (c *Client) take(f frame) error {
	bad := fmt.Errorf("%w: answer %#x of %d bytes", ErrProtocol, f.kind, len(f.body))
	if f.kind == fNews {
		select {
		case c.news <- struct{}{}:
		default:
		}
		return nil
	}
	c.mu.Lock()
	r := c.pending[f.id]
	if r != nil && f.kind != fItem {
		delete(c.pending, f.id)
	}
	c.mu.Unlock()
	if r == nil {
		return bad
	}
	switch f.kind {
	case fItem:
		box, blob, ok := splitBlob(f.body)
		if !ok || !r.items || len(r.got) >= takeItems || r.bytes > takeBytes {
			return bad
		}
		r.bytes += len(blob)
		r.got = append(r.got, Item{Box: box, ID: IDOf(blob), Blob: blob})
		return nil
	case fOk, fCounts:
		r.body = f.body
	case fFailed:
		if len(f.body) < 1 || f.body[0] == 0 {
			c.fail(bad)
			r.err = bad
			break
		}
		r.err = status(f.body[0]).err()
	default:
		c.fail(bad)
		r.err = bad
	}
	close(r.done)
	return nil
}

// ask sends a request and waits for the answer. A request whose context ends is
// answered all the same, to nobody.
func (c *Client) ask(ctx context.Context, kind byte, body []byte) (*request, error) {
	r := &request{items: kind == fTake, done: make(chan struct{})}
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return nil, c.err
	}
	if len(c.pending) >= maxPending {
		defer c.mu.Unlock()
		return nil, ErrBusy
	}
	id := c.next + 1
	for id == 0 || c.pending[id] != nil {
		id++
	}
	c.next = id
	c.pending[id] = r
	c.mu.Unlock()
	if err := c.send(frame{kind: kind, id: id, body: body}); err != nil {
		c.fail(err)
		return nil, err
	}
	timeout := time.NewTimer(answerTime)
	defer timeout.Stop()
	select {
	case <-r.done:
		return r, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-timeout.C:
		err := fmt.Errorf("mail: the keeper did not answer within %v", answerTime)
		c.fail(err)
		return nil, err
	}
}

const (
	maxPending = 1024 // requests that wait for an answer
	maxRounds  = 64   // takes of one fetch
	// answerTime is how long a keeper may take for an answer until it counts as gone.
	answerTime = time.Minute
)

func (c *Client) send(f frame) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	_ = c.conn.SetWriteDeadline(time.Now().Add(frameTime))
	_, err := c.conn.Write(f.append(nil))
	return err
}

// Put leaves a blob, see Keeper. It errs as that says.
func (c *Client) Put(ctx context.Context, box Box, blob []byte) error {
	if !goodSize(len(blob)) {
		return ErrRefused
	}
	_, err := c.ask(ctx, fPut, append(slices.Clip(box[:]), blob...))
	return err
}

// Take returns what is in the boxes of tokens, see Keeper. It errs as that says.
func (c *Client) Take(ctx context.Context, tokens [][32]byte) ([]Item, error) {
	items, _, err := c.takeMore(ctx, cursor{}, tokens)
	return items, err
}

// A cursor is where a fetch goes on: tokens are asked for in parts, each in the keeper's
// order. The zero value is the beginning.
type cursor struct {
	part  int    // a count of parts before it
	after uint64 // of the part's items, the place in the order
}

// takeMore begins at a cursor and takes MaxFetch bytes, or a little more. It returns where to
// go on if there is more, and else the beginning. A keeper that gives something twice, or
// little at a time for ever, is left.
func (c *Client) takeMore(ctx context.Context, at cursor, tokens [][32]byte) (items []Item, next cursor, err error) {
	bytes, rounds := 0, 0
	seen := make(map[[BoxSize + IDSize]byte]struct{})
	parts := slices.Collect(slices.Chunk(tokens, maxTokens))
	if at.part >= len(parts) { // there are fewer tokens than before
		at = cursor{}
	}
	for ; at.part < len(parts); at = (cursor{part: at.part + 1}) {
		for more := true; more; {
			if bytes >= MaxFetch {
				return items, at, nil
			}
			if rounds++; rounds > maxRounds {
				c.fail(fmt.Errorf("%w: a fetch without end", ErrProtocol))
				return items, cursor{}, nil
			}
			r, err := c.ask(ctx, fTake, joinTake(at.after, parts[at.part]))
			if err != nil {
				return nil, cursor{}, err
			}
			for _, it := range r.got {
				key := pendingKey(it.Box, it.ID)
				if _, twice := seen[key]; twice {
					c.fail(fmt.Errorf("%w: a letter came twice", ErrProtocol))
					return items, cursor{}, nil
				}
				seen[key] = struct{}{}
				items = append(items, it)
			}
			bytes += r.bytes
			if len(r.body) < 1+orderSize {
				return nil, cursor{}, fmt.Errorf("%w: a take ends with %d bytes", ErrProtocol, len(r.body))
			}
			last := binary.BigEndian.Uint64(r.body[1:])
			more = r.body[0] != 0 && last > at.after && len(r.got) > 0
			at.after = last
		}
	}
	return items, cursor{}, nil
}

// Done removes blobs, see Keeper. It errs as that says.
func (c *Client) Done(ctx context.Context, token [32]byte, ids [][IDSize]byte) error {
	for part := range slices.Chunk(ids, maxIDs) {
		if _, err := c.ask(ctx, fDone, joinDone(token, part)); err != nil {
			return err
		}
	}
	return nil
}

// Watch has the keeper say so (News) when something is in a box of one of these tokens,
// and no longer for those of before. It errs with ErrBusy if there are too many, and if
// the keeper is gone.
func (c *Client) Watch(ctx context.Context, tokens [][32]byte) error {
	flag := byte(watchFirst)
	for part := range slices.Chunk(tokens, maxTokens) {
		if _, err := c.ask(ctx, fWatch, append([]byte{flag}, joinTokens(part)...)); err != nil {
			return err
		}
		flag = 0
	}
	return nil
}

// Count returns what is in the boxes of tokens, by token. It errs if the keeper is
// gone.
func (c *Client) Count(ctx context.Context, tokens [][32]byte) ([]Count, error) {
	out := make([]Count, 0, len(tokens))
	for part := range slices.Chunk(tokens, maxTokens) {
		r, err := c.ask(ctx, fCount, joinTokens(part))
		if err != nil {
			return nil, err
		}
		counts, ok := splitCounts(r.body, len(part))
		if !ok {
			return nil, fmt.Errorf("%w: counts of %d bytes", ErrProtocol, len(r.body))
		}
		out = append(out, counts...)
	}
	return out, nil
}

// Ping asks for a sign of life. It errs if there is none.
func (c *Client) Ping(ctx context.Context) error {
	_, err := c.ask(ctx, fPing, nil)
	return err
}
