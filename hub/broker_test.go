package hub

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"
	"github.com/mochi-mqtt/server/v2/packets"
)

// TestLogin refuses other users, passwords, wills and older protocols.
func TestLogin(t *testing.T) {
	h := open(t, nil)
	for name, c := range map[string]struct {
		change func(*autopaho.ClientConfig)
		code   byte
	}{
		"no password":    {func(c *autopaho.ClientConfig) { c.ConnectUsername, c.ConnectPassword = "", nil }, 0x86},
		"wrong password": {func(c *autopaho.ClientConfig) { c.ConnectPassword = []byte("wrong") }, 0x86},
		"wrong user":     {func(c *autopaho.ClientConfig) { c.ConnectUsername = "admin" }, 0x86},
		"will": {func(c *autopaho.ClientConfig) {
			c.WillMessage = &paho.WillMessage{Topic: randomTopic(), Payload: []byte("x")}
		}, 0x83},
	} {
		t.Run(name, func(t *testing.T) {
			_, errs := startMQTT(t, h, "mqtt://"+h.hostPort(), c.change)
			select {
			case err := <-errs:
				var refused *autopaho.ConnackError
				if !errors.As(err, &refused) || refused.ReasonCode != c.code {
					t.Errorf("%v, want code %#x", err, c.code)
				}
			case <-time.After(testLimit):
				t.Fatal("no answer")
			}
		})
	}
	// MQTT 3.1.1, with the right password.
	body := "\x00\x04MQTT\x04\xc2\x00\x1e\x00\x01a\x00\x04kith\x00\x20" + h.Address().MQTTPassword()
	out, err := send(t, h, fmt.Sprintf("\x10%c%s", len(body), body))
	if err != nil || len(out) != 4 || out[3] == 0 {
		t.Errorf("MQTT 3.1.1: %x %v", out, err)
	}
	if metric(h, "kith_hub_clients") != 0 {
		t.Error("somebody is logged in")
	}
}

// TestTopics lets exactly kith's topics through.
func TestTopics(t *testing.T) {
	h := open(t, nil)
	c := dialMQTT(t, h, "mqtt://"+h.hostPort(), nil)
	good := randomTopic()
	for _, topic := range []string{
		"#", "+", "kith/#", "kith/1/#", "kith/1/+", "kith/1/", "$SYS/#", "$SYS/broker/version", "$share/a/" + good,
		good + "0", good[:len(good)-1], good + "/a", strings.ToUpper(good), "kith/2/" + good[7:], "other",
	} {
		if code := c.subscribe(t, topic)[0]; code < 0x80 {
			t.Errorf("%q was subscribed", topic)
		}
	}
	if code := c.subscribe(t, good)[0]; code != 0 {
		t.Fatalf("subscribe: %#x", code)
	}
	for _, topic := range []string{"other", "kith/1/x", "$SYS/broker/version", good + "0"} {
		c.publish(t, topic, []byte("foreign"))
	}
	c.publish(t, good, []byte("mine"))
	if got := c.receive(t); string(got.Payload) != "mine" {
		t.Errorf("%q came on %s", got.Payload, got.Topic)
	}
	await(t, "one message counted", func() bool { return metric(h, "kith_hub_publishes_total") == 1 })
}

// FuzzValidTopic compares with a description in other words.
func FuzzValidTopic(f *testing.F) {
	f.Add(randomTopic())
	f.Add("kith/1/+")
	f.Fuzz(func(t *testing.T, topic string) {
		rest, ok := strings.CutPrefix(topic, "kith/1/")
		want := ok && len(rest) == 40 && strings.Trim(rest, "0123456789abcdef") == ""
		if validTopic(topic) != want {
			t.Errorf("%q: %v", topic, !want)
		}
	})
}

// TestRefusedPublishes ends a client that sends what the broker said it does not
// take.
func TestRefusedPublishes(t *testing.T) {
	h := open(t, nil)
	topic := randomTopic()
	for name, c := range map[string]struct {
		p    packets.Packet
		code byte
	}{
		"retain":  {packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Retain: true}, TopicName: topic, Payload: []byte("x")}, 0x9a},
		"qos":     {packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, PacketID: 7, TopicName: topic, Payload: []byte("x")}, 0x9b},
		"payload": {packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish}, TopicName: topic, Payload: make([]byte, maxPayload+1)}, 0x95},
		"second connect": {packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connect}, Connect: packets.ConnectParams{
			ProtocolName: []byte("MQTT"), ClientIdentifier: "a", Clean: true, Keepalive: 30}}, 0x82},
	} {
		t.Run(name, func(t *testing.T) {
			conn := rawMQTT(t, h)
			c.p.ProtocolVersion = 5
			var buf bytes.Buffer
			encode := c.p.PublishEncode
			if c.p.FixedHeader.Type == packets.Connect {
				encode = c.p.ConnectEncode
			}
			if err := encode(&buf); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write(buf.Bytes()); err != nil {
				t.Fatal(err)
			}
			out, err := io.ReadAll(conn)
			if err != nil || len(out) < 3 || out[0] != packets.Disconnect<<4 || out[2] != c.code {
				t.Errorf("%x %v, want code %#x", out, err, c.code)
			}
		})
	}
	if got := metric(h, "kith_hub_publishes_total"); got != 0 {
		t.Errorf("%v messages were published", got)
	}
}

// rawMQTT logs in by hand and returns the connection after CONNACK.
func rawMQTT(t testing.TB, h *Hub) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", h.hostPort())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := login(conn, h.Address().MQTTPassword(), 30); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(testLimit))
	return conn
}

// login sends CONNECT and reads CONNACK.
func login(conn net.Conn, password string, keepalive uint16) error {
	p := packets.Packet{ProtocolVersion: 5, FixedHeader: packets.FixedHeader{Type: packets.Connect}, Connect: packets.ConnectParams{
		ProtocolName: []byte("MQTT"), Clean: true, Keepalive: keepalive, UsernameFlag: true, PasswordFlag: true,
		Username: []byte("kith"), Password: []byte(password),
	}}
	var buf bytes.Buffer
	if err := p.ConnectEncode(&buf); err != nil {
		return err
	}
	if _, err := conn.Write(buf.Bytes()); err != nil {
		return err
	}
	var head [2]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return err
	}
	body := make([]byte, head[1])
	if _, err := io.ReadFull(conn, body); err != nil {
		return err
	}
	if head[0] != packets.Connack<<4 || body[1] != 0 {
		return fmt.Errorf("CONNACK %x %x", head, body)
	}
	return nil
}

// TestKeepalive holds that the broker bounds how long a client may be silent.
func TestKeepalive(t *testing.T) {
	h := open(t, nil)
	for asked, want := range map[uint16]uint16{0: maxKeepalive, 30: 30, 65535: maxKeepalive} {
		c, _ := startMQTT(t, h, "mqtt://"+h.hostPort(), func(cfg *autopaho.ClientConfig) { cfg.KeepAlive = asked })
		ctx, cancel := context.WithTimeout(t.Context(), testLimit)
		defer cancel()
		if err := c.AwaitConnection(ctx); err != nil {
			t.Fatal(err)
		}
		for _, cl := range h.broker.srv.Clients.GetAll() {
			if cl.State.Keepalive != want {
				t.Errorf("asked for %d: %d, want %d", asked, cl.State.Keepalive, want)
			}
		}
		if err := c.Disconnect(ctx); err != nil {
			t.Fatal(err)
		}
		await(t, "the client gone", func() bool { return metric(h, "kith_hub_clients") == 0 })
	}
}

// TestSubscriptionLimit bounds a client's subscriptions, and lets it go on with
// those that it has.
func TestSubscriptionLimit(t *testing.T) {
	h := open(t, nil)
	c := dialMQTT(t, h, "mqtt://"+h.hostPort(), nil)
	var topics []string
	for i := range maxSubscriptions + 3 {
		topics = append(topics, randomTopic())
		code := c.subscribe(t, topics[i])[0]
		if ok := code == 0; ok != (i < maxSubscriptions) {
			t.Fatalf("subscription %d: %#x", i+1, code)
		}
	}
	if code := c.subscribe(t, topics[0])[0]; code != 0 {
		t.Errorf("again: %#x", code)
	}
	c.publish(t, topics[maxSubscriptions-1], []byte("x"))
	c.receive(t)
	if got := metric(h, `kith_hub_drops_total{reason="subscriptions"}`); got != 3 {
		t.Errorf("%v refused", got)
	}
}

// TestRateLimit drops what exceeds the rate of one client, not that of another,
// and ends one that floods.
func TestRateLimit(t *testing.T) {
	h := open(t, nil)
	sub := dialMQTT(t, h, "mqtt://"+h.hostPort(), nil)
	topic := randomTopic()
	sub.subscribe(t, topic)
	flood := rawMQTT(t, h)
	var one bytes.Buffer
	p := packets.Packet{ProtocolVersion: 5, FixedHeader: packets.FixedHeader{Type: packets.Publish}, TopicName: topic, Payload: []byte("flood")}
	if err := p.PublishEncode(&one); err != nil {
		t.Fatal(err)
	}
	if _, err := flood.Write(bytes.Repeat(one.Bytes(), 300)); err != nil {
		t.Fatal(err)
	}
	await(t, "messages dropped", func() bool { return metric(h, `kith_hub_drops_total{reason="publish_rate"}`) >= 200 })
	if got := metric(h, "kith_hub_publishes_total"); got < publishBurst || got > 2*publishBurst {
		t.Errorf("%v messages passed", got)
	}
	other := dialMQTT(t, h, "mqtt://"+h.hostPort(), nil)
	await(t, "another client's message", func() bool {
		other.publish(t, topic, []byte("calm")) // the first may find the flood in the queue
		for {
			select {
			case p := <-sub.got:
				if string(p.Payload) == "calm" {
					return true
				}
			default:
				return false
			}
		}
	})
	_, _ = flood.Write(bytes.Repeat(one.Bytes(), 1000)) // ends before all is sent
	out, _ := io.ReadAll(flood)
	if len(out) < 3 || out[len(out)-len("message rate too high")-1] == 0 && !bytes.Contains(out, []byte("message rate too high")) {
		t.Errorf("flooding was not ended: %x", out)
	}
	if metric(h, `kith_hub_drops_total{reason="packet_rate"}`) == 0 {
		t.Error("flooding was not counted")
	}
}

// TestSlowReader holds that a client that does not read costs messages, not the
// others.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	h := open(t, nil)
	topic := randomTopic()
	slow := rawMQTT(t, h)
	sub := packets.Packet{ProtocolVersion: 5, FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: 1,
		Filters: packets.Subscriptions{{Filter: topic}}}
	var buf bytes.Buffer
	if err := sub.SubscribeEncode(&buf); err != nil {
		t.Fatal(err)
	}
	if _, err := slow.Write(buf.Bytes()); err != nil {
		t.Fatal(err)
	}
	fast := dialMQTT(t, h, "mqtt://"+h.hostPort(), nil)
	fast.subscribe(t, topic)
	if err := slow.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	payload := make([]byte, maxPayload)
	sent := 0
	burst := func() {
		from := dialMQTT(t, h, "mqtt://"+h.hostPort(), nil)
		for range int(publishBurst) {
			from.publish(t, topic, payload)
			fast.receive(t)
			sent++
		}
		ctx, cancel := context.WithTimeout(t.Context(), testLimit)
		_ = from.Disconnect(ctx)
		cancel()
	}
	for c := 0; metric(h, `kith_hub_drops_total{reason="slow"}`) == 0; c++ {
		if c == 200 {
			t.Fatal("nothing was dropped")
		}
		burst()
	}
	t.Logf("%d messages were sent until one was dropped", sent)
	if testing.Short() {
		return
	}
	// Nobody waits for it longer than for one write; until the system's buffers are
	// full, no write waits.
	gone := func() bool {
		for _, c := range h.broker.srv.Clients.GetAll() {
			if c.Net.Remote == slow.LocalAddr().String() {
				return false
			}
		}
		return true
	}
	for end := time.Now().Add(3 * testLimit); !gone(); burst() {
		if time.Now().After(end) {
			t.Fatal("the slow client was not cut off")
		}
	}
	t.Logf("%d messages were sent until it was cut off", sent)
}

// TestPropertiesStay holds that nothing but the payload travels.
func TestPropertiesStay(t *testing.T) {
	h := open(t, nil)
	c := dialMQTT(t, h, "mqtt://"+h.hostPort(), nil)
	topic := randomTopic()
	c.subscribe(t, topic)
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	defer cancel()
	expiry := uint32(60)
	_, err := c.Publish(ctx, &paho.Publish{Topic: topic, Payload: []byte("x"), Properties: &paho.PublishProperties{
		ContentType: "secret", ResponseTopic: "a", CorrelationData: []byte("b"), MessageExpiry: &expiry,
		User: paho.UserProperties{{Key: "k", Value: "v"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if p := c.receive(t).Properties; p.ContentType != "" || p.ResponseTopic != "" || p.CorrelationData != nil || len(p.User) != 0 || p.MessageExpiry != nil {
		t.Errorf("properties travelled: %+v", p)
	}
}

// TestLogs holds that secrets are never logged, and addresses of clients not at
// the info level.
func TestLogs(t *testing.T) {
	for level, addresses := range map[slog.Level]bool{slog.LevelInfo: false, slog.LevelDebug: true} {
		var log syncBuffer
		h := open(t, func(c *Config) {
			c.Listen = "127.0.0.1:0"
			c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: level}))
		})
		a := h.Address()
		c := dialMQTT(t, h, a.MQTTURLs()[0], nil)
		topic := randomTopic()
		c.subscribe(t, topic)
		c.publish(t, topic, []byte("payload of a client"))
		c.receive(t)
		c.publish(t, "foreign", []byte("payload of a client"))
		_, _ = send(t, h, "\x10\x02xx")
		_, _ = send(t, h, "\x16\x03\x01\x00\x05hello")
		user, password := turnUser(h, "desk", time.Hour)
		_ = allocate(t, turnDial(t, h, "tcp", user, password)).Close()
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		all := log.String()
		if !strings.Contains(all, "hub started") {
			t.Error("the start was not logged")
		}
		if got := strings.Contains(all, "127.0.0.1"); got != addresses {
			t.Errorf("%v: addresses logged: %v\n%s", level, got, all)
		}
		for _, secret := range []string{a.MQTTPassword(), string(a.TURNSecret()), password, topic, "payload of a client", a.Text()[len(a.Text())-20:]} {
			if strings.Contains(all, secret) {
				t.Errorf("%v: %q was logged:\n%s", level, secret, all)
			}
		}
	}
}

// TestMalformedPacket holds that a packet that the library cannot read ends its
// sender only, and leaves nothing of it.
func TestMalformedPacket(t *testing.T) {
	h := open(t, nil)
	other := dialMQTT(t, h, "mqtt://"+h.hostPort(), nil)
	topic := randomTopic()
	other.subscribe(t, topic)
	bad := rawMQTT(t, h)
	sub := packets.Packet{ProtocolVersion: 5, FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: 1,
		Filters: packets.Subscriptions{{Filter: topic}}}
	var buf bytes.Buffer
	if err := sub.SubscribeEncode(&buf); err != nil {
		t.Fatal(err)
	}
	if _, err := bad.Write(buf.Bytes()); err != nil {
		t.Fatal(err)
	}
	await(t, "two subscribers", func() bool { return len(h.broker.srv.Topics.Subscribers(topic).Subscriptions) == 2 })
	// A SUBSCRIBE that ends after its filter.
	if _, err := bad.Write([]byte("\x82\x06\x00\x01\x00\x00\x01a")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, bad); err != nil {
		t.Errorf("not ended: %v", err)
	}
	await(t, "one subscriber", func() bool { return len(h.broker.srv.Topics.Subscribers(topic).Subscriptions) == 1 })
	await(t, "one client", func() bool { return metric(h, "kith_hub_clients") == 1 && h.broker.srv.Clients.Len() == 1 })
	if metric(h, `kith_hub_drops_total{reason="panic"}`) != 1 {
		t.Error("the library reads this packet now: the guard may go")
	}
	other.publish(t, topic, []byte("still here"))
	other.receive(t)
}

// FuzzMQTT feeds the broker what a client that is logged in may send: it ends, and
// nothing of the client is left.
func FuzzMQTT(f *testing.F) {
	encode := func(p packets.Packet, enc func(*packets.Packet, *bytes.Buffer) error) []byte {
		var b bytes.Buffer
		p.ProtocolVersion = 5
		if err := enc(&p, &b); err != nil {
			f.Fatal(err)
		}
		return b.Bytes()
	}
	topic := randomTopic()
	sub := encode(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: 1,
		Filters: packets.Subscriptions{{Filter: topic}}}, (*packets.Packet).SubscribeEncode)
	pub := encode(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish}, TopicName: topic, Payload: []byte("x")},
		(*packets.Packet).PublishEncode)
	f.Add(append(bytes.Clone(sub), pub...))
	f.Add([]byte("\xc0\x00\xe0\x00"))
	f.Add([]byte("\x32\x05\x00\x01a\x00\x01"))
	f.Add([]byte("\xf0\x02\x18\x00"))
	f.Add([]byte("\x62\x02\x00\x01\x40\x02\x00\x01\x50\x02\x00\x01\x70\x02\x00\x01\xa2\x05\x00\x01\x00\x01a"))
	m := newMeters()
	b, err := newBroker(m, slog.New(slog.DiscardHandler), "password")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = b.close(func() {}) })
	f.Fuzz(func(t *testing.T, data []byte) {
		client, server := net.Pipe()
		served := make(chan struct{})
		go func() {
			defer close(served)
			b.serve(server)
		}()
		if err := login(client, "password", 30); err != nil {
			t.Fatal(err)
		}
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			_, _ = io.Copy(io.Discard, client)
		}()
		_, _ = client.Write(data) // the broker may end it earlier
		_ = client.Close()
		<-drained
		select {
		case <-served:
		case <-time.After(testLimit):
			t.Fatalf("still serving after %x", data)
		}
		if b.srv.Clients.Len() != 0 || m.clients.Load() != 0 {
			t.Fatalf("%d clients are left", b.srv.Clients.Len())
		}
	})
}
