package mesh

import (
	"context"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/kithproject/kith/identity"
)

// Leave tells a host, which is connected, that this device leaves a room, and waits until
// it is on no roster of that host's any more. It errs if the host does not do so, and with
// the error of ctx.
func (s *Service) Leave(ctx context.Context, host identity.DeviceID, room [16]byte) error {
	err := s.tellLeave(ctx, host, room)
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("mesh: leave: %w", err)
	}
	return nil
}

func (s *Service) tellLeave(ctx context.Context, host identity.DeviceID, room [16]byte) error {
	conn, err := s.cfg.Dial(ctx, host)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := conn.Write(append([]byte{connLeave}, room[:]...)); err != nil {
		return err
	}
	return status(conn)
}

// takeLeave takes a member at its word that it leaves.
func (s *Service) takeLeave(conn net.Conn, from identity.DeviceID) {
	var room [16]byte
	if _, err := io.ReadFull(conn, room[:]); err != nil {
		return
	}
	answer := statusDenied
	if s.cfg.Left(from, room) {
		answer = statusOK
	}
	_, _ = conn.Write([]byte{answer}) // who does not hear it is out all the same
}
