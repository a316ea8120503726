package kith_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

const (
	// transferSize is what goes through the tunnel while the network changes, in bytes.
	transferSize = 100 << 20
	// transferRate is how fast it is at most, in bytes a second, so that it is
	// under way when the network changes.
	transferRate = 50 << 20
	// transferPatience is how long no byte of it may come.
	transferPatience = time.Minute
	// pauseLeast is how long no byte comes for it to be a pause.
	pauseLeast = 250 * time.Millisecond
)

// A pipe opens connections from the first device through a forwarded port to the
// second. Both ends are here.
type pipe struct {
	r        *reachLab
	accepted chan net.Conn
}

func newPipe(ctx context.Context, t *testing.T, r *reachLab) *pipe {
	t.Helper()
	p := &pipe{r: r, accepted: make(chan net.Conn)}
	var ln net.Listener
	var err error
	r.nodes[1].host.Do(func() { ln, err = net.Listen("tcp", "127.0.0.1:8099") })
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			// Who only asks whether anybody listens says nothing.
			if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
				conn.Close()
				continue
			}
			select {
			case p.accepted <- conn:
			case <-ctx.Done():
				conn.Close()
			}
		}
	})
	r.nodes[1].run(ctx, "allow", "desk", "8099")
	fwd := r.nodes[0].start("forward", "18099", "laptop:8099")
	fwd.Await(ctx, "is port 8099")
	t.Cleanup(func() {
		fwd.Stop()
		ln.Close()
		wg.Wait()
	})
	return p
}

// open returns both ends of a new connection.
func (p *pipe) open(ctx context.Context, t *testing.T) (first, second net.Conn) {
	t.Helper()
	var err error
	p.r.nodes[0].host.Do(func() { first, err = net.Dial("tcp", "127.0.0.1:18099") })
	if err == nil {
		_, err = first.Write([]byte{1})
	}
	if err != nil {
		t.Fatal(err)
	}
	select {
	case second = <-p.accepted:
	case <-ctx.Done():
		t.Fatal("no connection through the tunnel")
	}
	return first, second
}

// A transfer is transferSize bytes on their way.
type transfer struct {
	ends [2]net.Conn // writer, reader
	done chan error
	sum  chan [sha256.Size]byte

	mu     sync.Mutex // guards the field below
	pauses []pause
}

// A pause is a time without a byte.
type pause struct{ from, to time.Time }

// transfer begins one, from the first device or to it, and returns when it is under
// way.
func (p *pipe) transfer(ctx context.Context, t *testing.T, from bool) *transfer {
	t.Helper()
	first, second := p.open(ctx, t)
	tr := &transfer{ends: [2]net.Conn{second, first}, done: make(chan error, 1), sum: make(chan [sha256.Size]byte, 1)}
	if from {
		tr.ends = [2]net.Conn{first, second}
	}
	begun := make(chan struct{})
	go tr.pour()
	go func() { tr.done <- tr.drain(begun) }()
	select {
	case <-begun:
	case <-ctx.Done():
		t.Fatal("the transfer does not begin")
	}
	return tr
}

// pour writes transferSize bytes.
func (tr *transfer) pour() {
	defer tr.ends[0].Close()
	sum, chunk := sha256.New(), make([]byte, 1<<20)
	tick := time.NewTicker(time.Second * time.Duration(len(chunk)) / transferRate)
	defer tick.Stop()
	for i := range transferSize / len(chunk) {
		for j := range chunk {
			chunk[j] = byte(i + j*j)
		}
		sum.Write(chunk)
		if _, err := tr.ends[0].Write(chunk); err != nil {
			break // the reader says what is missing
		}
		<-tick.C
	}
	tr.sum <- [sha256.Size]byte(sum.Sum(nil))
}

// drain reads all and notes the pauses. It closes begun after 1 MiB.
func (tr *transfer) drain(begun chan<- struct{}) error {
	defer tr.ends[1].Close()
	sum, buf := sha256.New(), make([]byte, 256<<10)
	last, total := time.Now(), 0
	for {
		_ = tr.ends[1].SetReadDeadline(last.Add(transferPatience))
		n, err := tr.ends[1].Read(buf)
		now := time.Now()
		if n > 0 && now.Sub(last) >= pauseLeast && begun == nil {
			tr.mu.Lock()
			tr.pauses = append(tr.pauses, pause{last, now})
			tr.mu.Unlock()
		}
		sum.Write(buf[:n])
		total, last = total+n, now
		if begun != nil && total >= 1<<20 {
			close(begun)
			begun = nil
		}
		switch {
		case err == nil:
		case !errors.Is(err, io.EOF):
			return fmt.Errorf("after %d bytes of %d: %w", total, transferSize, err)
		case total != transferSize:
			return fmt.Errorf("%d bytes of %d", total, transferSize)
		case [sha256.Size]byte(sum.Sum(nil)) != <-tr.sum:
			return errors.New("other bytes arrived than were sent")
		default:
			return nil
		}
	}
}

// wait returns when all has come, or why it has not.
func (tr *transfer) wait(ctx context.Context) error {
	defer tr.ends[0].Close()
	defer tr.ends[1].Close()
	select {
	case err := <-tr.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// resumed returns how long after a moment the last pause ended, 0 if there was none,
// and says when there were pauses.
func (tr *transfer) resumed(after time.Time) (last time.Duration, all string) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	for _, p := range tr.pauses {
		last = max(0, p.to.Sub(after))
		all += fmt.Sprintf(" %d-%dms", p.from.Sub(after).Milliseconds(), p.to.Sub(after).Milliseconds())
	}
	return last.Round(time.Millisecond), all
}

// transfer begins a transfer to the first device and tells when it is over.
func (r *reachLab) transfer(ctx context.Context, t *testing.T) <-chan error {
	t.Helper()
	tr := newPipe(ctx, t, r).transfer(ctx, t, false)
	done := make(chan error, 1)
	go func() { done <- tr.wait(ctx) }()
	return done
}
