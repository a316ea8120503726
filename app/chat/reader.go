package chat

import (
	"context"
	"sync"
)

// A Reader is given one device's lines: first those that waited, then each as
// it comes. Several readers of one device all get every line.
type Reader struct {
	s    *Service
	peer string

	mu    sync.Mutex // guards queue; taken after Service.mu
	queue []Line
	wake  chan struct{} // holds one token while the queue may have a line
}

// Read starts to read a device's lines. The caller closes the Reader.
func (s *Service) Read(peer string) *Reader {
	r := &Reader{s: s, peer: peer, wake: make(chan struct{}, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.unread[peer] {
		r.put(m)
	}
	delete(s.unread, peer)
	if s.readers[peer] == nil {
		s.readers[peer] = make(map[*Reader]struct{})
	}
	s.readers[peer][r] = struct{}{}
	return r
}

func (r *Reader) put(m Line) {
	r.mu.Lock()
	r.queue = append(r.queue, m)
	r.queue = r.queue[max(0, len(r.queue)-MaxUnread):]
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Next returns the next line, or the context's error.
func (r *Reader) Next(ctx context.Context) (Line, error) {
	for {
		r.mu.Lock()
		if len(r.queue) > 0 {
			m := r.queue[0]
			r.queue = r.queue[1:]
			r.mu.Unlock()
			return m, nil
		}
		r.mu.Unlock()
		select {
		case <-r.wake:
		case <-ctx.Done():
			return Line{}, ctx.Err()
		}
	}
}

// Drain returns the lines that are there, without waiting.
func (r *Reader) Drain() []Line {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.queue
	r.queue = nil
	return all
}

// Close ends the reading. Lines that were not taken wait for the next reader.
func (r *Reader) Close() {
	s := r.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.readers[r.peer][r]; !ok {
		return
	}
	delete(s.readers[r.peer], r)
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(s.readers[r.peer]) == 0 && len(r.queue) > 0 {
		s.unread[r.peer] = append(r.queue, s.unread[r.peer]...)
	}
}
