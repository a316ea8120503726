package measure

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"
)

const (
	sessionTime = 20 * time.Second // longest measurement
	quota       = 20 * time.Second // of one device in quotaTime
	quotaTime   = time.Minute
	bytesQuota  = 256 << 20 // bytes that one device is sent in bytesTime
	bytesTime   = time.Hour
	maxConns    = 16 // at once
	deviceConns = 4  // of one device: a measurement has two at once
	helloTime   = 5 * time.Second
)

// Config is what a Service needs. All but Logger must be set.
type Config struct {
	// Listener brings the connections of other devices. The Service closes it.
	Listener net.Listener
	// Who names the device behind a remote address, and says whether it may measure.
	Who func(remote net.Addr) (device string, ok bool)
	// Force has a device be sent data on one sort of path until release is called. It errs
	// if there is none, and with ErrBusy while another sort is asked for.
	Force func(ctx context.Context, device, force string) (release func(), err error)
	// Logger: default discard.
	Logger *slog.Logger
}

// A Service answers measurements. It is safe for concurrent use. Close ends it.
type Service struct {
	cfg    Config
	ctx    context.Context //nolint:containedctx // ends every goroutine; Close cancels it
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex // guards the fields below
	now   *session
	spent []*spell       // the last one is that of now
	conns map[string]int // by device
}

// A spell is a time in which a device has measured.
type spell struct {
	device      string
	begin, over time.Time
	sent        int // bytes
}

// A session is one measurement.
type session struct {
	*spell  // of Service.mu
	id      [8]byte
	limit   time.Duration // how long it may take
	bytes   int           // how many it may be sent
	ended   chan struct{}
	streams chan [2]uint64 // bytes and nanoseconds of streams that have come
	used    [2]bool        // a stream was made to us, from us; of Service.mu

	mu   sync.Mutex // guards the fields below
	seen [trainCount]bool
	came time.Time // the first datagram
}

// NewService begins to answer.
func NewService(cfg Config) *Service {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Service{cfg: cfg}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.wg.Go(s.accept)
	return s
}

// Close ends every measurement and waits. The error is that of closing the listener.
func (s *Service) Close() error {
	s.cancel()
	err := s.cfg.Listener.Close()
	s.wg.Wait()
	return err
}

func (s *Service) accept() {
	for {
		conn, err := s.cfg.Listener.Accept()
		if err != nil {
			return
		}
		device, ok := s.cfg.Who(conn.RemoteAddr())
		if !ok || !s.enter(device) {
			conn.Close()
			continue
		}
		s.wg.Go(func() {
			defer s.leave(device)
			defer conn.Close()
			defer context.AfterFunc(s.ctx, func() { conn.Close() })()
			s.serve(conn, device)
		})
	}
}

// enter takes a connection of a device, if it has not too many.
func (s *Service) enter(device string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := 0
	for _, n := range s.conns {
		all += n
	}
	if all == maxConns || s.conns[device] == deviceConns {
		return false
	}
	if s.conns == nil {
		s.conns = make(map[string]int)
	}
	s.conns[device]++
	return true
}

func (s *Service) leave(device string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns[device]--; s.conns[device] == 0 {
		delete(s.conns, device)
	}
}

func (s *Service) serve(conn net.Conn, device string) {
	_ = conn.SetReadDeadline(time.Now().Add(helloTime)) // of the tunnel: it never errs
	var hello [helloLen]byte
	if _, err := io.ReadFull(conn, hello[:]); err != nil || hello[0] != version {
		return
	}
	id, last := [8]byte(hello[2:10]), hello[10]
	switch hello[1] {
	case kindControl:
		s.measure(conn, device, id, last)
	case kindStream:
		s.stream(conn, device, id, last)
	}
}

// begin makes a session if the device may have one.
func (s *Service) begin(device string, id [8]byte, now time.Time) (*session, status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spent = slices.DeleteFunc(s.spent, func(sp *spell) bool { return now.Sub(sp.over) >= bytesTime })
	left, bytes := quota, bytesQuota
	for _, sp := range s.spent {
		if sp.device != device {
			continue
		}
		bytes -= sp.sent
		if now.Sub(sp.over) < quotaTime {
			left -= sp.over.Sub(sp.begin)
		}
	}
	switch {
	case s.now != nil:
		return nil, statusBusy
	case left < leastSpell, bytes < leastBytes:
		return nil, statusSpent
	}
	s.now = &session{
		spell: &spell{device: device, begin: now, over: now.Add(leastSpell)}, id: id, limit: min(sessionTime, left), bytes: bytes,
		ended: make(chan struct{}), streams: make(chan [2]uint64, 2),
	}
	s.spent = append(s.spent, s.now.spell)
	return s.now, statusOK
}

// leastSpell is what each measurement counts for, however short, and with what it may
// begin; with fewer than leastBytes it would say little.
const (
	leastSpell = time.Second
	leastBytes = 1 << 20
)

func (s *Service) end(one *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); now.After(one.over) {
		one.over = now
	}
	s.now = nil
	close(one.ended)
}

// measure keeps a session as long as its control connection lasts.
func (s *Service) measure(conn net.Conn, device string, id [8]byte, force byte) {
	if int(force) >= len(forces()) {
		return
	}
	one, st := s.begin(device, id, time.Now())
	if st != statusOK {
		_, _ = conn.Write([]byte{byte(st)}) // or it hears nothing
		return
	}
	defer s.end(one)
	if err := conn.SetDeadline(one.begin.Add(one.limit)); err != nil {
		return
	}
	if force != 0 {
		ctx, cancel := context.WithDeadline(s.ctx, one.begin.Add(one.limit))
		defer cancel()
		release, err := s.cfg.Force(ctx, device, forces()[force])
		if err != nil {
			s.cfg.Logger.Debug("path not to be had", "force", forces()[force], "err", err)
			st = statusNoPath
			if errors.Is(err, ErrBusy) {
				st = statusBusy
			}
			_, _ = conn.Write([]byte{byte(st)})
			return
		}
		defer release()
	}
	if _, err := conn.Write([]byte{byte(statusOK)}); err != nil {
		return
	}
	var writing sync.WaitGroup
	defer writing.Wait()
	over := make(chan struct{})
	defer close(over)
	var mu sync.Mutex // of writes
	writing.Go(func() {
		for {
			select {
			case r := <-one.streams:
				var raw [16]byte
				binary.BigEndian.PutUint64(raw[:], r[0])
				binary.BigEndian.PutUint64(raw[8:], r[1])
				mu.Lock()
				_, _ = conn.Write(raw[:])
				mu.Unlock()
			case <-over:
				return
			}
		}
	})
	var ask [1]byte
	for {
		if _, err := io.ReadFull(conn, ask[:]); err != nil || ask[0] != askCount {
			return
		}
		var raw [4]byte
		binary.BigEndian.PutUint32(raw[:], one.count())
		mu.Lock()
		_, err := conn.Write(raw[:])
		mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (one *session) count() (n uint32) {
	one.mu.Lock()
	defer one.mu.Unlock()
	for _, seen := range one.seen {
		if seen {
			n++
		}
	}
	return n
}

// first reports whether a datagram comes for the first time, and how long after the very
// first one, and notes it.
func (one *session) first(number int, now time.Time) (there time.Duration, ok bool) {
	one.mu.Lock()
	defer one.mu.Unlock()
	if one.seen[number] {
		return 0, false
	}
	if one.came.IsZero() {
		one.came = now
	}
	one.seen[number] = true
	return now.Sub(one.came), true
}

// current returns the session of a device with an id, or nil.
func (s *Service) current(device string, id [8]byte) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == nil || s.now.device != device || s.now.id != id {
		return nil
	}
	return s.now
}

// stream takes or sends the one stream of a direction that a session has.
func (s *Service) stream(conn net.Conn, device string, id [8]byte, way byte) {
	one := s.current(device, id)
	if one == nil || way != toService && way != fromService {
		return
	}
	s.mu.Lock()
	used := one.used[way-1]
	one.used[way-1] = true
	s.mu.Unlock()
	if used {
		return
	}
	over := make(chan struct{})
	defer close(over)
	s.wg.Go(func() { // it ends with its session
		select {
		case <-one.ended:
			conn.Close()
		case <-over:
		}
	})
	if way == fromService {
		sent := pour(conn, one.bytes)
		s.mu.Lock()
		one.sent += sent
		s.mu.Unlock()
		return
	}
	bytes, took := drink(conn)
	one.streams <- [2]uint64{bytes, uint64(took)} //nolint:gosec // not negative
}

// Datagrams echoes the datagrams of a device's measurement until the association is
// closed or its measurement is over.
func (s *Service) Datagrams(device string, conn net.Conn) {
	defer context.AfterFunc(s.ctx, func() { conn.Close() })()
	buf := make([]byte, trainSize+1)
	for {
		if err := conn.SetReadDeadline(time.Now().Add(sessionTime)); err != nil {
			return
		}
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		if n != trainSize {
			return // it is no measurement
		}
		id := [8]byte(buf[:8])
		one := s.current(device, id)
		if one == nil {
			return
		}
		number, _, ok := readDatagram(buf[:n], id)
		if !ok {
			continue
		}
		if there, ok := one.first(number, time.Now()); ok {
			_, _ = conn.Write(datagram(id, number, there)) // lost like any datagram
		}
	}
}
