package kith_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/internal/nettest"
)

// A roomLab is a host behind an easy NAT, members behind others, and a hub.
type roomLab struct {
	*reachLab
	host    *station
	members []*station
	code    string // a file
	secret  string // a file
}

func newRoomLab(ctx context.Context, t *testing.T, nats ...nettest.NAT) *roomLab {
	t.Helper()
	lab := nettest.New(t)
	l := &roomLab{reachLab: &reachLab{lab: lab, inet: lab.Internet()}}
	l.hub = newStation(t, l.inet.Server("hub"))
	l.startHub(ctx)
	names := []string{"desk", "anna", "ben", "cleo"}
	for i, nat := range append([]nettest.NAT{nettest.NATEasy}, nats...) {
		s := newStation(t, l.inet.Site("home"+names[i], nat).Host(names[i]))
		s.run(ctx, "config", "rendezvous", "lan", "off")
		s.run(ctx, "config", "hub", l.text)
		if i == 0 {
			l.host = s
		} else {
			l.members = append(l.members, s)
		}
	}
	l.secret = filepath.Join(t.TempDir(), "secret")
	l.code = filepath.Join(t.TempDir(), "code")
	if err := os.WriteFile(l.secret, []byte("correct horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return l
}

// open starts the daemons, founds the room and has all members join at once.
func (l *roomLab) open(ctx context.Context, t *testing.T) {
	t.Helper()
	for _, s := range append([]*station{l.host}, l.members...) {
		s.daemon(ctx)
	}
	var made struct{ Words string }
	out := l.host.run(ctx, "room", "create", "friends", "--password-file", l.secret, "--json")
	if err := json.Unmarshal([]byte(out), &made); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.code, []byte(made.Words), 0o600); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, s := range l.members {
		wg.Go(func() {
			start := time.Now()
			s.run(ctx, "room", "join", "--code-file", l.code, "--password-file", l.secret)
			t.Logf("%s joined in %v", s.host.Name, time.Since(start).Round(time.Millisecond))
		})
	}
	wg.Wait()
}

// room is a station's room, or none.
func (s *station) room(ctx context.Context, t *testing.T) (kith.Room, bool) {
	t.Helper()
	var rooms []kith.Room
	if err := json.Unmarshal([]byte(s.run(ctx, "room", "--json")), &rooms); err != nil {
		t.Fatal(err)
	}
	if len(rooms) == 0 {
		return kith.Room{}, false
	}
	return rooms[0], true
}

// untilRoom waits until a station's room looks as it should.
func (s *station) untilRoom(ctx context.Context, t *testing.T, what string, ok func(kith.Room, bool) bool) kith.Room {
	t.Helper()
	start := time.Now()
	for {
		r, in := s.room(ctx, t)
		if ok(r, in) {
			t.Logf("%s: %s after %v", s.host.Name, what, time.Since(start).Round(time.Millisecond))
			return r
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%s: not %s: %+v", s.host.Name, what, r)
		}
	}
}

// everybody is there, connected or by way of others.
func everybody(n int) func(kith.Room, bool) bool {
	return func(r kith.Room, in bool) bool { return in && members(n, false)(r) }
}

// TestNetworkRoom has a room with a password across three NATs, of which two cannot get
// through to each other: what they say goes by way of the host. One is put out, the host
// restarts.
func TestNetworkRoom(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
	defer cancel()
	l := newRoomLab(ctx, t, nettest.NATHard, nettest.NATHard)
	for _, s := range l.members {
		s.run(ctx, "config", "relay", "never")
	}
	l.open(ctx, t)
	anna, ben := l.members[0], l.members[1]
	for _, s := range []*station{l.host, anna, ben} {
		s.untilRoom(ctx, t, "all there", everybody(3))
	}
	reachPortOf(ctx, t, ben, anna, "anna@friends", "room", "share", "friends", "8099")
	if out := ben.run(ctx, "room", "show", "friends"); !strings.Contains(out, "by way of others") {
		t.Errorf("the two are not apart: %s", out)
	}
	l.host.run(ctx, "room", "kick", "friends", "ben")
	ben.untilRoom(ctx, t, "out", func(_ kith.Room, in bool) bool { return !in })
	anna.untilRoom(ctx, t, "without ben", everybody(2))
	l.host.up.Stop()
	l.host.daemon(ctx)
	for _, s := range []*station{l.host, anna} {
		s.untilRoom(ctx, t, "back", func(r kith.Room, in bool) bool { return in && members(2, true)(r) })
	}
}
