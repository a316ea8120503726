package waku

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kithproject/kith/rendezvous"
)

// A change makes a node a bad one: it returns other handlers for one connection.
type change func(c *client, good map[string]handler) map[string]handler

// startBad runs a node that serves each connection with handlers that change
// makes. It returns its address and how many connections it has had.
func startBad(t testing.TB, s *Service, change change) (string, *atomic.Int64) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var connections atomic.Int64
	if !s.track(ln) || !s.start(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			connections.Add(1)
			if !s.start(func() {
				up, err := s.h.accept(s.ctx, conn)
				if err != nil {
					conn.Close()
					return
				}
				c := s.newClient()
				s.serveClient(c, up, change(c, c.handlers()))
			}) {
				conn.Close()
			}
		}
	}) {
		t.Fatal("the node is closed")
	}
	return s.Multiaddr("127.0.0.1", addrPort(ln.Addr()).Port(), ""), &connections
}

// hang answers nothing until the connection ends.
func hang(l *link, _ *stream) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !l.conn.IsClosed() {
		<-tick.C
	}
}

// exchange has two sessions send each other some frames, each until it arrives.
func exchange(t testing.TB, a, b rendezvous.Session, frames int) time.Duration {
	t.Helper()
	start := time.Now()
	for i := range frames {
		untilArrives(t, a, b, frameOf(byte(2*i+1)))
		untilArrives(t, b, a, frameOf(byte(2*i+2)))
	}
	return time.Since(start)
}

func pairOf(t testing.TB, nodes ...string) (a, b rendezvous.Session) {
	t.Helper()
	var topic rendezvous.Topic
	rand.Read(topic[:])
	return join(t, open(t, fastConfig(nodes...)), rendezvous.Point{Topic: topic}), join(t, open(t, fastConfig(nodes...)), rendezvous.Point{Topic: topic})
}

// TestNodeThatDisconnects uses a node that ends the connection after every message
// that it takes.
func TestNodeThatDisconnects(t *testing.T) {
	s, _ := startService(t, ServiceConfig{})
	bad, connections := startBad(t, s, func(_ *client, good map[string]handler) map[string]handler {
		for _, name := range []string{protoPush2, protoPush3} {
			push := good[name]
			good[name] = func(l *link, s *stream) {
				push(l, s)
				l.close()
			}
		}
		return good
	})
	a, b := pairOf(t, bad)
	took := exchange(t, a, b, 5)
	t.Logf("10 frames in %v with %d connections", took, connections.Load())
	if connections.Load() < 10 {
		t.Errorf("only %d connections: the node does not do what it should", connections.Load())
	}
}

// TestNodeThatHangs holds that a node that answers nothing does not keep others
// from working.
func TestNodeThatHangs(t *testing.T) {
	for _, what := range []string{protoMetadata, protoSubscribe, protoPush3, protoStore} {
		t.Run(strings.Trim(strings.ReplaceAll(what, "/", " "), " "), func(t *testing.T) {
			s, good := startService(t, ServiceConfig{})
			bad, _ := startBad(t, s, func(_ *client, h map[string]handler) map[string]handler {
				h[what] = hang
				return h
			})
			a, b := pairOf(t, bad, good)
			if took := exchange(t, a, b, 3); took > 5*time.Second {
				t.Errorf("6 frames took %v", took)
			}
		})
	}
}

// TestNodeThatIsSilent holds that a port that takes connections and says nothing
// gives an error, and no more.
func TestNodeThatIsSilent(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	e := open(t, fastConfig("/ip4/127.0.0.1/tcp/"+portOf(ln)))
	awaitError(t, e, "does not answer in time")
}

func portOf(ln net.Listener) string {
	_, port, _ := strings.Cut(ln.Addr().String(), ":")
	return port
}

// awaitError waits until Health tells an error with these words.
func awaitError(t testing.TB, e *Exchange, words string) rendezvous.Health {
	t.Helper()
	await(t, "health says "+words, func() bool {
		h := e.Health()
		return h.Err != nil && strings.Contains(h.Err.Error(), words)
	})
	return e.Health()
}

func TestOtherCluster(t *testing.T) {
	_, node := startService(t, ServiceConfig{Network: Network{Cluster: 1, Shards: 8}})
	e := open(t, fastConfig(node))
	h := awaitError(t, e, "of cluster 1, not of 19305")
	if h.Ready || !errors.Is(h.Err, ErrCluster) {
		t.Errorf("health: %+v", h)
	}
	if err := join(t, e, rendezvous.Point{}).Publish(t.Context(), frameOf(1)); !errors.Is(err, rendezvous.ErrUnreachable) {
		t.Errorf("publish: %v, want ErrUnreachable", err)
	}
}

// TestWantsProof holds that a network with RLN is told from one that is down, with
// both versions of lightpush.
func TestWantsProof(t *testing.T) {
	answers := map[string]change{
		"version 3": func(_ *client, h map[string]handler) map[string]handler {
			h[protoPush3] = func(_ *link, s *stream) {
				s.reply((&response{status: statusNoProof, desc: "out of proofs"}).append(nil))
			}
			return h
		},
		"version 2": func(_ *client, h map[string]handler) map[string]handler {
			delete(h, protoPush3)
			h[protoPush2] = func(_ *link, s *stream) {
				s.reply(appendPushResponse2(nil, &response{status: statusBad, desc: "failed to validate RLN proof of the message"}))
			}
			return h
		},
	}
	for name, change := range answers {
		t.Run(name, func(t *testing.T) {
			s, _ := startService(t, ServiceConfig{})
			bad, _ := startBad(t, s, change)
			e := open(t, fastConfig(bad))
			session := join(t, e, rendezvous.Point{})
			publish(t.Context(), t, session, frameOf(1))
			if h := awaitError(t, e, "this Waku network asks for RLN proofs"); !errors.Is(h.Err, ErrProof) || h.Ready {
				t.Errorf("health: %+v", h)
			}
		})
	}
}

// TestOldLightpush uses a node that only has version 2, and no metadata and no
// store.
func TestOldLightpush(t *testing.T) {
	s, _ := startService(t, ServiceConfig{})
	old, _ := startBad(t, s, func(_ *client, h map[string]handler) map[string]handler {
		delete(h, protoPush3)
		delete(h, protoMetadata)
		delete(h, protoStore)
		return h
	})
	a, b := pairOf(t, old)
	exchange(t, a, b, 3)
}

// TestUnwantedMessages has a node push what nobody asked for: other content
// topics, another shard, payloads of other sizes, 150 KiB, more than that, and no
// messages at all. Only the frame comes through.
func TestUnwantedMessages(t *testing.T) {
	topic := rendezvous.Topic{5}
	name := contentTopic(topic)
	const pubsub = "/waku/2/rs/19305/0"
	push := func(pubsub, topic string, payload []byte) []byte {
		return appendFilterPush(nil, pubsub, &message{payload: payload, contentTopic: topic})
	}
	junk := [][]byte{
		push(pubsub, "/other/1/x/proto", frameOf(1)), push("/waku/2/rs/1/0", name, frameOf(2)), push(pubsub, name, nil),
		push(pubsub, name, frameOf(3)[1:]), push(pubsub, name, make([]byte, maxMessage-200)), push(pubsub, name, make([]byte, maxMessage+1)),
		push(pubsub, name, make([]byte, 4<<20)), {}, {0xff, 0xff}, push(pubsub, contentTopic(rendezvous.Topic{6}), frameOf(4)),
	}
	s, _ := startService(t, ServiceConfig{})
	bad, _ := startBad(t, s, func(c *client, h map[string]handler) map[string]handler {
		filter := h[protoSubscribe]
		h[protoSubscribe] = func(l *link, s *stream) {
			filter(l, s)
			for _, j := range junk { // one stream each; some are reset
				_ = l.push(c.s.ctx, protoFilter, j)
			}
			_ = l.push(c.s.ctx, protoFilter, push(pubsub, name, frameOf(9)))
		}
		return h
	})
	e := open(t, fastConfig(bad))
	session := join(t, e, rendezvous.Point{Topic: topic})
	m, err := session.Receive(t.Context())
	if err != nil || m.Frame[0] != 9 {
		t.Fatalf("received %x, %v, want the frame alone", m.Frame[:min(len(m.Frame), 4)], err)
	}
}

// TestForgottenSubscriptions has the node forget what was subscribed; Check finds
// that.
func TestForgottenSubscriptions(t *testing.T) {
	s, _ := startService(t, ServiceConfig{})
	clients := make(chan *client, 10)
	node, connections := startBad(t, s, func(c *client, h map[string]handler) map[string]handler {
		clients <- c
		return h
	})
	topic := rendezvous.Topic{1}
	e := open(t, fastConfig(node))
	session := join(t, e, rendezvous.Point{Topic: topic})
	awaitStats(t, s, func(st Stats) bool { return st.Subscriptions == 1 })
	awaitReady(t, e) // it has heard so
	c := <-clients
	s.mu.Lock()
	for sub := range c.topics {
		s.drop(c, sub)
	}
	s.mu.Unlock()
	e.Check()
	awaitStats(t, s, func(st Stats) bool { return st.Subscriptions == 1 })
	other := join(t, open(t, fastConfig(node)), rendezvous.Point{Topic: topic, Mode: rendezvous.SendOnly})
	untilArrives(t, other, session, frameOf(1))
	if n := connections.Load(); n != 2 {
		t.Errorf("%d connections, want 2: the subscription was to be mended in the same one", n)
	}
}

// TestCatchUp holds that store brings what came before the session and what came
// while the connection was gone, also from senders whose clocks are days off.
func TestCatchUp(t *testing.T) {
	s, _ := startService(t, ServiceConfig{})
	clients := make(chan *client, 10)
	node, _ := startBad(t, s, func(c *client, h map[string]handler) map[string]handler {
		clients <- c
		return h
	})
	topic := rendezvous.Topic{1}
	put := func(fill byte, off time.Duration) {
		m := &message{payload: frameOf(fill), contentTopic: contentTopic(topic), hasTime: true, timestamp: time.Now().Add(off).UnixNano()}
		if got := s.take(&pushRequest{msg: m.append(nil)}, "somebody"); !got.ok() {
			t.Errorf("not taken: %+v", got)
		}
	}
	put(1, -48*time.Hour)
	put(2, 48*time.Hour)
	e := open(t, fastConfig(node))
	session := join(t, e, rendezvous.Point{Topic: topic})
	receive := func(want ...byte) {
		t.Helper()
		var got []byte
		for range want {
			m, err := session.Receive(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if !m.Stored {
				t.Errorf("frame %d is said to come from somebody who is there", m.Frame[0])
			}
			got = append(got, m.Frame[0])
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("received %v, want %v", got, want)
		}
	}
	receive(1, 2)
	c := <-clients
	s.mu.Lock() // while it is held nobody subscribes
	s.subs = make(map[subscription]map[*client]struct{})
	s.mu.Unlock()
	put(3, 0) // to nobody
	put(4, -48*time.Hour)
	c.link.close()
	receive(3, 4) // and not 1 and 2 again
}

// TestGarbage floods the topic with 100,000 messages of random bytes while two
// devices exchange frames on it.
func TestGarbage(t *testing.T) {
	const garbage = 100_000
	s, node := startService(t, ServiceConfig{})
	topic := rendezvous.Topic{7}
	a, b := open(t, fastConfig(node)), open(t, fastConfig(node))
	sa, sb := join(t, a, rendezvous.Point{Topic: topic}), join(t, b, rendezvous.Point{Topic: topic})
	exchange(t, sa, sb, 1)
	quiet := exchange(t, sa, sb, 4)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	sent := make(chan int, 1)
	go func() {
		n := 0
		defer func() { sent <- n }()
		m := &message{payload: make([]byte, rendezvous.FrameSize), contentTopic: contentTopic(topic), hasTime: true}
		for ; n < garbage && ctx.Err() == nil; n++ {
			rand.Read(m.payload)
			m.timestamp++
			s.spread("/waku/2/rs/19305/0", m, "", true)
		}
	}()
	loud := exchange(t, sa, sb, 4)
	select {
	case n := <-sent:
		t.Logf("%d garbage messages; 8 frames in %v, without them %v", n, loud, quiet)
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}
	exchange(t, sa, sb, 1)
	if messages, size := s.store.usage(time.Now()); messages > perTopic || size > defaultStoreBytes {
		t.Errorf("%d messages are stored, %d bytes", messages, size)
	}
}

// TestGarbageFromClient holds that the rate of one client is limited.
func TestGarbageFromClient(t *testing.T) {
	s, node := startService(t, ServiceConfig{Rate: 10})
	e := open(t, fastConfig(node))
	awaitReady(t, e)
	u := e.nodes[0]
	l, err := u.state()
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for i := range 100 {
		m := &message{payload: []byte{byte(i)}, contentTopic: "/x/1/y/proto"}
		if err := u.send(t.Context(), l, "", m.append(nil)); errors.Is(err, errRefused) {
			refused++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if st := s.Stats(); refused < 40 || st.Received > 60 || st.Refused != uint64(refused) {
		t.Errorf("%d of 100 refused: %+v", refused, st)
	}
}

// TestCheckFindsDeadNode has a node stop answering without closing anything; Check
// finds that long before the next ping.
func TestCheckFindsDeadNode(t *testing.T) {
	s, _ := startService(t, ServiceConfig{})
	var dead atomic.Bool
	node, connections := startBad(t, s, func(_ *client, h map[string]handler) map[string]handler {
		filter := h[protoSubscribe]
		h[protoSubscribe] = func(l *link, s *stream) {
			if dead.Load() {
				hang(l, s)
				return
			}
			filter(l, s)
		}
		return h
	})
	e := open(t, fastConfig(node))
	session := join(t, e, rendezvous.Point{})
	untilArrives(t, join(t, open(t, fastConfig(node)), rendezvous.Point{}), session, frameOf(1))
	had := connections.Load()
	dead.Store(true)
	start := time.Now()
	e.Check()
	await(t, "the connection is dropped and another opened", func() bool { return connections.Load() > had })
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("Check took %v", took)
	}
	dead.Store(false)
	untilArrives(t, join(t, open(t, fastConfig(node)), rendezvous.Point{}), session, frameOf(2))
}
