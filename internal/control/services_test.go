package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/app/chat"
	"github.com/kithproject/kith/app/expose"
	"github.com/kithproject/kith/app/files"
	"github.com/kithproject/kith/app/forward"
	"github.com/kithproject/kith/app/kin"
	"github.com/kithproject/kith/app/measure"
	"github.com/kithproject/kith/app/mesh"
	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/lane"
	"github.com/kithproject/kith/lane/carry"
	"github.com/kithproject/kith/pairing"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

// services are all TCP ports at which a daemon listens inside the tunnel, and what a
// paired device without rights gets there. Whoever adds one says here what it refuses.
func services(b *Server, from string) map[uint16]func(ctx context.Context, a *Server) error {
	to := b.node.ID().String()
	return map[uint16]func(ctx context.Context, a *Server) error{
		chat.Port: func(ctx context.Context, a *Server) error { // every paired device may chat
			m, err := a.chat.Send(ctx, chat.PairConv(a.node.ID(), b.node.ID()), "hello")
			if err == nil {
				_, err = a.chat.Wait(ctx, m, chat.StateDelivered)
			}
			return err
		},
		forward.RightsPort: func(ctx context.Context, a *Server) error { // says no, to everything
			for _, p := range []forward.Protocol{forward.TCP, forward.UDP} {
				conn, err := a.node.Dial(ctx, "tcp", net.JoinHostPort(to, strconv.Itoa(forward.RightsPort)))
				if err != nil {
					return err
				}
				if err := forward.AskFor(conn, p, 22); !errors.Is(err, forward.ErrDenied) {
					return fmt.Errorf("port 22 of %s: %w, want ErrDenied", p, err)
				}
			}
			return nil
		},
		files.Port: func(ctx context.Context, a *Server) error { // an offer waits; nothing is shared
			if list, err := a.files.List(ctx, to, ""); err != nil || len(list) > 0 {
				return fmt.Errorf("shares %v, %w", list, err)
			}
			for _, path := range []string{"x", "..", "/etc/passwd", "x/../../etc/passwd"} {
				_, err := a.files.Get(ctx, to, path, files.GetOptions{GiveUp: -1, Dir: a.inboxDir})
				if err == nil {
					return fmt.Errorf("got %s", path)
				}
			}
			sending, stop := context.WithCancel(ctx)
			defer stop()
			done := make(chan error, 1)
			go func() {
				_, err := a.files.SendReader(sending, to, "x", io.LimitReader(zeros{}, 10), files.SendOptions{})
				done <- err
			}()
			for len(b.files.Offers()) == 0 {
				select {
				case err := <-done:
					return fmt.Errorf("sent without being asked for: %w", err)
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(10 * time.Millisecond):
				}
			}
			if offers := b.files.Offers(); offers[0].Peer != from {
				return fmt.Errorf("offers %+v", offers)
			}
			stop()
			<-done
			return nil
		},
		expose.Port: func(ctx context.Context, a *Server) error { // listens for nobody, and knows no token
			for _, p := range []forward.Protocol{forward.TCP, forward.UDP} {
				for _, port := range []uint16{1, 80, 8080, 65535} {
					var told error
					short, stop := context.WithCancel(ctx)
					e := expose.Exposure{Peer: to, Protocol: p, Port: port, Address: "localhost:1"}
					err := a.expose.Expose(short, e, func(err error) { told = err; stop() })
					stop()
					if err != nil || !errors.Is(told, expose.ErrDenied) {
						return fmt.Errorf("port %d of %s: %w, %w, want ErrDenied", port, p, err, told)
					}
				}
			}
			if hosted := b.expose.Hosted(); len(hosted) > 0 {
				return fmt.Errorf("listens: %+v", hosted)
			}
			conn, err := a.node.Dial(ctx, "tcp", net.JoinHostPort(to, strconv.Itoa(expose.Port)))
			if err != nil {
				return err
			}
			defer conn.Close()
			carry := append([]byte{2, 6, 0, 80}, make([]byte, 16)...)
			if _, err := conn.Write(carry); err != nil {
				return err
			}
			if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, []byte{6}) {
				return fmt.Errorf("a token of nothing: %v, %w, want unknown", got, err)
			}
			return nil
		},
		lane.Port: func(ctx context.Context, a *Server) error { // for files, which asks again; for nothing else
			for _, kind := range []string{"forward", "ssh", "x", "port"} { // port: for connections that are there
				conn, err := a.node.OpenLane(ctx, to, kind)
				if err == nil {
					conn.Close()
				}
				if !errors.Is(err, lane.ErrRefused) {
					return fmt.Errorf("a lane for %s: %w, want ErrRefused", kind, err)
				}
			}
			return nil
		},
		kin.Port: func(ctx context.Context, a *Server) error { // not an own device: no notices, no undoing
			return kinNothing(ctx, a.node, to)
		},
		kith.CarryPort: func(ctx context.Context, a *Server) error { return carryNothing(ctx, a.node, to) },
		mesh.Port: func(ctx context.Context, a *Server) error { // nothing without a room in common
			own, other := a.node.ID(), b.node.ID()
			for what, hello := range map[string][]byte{
				"a session":         {1, 1, 0, 0, 0},
				"to pass it on":     append([]byte{2}, other[:]...),
				"to receive of one": append([]byte{3}, own[:]...),
			} {
				conn, err := a.node.Dial(ctx, "tcp", net.JoinHostPort(to, strconv.Itoa(mesh.Port)))
				if err != nil {
					return err
				}
				_, err = conn.Write(hello)
				got, err2 := io.ReadAll(conn)
				conn.Close()
				if err := errors.Join(err, err2); len(got) > 1 || len(got) == 1 && got[0] == 0 {
					return fmt.Errorf("%s: %v, %w", what, got, err)
				}
			}
			return nil
		},
		measure.Port: func(ctx context.Context, a *Server) error { // every paired device may measure, one at a time
			hold, err := a.node.Dial(ctx, "tcp", net.JoinHostPort(to, strconv.Itoa(measure.Port)))
			if err != nil {
				return err
			}
			defer hold.Close()
			if _, err := hold.Write(append([]byte{1, 1}, make([]byte, 9)...)); err != nil {
				return err
			}
			if _, err := io.ReadFull(hold, make([]byte, 1)); err != nil {
				return err
			}
			if _, _, err := a.node.Measure(ctx, to, ""); !errors.Is(err, measure.ErrBusy) {
				return fmt.Errorf("a second measurement: %w, want ErrBusy", err)
			}
			return nil
		},
	}
}

// udpServices is services for UDP.
func udpServices(b *Server) map[uint16]func(ctx context.Context, a *Server) error {
	return map[uint16]func(ctx context.Context, a *Server) error{
		expose.Port: func(ctx context.Context, a *Server) error { // without a token: silence, and its end
			conn, err := a.node.Dial(ctx, "udp", net.JoinHostPort(b.node.ID().String(), strconv.Itoa(expose.Port)))
			if err != nil {
				return err
			}
			defer conn.Close()
			for _, size := range []int{0, 1, 15, 16, 1000} {
				if _, err := conn.Write(make([]byte, size)); err != nil {
					return err
				}
			}
			if err := conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
				return err
			}
			if n, err := conn.Read(make([]byte, 100)); err == nil {
				return fmt.Errorf("%d bytes came back", n)
			}
			return nil
		},
		measure.Port: func(ctx context.Context, a *Server) error { // without a measurement: silence
			conn, err := a.node.Dial(ctx, "udp", net.JoinHostPort(b.node.ID().String(), strconv.Itoa(measure.Port)))
			if err != nil {
				return err
			}
			defer conn.Close()
			if _, err := conn.Write(make([]byte, 200)); err != nil {
				return err
			}
			if err := conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
				return err
			}
			if n, err := conn.Read(make([]byte, 300)); err == nil {
				return fmt.Errorf("%d bytes came back", n)
			}
			return nil
		},
	}
}

// carryNothing asks for connections that there are not, and for such of its own that are
// kith's services, and says what is no question.
func carryNothing(ctx context.Context, a *kith.Node, to string) error {
	own, err := a.Dial(ctx, "tcp", net.JoinHostPort(to, strconv.Itoa(forward.RightsPort)))
	if err != nil {
		return err
	}
	defer own.Close()
	local := uint16(own.LocalAddr().(*net.TCPAddr).Port)
	for _, p := range []carry.Ports{{Dialer: 1, Dialed: 22}, {Dialer: local, Dialed: forward.RightsPort}} {
		conn, err := a.Dial(ctx, "tcp", net.JoinHostPort(to, strconv.Itoa(kith.CarryPort)))
		if err != nil {
			return err
		}
		err = carry.Hello(conn, p)
		status, err2 := carry.ReadAnswer(conn)
		conn.Close()
		if err = errors.Join(err, err2); err != nil || status != carry.Unknown {
			return fmt.Errorf("carry %v: status %d, %w", p, status, err)
		}
	}
	conn, err := a.Dial(ctx, "tcp", net.JoinHostPort(to, strconv.Itoa(kith.CarryPort)))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write(make([]byte, 1000))
	if err2 := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil || err2 != nil {
		return errors.Join(err, err2)
	}
	if n, err := conn.Read(make([]byte, 100)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("nonsense is answered: %d bytes, %w", n, err)
	}
	return nil
}

// kinNothing gives a notice and asks for one to be undone, and says what is no letter.
func kinNothing(ctx context.Context, a *kith.Node, to string) error {
	id := append([]byte{0x50}, make([]byte, 16)...) // CBOR: 16 bytes
	undo := append([]byte{5, 0xa1, 1}, id...)
	notice := append(append([]byte{4, 0xa5, 1}, id...), append([]byte{2, 0x58, 32}, make([]byte, 32)...)...)
	notice = append(notice, 3, 0x61, 'x', 5, 0x61, 'y', 7, 0)
	for _, letter := range [][]byte{undo, notice} {
		conn, err := a.Dial(ctx, "tcp", net.JoinHostPort(to, strconv.Itoa(kin.Port)))
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := conn.Write(append([]byte{0, byte(len(letter))}, letter...)); err != nil {
			return err
		}
		answer := make([]byte, 1)
		if _, err := io.ReadFull(conn, answer); err != nil || kin.Status(answer[0]) != kin.StatusRefused {
			return fmt.Errorf("letter %d is answered by %d, %w, want refused", letter[0], answer[0], err)
		}
		if _, err := conn.Write([]byte{0, 1, 99}); err != nil {
			return err
		}
		if n, err := conn.Read(answer); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("nonsense is answered: %d bytes, %w", n, err)
		}
	}
	return nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestServices holds that every listener of a daemon is known here, and what a device
// without rights, one that is blocked, and one whose pair has ended get there.
func TestServices(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	medium := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	a, b := openServer(t, medium, "desk"), openServer(t, medium, "laptop")
	pair(ctx, t, a.node, b.node)
	all := services(b, a.node.ID().String())
	if got, want := b.node.Ports(), slices.Sorted(maps.Keys(all)); !slices.Equal(got, want) {
		t.Fatalf("the daemon listens at %v; this test knows of %v", got, want)
	}
	for port, try := range all {
		if err := try(ctx, a); err != nil {
			t.Errorf("port %d: %v", port, err)
		}
	}
	udp := udpServices(b)
	if got, want := b.node.UDPPorts(), slices.Sorted(maps.Keys(udp)); !slices.Equal(got, want) {
		t.Fatalf("the daemon handles UDP at %v; this test knows of %v", got, want)
	}
	for port, try := range udp {
		if err := try(ctx, a); err != nil {
			t.Errorf("UDP port %d: %v", port, err)
		}
	}
	// No other port answers, allowed or not listened at.
	for _, port := range []uint16{1, 22, 80, 27490, 27500, 65535} {
		conn, err := a.node.Dial(ctx, "tcp", net.JoinHostPort("laptop", strconv.Itoa(int(port))))
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("port %d: %v, %v, want refused", port, conn, err)
		}
	}
	if _, err := b.node.SetRights("desk", func(r *kith.Rights) error { r.Blocked = true; return nil }); err != nil {
		t.Fatal(err)
	}
	for port := range all {
		short, stop := context.WithTimeout(ctx, 300*time.Millisecond)
		if conn, err := a.node.Dial(short, "tcp", net.JoinHostPort("laptop", strconv.Itoa(int(port)))); err == nil {
			t.Errorf("port %d answers a device that is blocked: %v", port, conn)
		}
		stop()
		if _, err := b.node.Dial(ctx, "tcp", net.JoinHostPort("desk", strconv.Itoa(int(port)))); !errors.As(err, new(*kith.BlockedError)) {
			t.Errorf("port %d of a device that is blocked: %v", port, err)
		}
	}
}

func openServer(t *testing.T, medium *rendezvoustest.Network, name string) *Server {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	n, err := kith.Open(t.Context(), kith.Config{
		Dir: dir, Name: name, NoLAN: true, NoDHT: true, Loopback: true, Exchanges: []rendezvous.Exchange{medium.Exchange("memory")},
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewServer(n, filepath.Join(dir, "inbox"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), n.Close()); err != nil {
			t.Error(err)
		}
	})
	return s
}

func pair(ctx context.Context, t *testing.T, a, b *kith.Node) {
	t.Helper()
	offer, err := a.Offer(ctx, kith.OfferConfig{Method: code.MethodWords, AutoAccept: true})
	if err != nil {
		t.Fatal(err)
	}
	c, err := code.Parse(offer.Code().Words(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	join, err := b.Join(ctx, c, kith.JoinConfig{AutoAccept: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*kith.Pairing{offer, join} {
		for ev := range p.Events() {
			if ev.Kind == pairing.EventPaired {
				break
			}
		}
		if _, err := p.Wait(ctx); err != nil {
			t.Fatal(err)
		}
	}
}
