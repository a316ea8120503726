package waku

import (
	"errors"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"
)

var errNoMemory = errors.New("too much memory is in use")

// A budget is memory that the streams of many connections share. Yamux reserves a
// stream's window before it takes a byte.
type budget struct {
	most int64 // bytes
	used atomic.Int64
}

func (b *budget) reserve(n int64) error {
	if b == nil {
		return nil
	}
	if b.used.Add(n) > b.most {
		b.used.Add(-n)
		return errNoMemory
	}
	return nil
}

func (b *budget) release(n int64) {
	if b != nil {
		b.used.Add(-n)
	}
}

// A manager is a network.ResourceManager for the WebSocket transport. It only
// hands out scopes.
type manager struct {
	network.NullResourceManager
	budget *budget
}

// OpenConnection returns the scope of one connection; it errs never.
func (m *manager) OpenConnection(network.Direction, bool, ma.Multiaddr) (network.ConnManagementScope, error) {
	return &scope{budget: m.budget}, nil
}

// A scope accounts for one connection.
type scope struct {
	network.NullScope
	budget *budget
}

// PeerScope returns the scope itself, whose spans are Yamux's.
func (s *scope) PeerScope() network.PeerScope { return s }

// BeginSpan returns the account of one stream; it errs never.
func (s *scope) BeginSpan() (network.ResourceScopeSpan, error) {
	return &span{budget: s.budget}, nil
}

// A span accounts for one stream.
type span struct {
	network.NullScope
	budget *budget
	used   atomic.Int64
}

// ReserveMemory takes size bytes; it errs when the budget is used up.
func (s *span) ReserveMemory(size int, _ uint8) error {
	if err := s.budget.reserve(int64(size)); err != nil {
		return err
	}
	s.used.Add(int64(size))
	return nil
}

// ReleaseMemory gives size bytes back.
func (s *span) ReleaseMemory(size int) {
	s.used.Add(int64(-size))
	s.budget.release(int64(size))
}

// Done gives back what is left.
func (s *span) Done() { s.budget.release(s.used.Swap(0)) }
