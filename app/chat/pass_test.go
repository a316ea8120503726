package chat

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kithproject/kith/identity"
)

// TestPassedOn has a line go by a member to whom its author is not connected: at once if
// the one in the middle passes it on, and otherwise when it says that it has it.
func TestPassedOn(t *testing.T) {
	for _, tt := range []struct {
		name   string
		passes bool
	}{{"passed on", true}, {"asked for", false}} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, 3)
				c := l.room()
				author, middle, far := l.nodes[0], l.nodes[1], l.nodes[2]
				if tt.passes {
					middle.pass = func(conv ConvID, by identity.DeviceID) []identity.DeviceID {
						if conv != c || by != author.id.ID() {
							return nil
						}
						return []identity.DeviceID{far.id.ID()}
					}
				}
				l.startAll()
				defer l.stopAll()
				l.connect(0, 1, true)
				l.connect(1, 2, true)
				pass(time.Second)
				lines := []string{"one", "two", "three"}
				for _, text := range lines {
					author.send(t, c, text)
				}
				synctest.Wait()
				if got := far.texts(t, c); tt.passes != slices.Equal(got, lines) {
					t.Errorf("at once it has %q", got)
				}
				pass(time.Second)
				if got := far.texts(t, c); !slices.Equal(got, lines) {
					t.Errorf("after a second it has %q", got)
				}
				middle.send(t, c, "from the middle")
				far.send(t, c, "and from afar")
				pass(time.Second)
				if diff := l.difference(t, c); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

// TestPassedOnce has a line passed on to a member that its author reaches as well, and to
// one that is not there.
func TestPassedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 4)
		c := l.room()
		l.nodes[1].pass = func(ConvID, identity.DeviceID) []identity.DeviceID {
			return []identity.DeviceID{l.nodes[0].id.ID(), l.nodes[1].id.ID(), l.nodes[2].id.ID(), l.nodes[3].id.ID()}
		}
		l.startAll()
		defer l.stopAll()
		l.connect(0, 1, true)
		l.connect(0, 2, true)
		l.connect(1, 2, true)
		pass(time.Second)
		l.nodes[0].send(t, c, "one")
		l.nodes[2].send(t, c, "two")
		pass(time.Minute) // nobody waits for an answer that does not come
		for _, n := range l.nodes[:3] {
			if got := n.texts(t, c); !slices.Equal(got, []string{"one", "two"}) && !slices.Equal(got, []string{"two", "one"}) {
				t.Errorf("device %d has %q", n.n, got)
			}
		}
		l.nodes[1].svc.mu.Lock()
		defer l.nodes[1].svc.mu.Unlock()
		if links := len(l.nodes[1].svc.links()); links != 2 {
			t.Errorf("%d connections", links)
		}
	})
}

// TestLargeRoom has the author of a line in a large room told a little later who has it,
// also by those who had it before, after it came back.
func TestLargeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, smallRoom+2)
		c := l.room()
		l.startAll()
		defer l.stopAll()
		l.connectAll()
		pass(time.Second)
		author := l.nodes[0]
		m := author.send(t, c, "one")
		synctest.Wait()
		if got := l.nodes[1].texts(t, c); !slices.Equal(got, []string{"one"}) {
			t.Errorf("at once it has %q", got)
		}
		author.await(t, m, StateDelivered)
		for i := range l.nodes[1:] {
			l.connect(0, i+1, false)
		}
		author.send(t, c, "two")
		m = author.send(t, c, "three")
		pass(time.Minute)
		for i := range l.nodes[1:] {
			l.connect(0, i+1, true)
		}
		author.await(t, m, StateDelivered)
		last := l.nodes[1].all(t, c)
		if err := l.nodes[1].svc.MarkRead(c, last[len(last)-1]); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		if diff := l.difference(t, c); diff != "" {
			t.Error(diff)
		}
		now, err := author.svc.Wait(t.Context(), m, StateDelivered)
		if err != nil || now.Read != 1 || now.Delivered != smallRoom+1 {
			t.Errorf("%+v, %v", now, err)
		}
	})
}
