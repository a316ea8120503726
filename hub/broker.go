package hub

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"log/slog"
	"math"
	"net"
	"runtime/debug"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/kithproject/kith/hub/hubaddr"
)

const (
	topicPrefix      = "kith/1/"
	topicDigits      = 40   // hexadecimal digits after it
	maxPayload       = 2048 // bytes of a message
	maxPacket        = 4096 // bytes of an MQTT packet
	maxSubscriptions = 256  // of one client
	maxPending       = 32   // messages that wait for a client that reads slowly
	maxKeepalive     = 1200 // seconds between a client's packets
	readBuffer       = 256  // bytes for each client
	writeBuffer      = 2048 // bytes, only while messages wait
	publishRate      = 20.0 // messages of a client a second
	publishBurst     = 60.0
	packetRate       = 60.0 // packets of any kind of a client a second
	packetBurst      = 800.0
	sysInterval      = math.MaxInt32 // seconds between the broker's own statistics: never
)

// validTopic reports whether a topic is one of kith's: exact, no wildcards.
func validTopic(topic string) bool {
	if len(topic) != len(topicPrefix)+topicDigits || topic[:len(topicPrefix)] != topicPrefix {
		return false
	}
	for _, b := range []byte(topic[len(topicPrefix):]) {
		if (b < '0' || b > '9') && (b < 'a' || b > 'f') {
			return false
		}
	}
	return true
}

// broker is an MQTT 5 broker that carries kith's messages and nothing else.
type broker struct {
	srv *mqtt.Server
	log *slog.Logger
	m   *meters
	ln  *brokerListener

	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

func newBroker(m *meters, log *slog.Logger, password string) (*broker, error) {
	caps := mqtt.NewDefaultServerCapabilities()
	caps.MaximumClientWritesPending = maxPending
	caps.MaximumSessionExpiryInterval, caps.MaximumMessageExpiryInterval = 0, 0
	caps.MaximumPacketSize = maxPacket
	caps.ReceiveMaximum = 1
	caps.MaximumInflight = 1
	caps.TopicAliasMaximum = 0
	caps.SharedSubAvailable, caps.WildcardSubAvailable, caps.SubIDAvailable = 0, 0, 0
	caps.RetainAvailable, caps.MaximumQos = 0, 0
	caps.MinimumProtocolVersion = 5
	b := &broker{log: log, m: m, ln: &brokerListener{}}
	b.srv = mqtt.New(&mqtt.Options{
		Capabilities: caps, ClientNetReadBufferSize: readBuffer, ClientNetWriteBufferSize: writeBuffer,
		SysTopicResendInterval: sysInterval,
		Logger:                 slog.New(slog.DiscardHandler), // it would write addresses and packets
	})
	hook := &brokerHook{b: b, user: sha256.Sum256([]byte(hubaddr.MQTTUser)), password: sha256.Sum256([]byte(password))}
	if err := errors.Join(b.srv.AddHook(hook, nil), b.srv.AddListener(b.ln), b.srv.Serve()); err != nil {
		return nil, err
	}
	return b, nil
}

// clientConn is the connection of an MQTT client, with what is counted for it.
type clientConn struct {
	net.Conn
	client  *mqtt.Client // nil until logged in
	publish bucket       // only used by the goroutine that reads
	packets bucket
}

// enter reports whether the broker is open, and if so has close wait for one more
// call of wg.Done.
func (b *broker) enter() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.wg.Add(1)
	}
	return !b.closed
}

// spawn serves a client in a goroutine.
func (b *broker) spawn(conn net.Conn) {
	if !b.enter() {
		_ = conn.Close()
		return
	}
	go func() {
		defer b.wg.Done()
		b.serve(conn)
	}()
}

// serve speaks MQTT with a client until it is gone.
func (b *broker) serve(conn net.Conn) {
	c := &clientConn{Conn: conn}
	defer c.Close()
	if !b.enter() {
		return
	}
	defer b.wg.Done()
	defer func() {
		// The library reads malformed packets beyond their end, such as a SUBSCRIBE
		// without options. One client's bytes must not end the service of others.
		if r := recover(); r != nil {
			b.m.drop("panic")
			b.log.Error("broker failed on a packet", "panic", r, "stack", string(debug.Stack()))
		}
		b.forget(c.client)
	}()
	if err := b.srv.EstablishConnection(b.ln.ID(), c); err != nil {
		b.log.Debug("mqtt client gone", "client", conn.RemoteAddr(), "err", err)
	}
}

// forget removes what the library keeps of a client that ended without its
// knowledge.
func (b *broker) forget(cl *mqtt.Client) {
	if cl == nil {
		return
	}
	b.m.clients.Add(-1)
	if now, ok := b.srv.Clients.Get(cl.ID); ok && now == cl {
		b.srv.UnsubscribeClient(cl)
		b.srv.Clients.Delete(cl.ID)
	}
}

// close says farewell to all clients, has the connections closed, and waits.
func (b *broker) close(closeConns func()) error {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.ln.farewell = closeConns
	err := b.srv.Close()
	b.wg.Wait()
	return err
}

// brokerListener is what the broker's library wants to have; connections come
// from the mux.
type brokerListener struct{ farewell func() }

func (*brokerListener) Init(*slog.Logger) error     { return nil }
func (*brokerListener) Serve(listeners.EstablishFn) {}
func (*brokerListener) ID() string                  { return "hub" }
func (*brokerListener) Address() string             { return "" }
func (*brokerListener) Protocol() string            { return "mqtt" }

// Close sends DISCONNECT to all, and then closes what is left: the library waits
// for every connection, also for one that never logged in.
func (l *brokerListener) Close(closeClients listeners.CloseFn) {
	closeClients(l.ID())
	l.farewell()
}

// brokerHook restricts the broker.
type brokerHook struct {
	mqtt.HookBase
	b              *broker
	user, password [sha256.Size]byte
}

func (*brokerHook) ID() string { return "kith" }

func (*brokerHook) Provides(b byte) bool {
	return bytes.IndexByte([]byte{
		mqtt.OnConnect, mqtt.OnConnectAuthenticate, mqtt.OnACLCheck, mqtt.OnPacketRead, mqtt.OnPublish, mqtt.OnPublished,
		mqtt.OnPublishDropped, mqtt.OnPacketSent, mqtt.OnSessionEstablish,
	}, b) >= 0
}

// OnConnect refuses wills and bounds what the client asked for.
func (h *brokerHook) OnConnect(cl *mqtt.Client, pk packets.Packet) error {
	if pk.Connect.WillFlag {
		h.b.m.drop("will")
		_ = h.b.srv.SendConnack(cl, packets.ErrImplementationSpecificError, false, nil)
		return packets.ErrImplementationSpecificError
	}
	if cl.State.Keepalive == 0 || cl.State.Keepalive > maxKeepalive {
		cl.State.Keepalive, cl.State.ServerKeepalive = maxKeepalive, true
	}
	cl.Properties.Props.TopicAliasMaximum = 0 // none are sent
	cl.Properties.Props.User = nil
	return nil
}

// OnConnectAuthenticate compares in constant time; hashes hide the lengths.
func (h *brokerHook) OnConnectAuthenticate(_ *mqtt.Client, pk packets.Packet) bool {
	user, password := sha256.Sum256(pk.Connect.Username), sha256.Sum256(pk.Connect.Password)
	ok := subtle.ConstantTimeCompare(user[:], h.user[:]) & subtle.ConstantTimeCompare(password[:], h.password[:])
	if ok != 1 {
		h.b.m.drop("password")
	}
	return ok == 1
}

// OnSessionEstablish counts a client that is logged in.
func (h *brokerHook) OnSessionEstablish(cl *mqtt.Client, _ packets.Packet) {
	if c, ok := cl.Net.Conn.(*clientConn); ok && c.client == nil {
		c.client = cl
		h.b.m.clients.Add(1)
	}
}

// OnACLCheck lets only kith's topics through, and only so many subscriptions. It
// is asked for reading both when a client subscribes and at every delivery.
func (h *brokerHook) OnACLCheck(cl *mqtt.Client, topic string, write bool) bool {
	if !validTopic(topic) {
		h.b.m.drop("topic")
		return false
	}
	if write {
		return true
	}
	if _, has := cl.State.Subscriptions.Get(topic); has || cl.State.Subscriptions.Len() < maxSubscriptions {
		return true
	}
	h.b.m.drop("subscriptions")
	return false
}

// OnPacketRead ends clients that send too fast, or what the broker said at the
// start that it does not take.
func (h *brokerHook) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	c, ok := cl.Net.Conn.(*clientConn)
	if !ok || pk.FixedHeader.Type == packets.Connect {
		return pk, nil
	}
	end := func(reason string, code packets.Code) (packets.Packet, error) {
		h.b.m.drop(reason)
		_ = h.b.srv.DisconnectClient(cl, code)
		return pk, packets.ErrRejectPacket
	}
	if !c.packets.take(time.Now(), 1, packetRate, packetBurst) {
		return end("packet_rate", packets.ErrMessageRateTooHigh)
	}
	if pk.FixedHeader.Type != packets.Publish {
		return pk, nil
	}
	switch {
	case pk.FixedHeader.Qos > 0:
		return end("qos", packets.ErrQosNotSupported)
	case pk.FixedHeader.Retain:
		return end("retain", packets.ErrRetainNotSupported)
	case len(pk.Payload) > maxPayload:
		return end("size", packets.ErrPacketTooLarge)
	}
	return pk, nil
}

// OnPublish drops what exceeds the rate, and takes off all properties, so that
// nothing but topic and payload travels.
func (h *brokerHook) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	c, ok := cl.Net.Conn.(*clientConn)
	if !ok {
		return pk, packets.ErrRejectPacket
	}
	if !c.publish.take(time.Now(), 1, publishRate, publishBurst) {
		h.b.m.drop("publish_rate")
		return pk, packets.ErrRejectPacket
	}
	pk.Properties, pk.Expiry = packets.Properties{}, 0
	return pk, nil
}

// OnPublished counts.
func (h *brokerHook) OnPublished(*mqtt.Client, packets.Packet) { h.b.m.published.Inc() }

// OnPublishDropped counts what a client did not read in time.
func (h *brokerHook) OnPublishDropped(*mqtt.Client, packets.Packet) { h.b.m.drop("slow") }

// OnPacketSent counts deliveries.
func (h *brokerHook) OnPacketSent(_ *mqtt.Client, pk packets.Packet, _ []byte) {
	if pk.FixedHeader.Type == packets.Publish {
		h.b.m.delivered.Inc()
	}
}
