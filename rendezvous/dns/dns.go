// Package dns carries frames over a DNS zone that takes dynamic updates (RFC 2136)
// signed with a TSIG key (RFC 8945): one side writes TXT records, the other polls
// them. The zone is not trusted: it sees random names, sealed frames of one size,
// and addresses. Each side of a topic has two names:
//
//	hex(HKDF(topic, "rendezvous dns", {side}))[:32] + "." + Zone, and with [32:64]
//
// The first holds the number of the newest frame, so that a poll is one small UDP
// packet. The second holds the side's newest four frames, each behind its number, and
// is fetched over TCP when the first has changed. Numbers begin at random; all is in
// base64. Both names go when the session closes, or else when that side writes again.
//
// Polls ask Server, so that no cache is between, or the resolver once that fails.
// Resolvers need not keep the records, whose time to live is 0, but keep "no such
// name" as long as the last field of the zone's SOA record says: let it be 0 seconds.
package dns

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/time/rate"

	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/rendezvous"
)

const (
	kept, burst = 4, 3 // frames that a side keeps; that are sent at once, and that wait
	numberSize  = 4    // bytes
	callLimit   = 2 * time.Second
	fastFor     = 10 * time.Second // after something has happened
)

// ErrConfig reports a Config that cannot be used.
var ErrConfig = errors.New("dns: needs host:port of a server, a zone, and the name and base64 secret of an hmac-sha256 key")

// Config is what New needs. The first four must be set.
type Config struct {
	Server      string        // the zone's server that takes updates: host:port
	Zone        string        // for example kith.example.org; one that holds nothing else is best
	Key, Secret string        // of TSIG with hmac-sha256: the key's name; its secret in base64
	Resolver    string        // host:port; default: the first of /etc/resolv.conf, if there is one
	Fast, Slow  time.Duration // how often a session polls after something happened, and else; default 300 ms and 10 s
	Interval    time.Duration // how often a session sends, after the first three frames; default one second
}

func (c Config) String() string { return c.Zone + " at " + c.Server }

// An Exchange is one zone as a medium. It is safe for concurrent use.
type Exchange struct {
	cfg    Config
	ctx    context.Context //nolint:containedctx // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu                sync.Mutex    // guards the fields below, and wg against additions after Close
	unwritten, unread error         // of the last update; of the last question
	via               bool          // Resolver is asked next
	hurry             chan struct{} // closed and replaced by Check
}

// New starts to look whether the zone can be used. It errs with ErrConfig if the
// Config is not whole; whether the server can be reached is told by Health.
func New(cfg Config) (*Exchange, error) {
	secret, err := base64.StdEncoding.DecodeString(cfg.Secret)
	_, _, err2 := net.SplitHostPort(cfg.Server)
	if _, ok := mdns.IsDomainName(cfg.Zone); !ok || len(cfg.Zone) > 200 || cfg.Key == "" || len(secret) == 0 || errors.Join(err, err2) != nil {
		return nil, ErrConfig
	}
	if system, err := mdns.ClientConfigFromFile("/etc/resolv.conf"); err == nil && cfg.Resolver == "" && len(system.Servers) > 0 {
		cfg.Resolver = net.JoinHostPort(system.Servers[0], system.Port)
	}
	cfg.Resolver = cmp.Or(cfg.Resolver, cfg.Server)
	cfg.Zone, cfg.Key = mdns.CanonicalName(cfg.Zone), mdns.CanonicalName(cfg.Key)
	cfg.Fast, cfg.Slow, cfg.Interval = cmp.Or(cfg.Fast, 300*time.Millisecond), cmp.Or(cfg.Slow, 10*time.Second), cmp.Or(cfg.Interval, time.Second)
	e := &Exchange{cfg: cfg, hurry: make(chan struct{}), unread: errors.New("not asked yet")}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.Check()
	return e, nil
}

// Another uses the same zone once more. It errs as New does.
func (e *Exchange) Another() (rendezvous.Exchange, error) { return New(e.cfg) }

// Servers returns the zone's server.
func (e *Exchange) Servers() []string { return []string{e.cfg.Server} }

// ask sends an update to Server, or a question to it or Resolver. What fails has
// the other asked the next time, and an empty answer.
func (e *Exchange) ask(network string, m *mdns.Msg) *mdns.Msg {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(e.ctx), callLimit) // what is begun is ended
	defer cancel()
	e.mu.Lock()
	via, update, server := e.via, m.Opcode == mdns.OpcodeUpdate, e.cfg.Server
	e.mu.Unlock()
	if via && !update {
		server = e.cfg.Resolver
	}
	c := mdns.Client{Net: network, TsigSecret: map[string]string{e.cfg.Key: e.cfg.Secret}}
	r, _, err := c.ExchangeContext(ctx, m, server)
	if r != nil && r.Rcode != mdns.RcodeSuccess && r.Rcode != mdns.RcodeNameError {
		err = fmt.Errorf("dns: %s answers %s: are the zone, the key and this clock right?", server, mdns.RcodeToString[r.Rcode])
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if update {
		e.unwritten = err
	} else if e.unread = err; err != nil {
		e.via = !via
	}
	return cmp.Or(r, new(mdns.Msg))
}

// update removes and then adds records, if those are there that must be.
func (e *Exchange) update(must, remove, add []mdns.RR) {
	m := new(mdns.Msg).SetUpdate(e.cfg.Zone)
	m.Used(must)
	m.RemoveRRset(remove)
	m.Insert(add)
	e.ask("tcp", m.SetTsig(e.cfg.Key, mdns.HmacSHA256, 300, time.Now().Unix()))
}

// look returns what a name holds in records of size bytes.
func (e *Exchange) look(network, name string, size int) [][]byte {
	return unpack(e.ask(network, new(mdns.Msg).SetQuestion(name, mdns.TypeTXT).SetEdns0(1232, false)), name, size)
}

// pack makes a record of bytes.
func pack(name string, raw []byte) mdns.RR {
	t := &mdns.TXT{Hdr: mdns.RR_Header{Name: name, Rrtype: mdns.TypeTXT, Class: mdns.ClassINET, Ttl: 0}}
	for part := range slices.Chunk([]byte(base64.RawStdEncoding.EncodeToString(raw)), 255) {
		t.Txt = append(t.Txt, string(part))
	}
	return t
}

// unpack returns what records of this name hold, if that is size bytes, in order.
func unpack(m *mdns.Msg, name string, size int) (all [][]byte) {
	for _, rr := range m.Answer {
		if t, ok := rr.(*mdns.TXT); ok && strings.EqualFold(t.Hdr.Name, name) {
			if raw, err := base64.RawStdEncoding.DecodeString(strings.Join(t.Txt, "")); err == nil && len(raw) == size {
				all = append(all, raw)
			}
		}
	}
	slices.SortFunc(all, bytes.Compare)
	return all
}

// Name returns "dns".
func (e *Exchange) Name() string { return "dns" }

// Health says whether the last update and the last poll went well.
func (e *Exchange) Health() rendezvous.Health {
	e.mu.Lock()
	defer e.mu.Unlock()
	return rendezvous.Health{Name: "dns", Ready: e.unwritten == nil && e.unread == nil, Detail: e.cfg.String(), Err: errors.Join(e.unwritten, e.unread)}
}

// Check tries whether the zone can be written and read, and has all sessions poll.
// It does not block.
func (e *Exchange) Check() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx.Err() == nil {
		close(e.hurry)
		e.hurry, e.via = make(chan struct{}), false
		e.wg.Go(func() { e.update(nil, nil, nil); e.look("udp", e.cfg.Zone, 0) })
	}
}

// Join opens a session. It errs with net.ErrClosed after Close.
func (e *Exchange) Join(ctx context.Context, p rendezvous.Point) (rendezvous.Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	names := func(side uint8) [2]string {
		sum := wire.Expand(wire.Extract(nil, p.Topic[:]), "rendezvous dns", []byte{side})
		return [2]string{fmt.Sprintf("%x.%s", sum[:16], e.cfg.Zone), fmt.Sprintf("%x.%s", sum[16:], e.cfg.Zone)}
	}
	s := &session{Inbox: rendezvous.NewInbox("dns"), e: e, to: names(p.Side & 1), from: names(p.Side & 1), frames: make(chan []byte, burst)}
	if p.Mode == rendezvous.Both {
		s.from = names(1 - p.Side&1)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx.Err() != nil {
		return nil, fmt.Errorf("dns: join: %w", net.ErrClosed)
	}
	s.ctx, s.cancel = context.WithCancel(e.ctx) //nolint:gosec // Close calls it
	e.wg.Go(func() { s.run(p.Mode != rendezvous.SendOnly) })
	return s, nil
}

// Close ends all sessions, takes back what they wrote and waits for the driver's
// goroutines.
func (e *Exchange) Close() error {
	e.mu.Lock()
	e.cancel()
	e.mu.Unlock()
	e.wg.Wait()
	return nil
}

// A session is one use of a topic.
type session struct {
	*rendezvous.Inbox
	e        *Exchange
	ctx      context.Context //nolint:containedctx // ends with Close
	cancel   context.CancelFunc
	to, from [2]string       // names
	frames   chan []byte     // to send
	last     []byte          // what the other's first name held when its frames were fetched
	seen     map[string]bool // what was fetched then
}

// Publish hands a frame to the sender.
func (s *session) Publish(ctx context.Context, frame []byte) error {
	if err := s.MayPublish(ctx, frame); err != nil {
		return err
	}
	select {
	case s.frames <- bytes.Clone(frame):
	default: // too fast for the rate that is allowed: the stages above repeat what matters
	}
	if h := s.e.Health(); !h.Ready {
		return fmt.Errorf("dns: %w: %w", rendezvous.ErrUnreachable, h.Err)
	}
	return nil
}

// Close leaves the topic; what was written is taken back soon after.
func (s *session) Close() error {
	s.Shut(s.cancel)
	return nil
}

// run is the session's life: it writes and polls, and takes back what it wrote.
func (s *session) run(receive bool) {
	defer s.Close()       // of the Inbox, if it was the Exchange that was closed
	var written []mdns.RR // under the second name, oldest first
	number := []byte(rand.Text())[:numberSize]
	next, busy := time.Now(), time.Now().Add(fastFor)
	for limit := rate.NewLimiter(rate.Every(s.e.cfg.Interval), burst); s.ctx.Err() == nil; {
		s.e.mu.Lock()
		hurry, frames := s.e.hurry, s.frames
		s.e.mu.Unlock()
		if limit.Tokens() < 1 {
			frames = nil
		}
		active := true
		select {
		case frame := <-frames:
			limit.Allow()
			binary.BigEndian.PutUint32(number, binary.BigEndian.Uint32(number)+1)
			written = append(written[max(0, len(written)+1-kept):], pack(s.to[1], slices.Concat(number, frame)))
			head := pack(s.to[0], number)
			s.e.update(nil, []mdns.RR{head, written[0]}, append(written, head))
		case <-time.After(time.Until(next)):
			active, next = receive && s.read(), time.Now().Add(s.e.cfg.Slow)
		case <-hurry:
		case <-s.ctx.Done():
		}
		now := time.Now()
		if active {
			busy = now.Add(fastFor)
		}
		if soon := now.Add(s.e.cfg.Fast); now.Before(busy) && soon.Before(next) {
			next = soon
		}
	}
	if head := pack(s.to[0], number); len(written) > 0 { // unless somebody else has written there
		s.e.update([]mdns.RR{head}, []mdns.RR{head, written[0]}, nil)
	}
}

// read delivers what is new, and says whether anything is.
func (s *session) read() (fresh bool) {
	head := s.e.look("udp", s.from[0], numberSize)
	if len(head) == 0 || bytes.Equal(head[0], s.last) {
		return false
	}
	here := make(map[string]bool)
	for _, f := range s.e.look("tcp", s.from[1], numberSize+rendezvous.FrameSize) {
		if here[string(f)] = true; !s.seen[string(f)] {
			fresh, s.last = true, head[0] // unless a cache lags behind
			s.Deliver(rendezvous.Message{Frame: f[numberSize:], Exchange: "dns"})
		}
	}
	s.seen = here
	return fresh
}
