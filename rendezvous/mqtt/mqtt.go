// Package mqtt carries frames over an MQTT 5 broker, any broker: devices that
// know one topic publish to and subscribe to it. The broker is not trusted: it
// sees random topic names, sealed frames of one size, and addresses.
//
// A rendezvous topic is the MQTT topic "kith/1/" and 40 hexadecimal digits, derived
// one-way: who sees it at a broker cannot look for the same topic on another medium.
// Messages have QoS 0, as the stages above repeat what is lost, and are not
// retained. The client's name is random at every connection, so that a broker
// cannot follow a device by it and two devices never push each other off.
//
// Public brokers are protected from this program: each session sends three
// frames at once and then one a second, of which the newest counts.
package mqtt

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"

	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/rendezvous"
)

const (
	topicPrefix     = "kith/1/"
	keepAlive       = 30 // seconds
	connectTimeout  = 3 * time.Second
	checkLeast      = 300 * time.Millisecond // for the answer of a broker that is asked whether it is there:
	checkMost       = 2 * time.Second        // as long as connecting took, which is several round trips
	soonFor         = 5 * time.Minute        // after a loss, attempts to connect follow each other fast
	soonRetry       = time.Second
	firstReconnect  = 200 * time.Millisecond
	longestRetry    = 30 * time.Second
	operationLimit  = 10 * time.Second // of one subscribe or publish
	maxPacket       = 4096             // bytes that a broker may send in one packet
	defaultBurst    = 3
	defaultInterval = time.Second
	closeTimeout    = time.Second
)

var (
	// ErrConfig reports a broker's URL that cannot be used.
	ErrConfig = errors.New("mqtt: the broker's URL must be mqtt://, mqtts://, ws:// or wss:// with a host, and without user or password")
	// ErrCredentials reports a broker that knows no such user, or another password.
	ErrCredentials = errors.New("refuses this user or password: set them with kith config mqtt")
	// ErrVersion reports a broker that is older than MQTT 5.
	ErrVersion = errors.New("does not speak MQTT 5")
	// ErrConnecting reports a broker of which nothing is known yet.
	ErrConnecting = errors.New("connecting")
)

// Config is what New needs. URL must be set.
type Config struct {
	// URL of the broker: mqtt://host[:1883], mqtts://host[:8883], ws://host/path
	// or wss://host/path.
	URL string
	// User and Password at the broker; default none.
	User, Password string
	// TLS for mqtts and wss; default: the system's certificate authorities.
	TLS *tls.Config
	// Burst is how many frames a session sends at once, in number. Default 3.
	Burst int
	// Interval is how often a session sends after that. Default one second.
	Interval time.Duration
	// Again is called when a broker is there again after a connection was lost. It
	// must not block. Default: nothing is called.
	Again func()
	// Logger: default discard.
	Logger *slog.Logger
}

// String returns the URL alone.
func (c Config) String() string { return c.URL }

// An Exchange is one broker as a medium. It is safe for concurrent use.
type Exchange struct {
	cfg    Config
	log    *slog.Logger
	ctx    context.Context //nolint:containedctx // ends with Close
	cancel context.CancelFunc
	conn   *autopaho.ConnectionManager
	wg     sync.WaitGroup
	echo   string // a topic of random name, to ask the broker whether it is there

	mu     sync.Mutex // guards the fields below; not held while calling the client
	closed bool
	up     bool
	ready  chan struct{} // closed while connected
	err    error         // of the last attempt to connect
	lost   time.Time     // when the last connection ended
	asking bool          // Check is at work
	local  netip.Addr    // ours, of the connection; invalid if it is not known
	took   time.Duration // to connect
	dialed time.Time     // when the last attempt to connect began
	topics map[string]map[*session]struct{}
}

var (
	_ rendezvous.Exchange = (*Exchange)(nil)
	_ rendezvous.Opener   = (*Exchange)(nil)
)

func brokerURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || u.User != nil {
		return nil, ErrConfig
	}
	port := map[string]string{"mqtt": "1883", "mqtts": "8883", "ws": "", "wss": ""}
	def, ok := port[u.Scheme]
	if !ok {
		return nil, ErrConfig
	}
	if u.Port() == "" && def != "" {
		u.Host = net.JoinHostPort(u.Hostname(), def)
	}
	return u, nil
}

// New starts to connect to a broker, and goes on for as long as the Exchange
// lives. It errs with ErrConfig for a URL that is none; whether the broker can be
// reached is told by Health.
func New(cfg Config) (*Exchange, error) {
	u, err := brokerURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	if cfg.Burst <= 0 {
		cfg.Burst = defaultBurst
	}
	if cfg.Interval <= 0 {
		cfg.Interval = defaultInterval
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	e := &Exchange{cfg: cfg, log: cfg.Logger, echo: topicPrefix + randomTopic(), ready: make(chan struct{}), topics: make(map[string]map[*session]struct{})}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	cc := autopaho.ClientConfig{
		ServerUrls: []*url.URL{u}, TlsCfg: cfg.TLS, KeepAlive: keepAlive, ConnectTimeout: connectTimeout,
		CleanStartOnInitialConnection: true, ReconnectBackoff: e.backoff, OnConnectionUp: e.connected,
		OnConnectionDown: e.disconnected, OnConnectError: e.failed, ConnectUsername: cfg.User,
		ConnectPacketBuilder: func(c *paho.Connect, _ *url.URL) (*paho.Connect, error) {
			size := uint32(maxPacket)
			c.ClientID, c.CleanStart = randomID(), true
			if c.Properties == nil {
				c.Properties = &paho.ConnectProperties{}
			}
			c.Properties.MaximumPacketSize = &size
			return c, nil
		},
		ClientConfig: paho.ClientConfig{
			OnPublishReceived: []func(paho.PublishReceived) (bool, error){e.received},
		},
	}
	if cfg.Password != "" {
		cc.ConnectPassword = []byte(cfg.Password)
	}
	if (u.Scheme == "mqtt" || u.Scheme == "mqtts") && os.Getenv("all_proxy") == "" {
		cc.AttemptConnection = e.dial
	}
	if e.conn, err = autopaho.NewConnection(e.ctx, cc); err != nil {
		e.cancel()
		return nil, fmt.Errorf("mqtt: %w", err)
	}
	return e, nil
}

// backoff is the wait before the nth attempt: none before the first, then from a
// fifth of a second, doubling up to half a minute, or to a second for five minutes
// after a connection was lost, with jitter.
func (e *Exchange) backoff(attempt int) time.Duration {
	if attempt <= 0 {
		return 0
	}
	longest := longestRetry
	e.mu.Lock()
	if !e.lost.IsZero() && time.Since(e.lost) < soonFor {
		longest = soonRetry
	}
	e.mu.Unlock()
	wait := min(firstReconnect<<min(attempt-1, 10), longest)
	n, err := rand.Int(rand.Reader, big.NewInt(int64(wait)/2))
	if err != nil {
		return wait
	}
	return wait*3/4 + time.Duration(n.Int64())
}

// topicName is how a topic is called at a broker.
func topicName(t rendezvous.Topic) string {
	return topicPrefix + hex.EncodeToString(wire.Expand(t[:], "mqtt topic")[:rendezvous.TopicSize])
}

// randomID returns a client name of 23 characters or less, which every broker
// must take (MQTT 5 section 3.1.3.1).
func randomID() string {
	var b [10]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "" // the broker picks one
	}
	return hex.EncodeToString(b[:])
}

// Name returns "mqtt".
func (e *Exchange) Name() string { return "mqtt" }

// Health says whether the broker is connected, and if not why.
func (e *Exchange) Health() rendezvous.Health {
	e.mu.Lock()
	defer e.mu.Unlock()
	h := rendezvous.Health{Name: e.Name(), Ready: e.up, Detail: e.cfg.URL + " connected"}
	if !e.up {
		h.Detail = e.cfg.URL + " not connected"
		h.Err = e.err
		if h.Err == nil {
			h.Err = fmt.Errorf("mqtt: %s: %w", e.cfg.URL, ErrConnecting)
		}
	}
	return h
}

func (e *Exchange) connected(conn *autopaho.ConnectionManager, _ *paho.Connack) {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return
	}
	e.up, e.err = true, nil
	if !e.dialed.IsZero() {
		e.took = time.Since(e.dialed)
	}
	if again := e.cfg.Again; again != nil && !e.lost.IsZero() {
		defer again()
	}
	var subscribe []string
	for topic, set := range e.topics {
		if wanted(set) {
			subscribe = append(subscribe, topic)
		}
	}
	e.wg.Add(1)
	e.mu.Unlock()
	defer e.wg.Done()
	e.log.Info("broker connected", "exchange", e.Name())
	for _, topic := range subscribe {
		e.subscribe(conn, topic)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.up {
		select {
		case <-e.ready:
		default:
			close(e.ready)
		}
	}
}

func (e *Exchange) disconnected() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.up, e.lost = false, time.Now()
	select {
	case <-e.ready:
		e.ready = make(chan struct{})
	default:
	}
	return true // connect again
}

func (e *Exchange) failed(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.err = explain(e.cfg.URL, err)
	e.log.Debug("broker not connected", "exchange", e.Name(), "err", e.err)
}

// explain adds what a person can do.
func explain(address string, err error) error {
	var refused *autopaho.ConnackError
	switch {
	case errors.As(err, &refused) && (refused.ReasonCode == 0x86 || refused.ReasonCode == 0x87):
		return fmt.Errorf("mqtt: %s %w", address, ErrCredentials)
	case errors.As(err, &refused) && refused.ReasonCode == 0x84:
		return fmt.Errorf("mqtt: %s %w", address, ErrVersion)
	}
	var tlsErr *tls.CertificateVerificationError
	if errors.As(err, &tlsErr) {
		return fmt.Errorf("mqtt: %s has a certificate that is not trusted here: give its authority with --ca: %w", address, err)
	}
	return fmt.Errorf("mqtt: %s: %w", address, err)
}

func wanted(set map[*session]struct{}) bool {
	for s := range set {
		if s.mode != rendezvous.SendOnly {
			return true
		}
	}
	return false
}

func (e *Exchange) subscribe(conn *autopaho.ConnectionManager, topic string) {
	ctx, cancel := context.WithTimeout(e.ctx, operationLimit)
	defer cancel()
	_, err := conn.Subscribe(ctx, &paho.Subscribe{
		Subscriptions: []paho.SubscribeOptions{{Topic: topic, QoS: 0, NoLocal: true}},
	})
	if err != nil && ctx.Err() == nil {
		e.log.Warn("topic not subscribed", "exchange", e.Name(), "err", err)
	}
}

func (e *Exchange) unsubscribe(topic string) {
	ctx, cancel := context.WithTimeout(e.ctx, operationLimit)
	defer cancel()
	if _, err := e.conn.Unsubscribe(ctx, &paho.Unsubscribe{Topics: []string{topic}}); err != nil {
		e.log.Debug("topic not unsubscribed", "exchange", e.Name(), "err", err)
	}
}

// received gives a message to the sessions of its topic.
func (e *Exchange) received(p paho.PublishReceived) (bool, error) {
	if len(p.Packet.Payload) != rendezvous.FrameSize {
		return true, nil
	}
	e.mu.Lock()
	var to []*session
	for s := range e.topics[p.Packet.Topic] {
		if s.mode != rendezvous.SendOnly {
			to = append(to, s)
		}
	}
	e.mu.Unlock()
	for _, s := range to {
		s.Deliver(rendezvous.Message{Frame: append([]byte(nil), p.Packet.Payload...), Exchange: e.Name()})
	}
	return true, nil
}

// Join opens a session. It errs with net.ErrClosed after Close.
func (e *Exchange) Join(ctx context.Context, p rendezvous.Point) (rendezvous.Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s := &session{
		e: e, topic: topicName(p.Topic), mode: p.Mode,
		Inbox: rendezvous.NewInbox("mqtt"), out: rendezvous.NewOutbox(e.cfg.Burst, e.cfg.Interval),
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, fmt.Errorf("mqtt: join: %w", net.ErrClosed)
	}
	fresh := !wanted(e.topics[s.topic])
	if e.topics[s.topic] == nil {
		e.topics[s.topic] = make(map[*session]struct{})
	}
	e.topics[s.topic][s] = struct{}{}
	if e.up && fresh && p.Mode != rendezvous.SendOnly {
		e.wg.Go(func() { e.subscribe(e.conn, s.topic) })
	}
	if p.Mode != rendezvous.ReceiveOnly {
		e.wg.Go(s.send)
	}
	return s, nil
}

// leave forgets a session.
func (e *Exchange) leave(s *session) {
	e.mu.Lock()
	defer e.mu.Unlock()
	before := wanted(e.topics[s.topic])
	delete(e.topics[s.topic], s)
	after := wanted(e.topics[s.topic])
	if len(e.topics[s.topic]) == 0 {
		delete(e.topics, s.topic)
	}
	if before && !after && e.up && !e.closed {
		e.wg.Go(func() { e.unsubscribe(s.topic) })
	}
}

// Close ends all sessions, disconnects and waits for the driver's goroutines.
func (e *Exchange) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	var open []*session
	for _, set := range e.topics {
		for s := range set {
			open = append(open, s)
		}
	}
	up := e.up
	e.mu.Unlock()
	for _, s := range open {
		s.Close()
	}
	if up {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		_ = e.conn.Disconnect(ctx) // politeness; the broker notices anyway
	}
	e.cancel()
	<-e.conn.Done()
	e.wg.Wait()
	return nil
}
