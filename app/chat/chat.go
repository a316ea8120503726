// Package chat sends lines of text between two devices. It is given a dialer
// and a listener and knows nothing of the network between them.
//
// Wire format, over one ordered connection per direction of a conversation: the
// caller sends one JSON object a line, {"id","time","text"}; the called answers
// {"ack":id} when the line is safe in its memory. A line whose acknowledgement
// did not come is sent again with its id over a new connection, and the called
// shows an id once.
package chat

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// Port is the tunnel port on which a device takes chat, as a TCP port number.
const Port = 27491

const (
	// MaxText is the longest line of text, in bytes of UTF-8.
	MaxText = 4096
	// MaxUnread is how many lines per device wait for a reader; the oldest go.
	MaxUnread = 1000

	maxLine     = 6*MaxText + 256 // bytes: JSON may escape every byte to six
	rememberIDs = 1024            // per device: how many line ids are known as shown
	ackTimeout  = 10 * time.Second
	idleTimeout = 10 * time.Minute
	maxConns    = 64
)

var (
	// ErrText reports text that is empty, too long or not UTF-8.
	ErrText = errors.New("chat: a line is 1 to 4096 bytes of UTF-8 text")
	// ErrClosed reports the use of a service after Close.
	ErrClosed = errors.New("chat: closed")
)

// A Line is one line of a conversation.
type Line struct {
	Peer string    `json:"peer"` // the other device, as Config.Who names it
	Text string    `json:"text"` // clean: no control, escape or bidi characters
	Time time.Time `json:"time"` // by the sender's clock
	Mine bool      `json:"mine"` // sent from here
}

// Config is what a Service needs. Listener, Dial and Who must be set.
type Config struct {
	// Listener brings the calls of other devices. The Service closes it.
	Listener net.Listener
	// Dial calls the chat port of a device, named as Who names it.
	Dial func(ctx context.Context, peer string) (net.Conn, error)
	// Who names the device behind a remote address, and says whether it may chat.
	Who func(remote net.Addr) (peer string, ok bool)
	// Logger: default discard. Text is never logged.
	Logger *slog.Logger
}

// A Service is this device's chat with all others. It is safe for concurrent
// use. Close ends it.
type Service struct {
	cfg    Config
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex // guards the fields below; not held while calling out
	closed   bool
	unread   map[string][]Line
	readers  map[string]map[*Reader]struct{}
	shown    map[string]*idSet
	outgoing map[string]*outgoing
	pending  map[string]pending // lines of which parts have come as notes
}

// outgoing is the connection on which lines to one device go, one at a time.
type outgoing struct {
	turn chan struct{} // holds the right to use conn
	conn net.Conn
	in   *bufio.Scanner
}

// line is the wire form of both directions.
type line struct {
	ID   string    `json:"id,omitempty"`
	Time time.Time `json:"time,omitzero"`
	Text string    `json:"text,omitempty"`
	Ack  string    `json:"ack,omitempty"`
}

// New starts a service that takes calls from cfg.Listener.
func New(cfg Config) *Service {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Service{
		cfg: cfg, cancel: cancel, unread: make(map[string][]Line), readers: make(map[string]map[*Reader]struct{}),
		shown: make(map[string]*idSet), outgoing: make(map[string]*outgoing), pending: make(map[string]pending),
	}
	s.wg.Go(func() { s.accept(ctx) })
	return s
}

// Close ends all conversations and waits for them. It is idempotent; the error
// is the listener's.
func (s *Service) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	for _, o := range s.outgoing {
		if o.conn != nil {
			o.conn.Close()
		}
	}
	s.mu.Unlock()
	s.cancel()
	err := s.cfg.Listener.Close()
	s.wg.Wait()
	return err
}

func (s *Service) accept(ctx context.Context) {
	slots := make(chan struct{}, maxConns)
	for {
		conn, err := s.cfg.Listener.Accept()
		if err != nil {
			return
		}
		peer, ok := s.cfg.Who(conn.RemoteAddr())
		if !ok {
			conn.Close()
			continue
		}
		select {
		case slots <- struct{}{}:
			s.wg.Go(func() {
				defer func() { <-slots }()
				s.take(ctx, conn, peer)
			})
		default:
			conn.Close() // more calls than devices: somebody misbehaves
		}
	}
}

// take receives lines on a connection that the peer opened.
func (s *Service) take(ctx context.Context, conn net.Conn, peer string) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	in := newScanner(conn)
	for conn.SetReadDeadline(time.Now().Add(idleTimeout)) == nil && in.Scan() {
		var l line
		if json.Unmarshal(in.Bytes(), &l) != nil || l.ID == "" || len(l.ID) > 64 {
			s.cfg.Logger.Debug("chat line not understood")
			return
		}
		text := CleanText(l.Text)
		if text != "" && s.first(peer, l.ID) {
			s.deliver(Line{Peer: peer, Text: text, Time: l.Time})
		}
		ack, err := json.Marshal(line{Ack: l.ID})
		if err != nil {
			return
		}
		if _, err := conn.Write(append(ack, '\n')); err != nil {
			return
		}
	}
}

func newScanner(conn net.Conn) *bufio.Scanner {
	in := bufio.NewScanner(conn)
	in.Buffer(make([]byte, 0, 4096), maxLine)
	return in
}

// first reports whether an id of a peer is seen for the first time.
func (s *Service) first(peer, id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	set := s.shown[peer]
	if set == nil {
		set = &idSet{known: make(map[string]struct{})}
		s.shown[peer] = set
	}
	return set.add(id)
}

// deliver gives a message to every reader, or keeps it until there is one.
func (s *Service) deliver(m Line) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deliverLocked(m)
}

func (s *Service) deliverLocked(m Line) {
	if len(s.readers[m.Peer]) == 0 {
		q := append(s.unread[m.Peer], m)
		s.unread[m.Peer] = q[max(0, len(q)-MaxUnread):]
		return
	}
	for r := range s.readers[m.Peer] {
		r.put(m)
	}
}

// Unread returns how many lines wait for a reader, by device.
func (s *Service) Unread() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]int, len(s.unread))
	for peer, q := range s.unread {
		out[peer] = len(q)
	}
	return out
}

// Send sends one line and returns when the other device has it. It errs with
// ErrText for text that is no line, with what Dial says if the device cannot be
// reached, and with the connection's error if the acknowledgement did not come.
func (s *Service) Send(ctx context.Context, peer, text string) (Line, error) {
	clean := CleanText(text)
	if clean == "" || len(text) > MaxText || !utf8.ValidString(text) {
		return Line{}, ErrText
	}
	var id [12]byte
	if _, err := rand.Read(id[:]); err != nil {
		return Line{}, fmt.Errorf("chat: %w", err)
	}
	l := line{ID: hex.EncodeToString(id[:]), Time: time.Now().UTC(), Text: clean}
	o, err := s.outgoingTo(peer)
	if err != nil {
		return Line{}, err
	}
	select {
	case o.turn <- struct{}{}:
		defer func() { <-o.turn }()
	case <-ctx.Done():
		return Line{}, ctx.Err()
	}
	fresh := o.conn == nil
	err = s.exchange(ctx, o, peer, l)
	if err != nil && !fresh { // the old connection may have died unseen: once more
		err = s.exchange(ctx, o, peer, l)
	}
	if err != nil {
		return Line{}, err
	}
	return Line{Peer: peer, Text: clean, Time: l.Time, Mine: true}, nil
}

func (s *Service) outgoingTo(peer string) (*outgoing, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	o := s.outgoing[peer]
	if o == nil {
		o = &outgoing{turn: make(chan struct{}, 1)}
		s.outgoing[peer] = o
	}
	return o, nil
}

func (s *Service) exchange(ctx context.Context, o *outgoing, peer string, l line) error {
	if o.conn == nil {
		conn, err := s.cfg.Dial(ctx, peer)
		if err != nil {
			return err
		}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			conn.Close()
			return ErrClosed
		}
		o.conn, o.in = conn, newScanner(conn)
		s.mu.Unlock()
	}
	err := converse(ctx, o, l)
	if err != nil {
		s.mu.Lock()
		o.conn.Close()
		o.conn = nil
		s.mu.Unlock()
	}
	return err
}

func converse(ctx context.Context, o *outgoing, l line) error {
	stop := context.AfterFunc(ctx, func() { o.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := o.conn.SetDeadline(time.Now().Add(ackTimeout)); err != nil {
		return fmt.Errorf("chat: send: %w", err)
	}
	raw, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("chat: send: %w", err)
	}
	if _, err := o.conn.Write(append(raw, '\n')); err != nil {
		return fmt.Errorf("chat: send: %w", err)
	}
	var answer line
	if !o.in.Scan() {
		err := o.in.Err()
		if err == nil {
			err = errors.New("the other device closed the conversation")
		}
		return fmt.Errorf("chat: wait for the other device to confirm: %w", err)
	}
	if err := json.Unmarshal(o.in.Bytes(), &answer); err != nil || answer.Ack != l.ID {
		return errors.New("chat: the other device's answer is not understood")
	}
	return nil
}

// CleanText makes text of another device fit for a terminal: one line without
// control characters, escape sequences' start, bidirectional overrides and
// other invisible format characters (a zero-width joiner inside emoji stays),
// at most MaxText bytes.
func CleanText(text string) string {
	clean := strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || r == '\n' || r == '\r' || r == '\u2028' || r == '\u2029':
			return ' '
		case r == utf8.RuneError, unicode.IsControl(r):
			return -1
		case r == '\u200d':
			return r
		case unicode.Is(unicode.Cf, r), unicode.Is(unicode.Co, r):
			return -1
		}
		return r
	}, text)
	clean = strings.TrimSpace(clean)
	for len(clean) > MaxText {
		_, size := utf8.DecodeLastRuneInString(clean)
		clean = clean[:len(clean)-size]
	}
	return clean
}

// An idSet knows the last rememberIDs ids.
type idSet struct {
	known map[string]struct{}
	order []string
}

func (s *idSet) add(id string) bool {
	if _, ok := s.known[id]; ok {
		return false
	}
	if len(s.order) == rememberIDs {
		delete(s.known, s.order[0])
		s.order = s.order[1:]
	}
	s.known[id] = struct{}{}
	s.order = append(s.order, id)
	return true
}
