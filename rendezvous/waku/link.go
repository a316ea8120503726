package waku

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	ma "github.com/multiformats/go-multiaddr"
	mss "github.com/multiformats/go-multistream"
	"google.golang.org/protobuf/encoding/protowire"
)

var errNotSupported = errors.New("protocol is not supported there")

// A handler serves one stream that the other side opened, after its protocol was
// selected. The stream has a deadline of operationLimit; it is closed afterwards.
type handler func(l *link, s *stream)

// A stream is one stream with buffered reading.
type stream struct {
	network.MuxedStream
	r *bufio.Reader
}

// extend gives the stream another deadline; zero is none.
func (s *stream) extend(d time.Duration) {
	if d == 0 {
		s.SetDeadline(time.Time{})
		return
	}
	s.SetDeadline(time.Now().Add(d))
}

// reply sends one message.
func (s *stream) reply(msg []byte) {
	_, _ = s.Write(appendDelimited(nil, msg)) // who asked notices
}

// A link is one connection to another libp2p host, of either direction.
type link struct {
	h        *host
	conn     transport.CapableConn
	remote   netip.AddrPort
	local    netip.Addr
	handlers map[string]handler
	slots    chan struct{} // one for each stream that is served
	wg       sync.WaitGroup
}

func newLink(h *host, conn transport.CapableConn, handlers map[string]handler, streams int) *link {
	l := &link{h: h, conn: conn, handlers: handlers}
	l.slots = make(chan struct{}, streams)
	l.remote, l.local = numbers(conn.RemoteMultiaddr()), numbers(conn.LocalMultiaddr()).Addr()
	return l
}

func (l *link) peer() peer.ID { return l.conn.RemotePeer() }

func (l *link) close() { l.conn.Close() }

// serve serves the other side's streams until the connection ends or ctx does.
// Then it waits for what was under way.
func (l *link) serve(ctx context.Context) {
	stop := context.AfterFunc(ctx, l.close)
	defer stop()
	defer l.wg.Wait()
	defer l.close()
	mux := mss.NewMultistreamMuxer[string]()
	for name := range l.handlers {
		mux.AddHandler(name, nil)
	}
	for _, name := range []string{protoIdentify, protoIDPush, protoPing} {
		mux.AddHandler(name, nil)
	}
	for {
		raw, err := l.conn.AcceptStream()
		if err != nil {
			return
		}
		select {
		case l.slots <- struct{}{}:
		default: // more at once than Yamux should let through
			raw.Reset()
			continue
		}
		l.wg.Go(func() {
			defer func() { <-l.slots }()
			l.handle(mux, raw)
		})
	}
}

func (l *link) handle(mux *mss.MultistreamMuxer[string], raw network.MuxedStream) {
	s := &stream{MuxedStream: raw, r: bufio.NewReader(raw)}
	s.extend(operationLimit)
	name, _, err := mux.Negotiate(raw) // reads not a byte more than it needs
	defer raw.Close()                  // also of one that failed: it may have been told so
	if err != nil {
		return
	}
	switch name {
	case protoIdentify:
		s.reply(l.identify())
	case protoIDPush:
		_, _ = io.CopyN(io.Discard, s.r, 64<<10) // what the other side can do is found out by asking for it
	case protoPing:
		l.pong(s)
	default:
		l.handlers[name](l, s)
	}
}

// identify encodes what this host says of itself (libp2p's identify
// specification, message Identify).
func (l *link) identify() []byte {
	b := appendData(nil, 1, l.h.public)
	names := []string{protoIdentify, protoIDPush, protoPing}
	for name := range l.handlers {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		b = appendText(b, 3, name)
	}
	if m := l.conn.RemoteMultiaddr(); m != nil {
		b = appendData(b, 4, m.Bytes())
	}
	return appendText(appendText(b, 5, identifyProtocol), 6, agentVersion)
}

// parseIdentify returns the protocols that the other side serves.
func parseIdentify(b []byte) (map[string]bool, error) {
	out := make(map[string]bool)
	return out, each(b, func(num protowire.Number, _ uint64, data []byte) error {
		if num == 3 && len(data) <= maxTopic && len(out) < maxList {
			out[string(data)] = true
		}
		return nil
	})
}

// pong answers libp2p's ping: 32 bytes come back, again and again.
func (l *link) pong(s *stream) {
	var b [32]byte
	for {
		if _, err := io.ReadFull(s.r, b[:]); err != nil {
			return
		}
		if _, err := s.Write(b[:]); err != nil {
			return
		}
		s.extend(2 * keepAlive)
	}
}

// multistream is what the opening side says to select a protocol, in one go with
// what follows (multistream-select 1.0).
func multistream(name string) []byte {
	b := appendDelimited(nil, []byte(mss.ProtocolID+"\n"))
	return appendDelimited(b, []byte(name+"\n"))
}

// open opens a stream and sends msg on it, behind the selection of a protocol; nil
// is no message.
// The caller closes it.
func (l *link) open(ctx context.Context, name string, msg []byte) (network.MuxedStream, error) {
	s, err := l.conn.OpenStream(ctx)
	if err != nil {
		return nil, fmt.Errorf("open a stream: %w", err)
	}
	deadline := time.Now().Add(operationLimit)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	s.SetDeadline(deadline)
	b := multistream(name)
	if msg != nil {
		b = appendDelimited(b, msg)
	}
	if _, err := s.Write(b); err != nil {
		s.Reset()
		return nil, fmt.Errorf("send: %w", err)
	}
	return s, nil
}

// push sends a message that has no answer.
func (l *link) push(ctx context.Context, name string, msg []byte) error {
	s, err := l.open(ctx, name, msg)
	if err != nil {
		return err
	}
	return s.Close()
}

// request sends a message and returns the answer, of at most limit bytes. It
// returns errNotSupported where the other side does not know the protocol.
func (l *link) request(ctx context.Context, name string, msg []byte, limit int) ([]byte, error) {
	s, err := l.open(ctx, name, msg)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { s.Reset() })
	defer stop()
	if err := s.CloseWrite(); err != nil {
		return nil, fmt.Errorf("send: %w", err)
	}
	answer, err := readAnswer(bufio.NewReader(s), name, limit)
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%s: %w", name, ctx.Err())
	}
	if err != nil && !errors.Is(err, errNotSupported) && !errors.Is(err, errTooLarge) {
		err = fmt.Errorf("%s: %w", name, err)
	}
	return answer, err
}

func readAnswer(r *bufio.Reader, name string, limit int) ([]byte, error) {
	if token, err := mss.ReadNextToken[string](r); err != nil {
		return nil, err
	} else if token != mss.ProtocolID {
		return nil, errMalformed
	}
	switch token, err := mss.ReadNextToken[string](r); {
	case err != nil:
		return nil, err
	case token == "na":
		return nil, errNotSupported
	case token != name:
		return nil, errMalformed
	}
	return readDelimited(r, limit)
}

// requestID names a request. Nobody needs it to be secret.
func requestID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // it never fails
	return fmt.Sprintf("%x", b)
}

// numbers returns the address and port in a multiaddr, 0.0.0.0:0 if it has none.
func numbers(m ma.Multiaddr) netip.AddrPort {
	ip, port := netip.IPv4Unspecified(), uint64(0)
	for _, c := range m {
		switch c.Protocol().Code {
		case ma.P_IP4, ma.P_IP6:
			if a, err := netip.ParseAddr(c.Value()); err == nil {
				ip = a.Unmap()
			}
		case ma.P_TCP:
			port, _ = strconv.ParseUint(c.Value(), 10, 16) // zero where it is none
		}
	}
	return netip.AddrPortFrom(ip, uint16(port))
}
