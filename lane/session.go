package lane

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"io"
	"time"

	"github.com/kithproject/kith/internal/wire"
)

// The names of the proofs; see the package comment.
const (
	proofDialed   = "lane dialed"
	proofChosen   = "lane chosen"
	proofAccepted = "lane accepted"

	proofSize = 32 // bytes
)

// A session is a TLS connection whose keys are the invited ones, and which is not a
// lane yet.
type session struct {
	t        *tls.Conn
	base     *base
	exporter []byte
}

func newSession(t *tls.Conn, b *base) (*session, error) {
	state := t.ConnectionState()
	exporter, err := state.ExportKeyingMaterial("EXPORTER-kith/1 lane", nil, 32)
	if err != nil {
		return nil, err
	}
	return &session{t: t, base: b, exporter: exporter}, nil
}

// clientSession is the dialing side's handshake on a connection, which it closes if
// that fails.
func clientSession(ctx context.Context, b *base, cfg *tls.Config) (*session, error) {
	t := tls.Client(b, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		b.Close()
		return nil, err
	}
	s, err := newSession(t, b)
	if err != nil {
		b.Close()
	}
	return s, err
}

func (s *session) close() { s.base.Close() }

func (s *session) proof(token [tokenSize]byte, name string) []byte {
	return wire.Expand(token[:], name, s.exporter)
}

// prove sends the proof that this side knows a token.
func (s *session) prove(token [tokenSize]byte, name string) error {
	_, err := s.t.Write(s.proof(token, name))
	return err
}

// check reads the proof that the other side knows a token. It errs if that is wrong.
func (s *session) check(token [tokenSize]byte, name string) error {
	var got [proofSize]byte
	if _, err := io.ReadFull(s.t, got[:]); err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(got[:], s.proof(token, name)) != 1 {
		return errProof
	}
	return nil
}

// within bounds what is read and written from now on; zero ends the bound.
func (s *session) within(d time.Duration) {
	var until time.Time
	if d != 0 {
		until = time.Now().Add(d)
	}
	s.base.SetDeadline(until)
}
