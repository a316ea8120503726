package punch

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// TestPacerBound holds the rate in every second, however it is asked.
func TestPacerBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var p Pacer
		now := epoch
		var sent []time.Time
		gaps := rapid.SliceOfN(rapid.IntRange(0, 5000), 1, 50).Draw(t, "gaps in microseconds")
		for i := range 3000 {
			at, ok := p.Take(now)
			if ok {
				sent = append(sent, now)
				continue
			}
			if !at.After(now) || at.Sub(now) > burst*interval {
				t.Fatalf("wait until %v at %v", at, now)
			}
			now = at.Add(time.Duration(gaps[i%len(gaps)]) * time.Microsecond)
		}
		for i := range sent {
			j, _ := slices.BinarySearchFunc(sent, sent[i].Add(time.Second), time.Time.Compare)
			if j-i > Rate {
				t.Fatalf("%d packets within a second", j-i)
			}
			if k := i + burst; k < len(sent) && sent[k].Equal(sent[i]) {
				t.Fatalf("more than %d at once", burst)
			}
		}
	})
}

func TestPacerForgivesAClockSetBack(t *testing.T) {
	var p Pacer
	if _, ok := p.Take(epoch.Add(time.Hour)); !ok {
		t.Fatal("the first packet was refused")
	}
	if _, ok := p.Take(epoch); !ok {
		t.Error("refused for an hour because the clock was set back")
	}
}

func TestBackoff(t *testing.T) {
	var b Backoff
	if _, ok := b.Ready(epoch); !ok {
		t.Fatal("not ready before any failure")
	}
	now := epoch
	for i, want := range []time.Duration{10, 30, 60, 120, 300, 600, 600} {
		at := b.Failed(now)
		if got := at.Sub(now); got != want*time.Second {
			t.Errorf("failure %d: %v, want %d s", i+1, got, want)
		}
		if _, ok := b.Ready(at.Add(-1)); ok {
			t.Errorf("failure %d: ready too early", i+1)
		}
		if _, ok := b.Ready(at); !ok {
			t.Errorf("failure %d: not ready in time", i+1)
		}
		now = at
	}
	at := b.Failed(now)
	if again, _ := b.Ready(epoch.Add(-time.Hour)); !again.Before(at) || again.Sub(epoch.Add(-time.Hour)) > 10*time.Minute {
		t.Errorf("with the clock set back the wait is until %v", again)
	}
	b.Reset()
	if _, ok := b.Ready(epoch); !ok {
		t.Error("not ready after a reset")
	}
}

// checkAttempt runs an attempt to its end and checks what holds for all.
func checkAttempt(t *rapid.T, a *Attempt, p Plan) {
	var pacer Pacer
	now, sent := epoch, 0
	last := map[Shot]time.Time{}
	ports := map[uint16]bool{}
	for {
		shot, at, ok := a.Next(now, &pacer)
		if !ok {
			if at.IsZero() {
				break
			}
			if !at.After(now) {
				t.Fatalf("wait until %v at %v", at, now)
			}
			now = at
			continue
		}
		sent++
		if shot.To.Addr() != p.Target.Addr() || shot.To.Port() == 0 {
			t.Fatalf("%+v for plan %+v", shot, p)
		}
		if shot.Opening && (p.Role != RoleOpener || sent > p.Sockets) {
			t.Fatalf("packet %d of role %v has a low TTL", sent, p.Role)
		}
		if p.Role == RoleProber {
			if shot.Socket != MainSocket || ports[shot.To.Port()] {
				t.Fatalf("%+v: another socket, or a port twice", shot)
			}
			ports[shot.To.Port()] = true
			continue
		}
		if shot.Socket < 0 || shot.Socket >= p.Sockets {
			t.Fatalf("%+v of %d sockets", shot, p.Sockets)
		}
		shot.Opening = false
		if before, again := last[shot]; again && p.Role == RoleOpener && now.Sub(before) < refresh/2 {
			t.Fatalf("%+v again after %v", shot, now.Sub(before))
		}
		last[shot] = now
	}
	if sent != a.Sent() || sent > AttemptProbes || sent == 0 {
		t.Fatalf("%d packets, the attempt says %d", sent, a.Sent())
	}
	if now != epoch.Add(AttemptTime) {
		t.Fatalf("over after %v", now.Sub(epoch))
	}
	if p.Role == RoleOpener && sent < 3*p.Sockets {
		t.Fatalf("%d packets from %d sockets", sent, p.Sockets)
	}
}

func TestRun(t *testing.T) {
	easy := Behaviour{Mapping: EndpointIndependent, Filtering: AddressAndPortDependent, Public: publicA, LastPort: 4000}
	random := Behaviour{Mapping: AddressAndPortDependent, Public: publicB, LastPort: 5000}
	attempt := func(t *testing.T) *Attempt {
		a, err := NewAttempt(Decide(easy, random), NewPorts(random, 1), 1, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	t.Run("to the end", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			start, sent := time.Now(), 0
			if err := Run(t.Context(), attempt(t), &Pacer{}, func(Shot) error { sent++; return nil }); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took != AttemptTime || sent != AttemptProbes {
				t.Errorf("%d packets in %v", sent, took)
			}
		})
	})
	t.Run("until found", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			start, sent := time.Now(), 0
			err := Run(ctx, attempt(t), &Pacer{}, func(Shot) error {
				if sent++; sent == 492 {
					cancel()
				}
				return nil
			})
			if !errors.Is(err, context.Canceled) || sent != 492 {
				t.Errorf("%d packets, %v", sent, err)
			}
			if took := time.Since(start); took < 950*time.Millisecond || took > time.Second {
				t.Errorf("492 packets took %v", took)
			}
		})
	})
	t.Run("no network", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			down := errors.New("network is unreachable")
			if err := Run(t.Context(), attempt(t), &Pacer{}, func(Shot) error { return down }); !errors.Is(err, down) {
				t.Errorf("got %v", err)
			}
		})
	})
}

func TestGateIsFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Gate
		first, err := g.Enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var order []int
		running := 1
		give, cancel := context.WithCancel(t.Context())
		for i := range 6 {
			ctx := t.Context()
			if i == 2 {
				ctx = give
			}
			go func() {
				turn, err := g.Enter(ctx)
				if err != nil {
					if i != 2 || !errors.Is(err, context.Canceled) {
						t.Errorf("waiter %d: %v", i, err)
					}
					return
				}
				if running++; running != 1 {
					t.Errorf("%d attempts at once", running)
				}
				if turn.Pacer != first.Pacer {
					t.Error("a turn has a pacer of its own")
				}
				order = append(order, i)
				time.Sleep(AttemptTime) // synctest's clock: an attempt
				running--
				turn.Leave()
				turn.Leave()
			}()
			synctest.Wait()
		}
		cancel()
		synctest.Wait()
		running--
		first.Leave()
		start := time.Now()
		last, err := g.Enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took != 5*AttemptTime || !slices.Equal(order, []int{0, 1, 3, 4, 5}) {
			t.Errorf("order %v in %v", order, took)
		}
		last.Leave()
		done, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := g.Enter(done); !errors.Is(err, context.Canceled) {
			t.Errorf("with a context that has ended: %v", err)
		}
	})
}
