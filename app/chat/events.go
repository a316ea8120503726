package chat

import "sync"

// maxEvents is how many events a subscriber may lag behind.
const maxEvents = 10_000

// A subscriber is handed every event, or told that some were lost.
type subscriber struct {
	out  chan Event
	wake chan struct{} // holds one token while there may be events
	done chan struct{} // closed by end
	once sync.Once

	mu    sync.Mutex // guards queue; taken after Service.mu
	queue []Event
}

func (s *subscriber) put(ev Event) {
	s.mu.Lock()
	if len(s.queue) >= maxEvents {
		s.queue = []Event{{Kind: EventLost}}
	}
	s.queue = append(s.queue, ev)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *subscriber) take() []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queue
	s.queue = nil
	return q
}

func (s *subscriber) end() { s.once.Do(func() { close(s.done) }) }

func (s *subscriber) run() {
	defer close(s.out)
	for {
		for _, ev := range s.take() {
			select {
			case s.out <- ev:
			case <-s.done:
				return
			}
		}
		select {
		case <-s.wake:
		case <-s.done:
			return
		}
	}
}

// Events returns what happens from now on, and what ends the subscription. The channel
// is closed after Close. Who lags far behind gets an EventLost in place of what it has
// missed.
func (s *Service) Events() (<-chan Event, func()) {
	sub := &subscriber{out: make(chan Event), wake: make(chan struct{}, 1), done: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.start(sub.run) {
		close(sub.out)
		return sub.out, func() {}
	}
	s.subs[sub] = struct{}{}
	return sub.out, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.subs, sub)
		sub.end()
	}
}

// publish hands an event to all subscribers. s.mu is held.
func (s *Service) publish(ev Event) {
	for sub := range s.subs {
		sub.put(ev)
	}
}

// publishConv says that a conversation has changed. s.mu is held.
func (s *Service) publishConv(c *convo) {
	if len(s.subs) > 0 {
		s.publish(Event{Kind: EventConv, Conv: s.describe(c)})
	}
}

// maxStates is how many entries are reported one by one when they come further at once.
const maxStates = 1000

// publishStates says that entries of one of this device's logs have come further.
func (s *Service) publishStates(c *convo, log LogID, from, to uint64) {
	s.mu.Lock()
	none := len(s.subs) == 0
	s.mu.Unlock()
	if none || from > to {
		return
	}
	if to-from >= maxStates {
		from = to - maxStates + 1
	}
	var spots []spot
	for seq := from; seq <= to; seq++ {
		spots = append(spots, spot{logKey{s.self, log}, seq})
	}
	for _, m := range s.messages(c, spots) {
		s.mu.Lock()
		s.publish(Event{Kind: EventState, Message: &m})
		s.mu.Unlock()
	}
}
