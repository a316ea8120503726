// Package chat keeps conversations: of two paired devices, and of the members of a room.
// It is given a dialer, a listener and a folder, and knows nothing of the network.
//
// A conversation is a set of logs. Each author has one for each run of its program that
// wrote something there; its entries are numbered from 1 and signed by the author, so
// that whoever carries them can neither change nor forge one. A device takes only the
// next entry of a log, keeps it durably, and then says so: each entry is there exactly
// once and in order. Shown are entries by their Lamport numbers, then by author: in the
// same order on every side.
//
// Where not all members are connected to each other, those whom Config.Pass names are sent
// an author's lines unasked, too: then a line takes two steps to everybody.
//
// A device that has lost its store, or has an old one, writes a new log and is given
// back by the others what they still have of its old ones. Nothing is renumbered.
//
// # Wire
//
// One connection joins two devices, whoever opened it; a newer one replaces it. Each
// side sends frames: length u32 of what follows, type u8, body (wire.go). After a hello
// each tells for each conversation that both share up to where it has each log. An author
// sends what the other lacks of its own logs, unasked. Of all other logs one tells what
// one has, and who lacks it asks one of those who have it, unless the author is there. So
// people of a room who are never there at the same time get everything through anybody
// who was.
//
// # At rest
//
// One sealed file for each conversation, appended to and synced before anything is
// acknowledged (vault.go). It is bounded: beyond Config.MaxEntries or MaxBytes the oldest
// entries go, of the authors who have most; up to where each log was known stays.
package chat

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/kithproject/kith/identity"
)

// Port is the tunnel port on which a device takes chat, as a TCP port number.
const Port = 27491

const (
	// MaxText is the longest line of text, in bytes of UTF-8.
	MaxText = 4096

	defaultEntries = 100_000
	defaultBytes   = 64 << 20

	// ownLogs is how many logs this device writes in one conversation before it goes on
	// with one of them; maxLogs is how many of an author are known.
	ownLogs = 1024
	maxLogs = 2048
)

var (
	// ErrText reports text that is empty, too long or not UTF-8.
	ErrText = errors.New("chat: a line is 1 to 4096 bytes of UTF-8 text")
	// ErrClosed reports the use of a service after Close.
	ErrClosed = errors.New("chat: closed")
	// ErrNoConv reports a conversation that there is not.
	ErrNoConv = errors.New("chat: there is no such conversation")
	// ErrNotKept reports an entry that is not among those that are kept.
	ErrNotKept = errors.New("chat: there is no such line")
)

// A Signer is this device: an *identity.Identity, or what signs for it.
type Signer interface {
	// ID returns the device's public name.
	ID() identity.DeviceID
	// Sign returns the Ed25519 signature of a message, 64 bytes.
	Sign(message []byte) []byte
}

// Config is what a Service needs. Dir, Key, Self, Listener, Dial, Who and Convs must be
// set.
type Config struct {
	// Dir is the folder of the conversations; it is made.
	Dir string
	// Key seals what is kept there.
	Key [32]byte
	// Self signs what is written here.
	Self Signer
	// Listener brings the calls of other devices. The Service closes it.
	Listener net.Listener
	// Dial calls the chat port of a device.
	Dial func(ctx context.Context, peer identity.DeviceID) (net.Conn, error)
	// Who names the device behind a remote address, and says whether it may chat.
	Who func(remote net.Addr) (peer identity.DeviceID, ok bool)
	// Convs returns the conversations that there are, with their members and who of them
	// is connected to this device. What is not there is refused. ID, Room, Name, Members
	// and Muted are used.
	Convs func() []Conv
	// Pass names the members of a room to whom what an author has just sent here is sent on
	// at once, because they are not connected to the author. Others are told a little later
	// that it is here, and ask for it. Default: nobody.
	Pass func(conv ConvID, author identity.DeviceID) []identity.DeviceID
	// Mail takes what devices that are away are to get. Default: none.
	Mail Mail
	// MaxEntries is how many entries of a conversation are kept. Default 100,000.
	MaxEntries int
	// MaxBytes is how many bytes of entries of a conversation are kept. Default 64 MiB.
	MaxBytes int64
	// Rate is how many frames a second a device may send for long, a number; it may send
	// 40 times as many at once. Default 500.
	Rate float64
	// Logger: default discard. Text is never logged.
	Logger *slog.Logger
	// Now is the clock. Default time.Now.
	Now func() time.Time

	disk disk // tests only; nil: Dir
}

// A Service is this device's part in all its conversations. It is safe for concurrent
// use. Close ends it.
type Service struct {
	cfg    Config
	self   identity.DeviceID
	disk   disk
	ctx    context.Context //nolint:containedctx // ends every goroutine; Close cancels it
	cancel context.CancelFunc
	wg     sync.WaitGroup

	changing sync.Mutex // orders calls of Convs

	mu     sync.Mutex // guards the fields below, and what convos, links and peers say of it; not held while calling out
	closed bool
	convs  map[ConvID]*convo
	peers  map[identity.DeviceID]*peer
	subs   map[*subscriber]struct{}
	notes  map[identity.DeviceID]pendingNote // of which more parts are to come
	mail   *mailer                           // nil: there is none
}

// New starts a service that takes calls from cfg.Listener. It errs if the folder cannot
// be used; the listener is then closed.
func New(cfg Config) (*Service, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.MaxEntries <= 0 {
		cfg.MaxEntries = defaultEntries
	}
	if cfg.MaxBytes <= 0 {
		cfg.MaxBytes = defaultBytes
	}
	if cfg.Rate <= 0 {
		cfg.Rate = defaultRate
	}
	s := &Service{
		cfg: cfg, self: cfg.Self.ID(), disk: cfg.disk, convs: make(map[ConvID]*convo),
		peers: make(map[identity.DeviceID]*peer), subs: make(map[*subscriber]struct{}),
		notes: make(map[identity.DeviceID]pendingNote),
	}
	if s.disk == nil {
		d, err := openFolder(cfg.Dir)
		if err != nil {
			return nil, errors.Join(err, cfg.Listener.Close())
		}
		s.disk = d
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if cfg.Mail != nil {
		s.mail = newMailer(s)
		s.wg.Go(s.mail.run)
	}
	s.Changed()
	s.wg.Go(s.accept)
	return s, nil
}

// Close ends all connections and waits until what was being written is. It is
// idempotent; the error is the listener's.
func (s *Service) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	for _, p := range s.peers {
		p.stop()
	}
	for sub := range s.subs {
		sub.end()
	}
	s.mu.Unlock()
	s.cancel()
	err := s.cfg.Listener.Close()
	s.wg.Wait()
	return err
}

// start runs f as one of the service's goroutines, and reports false after Close. s.mu
// is held.
func (s *Service) start(f func()) bool {
	if s.closed {
		return false
	}
	s.wg.Go(f)
	return true
}

// Changed says that Convs returns something else now: a conversation, a member, or that
// a device has come or gone.
func (s *Service) Changed() {
	s.changing.Lock()
	defer s.changing.Unlock()
	now := s.cfg.Convs()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	there := make(map[ConvID]bool, len(now))
	for _, conv := range now {
		there[conv.ID] = true
		c := s.convs[conv.ID]
		if c == nil {
			v, err := newVault(s.disk, s.cfg.Key, conv.ID)
			if err != nil {
				s.cfg.Logger.Error("conversation not opened", "err", err)
				continue
			}
			c = &convo{id: conv.ID, vault: v, changed: make(chan struct{}), pending: make(map[logKey]map[uint64]*entry), pulls: make(map[logKey]*pull)}
			s.convs[conv.ID] = c
		}
		s.update(c, conv)
	}
	for id, c := range s.convs {
		if !there[id] && !c.gone {
			c.gone = true
			for _, l := range s.links() {
				delete(l.shared, id)
			}
			s.publish(Event{Kind: EventGone, Conv: s.describe(c)})
			c.tell()
		}
	}
	s.reconnect()
}

// update takes what a conversation is now. s.mu is held.
func (s *Service) update(c *convo, conv Conv) {
	conv.Unread, conv.Last = 0, time.Time{}
	old, was := c.conv, c.present()
	c.conv, c.gone = conv, false
	c.ids = make(map[identity.DeviceID]bool, len(conv.Members))
	for i := range conv.Members {
		conv.Members[i].Name = CleanText(conv.Members[i].Name)
		c.ids[conv.Members[i].ID] = true
	}
	c.conv.Name = CleanText(conv.Name)
	if was && same(old, c.conv) {
		return
	}
	grown := !was
	for _, m := range conv.Members {
		grown = grown || !has(old.Members, m.ID)
	}
	for _, l := range s.links() {
		switch sh := l.shared[c.id]; {
		case !c.ids[l.id]:
			delete(l.shared, c.id)
		case sh == nil:
			l.share(c)
		case grown:
			sh.tellAll = true // entries of the new member may have been refused
			l.poke()
		}
	}
	s.publishConv(c)
	c.tell()
}

func has(members []Member, id identity.DeviceID) bool {
	for _, m := range members {
		if m.ID == id {
			return true
		}
	}
	return false
}

func same(a, b Conv) bool {
	if a.ID != b.ID || a.Room != b.Room || a.Name != b.Name || a.Muted != b.Muted || len(a.Members) != len(b.Members) {
		return false
	}
	for i := range a.Members {
		if a.Members[i] != b.Members[i] {
			return false
		}
	}
	return true
}

// describe returns a conversation as it is shown. s.mu is held.
func (s *Service) describe(c *convo) *Conv {
	conv := c.conv
	conv.Members = append([]Member(nil), conv.Members...)
	if c.book != nil {
		conv.Unread, conv.Kept = c.book.unread(), c.book.kept(conv.Members)
		if c.book.last > 0 {
			conv.Last = time.UnixMilli(c.book.last).UTC()
		}
	}
	return &conv
}

// Convs returns all conversations, in the order of Config.Convs. It errs if one cannot be
// read.
func (s *Service) Convs() ([]Conv, error) {
	var out []Conv
	for _, conv := range s.cfg.Convs() {
		c, err := s.open(conv.ID)
		if errors.Is(err, ErrNoConv) {
			continue // Changed has not been called yet
		}
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		out = append(out, *s.describe(c))
		s.mu.Unlock()
	}
	return out, nil
}

// open returns a conversation with its index.
func (s *Service) open(id ConvID) (*convo, error) {
	s.mu.Lock()
	c := s.convs[id]
	closed := s.closed
	s.mu.Unlock()
	switch {
	case closed:
		return nil, ErrClosed
	case c == nil:
		return nil, ErrNoConv
	}
	return c, s.load(c)
}

// asked is open for a caller of this device, who may know of a conversation before Changed
// was called for it.
func (s *Service) asked(id ConvID) (*convo, error) {
	c, err := s.open(id)
	if errors.Is(err, ErrNoConv) {
		s.Changed()
		return s.open(id)
	}
	return c, err
}

// load reads a conversation, once.
func (s *Service) load(c *convo) error {
	c.loading.Lock()
	defer c.loading.Unlock()
	s.mu.Lock()
	there := c.book != nil
	s.mu.Unlock()
	if there {
		return nil
	}
	b := newBook(s.self)
	b.gen = c.vault.generation() + 1
	cut, err := c.vault.load(func(off int64, at int, kind byte, body []byte) {
		b.take(place{off, uint32(at)}, kind, body)
	})
	if err != nil {
		return fmt.Errorf("chat: read a conversation: %w", err)
	}
	if cut > 0 {
		s.cfg.Logger.Warn("end of a conversation was cut off", "conv", c.id, "bytes", cut)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c.book = b
	return nil
}
