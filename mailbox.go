package kith

import "sync"

// A mailbox hands work to one goroutine without ever blocking who brings it:
// callbacks from drivers must return at once.
type mailbox struct {
	mu   sync.Mutex
	work []func()
	wake chan struct{} // holds one token while there is work
}

func newMailbox() *mailbox { return &mailbox{wake: make(chan struct{}, 1)} }

func (m *mailbox) post(f func()) {
	m.mu.Lock()
	m.work = append(m.work, f)
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// run does all work that is there, in order.
func (m *mailbox) run() {
	m.mu.Lock()
	work := m.work
	m.work = nil
	m.mu.Unlock()
	for _, f := range work {
		f()
	}
}
