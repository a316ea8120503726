package waku

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/kithproject/kith/rendezvous"
)

const (
	clientQueue     = 256             // messages that wait for a client
	clientQueueSize = 1 << 20         // bytes that they have
	pushesUnderWay  = 16              // to one client, until it has read them
	failedPushes    = 8               // in a row, after which a client is taken for gone
	requestIdle     = 5 * time.Minute // that a stream may be open before its request: some clients open them ahead
	requestRate     = 20 * time.Millisecond
	requestBurst    = 200
	storeRate       = 100 * time.Millisecond
	storeBurst      = 50
	burstOfMessages = 4 // seconds' worth of messages
)

// A client is one connection to a Service.
type client struct {
	s       *Service
	link    *link
	trusted bool // a peer: no limit on its rate
	queue   chan []byte
	queued  atomic.Int64 // bytes in queue
	failed  atomic.Int32

	mu       sync.Mutex // guards the limiters
	messages rendezvous.Limiter
	requests rendezvous.Limiter
	queries  rendezvous.Limiter

	topics map[subscription]struct{} // guarded by Service.mu
	gone   bool                      // guarded by Service.mu
}

func (s *Service) newClient() *client {
	return &client{
		s: s, queue: make(chan []byte, clientQueue), topics: make(map[subscription]struct{}),
		messages: rendezvous.Limiter{Burst: burstOfMessages * s.cfg.Rate, Interval: time.Second / time.Duration(s.cfg.Rate)},
		requests: rendezvous.Limiter{Burst: requestBurst, Interval: requestRate},
		queries:  rendezvous.Limiter{Burst: storeBurst, Interval: storeRate},
	}
}

// handlers are the protocols that a node serves.
func (c *client) handlers() map[string]handler {
	return map[string]handler{
		protoSubscribe: c.filter, protoPush2: c.push2, protoPush3: c.push3, protoStore: c.query, protoMetadata: c.metadata,
	}
}

// allow takes a token of a limiter.
func (c *client) allow(l *rendezvous.Limiter) bool {
	if c.trusted {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.Wait(time.Now()) <= 0 {
		return true
	}
	c.s.count(func(st *Stats) { st.Refused++ })
	return false
}

func (s *Service) count(f func(*Stats)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.stats)
}

// request reads the one message of a stream. It reports false if there is none.
func (c *client) request(s *stream, limit int) ([]byte, bool) {
	s.extend(requestIdle)
	if _, err := s.r.Peek(1); err != nil {
		if !errors.Is(err, io.EOF) {
			s.Reset()
		}
		return nil, false
	}
	s.extend(operationLimit)
	b, err := readDelimited(s.r, limit)
	if err != nil {
		c.invalid()
		s.Reset()
		return nil, false
	}
	return b, true
}

func (c *client) invalid() { c.s.count(func(st *Stats) { st.Invalid++ }) }

// metadata answers 66/WAKU2-METADATA. A peer of another cluster is left to leave.
func (c *client) metadata(_ *link, s *stream) {
	b, ok := c.request(s, maxEnvelope)
	if !ok || !c.allow(&c.requests) {
		return
	}
	if _, err := parseMetadata(b); err != nil {
		c.invalid()
		return
	}
	n := c.s.cfg.Network
	s.reply((&metadata{cluster: uint64(n.Cluster), hasCluster: true, shards: n.shards()}).append(nil))
}

// filter answers 12/WAKU2-FILTER.
func (c *client) filter(_ *link, s *stream) {
	b, ok := c.request(s, maxEnvelope)
	if !ok {
		return
	}
	r, err := parseFilterRequest(b)
	answer := response{status: statusBad, desc: "cannot be read"}
	switch {
	case err != nil:
		c.invalid()
	case !c.allow(&c.requests):
		answer.status, answer.desc = statusTooMany, "too many requests"
	default:
		answer.status, answer.desc = c.s.subscribe(c, r)
	}
	answer.id = r.id
	s.reply(answer.append(nil))
}

// subscribe changes a client's subscriptions and returns the answer.
func (s *Service) subscribe(c *client, r *filterRequest) (status uint64, desc string) {
	if r.kind == filterSubscribe || r.kind == filterUnsubscribe {
		if r.pubsub == "" || len(r.topics) == 0 {
			return statusBad, "a pubsub topic and content topics are needed"
		}
		for _, t := range r.topics {
			if t == "" {
				return statusBad, "empty content topic"
			}
			if want, err := s.cfg.Network.pubsub(t); err != nil || want != r.pubsub {
				return statusUnsupported, "not a shard of this network for that content topic"
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch r.kind {
	case filterPing:
		if len(c.topics) == 0 {
			return statusNotFound, "no subscriptions"
		}
	case filterSubscribe:
		return s.add(c, r)
	case filterUnsubscribe:
		for _, t := range r.topics {
			s.drop(c, subscription{r.pubsub, t})
		}
	case filterUnsubscribeAll:
		for sub := range c.topics {
			s.drop(c, sub)
		}
	default:
		return statusBad, "unknown kind of request"
	}
	return statusOK, ""
}

// add subscribes a client. The lock is held.
func (s *Service) add(c *client, r *filterRequest) (status uint64, desc string) {
	fresh := 0
	for _, t := range r.topics {
		if _, ok := c.topics[subscription{r.pubsub, t}]; !ok {
			fresh++
		}
	}
	if c.gone || !c.trusted && len(c.topics)+fresh > s.cfg.Subscriptions || s.total+fresh > allSubscriptions {
		s.stats.Refused++
		return statusUnavailable, "too many subscriptions"
	}
	for _, t := range r.topics {
		sub := subscription{r.pubsub, t}
		if _, ok := c.topics[sub]; ok {
			continue
		}
		c.topics[sub] = struct{}{}
		s.total++
		if s.subs[sub] == nil {
			s.subs[sub] = make(map[*client]struct{})
			if s.wanted[t]++; s.wanted[t] == 1 {
				s.announce(t)
			}
		}
		s.subs[sub][c] = struct{}{}
	}
	return statusOK, ""
}

// drop ends a subscription. The lock is held.
func (s *Service) drop(c *client, sub subscription) {
	if _, ok := c.topics[sub]; !ok {
		return
	}
	delete(c.topics, sub)
	s.total--
	delete(s.subs[sub], c)
	if len(s.subs[sub]) > 0 {
		return
	}
	delete(s.subs, sub)
	if s.wanted[sub.topic]--; s.wanted[sub.topic] == 0 {
		delete(s.wanted, sub.topic)
		s.announce(sub.topic)
	}
}

// announce tells the peers that a topic is wanted here now, or no longer.
func (s *Service) announce(topic string) {
	for _, u := range s.peers {
		u.changedTopic(topic)
	}
}

func (c *client) unsubscribeAll() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.gone = true
	for sub := range c.topics {
		c.s.drop(c, sub)
	}
}

// push3 answers version 3 of lightpush, push2 19/WAKU2-LIGHTPUSH.
func (c *client) push3(_ *link, s *stream) { c.push(s, parsePush3, appendPushResponse3) }
func (c *client) push2(_ *link, s *stream) { c.push(s, parsePush2, appendPushResponse2) }

func (c *client) push(s *stream, parse func([]byte) (*pushRequest, error), encode func([]byte, *response) []byte) {
	b, ok := c.request(s, maxEnvelope)
	if !ok {
		return
	}
	r, err := parse(b)
	answer := &response{}
	switch {
	case err != nil:
		answer.status, answer.desc = statusBad, "cannot be read"
		c.invalid()
	case len(r.msg) > maxMessage:
		answer.status, answer.desc = statusTooLarge, "a message has at most 150 KiB"
		c.s.count(func(st *Stats) { st.Refused++ })
	case !c.allow(&c.messages):
		answer.status, answer.desc = statusTooMany, "too many messages"
	default:
		answer = c.s.take(r, c.link.peer().String())
	}
	answer.id = r.id
	s.reply(encode(nil, answer))
}

// query answers 13/WAKU2-STORE.
func (c *client) query(_ *link, s *stream) {
	b, ok := c.request(s, maxEnvelope)
	if !ok {
		return
	}
	r, err := parseStoreRequest(b)
	answer := storeResponse{response: response{id: r.id, status: statusBad, desc: "cannot be read"}}
	switch {
	case err != nil:
		c.invalid()
	case !c.allow(&c.queries):
		answer.status, answer.desc = statusTooMany, "too many requests"
	default:
		s.reply(c.s.store.query(time.Now(), r))
		return
	}
	s.reply(answer.append(nil))
}

// deliver pushes what waits to the client, until the connection ends. A stream is
// open until the client has read it; a client that reads nothing is let go.
func (c *client) deliver(ctx context.Context) {
	slots := make(chan struct{}, pushesUnderWay)
	var under sync.WaitGroup
	defer under.Wait()
	for {
		var msg []byte
		select {
		case <-ctx.Done():
			return
		case msg = <-c.queue:
		}
		c.queued.Add(-int64(len(msg)))
		select {
		case <-ctx.Done():
			return
		case slots <- struct{}{}:
		}
		st, err := c.link.open(ctx, protoFilter, msg)
		if err == nil {
			err = st.CloseWrite()
		}
		if err != nil {
			<-slots
			c.pushed(err)
			continue
		}
		under.Go(func() {
			defer func() { <-slots }()
			c.pushed(c.confirm(st))
		})
	}
}

// offer queues a message for the client; it reports false if too much waits.
func (c *client) offer(msg []byte) bool {
	size := int64(len(msg))
	if c.queued.Add(size) <= clientQueueSize || size == c.queued.Load() {
		select {
		case c.queue <- msg:
			return true
		default:
		}
	}
	c.queued.Add(-size)
	return false
}

// confirm waits until the client has taken a stream.
func (c *client) confirm(st network.MuxedStream) error {
	defer st.Close()
	_, err := readAnswer(bufio.NewReader(st), protoFilter, 0)
	if errors.Is(err, io.EOF) { // as it should be: there is no answer but the protocol's
		return nil
	}
	return err
}

// pushed counts a push, and ends a connection that takes none.
func (c *client) pushed(err error) {
	if err == nil {
		c.failed.Store(0)
		c.s.count(func(st *Stats) { st.Pushed++ })
		return
	}
	c.s.count(func(st *Stats) { st.Dropped++ })
	if n := c.failed.Add(1); n >= failedPushes || errors.Is(err, os.ErrDeadlineExceeded) {
		c.link.close()
	}
}
