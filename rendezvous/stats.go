package rendezvous

import (
	"sync"
	"sync/atomic"
	"time"
)

// Stats say what one medium did, for one session or for all of a Racer.
type Stats struct {
	Name     string `json:"name"`
	Joined   bool   `json:"joined"`          // it has taken the topic, or one of the topics
	Sent     uint64 `json:"sent"`            // frames that it took
	Failed   uint64 `json:"failed"`          // frames that it did not take
	Received uint64 `json:"received"`        // frames that it brought
	Useless  uint64 `json:"useless"`         // of these frames, those that nobody could open
	Dropped  uint64 `json:"dropped"`         // frames that it brought faster than they were looked at
	Err      string `json:"error,omitempty"` // of the last join or frame that failed; "" after one that did not
	// First is how long after the join the first frame came that could be opened,
	// in nanoseconds in JSON; 0 if none has.
	First time.Duration `json:"first,omitempty"`
}

// Plus returns the figures of two sessions of one medium together.
func (s Stats) Plus(t Stats) Stats {
	s.Joined = s.Joined || t.Joined
	s.Sent, s.Failed, s.Received = s.Sent+t.Sent, s.Failed+t.Failed, s.Received+t.Received
	s.Useless, s.Dropped = s.Useless+t.Useless, s.Dropped+t.Dropped
	if s.First == 0 || t.First != 0 && t.First < s.First {
		s.First = t.First
	}
	if s.Err == "" {
		s.Err = t.Err
	}
	return s
}

// A Judge is a session, or an exchange, that wants to know which frames were of
// use.
type Judge interface {
	// Judge tells whether a message that came from it could be opened. It does not
	// block.
	Judge(m Message, opened bool)
}

// A Reporter counts what its media do.
type Reporter interface {
	// Stats returns the figures of this moment, one per medium.
	Stats() []Stats
}

// counters are the Stats of one member of a session, and of all its sessions.
type counters struct {
	sent, failed, received, useless, dropped atomic.Uint64
	joined                                   atomic.Int64 // sessions that have joined
	first                                    atomic.Int64 // nanoseconds after the join

	mu  sync.Mutex // guards err
	err string
}

func (c *counters) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err = ""; err != nil {
		c.err = err.Error()
	}
}

func (c *counters) stats(name string) Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Stats{
		Name: name, Joined: c.joined.Load() > 0, Sent: c.sent.Load(), Failed: c.failed.Load(), Received: c.received.Load(),
		Useless: c.useless.Load(), Dropped: c.dropped.Load(), First: time.Duration(c.first.Load()), Err: c.err,
	}
}
