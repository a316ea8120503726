package mesh

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/kithproject/kith/identity"
)

// Dial connects to a port of a member that this device is not connected to, by way of
// one that is connected to both. What passes there is TLS between the two ends: the
// member in the middle sees its size and time. It errs with ErrRefused, which only the
// other end can say, with the error of ctx, and with ErrNoWay: also if who says that it is
// connected to both does not pass it on, or answers itself.
func (s *Service) Dial(ctx context.Context, peer identity.DeviceID, port uint16) (net.Conn, error) {
	_, by := s.ways(peer)
	var err error
	for i, via := range by {
		wait := wayTime
		if i == len(by)-1 {
			wait = helloTime
		}
		way, cancel := context.WithTimeout(ctx, wait)
		var conn net.Conn
		conn, err = s.dialBy(way, via, peer, port)
		cancel()
		if err == nil || errors.Is(err, ErrRefused) {
			return conn, err
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	if err == nil {
		return nil, fmt.Errorf("mesh: dial %s: %w", peer.Short(), ErrNoWay)
	}
	return nil, fmt.Errorf("mesh: dial %s: %w: %w", peer.Short(), ErrNoWay, err)
}

// wayTime is how long one way is tried before the next one.
const wayTime = 3 * time.Second

func (s *Service) dialBy(ctx context.Context, via, peer identity.DeviceID, port uint16) (_ net.Conn, err error) {
	raw, err := s.cfg.Dial(ctx, via)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			raw.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := raw.Write(append([]byte{connRelay}, peer[:]...)); err != nil {
		return nil, err
	}
	if err := status(raw); err != nil { // the word of the one in the middle
		return nil, fmt.Errorf("%s does not pass it on: %v", via.Short(), err) //nolint:errorlint // not ErrRefused
	}
	conn, err := s.secure(raw, peer, false)
	if err != nil {
		return nil, err
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("by way of %s: prove the other end: %v", via.Short(), err) //nolint:errorlint // not ErrRefused
	}
	if _, err := conn.Write(binary.BigEndian.AppendUint16(nil, port)); err != nil {
		return nil, err
	}
	if err := status(conn); err != nil {
		return nil, err
	}
	if !stop() {
		return nil, ctx.Err()
	}
	return s.end(conn, peer, port), nil
}

// status reads the one byte that says how it goes on.
func status(in io.Reader) error {
	var b [1]byte
	if _, err := io.ReadFull(in, b[:]); err != nil {
		return err
	}
	switch b[0] {
	case statusOK:
		return nil
	case statusNoWay:
		return ErrNoWay
	}
	return ErrRefused
}

// passOn splices a stream between two members.
func (s *Service) passOn(conn net.Conn, from identity.DeviceID) {
	var to identity.DeviceID
	if _, err := io.ReadFull(conn, to[:]); err != nil {
		return
	}
	var far net.Conn
	code := statusNoWay
	if s.claim(conn, from) {
		far, code = s.next(from, to)
	}
	if far != nil {
		defer far.Close()
		defer context.AfterFunc(s.ctx, func() { far.Close() })()
	}
	if _, err := conn.Write([]byte{code}); err != nil || far == nil {
		return
	}
	if errors.Join(conn.SetDeadline(time.Time{}), far.SetDeadline(time.Time{})) == nil {
		splice(conn, far)
	}
}

// next opens the second half of a stream that is to be passed on.
func (s *Service) next(from, to identity.DeviceID) (net.Conn, byte) {
	if to == s.self || to == from || !s.cfg.Together(from, to) {
		return nil, statusDenied
	}
	if direct, _ := s.Near(to); !direct {
		return nil, statusNoWay
	}
	ctx, cancel := context.WithTimeout(s.ctx, helloTime)
	defer cancel()
	far, err := s.cfg.Dial(ctx, to)
	if err != nil {
		return nil, statusNoWay
	}
	if far.SetDeadline(time.Now().Add(helloTime)) == nil {
		if _, err = far.Write(append([]byte{connRelayed}, from[:]...)); err == nil {
			if err = status(far); err == nil {
				return far, statusOK
			}
		}
	}
	far.Close()
	if errors.Is(err, ErrRefused) {
		return nil, statusDenied
	}
	return nil, statusNoWay
}

// splice carries bytes both ways until both have ended.
func splice(a, b net.Conn) {
	var wg sync.WaitGroup
	one := func(to, from net.Conn) {
		_, err := io.Copy(to, from)
		if half, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
			if half.CloseWrite() == nil {
				return
			}
		}
		a.Close()
		b.Close()
	}
	wg.Go(func() { one(a, b) })
	wg.Go(func() { one(b, a) })
	wg.Wait()
}

// receive is the end of a stream that another member passes on.
func (s *Service) receive(conn net.Conn, via identity.DeviceID) {
	var from identity.DeviceID
	if _, err := io.ReadFull(conn, from[:]); err != nil {
		return
	}
	if from == via || !s.cfg.Together(via, from) || !s.cfg.Together(s.self, from) || !s.pend(conn, via, from) {
		_, _ = conn.Write([]byte{statusDenied}) // it is over either way
		return
	}
	if _, err := conn.Write([]byte{statusOK}); err != nil {
		return
	}
	sec, err := s.secure(conn, from, true)
	if err != nil {
		return
	}
	var port [2]byte
	if _, err := io.ReadFull(sec, port[:]); err != nil {
		s.cfg.Logger.Debug("relayed stream not taken", "peer", from.Short(), "err", err)
		return
	}
	if conn.SetDeadline(time.Time{}) != nil {
		return
	}
	to := binary.BigEndian.Uint16(port[:])
	var take func(net.Conn)
	ok := s.claim(conn, from)
	if ok {
		take, ok = s.cfg.Accept(from, to)
	}
	if !ok {
		_, _ = sec.Write([]byte{statusDenied}) // it is over either way
		return
	}
	e := s.end(sec, from, to)
	defer e.Close()
	if _, err := sec.Write([]byte{statusOK}); err != nil {
		return
	}
	take(e)
	select {
	case <-e.done: // the caller closes what lies beneath
	case <-s.ctx.Done():
	}
}

// An end is a stream as programs see it: with addresses in the tunnel.
type end struct {
	*tls.Conn
	s             *Service
	local, remote net.Addr
	once          sync.Once
	done          chan struct{} // closed by Close
}

func (s *Service) end(conn *tls.Conn, peer identity.DeviceID, port uint16) *end {
	e := &end{
		Conn: conn, s: s, done: make(chan struct{}),
		local:  net.TCPAddrFromAddrPort(netip.AddrPortFrom(s.self.Addr(), port)),
		remote: net.TCPAddrFromAddrPort(netip.AddrPortFrom(peer.Addr(), port)),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ends[e] = peer
	return e
}

// LocalAddr is this device's address in the tunnel.
func (e *end) LocalAddr() net.Addr { return e.local }

// RemoteAddr is the other member's address in the tunnel.
func (e *end) RemoteAddr() net.Addr { return e.remote }

// Close ends the stream. It errs if the end could not be told to the other side.
func (e *end) Close() error {
	err := e.Conn.Close()
	e.once.Do(func() {
		close(e.done)
		e.s.mu.Lock()
		defer e.s.mu.Unlock()
		delete(e.s.ends, e)
	})
	return err
}

// secure is TLS 1.3 over a stream that another member passes on: both ends prove with
// their devices' own keys who they are.
func (s *Service) secure(raw net.Conn, peer identity.DeviceID, server bool) (*tls.Conn, error) {
	cert, err := certificate(s.cfg.Self)
	if err != nil {
		return nil, err
	}
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert,
		InsecureSkipVerify: true, SessionTicketsDisabled: true, //nolint:gosec // VerifyConnection pins the device's key
		VerifyConnection: func(st tls.ConnectionState) error { return isDevice(st, peer) },
	}
	if server {
		return tls.Server(raw, cfg), nil
	}
	return tls.Client(raw, cfg), nil
}

// isDevice errs unless the other end of a TLS connection has a device's key.
func isDevice(st tls.ConnectionState, peer identity.DeviceID) error {
	if len(st.PeerCertificates) != 1 {
		return ErrRefused
	}
	key, ok := st.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok || len(key) != identity.IDSize || identity.DeviceID(key) != peer {
		return fmt.Errorf("%w: the other end is another device", ErrRefused)
	}
	return nil
}

// signer lets TLS sign with a device's key. What TLS signs begins with a text of its
// own (RFC 8446 section 4.4.3), which nothing else that devices sign does.
type signer struct{ id *identity.Identity }

func (s signer) Public() crypto.PublicKey { id := s.id.ID(); return ed25519.PublicKey(id[:]) }

func (s signer) Sign(_ io.Reader, message []byte, _ crypto.SignerOpts) ([]byte, error) {
	return s.id.Sign(message), nil
}

// certificate is only the form that TLS wants a key in.
func certificate(id *identity.Identity) (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kith"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<34, 0),
	}
	key := signer{id}
	raw, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("mesh: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key}, nil
}
