// Package etcd carries frames over an etcd cluster (API version 3). The cluster
// is not trusted: it sees random names, sealed frames of one size, and addresses.
//
// A topic is a prefix of keys, and each session has a random writer name:
//
//	Prefix + hex(HKDF(topic, "rendezvous etcd"))[:40] + "/" + writer + "/" + slot
//
// A writer uses four slots in turn, so its newest four frames are kept, under a
// lease of its own: they vanish when the session closes, or some time after its
// device has gone. Readers watch the prefix and fetch what was put before.
package etcd

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/rendezvous"
)

const (
	slots, burst          = 4, 3     // frames that one writer keeps; that are sent at once, and that wait
	maxMissed             = 8        // frames that a reader fetches at first
	maxReceive            = 16 << 20 // bytes of one answer: maxMissed values of 1.5 MiB, which is what a server takes by default
	callLimit             = 3 * time.Second
	probeEvery, probeSoon = 30 * time.Second, time.Second // while the cluster answers; while it does not
)

// ErrConfig reports endpoints that cannot be used.
var ErrConfig = errors.New("etcd: endpoints must be http:// or https:// with a host, and without user or password")

// Config is what New needs. Endpoints must be set.
type Config struct {
	Endpoints      []string      // the cluster's client URLs, for example https://etcd.example:2379
	User, Password string        // of one who may read and write Prefix; default none
	TLS            *tls.Config   // for https; default: the system's certificate authorities
	Prefix         string        // of all keys; default "/kith/1/"
	Lease          time.Duration // how long frames stay, at most, after their device has gone; default 10 minutes
	Interval       time.Duration // how often a session sends, after the first three frames; default one second
	Logger         *slog.Logger  // default discard
}

// String leaves out the password.
func (c Config) String() string { return fmt.Sprint(c.Endpoints) }

// An Exchange is one cluster as a medium. It is safe for concurrent use.
type Exchange struct {
	cfg      Config
	ctx      context.Context //nolint:containedctx // ends with Close
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	ask      chan struct{} // holds a token when a probe is wanted now
	ready    chan struct{} // closed when client is set
	client   *clientv3.Client
	mu       sync.Mutex      // guards the fields below, and wg against additions after Close
	err      error           // of the last probe
	revision int64           // of the last probe
	now      context.Context //nolint:containedctx // ends when the cluster may have lost its data
	next     context.CancelFunc
}

// New starts to connect to a cluster, and goes on for as long as the Exchange
// lives. It errs with ErrConfig for endpoints that are none; whether the cluster
// can be reached is told by Health.
func New(cfg Config) (*Exchange, error) {
	unfit := func(text string) bool {
		u, err := url.Parse(text)
		return err != nil || u.Hostname() == "" || u.User != nil || u.Scheme != "http" && u.Scheme != "https"
	}
	if len(cfg.Endpoints) == 0 || slices.ContainsFunc(cfg.Endpoints, unfit) {
		return nil, ErrConfig
	}
	cfg.Prefix = cmp.Or(cfg.Prefix, "/kith/1/")
	cfg.Lease = cmp.Or(cfg.Lease, 10*time.Minute)
	cfg.Interval = cmp.Or(cfg.Interval, time.Second)
	cfg.Logger = cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler))
	e := &Exchange{cfg: cfg, ask: make(chan struct{}, 1), ready: make(chan struct{}), err: errors.New("connecting")}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.now, e.next = context.WithCancel(e.ctx)
	e.wg.Go(e.run)
	return e, nil
}

// Another uses the same cluster once more. It errs as New does.
func (e *Exchange) Another() (rendezvous.Exchange, error) { return New(e.cfg) }

// Servers returns the host:port of the endpoints.
func (e *Exchange) Servers() (out []string) {
	for _, text := range e.cfg.Endpoints {
		if u, err := url.Parse(text); err == nil {
			out = append(out, net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "2379")))
		}
	}
	return out
}

// run looks, now and then, whether the cluster answers.
func (e *Exchange) run() {
	for e.ctx.Err() == nil {
		revision, err := e.probe()
		e.cfg.Logger.Debug("cluster asked", "exchange", "etcd", "err", err)
		wait := probeEvery
		if err != nil {
			wait = probeSoon
		}
		e.mu.Lock()
		if err == nil && (e.err != nil || revision < e.revision) {
			e.next()
			e.now, e.next = context.WithCancel(e.ctx)
		}
		e.err, e.revision = err, revision
		e.mu.Unlock()
		select {
		case <-time.After(wait):
		case <-e.ask:
		case <-e.ctx.Done():
		}
	}
}

// probe asks the cluster whether this user may read and write.
func (e *Exchange) probe() (int64, error) {
	if e.client == nil {
		client, err := clientv3.New(clientv3.Config{ // with a user, this already asks
			Endpoints: e.cfg.Endpoints, Username: e.cfg.User, Password: e.cfg.Password, TLS: e.cfg.TLS, Logger: zap.NewNop(),
			DialTimeout: callLimit, DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: callLimit, MaxCallRecvMsgSize: maxReceive, MaxUnaryRetries: 2,
			DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
				Backoff: backoff.Config{BaseDelay: probeSoon / 2, Multiplier: 1.5, Jitter: 0.2, MaxDelay: 5 * probeSoon}, MinConnectTimeout: callLimit})},
		})
		if err != nil {
			return 0, err
		}
		e.client = client
		close(e.ready)
	}
	ctx, cancel := context.WithTimeout(e.ctx, callLimit)
	defer cancel()
	key := e.cfg.Prefix + "?" // never written, as the condition is never true, but the rights to both are checked
	r, err := e.client.Txn(ctx).If(clientv3.Compare(clientv3.Version(key), "<", 0)).Then(clientv3.OpPut(key, "")).Commit()
	if err != nil {
		return 0, err
	}
	return r.Header.Revision, nil
}

// Name returns "etcd".
func (e *Exchange) Name() string { return "etcd" }

// Health says whether the cluster answers, and if not why.
func (e *Exchange) Health() rendezvous.Health {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err == nil {
		return rendezvous.Health{Name: "etcd", Ready: true, Detail: e.cfg.String() + " answers"}
	}
	return rendezvous.Health{Name: "etcd", Detail: e.cfg.String() + " is not usable", Err: fmt.Errorf("etcd: %w: are address, certificate and user right?", e.err)}
}

// Check asks the cluster whether it is there. It does not block.
func (e *Exchange) Check() {
	select {
	case e.ask <- struct{}{}:
	default:
	}
}

// Join opens a session. It errs with net.ErrClosed after Close.
func (e *Exchange) Join(ctx context.Context, p rendezvous.Point) (rendezvous.Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s := &session{Inbox: rendezvous.NewInbox("etcd"), e: e, frames: make(chan []byte, burst)}
	s.prefix = fmt.Sprintf("%s%x/", e.cfg.Prefix, wire.Expand(wire.Extract(nil, p.Topic[:]), "rendezvous etcd")[:20])
	s.own = s.prefix + rand.Text() + "/"
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx.Err() != nil {
		return nil, fmt.Errorf("etcd: join: %w", net.ErrClosed)
	}
	s.ctx, s.cancel = context.WithCancel(e.ctx) //nolint:gosec // Close calls it
	e.wg.Go(func() { s.run(p.Mode != rendezvous.SendOnly) })
	return s, nil
}

// Close ends all sessions, takes back what they wrote, disconnects and waits for
// the driver's goroutines.
func (e *Exchange) Close() error {
	e.mu.Lock()
	e.cancel()
	e.mu.Unlock()
	e.wg.Wait()
	if e.client != nil {
		e.client.Close()
	}
	return nil
}

// A session is one use of a topic.
type session struct {
	*rendezvous.Inbox
	e           *Exchange
	ctx         context.Context //nolint:containedctx // ends with Close
	cancel      context.CancelFunc
	prefix, own string      // of the topic's keys; of those that this session writes
	frames      chan []byte // to send
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
		return fmt.Errorf("etcd: %w: %w", rendezvous.ErrUnreachable, h.Err)
	}
	return nil
}

// Close leaves the topic; what was written is taken back soon after.
func (s *session) Close() error {
	s.Shut(s.cancel)
	return nil
}

// run receives, if that is wanted, and puts the newest frames at the rate that is allowed.
func (s *session) run(receive bool) {
	defer s.Close() // of the Inbox, if it was the Exchange that was closed
	select {
	case <-s.e.ready:
	case <-s.ctx.Done():
		return
	}
	if receive {
		s.e.wg.Go(func() {
			for limit := rate.NewLimiter(rate.Every(probeSoon), burst); limit.Wait(s.ctx) == nil; {
				s.follow()
			}
		})
	}
	lease := clientv3.LeaseID(-1) // nobody's: a put with it fails
	var renew time.Time           // when the next lease is needed
	for slot, limit := 0, rate.NewLimiter(rate.Every(s.e.cfg.Interval), burst); limit.Wait(s.ctx) == nil; slot++ {
		select {
		case frame := <-s.frames:
			ctx, cancel := context.WithTimeout(s.ctx, callLimit)
			if now := time.Now(); now.After(renew) {
				if r, err := s.e.client.Grant(ctx, max(1, int64(s.e.cfg.Lease/time.Second))); err == nil {
					lease, renew = r.ID, now.Add(s.e.cfg.Lease/2)
				}
			}
			_, err := s.e.client.Put(ctx, fmt.Sprint(s.own, slot%slots), string(frame), clientv3.WithLease(lease))
			if cancel(); err != nil {
				renew = time.Time{} // the cluster may have lost it
				s.e.Check()
			}
		case <-s.ctx.Done():
		}
	}
	if lease >= 0 {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), callLimit)
		defer cancel()
		_, _ = s.e.client.Delete(ctx, s.own, clientv3.WithPrefix()) // or the lease ends
	}
}

func (s *session) follow() {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	s.e.mu.Lock()
	defer context.AfterFunc(s.e.now, cancel)()
	s.e.mu.Unlock()
	r, err := s.e.client.Get(ctx, s.prefix, clientv3.WithPrefix(), clientv3.WithLimit(maxMissed), clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend))
	if err != nil {
		return
	}
	for _, kv := range slices.Backward(r.Kvs) {
		s.take(kv)
	}
	for r := range s.e.client.Watch(clientv3.WithRequireLeader(ctx), s.prefix, clientv3.WithPrefix(), clientv3.WithRev(r.Header.Revision+1), clientv3.WithFilterDelete(), clientv3.WithFragment()) {
		for _, event := range r.Events {
			s.take(event.Kv)
		}
	}
}

func (s *session) take(kv *mvccpb.KeyValue) {
	if len(kv.Value) == rendezvous.FrameSize && !bytes.HasPrefix(kv.Key, []byte(s.own)) {
		s.Deliver(rendezvous.Message{Frame: kv.Value, Exchange: "etcd"})
	}
}
