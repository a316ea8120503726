package waku

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

func TestSuiteWebSocket(t *testing.T) {
	s, _ := startService(t, ServiceConfig{})
	listen, err := s.ListenWebSocket("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	node := s.Multiaddr("127.0.0.1", listen.Port(), "ws")
	rendezvoustest.Run(t, func(t *testing.T) (a, b rendezvous.Exchange) {
		return open(t, fastConfig(node)), open(t, fastConfig(node))
	})
}

// TestServeConn gives a node the connections of an HTTP server's WebSockets over
// TLS, as one that shares its port with other services does.
func TestServeConn(t *testing.T) {
	s, _ := startService(t, ServiceConfig{})
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		_ = s.ServeConn(&namedConn{websocket.NetConn(context.Background(), ws, websocket.MessageBinary), r.RemoteAddr})
	}))
	defer server.Close()
	defer s.Close() // first: the server waits for its handlers
	cfg := fastConfig(s.Multiaddr("127.0.0.1", addrPort(server.Listener.Addr()).Port(), "wss"))
	cfg.TLS = server.Client().Transport.(*http.Transport).TLSClientConfig
	a, b := open(t, cfg), open(t, cfg)
	exchange(t, join(t, a, rendezvous.Point{}), join(t, b, rendezvous.Point{}), 2)
	if len(s.addresses) != 1 {
		t.Errorf("addresses %v, want one", s.addresses)
	}
	untrusted := cfg
	untrusted.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	awaitError(t, open(t, untrusted), "certificate")
	a.Close()
	b.Close()
}

// A namedConn is a connection whose remote address is known as text.
type namedConn struct {
	net.Conn
	remote string
}

func (c *namedConn) RemoteAddr() net.Addr { return text1(c.remote) }

type text1 string

func (a text1) Network() string { return "tcp" }
func (a text1) String() string  { return string(a) }

// TestSuiteChain runs the suite over two nodes of which one knows the other.
func TestSuiteChain(t *testing.T) {
	_, first := startService(t, ServiceConfig{})
	second, node := startService(t, ServiceConfig{Seed: [32]byte{2}, Peers: []string{first}})
	awaitStats(t, second, func(st Stats) bool { return st.Peers == 1 })
	rendezvoustest.Run(t, func(t *testing.T) (a, b rendezvous.Exchange) {
		return open(t, fastConfig(first)), open(t, fastConfig(node))
	})
}

// TestTriangle has three nodes that all know each other: each message is new once
// at each, and a device that comes late finds it at the farthest.
func TestTriangle(t *testing.T) {
	listeners := make([]net.Listener, 3)
	seeds := [][32]byte{{1}, {2}, {3}}
	addresses := make([]string, 3)
	for i := range listeners {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		h, err := newHost(seeds[i][:], nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		listeners[i] = ln
		addresses[i] = fmt.Sprintf("/ip4/127.0.0.1/tcp/%s/p2p/%s", portOf(ln), h.id)
	}
	nodes := make([]*Service, 3)
	for i := range nodes {
		var err error
		if nodes[i], err = NewService(ServiceConfig{Seed: seeds[i], Peers: addresses}); err != nil {
			t.Fatal(err)
		}
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = nodes[i].Serve(listeners[i])
		}()
		t.Cleanup(func() {
			nodes[i].Close()
			<-served
		})
	}
	for _, s := range nodes {
		awaitStats(t, s, func(st Stats) bool { return st.Peers == 2 })
		if err := s.PeerErrors(); err != nil {
			t.Errorf("peers: %v", err)
		}
	}
	topic := rendezvous.Topic{1}
	from := join(t, open(t, fastConfig(addresses[0])), rendezvous.Point{Topic: topic, Mode: rendezvous.SendOnly})
	to := join(t, open(t, fastConfig(addresses[1])), rendezvous.Point{Topic: topic})
	awaitStats(t, nodes[1], func(st Stats) bool { return st.Subscriptions >= 1 })
	publish(t.Context(), t, from, frameOf(1))
	awaitFrame(t.Context(), t, to, frameOf(1))
	for _, s := range nodes {
		awaitStats(t, s, func(st Stats) bool { return st.Received == 1 && st.Stored == 1 })
	}
	late := join(t, open(t, fastConfig(addresses[2])), rendezvous.Point{Topic: topic})
	awaitFrame(t.Context(), t, late, frameOf(1))
}

// TestCatchUpAcross holds that a device gets from its node what another node has
// kept, from before the two nodes knew each other.
func TestCatchUpAcross(t *testing.T) {
	_, first := startService(t, ServiceConfig{})
	topic := rendezvous.Topic{1}
	a := join(t, open(t, fastConfig(first)), rendezvous.Point{Topic: topic})
	b := join(t, open(t, fastConfig(first)), rendezvous.Point{Topic: topic})
	untilArrives(t, a, b, frameOf(1))
	_, second := startService(t, ServiceConfig{Seed: [32]byte{2}, Peers: []string{first}})
	late := join(t, open(t, fastConfig(second)), rendezvous.Point{Topic: topic})
	awaitFrame(t.Context(), t, late, frameOf(1))
}

// TestSeveralNodes holds that two devices meet over the one node that they share.
func TestSeveralNodes(t *testing.T) {
	_, mine := startService(t, ServiceConfig{Seed: [32]byte{1}})
	_, ours := startService(t, ServiceConfig{Seed: [32]byte{2}})
	_, theirs := startService(t, ServiceConfig{Seed: [32]byte{3}})
	a := join(t, open(t, fastConfig(mine, ours)), rendezvous.Point{})
	b := join(t, open(t, fastConfig("/ip4/127.0.0.1/tcp/1", theirs, ours)), rendezvous.Point{})
	exchange(t, a, b, 2)
}

// TestRestart kills a node and starts another at its address, with another
// identity: clients that do not insist on the first come back.
func TestRestart(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	start := func(seed byte, ln net.Listener) (*Service, func()) {
		s, err := NewService(ServiceConfig{Seed: [32]byte{seed}})
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = s.Serve(ln)
		}()
		return s, func() {
			s.Close()
			<-served
		}
	}
	first, stop := start(1, ln)
	node := "/ip4/127.0.0.1/tcp/" + portOf(ln)
	again := make(chan struct{}, 10)
	cfg := fastConfig(node)
	cfg.Again = func() { again <- struct{}{} }
	a, b := open(t, cfg), open(t, fastConfig(node))
	strict := open(t, fastConfig(node+"/p2p/"+first.ID()))
	sa, sb := join(t, a, rendezvous.Point{}), join(t, b, rendezvous.Point{})
	exchange(t, sa, sb, 1)
	awaitReady(t, strict)
	stop()
	if ln, err = net.Listen("tcp", address); err != nil {
		t.Fatal(err)
	}
	_, stop = start(2, ln)
	defer stop()
	exchange(t, sa, sb, 1)
	select {
	case <-again:
	case <-t.Context().Done():
		t.Error("nobody was told that the node is there again")
	}
	awaitError(t, strict, "peer id mismatch")
}

func TestLimits(t *testing.T) {
	s, node := startService(t, ServiceConfig{PerAddress: 2, Subscriptions: 3})
	e, other := open(t, fastConfig(node)), open(t, fastConfig(node))
	awaitReady(t, e, other)
	third := open(t, fastConfig(node))
	awaitStats(t, s, func(st Stats) bool { return st.Refused > 0 && st.Clients == 2 })
	if third.Health().Ready {
		t.Error("a third connection from one address was served")
	}
	l, err := e.nodes[0].state()
	if err != nil {
		t.Fatal(err)
	}
	ask := func(name string, msg []byte, parse func([]byte) (*response, error)) *response {
		t.Helper()
		b, err := l.request(t.Context(), name, msg, maxEnvelope)
		if err != nil {
			t.Fatal(err)
		}
		r, err := parse(b)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	const shard = "/waku/2/rs/19305/0"
	topics := []string{"/a/1/1/x", "/a/1/2/x", "/a/1/3/x", "/a/1/4/x"}
	large := (&message{payload: make([]byte, maxMessage), contentTopic: "/a/1/b/c"}).append(nil)
	for name, c := range map[string]struct {
		proto string
		msg   []byte
		want  uint64
	}{
		"too many topics":      {protoSubscribe, (&filterRequest{kind: filterSubscribe, pubsub: shard, topics: topics}).append(nil), statusUnavailable},
		"another shard":        {protoSubscribe, (&filterRequest{kind: filterSubscribe, pubsub: "/waku/2/rs/19305/1", topics: topics[:1]}).append(nil), statusUnsupported},
		"no pubsub topic":      {protoSubscribe, (&filterRequest{kind: filterSubscribe, topics: topics[:1]}).append(nil), statusBad},
		"no content topic":     {protoSubscribe, (&filterRequest{kind: filterUnsubscribe, pubsub: shard}).append(nil), statusBad},
		"an unknown kind":      {protoSubscribe, (&filterRequest{kind: 9}).append(nil), statusBad},
		"nothing subscribed":   {protoSubscribe, []byte{}, statusNotFound},
		"unsubscribed from it": {protoSubscribe, (&filterRequest{kind: filterUnsubscribeAll}).append(nil), statusOK},
		"not protobuf":         {protoSubscribe, []byte{0xff}, statusBad},
		"too large":            {protoPush3, (&pushRequest{pubsub: shard, msg: large}).append3(nil), statusTooLarge},
		"no message":           {protoPush3, []byte{}, statusBad},
		"pushed to elsewhere":  {protoPush3, (&pushRequest{pubsub: "/waku/2/rs/1/0", msg: (&message{contentTopic: "/a/1/b/c"}).append(nil)}).append3(nil), statusUnsupported},
		"a good one":           {protoPush3, (&pushRequest{msg: (&message{contentTopic: "/a/1/b/c"}).append(nil)}).append3(nil), statusOK},
		"half a filter":        {protoStore, (&storeRequest{pubsub: shard}).append(nil), statusBad},
		"no such cursor":       {protoStore, (&storeRequest{cursor: make([]byte, 32)}).append(nil), statusBad},
	} {
		if r := ask(c.proto, c.msg, parseResponse); r.status != c.want {
			t.Errorf("%s: status %d %q, want %d", name, r.status, r.desc, c.want)
		}
	}
	old := ask(protoPush2, (&pushRequest{id: "q", pubsub: shard, msg: large}).append2(nil), parsePushResponse2)
	if old.ok() || old.id != "q" || !strings.Contains(old.desc, "150 KiB") {
		t.Errorf("version 2: %+v", old)
	}
	if _, err := l.request(t.Context(), protoPush3, make([]byte, 4<<20), maxEnvelope); err == nil {
		t.Error("4 MiB were taken")
	}
	if _, err := l.request(t.Context(), "/vac/waku/relay/2.0.0", []byte{}, maxEnvelope); !errors.Is(err, errNotSupported) {
		t.Errorf("relay: %v, want errNotSupported", err)
	}
	if st := s.Stats(); st.Stored != 1 || st.Received != 1 {
		t.Errorf("stats: %+v", st)
	}
}

// TestMemory holds that the streams of all clients share what there is.
func TestMemory(t *testing.T) {
	b := &budget{most: 3 * windowSize}
	sc := &scope{budget: b}
	var spans []interface{ Done() }
	for range 3 {
		sp, _ := sc.BeginSpan()
		if err := sp.ReserveMemory(windowSize, 0); err != nil {
			t.Fatal(err)
		}
		spans = append(spans, sp)
	}
	sp, _ := sc.BeginSpan()
	if err := sp.ReserveMemory(1, 0); !errors.Is(err, errNoMemory) {
		t.Errorf("more than there is: %v", err)
	}
	for _, s := range spans {
		s.Done()
		s.Done() // the second gives nothing back
	}
	if n := b.used.Load(); n != 0 {
		t.Errorf("%d bytes are still in use", n)
	}
	s, node := startService(t, ServiceConfig{})
	pair, other := pairOf(t, node)
	exchange(t, pair, other, 3)
	pair.Close()
	other.Close()
	await(t, "the streams are gone", func() bool { return s.h.memory.used.Load() == 0 })
}

// TestPreface holds what a client says first.
func TestPreface(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	open(t, fastConfig("/ip4/127.0.0.1/tcp/"+portOf(ln)))
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b := make([]byte, len(Preface))
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != Preface {
		t.Errorf("%q, %v", b, err)
	}
}

// TestServiceClose holds that a closed node serves nothing.
func TestServiceClose(t *testing.T) {
	s, err := NewService(ServiceConfig{Seed: [32]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%v %+v %#v", s.cfg, s.cfg, s.cfg); strings.Contains(got, "[1 0 0") || !strings.Contains(got, "redacted") {
		t.Errorf("the seed is shown: %s", got)
	}
	s.Close()
	s.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(ln); !errors.Is(err, net.ErrClosed) {
		t.Errorf("serve: %v", err)
	}
	if _, err := s.ListenWebSocket("127.0.0.1:0"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("listen: %v", err)
	}
	one, two := net.Pipe()
	defer two.Close()
	if err := s.ServeConn(one); !errors.Is(err, net.ErrClosed) {
		t.Errorf("serve a connection: %v", err)
	}
	if _, err := NewService(ServiceConfig{}); !errors.Is(err, ErrConfig) {
		t.Errorf("no seed: %v", err)
	}
}

func TestStoreOrderAndPages(t *testing.T) {
	now := time.Unix(1000, 0)
	s := newStore(1<<20, time.Hour)
	for i, at := range []int64{5, 3, 9, 1, 7} {
		s.add(now, &entry{hash: hash{byte(i)}, pubsub: "p", topic: fmt.Sprintf("t%d", i%2), timestamp: at, msg: (&message{contentTopic: "t", payload: []byte{byte(at)}}).append(nil)})
	}
	read := func(r storeRequest) (times []byte, cursor []byte) {
		t.Helper()
		r.includeData = true
		got, err := parseStoreResponse(s.query(now, &r))
		if err != nil || !got.ok() {
			t.Fatalf("%+v: %v", got, err)
		}
		for _, item := range got.items {
			times = append(times, item.msg.payload[0])
		}
		return times, got.cursor
	}
	for name, c := range map[string]struct {
		r    storeRequest
		want string
	}{
		"all":                {storeRequest{}, "13579"},
		"newest first":       {storeRequest{limit: 2}, "79|35|1"},
		"oldest first":       {storeRequest{limit: 2, forward: true}, "13|57|9"},
		"one topic":          {storeRequest{pubsub: "p", topics: []string{"t1"}}, "13"},
		"two topics":         {storeRequest{pubsub: "p", topics: []string{"t1", "t0", "t0"}, limit: 3, forward: true}, "135|79"},
		"another shard":      {storeRequest{pubsub: "q", topics: []string{"t1"}}, ""},
		"from inclusive":     {storeRequest{start: 5, hasStart: true}, "579"},
		"until exclusive":    {storeRequest{end: 5, hasEnd: true}, "13"},
		"in the window":      {storeRequest{start: 3, hasStart: true, end: 9, hasEnd: true, limit: 2}, "57|3"},
		"by hash":            {storeRequest{hashes: []hash{{2}, {3}, {2}, {99}}}, "19"},
		"an exact page":      {storeRequest{limit: 5}, "13579"},
		"more than there is": {storeRequest{limit: 1 << 60}, "13579"},
	} {
		var pages []string
		for {
			times, cursor := read(c.r)
			for i := range times {
				times[i] += '0'
			}
			pages = append(pages, string(times))
			if c.r.cursor = cursor; cursor == nil {
				break
			}
		}
		if got := strings.Join(pages, "|"); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// TestStoreForgets holds the bounds: by age, by bytes, and by content topic.
func TestStoreForgets(t *testing.T) {
	now := time.Unix(1000, 0)
	add := func(s *store, n int, topic string, size int) {
		for i := range n {
			s.add(now, &entry{hash: hash{byte(i), byte(i >> 8), topic[0]}, topic: topic, timestamp: int64(-i), msg: make([]byte, size)})
			now = now.Add(time.Millisecond)
		}
	}
	s := newStore(1<<20, time.Hour)
	add(s, 10*perTopic, "a", 10)
	add(s, 1, "b", 10)
	if n, _ := s.usage(now); n != perTopic+1 || len(s.queue) > 4*perTopic {
		t.Errorf("%d messages, %d queued", n, len(s.queue))
	}
	for _, e := range s.byTopic["a"] {
		if -e.timestamp < 9*perTopic {
			t.Fatalf("message %d is still there: the oldest go first", -e.timestamp)
		}
	}
	now = now.Add(time.Hour + time.Second)
	if n, size := s.usage(now); n != 0 || size != 0 || len(s.all)+len(s.byTopic) > 0 {
		t.Errorf("after its time: %d messages, %d bytes", n, size)
	}
	small := newStore(100_000, time.Hour)
	add(small, 200, "c", 1000)
	if n, size := small.usage(now); size > 100_000 || n != 100_000/(1000+entryOverhead) {
		t.Errorf("%d messages, %d bytes", n, size)
	}
	if small.add(now, small.all[0]) {
		t.Error("the same message was new twice")
	}
	add(small, 1, "d", 200_000)
	if n, _ := small.usage(now); n == 0 || len(small.byTopic["d"]) > 0 {
		t.Error("a message that is too large for the store has emptied it")
	}
}

// TestSlowSubscriber holds that a client that takes nothing delays no other, and
// loses only its own.
func TestSlowSubscriber(t *testing.T) {
	s, node := startService(t, ServiceConfig{})
	topic := rendezvous.Topic{1}
	h, err := newHost(nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	a, err := parseAddress(node)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := h.dial(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	slow := newLink(h, conn, map[string]handler{protoFilter: hang}, clientStreams)
	served := make(chan struct{})
	go func() {
		defer close(served)
		slow.serve(t.Context())
	}()
	defer func() {
		slow.close()
		<-served
	}()
	sub := filterRequest{id: "q", kind: filterSubscribe, pubsub: "/waku/2/rs/19305/0", topics: []string{contentTopic(topic)}}
	if _, err := slow.request(t.Context(), protoSubscribe, sub.append(nil), maxEnvelope); err != nil {
		t.Fatal(err)
	}
	good := open(t, fastConfig(node))
	to := join(t, good, rendezvous.Point{Topic: topic})
	awaitStats(t, s, func(st Stats) bool { return st.Subscriptions == 2 })
	start := time.Now()
	for i := range 2 * clientQueue {
		m := &message{payload: frameOf(byte(i)), contentTopic: contentTopic(topic), hasTime: true, timestamp: int64(i)}
		s.spread("/waku/2/rs/19305/0", m, "", false)
		awaitFrame(t.Context(), t, to, frameOf(byte(i)))
	}
	if took := time.Since(start); took > operationLimit/2 {
		t.Errorf("%d frames took %v", 2*clientQueue, took)
	}
	awaitStats(t, s, func(st Stats) bool { return st.Dropped > 0 && st.Pushed == 2*clientQueue })
}

// TestRubbish sends what is no libp2p, and breaks connections off at each byte of
// the first ones of a good one.
func TestRubbish(t *testing.T) {
	s, node := startService(t, ServiceConfig{})
	a, err := parseAddress(node)
	if err != nil {
		t.Fatal(err)
	}
	good := append([]byte(Preface), multistream("/noise")[len(Preface):]...)
	for i := range 2 * len(good) {
		conn, err := net.Dial("tcp", a.host)
		if err != nil {
			t.Fatal(err)
		}
		b := append([]byte(nil), good[:min(i, len(good))]...)
		if i > len(good) {
			b[i-len(good)] ^= 0x80
		}
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	first, second := pairOf(t, node)
	exchange(t, first, second, 1)
	first.Close()
	awaitStats(t, s, func(st Stats) bool { return st.Clients == 2 })
}
