package signaling

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

// A noteEnd is a side that takes notes while open says so.
type noteEnd struct {
	*end
	got  chan string
	open chan struct{} // holds what may be taken; nil: all
}

func openNotes(t *testing.T, n *rendezvoustest.Network, joiner bool, boot byte, open chan struct{}) *noteEnd {
	t.Helper()
	e := &noteEnd{got: make(chan string, 10000), open: open}
	e.end = openEnd(t, n, joiner, boot, func(cfg *Config) {
		cfg.Notes = cfg.Exchange
		cfg.TakeNote = func(body []byte) bool {
			if e.open != nil {
				select {
				case <-e.open:
				default:
					return false
				}
			}
			e.got <- string(body)
			return true
		}
	})
	return e
}

// taken returns what has come so far.
func (e *noteEnd) taken() (all []string) {
	for {
		select {
		case s := <-e.got:
			all = append(all, s)
		default:
			return all
		}
	}
}

func noteWithin(t *testing.T, c *Channel, limit time.Duration, body string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	return c.Note(ctx, []byte(body))
}

// TestNotesArriveOnceInOrder sends notes both ways over media of all kinds, between
// sides that have not heard of each other.
func TestNotesArriveOnceInOrder(t *testing.T) {
	for name, faults := range map[string]rendezvoustest.Faults{
		"perfect": {},
		"bad":     {Loss: 0.3, Duplicate: 0.3, Reorder: 0.3, Corrupt: 0.1, Echo: 0.5, MaxDelay: 80 * time.Millisecond},
		"slow":    {MaxDelay: time.Second, Reorder: 0.5, Duplicate: 0.9},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := rendezvoustest.NewNetwork(3, faults)
				a, b := openNotes(t, n, false, 1, nil), openNotes(t, n, true, 2, nil)
				defer a.Close()
				defer b.Close()
				var want [2][]string
				errs := make(chan error, 2)
				for i, from := range []*noteEnd{a, b} {
					for k := range 100 {
						want[i] = append(want[i], fmt.Sprintf("%d of %d", k, i))
					}
					go func() {
						for _, body := range want[i] {
							if err := from.Note(t.Context(), []byte(body)); err != nil {
								errs <- err
								return
							}
						}
						errs <- nil
					}()
				}
				for range 2 {
					if err := <-errs; err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(time.Minute) // what is late
				synctest.Wait()
				if got := b.taken(); !slices.Equal(got, want[0]) {
					t.Errorf("b got %q", got)
				}
				if got := a.taken(); !slices.Equal(got, want[1]) {
					t.Errorf("a got %q", got)
				}
			})
		})
	}
}

// TestNoteFindsTheOther has the first note of a run come after one round trip more,
// not after a wait, with no presence at all.
func TestNoteFindsTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
		a, b := openNotes(t, n, false, 1, nil), openNotes(t, n, true, 2, nil)
		defer a.Close()
		defer b.Close()
		start := time.Now()
		if err := a.Note(t.Context(), []byte("first")); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("it took %v on a medium without delay", took)
		}
		if got := len(n.Recorded()); got != 4 {
			t.Errorf("%d frames, want 4: the note, who is there, the note, its acknowledgement", got)
		}
	})
}

// TestNotesOfOldRuns replays all that was ever sent, and restarts both sides.
func TestNotesOfOldRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
		a, b := openNotes(t, n, false, 1, nil), openNotes(t, n, true, 2, nil)
		replay := func() {
			for _, f := range n.Recorded() {
				n.Inject(f.Topic, f.Frame)
				time.Sleep(10 * time.Millisecond)
			}
			synctest.Wait()
		}
		say := func(from, to *noteEnd, body string) {
			t.Helper()
			if err := noteWithin(t, from.Channel, time.Second, body); err != nil {
				t.Fatalf("%s: %v", body, err)
			}
			if got := to.taken(); !slices.Equal(got, []string{body}) {
				t.Errorf("%s: got %q", body, got)
			}
			replay()
			if got := append(from.taken(), to.taken()...); len(got) != 0 {
				t.Errorf("a replay after %s gave %q", body, got)
			}
		}
		say(a, b, "one")
		say(b, a, "two")
		b.Close()
		b = openNotes(t, n, true, 3, nil)
		replay()
		if got := b.taken(); len(got) != 0 {
			t.Errorf("the restarted side took %q of an earlier run", got)
		}
		say(a, b, "to the new run")
		a.Close()
		a = openNotes(t, n, false, 4, nil)
		say(a, b, "of a new run, with the first number again")
		say(b, a, "back")
		a.Close()
		b.Close()
	})
}

// TestNoteIsNotAcknowledgedUntilTaken has the receiver refuse at first.
func TestNoteIsNotAcknowledgedUntilTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
		open := make(chan struct{}, 9)
		a, b := openNotes(t, n, false, 1, nil), openNotes(t, n, true, 2, open)
		defer a.Close()
		defer b.Close()
		if err := noteWithin(t, a.Channel, 10*time.Second, "refused"); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("a note that nobody took: %v", err)
		}
		before := len(n.Recorded())
		time.Sleep(time.Hour)
		if after := len(n.Recorded()); after != before {
			t.Errorf("%d frames of a note that was given up", after-before)
		}
		open <- struct{}{}
		for _, f := range n.Recorded() { // what was given up does not come late
			n.Inject(f.Topic, f.Frame)
		}
		synctest.Wait()
		if got := b.taken(); len(got) != 0 {
			t.Fatalf("a replay of what was given up gave %q", got)
		}
		<-open
		go func() {
			time.Sleep(3 * time.Second)
			open <- struct{}{}
		}()
		if err := noteWithin(t, a.Channel, 10*time.Second, "taken"); err != nil {
			t.Fatal(err)
		}
		if got := b.taken(); !slices.Equal(got, []string{"taken"}) {
			t.Errorf("got %q", got)
		}
	})
}

// TestNoteSchedule counts the frames of a note that nobody answers.
func TestNoteSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
		a := openNotes(t, n, false, 1, nil)
		defer a.Close()
		if err := noteWithin(t, a.Channel, 10*time.Second, "hello"); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if got := len(n.Recorded()); got < 6 || got > 10 {
			t.Errorf("%d frames in ten seconds, want 6 to 10 (250 ms, each wait 1.6 times as long)", got)
		}
		if err := noteWithin(t, a.Channel, 100*time.Second, "hello"); err == nil {
			t.Fatal("nobody answered")
		}
		if got := len(n.Recorded()); got < 24 || got > 46 {
			t.Errorf("%d frames in 110 seconds, want about one in 5 s", got)
		}
	})
}

// TestNoteFlood has a peer of the right key send notes as fast as it can: no more
// than the budget are taken, and answered.
func TestNoteFlood(t *testing.T) {
	c := &core{self: BootID{1}}
	now := time.Unix(1e9, 0)
	const seconds, each = 10, 2000
	var took, answers int
	counter := uint64(0)
	for i := range seconds * each {
		at := now.Add(time.Duration(i) * time.Second / each)
		counter++
		o := c.receive(at, message{typ: frameNote, boot: BootID{2}, echo: BootID{1}, counter: counter, note: counter, body: []byte("x")})
		if o.note != nil {
			c.noteTaken(o.note.note)
			took++
		}
		stale := c.receive(at, message{typ: frameNote, boot: BootID{3, byte(i)}, echo: BootID{9}, counter: counter, note: counter, body: []byte("x")})
		if stale.note != nil {
			t.Fatal("a note to another run was taken")
		}
		if stale.noteAnswer != (BootID{}) {
			answers++
		}
	}
	if limit := int(seconds*time.Second/noteGap) + noteBurst + 1; took > limit || took < limit/2 {
		t.Errorf("%d notes were taken in %d s, want about %d", took, seconds, limit)
	}
	if limit := int(seconds*time.Second/staleGap) + 1; answers > limit || answers < limit/2 {
		t.Errorf("%d notes to another run were answered in %d s, want about %d", answers, seconds, limit)
	}
	if len(c.retired) > maxRetired {
		t.Errorf("%d runs are remembered", len(c.retired))
	}
}

// TestManyRunsOfNotes holds that a run is over for good, also after many others.
func TestManyRunsOfNotes(t *testing.T) {
	c := &core{self: BootID{1}}
	note := func(run uint16) message {
		return message{typ: frameNote, boot: BootID{2, byte(run >> 8), byte(run)}, echo: BootID{1}, counter: 1, note: 1, body: []byte("x")}
	}
	now := time.Unix(1e9, 0)
	for run := range uint16(maxRetired + 1) {
		now = now.Add(time.Second)
		if o := c.receive(now, note(run)); o.note == nil {
			t.Fatalf("run %d is not heard", run)
		}
		c.noteTaken(1)
	}
	for run := range uint16(maxRetired + 1) {
		now = now.Add(time.Second)
		if o := c.receive(now, note(run)); o.note != nil {
			t.Errorf("a recorded note of run %d was taken", run)
		}
	}
}

// TestNoteAcrossMidnight keeps notes going while topics change.
func TestNoteAcrossMidnight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
		a, b := openNotes(t, n, false, 1, nil), openNotes(t, n, true, 2, nil)
		defer a.Close()
		defer b.Close()
		for day := range 4 {
			if err := noteWithin(t, a.Channel, time.Second, fmt.Sprint(day)); err != nil {
				t.Fatalf("day %d: %v", day, err)
			}
			time.Sleep(24 * time.Hour)
		}
		if got := b.taken(); len(got) != 4 {
			t.Errorf("got %q", got)
		}
	})
}

// TestNotesKeepToTheirMedium holds that no note and no answer goes out elsewhere.
func TestNotesKeepToTheirMedium(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
		var ends []*end
		for i, joiner := range []bool{false, true} {
			ends = append(ends, openEnd(t, n, joiner, byte(i+1), func(cfg *Config) {
				cfg.Notes = n.Exchange("notes")
				cfg.TakeNote = func([]byte) bool { return true }
			}))
			defer ends[i].Close()
		}
		if err := ends[0].Note(t.Context(), []byte("hello")); err != nil {
			t.Fatal(err)
		}
		frames := n.Recorded()
		for _, f := range frames {
			if f.Exchange != "notes" {
				t.Errorf("a frame went out by %s", f.Exchange)
			}
		}
		if len(frames) == 0 {
			t.Error("no frame was recorded")
		}
	})
}

func TestNoteErrors(t *testing.T) {
	n := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	a, without := openNotes(t, n, false, 1, nil), openEnd(t, n, true, 2, nil)
	defer without.Close()
	for _, body := range [][]byte{nil, make([]byte, MaxNote+1)} {
		if err := a.Note(t.Context(), body); !errors.Is(err, ErrNoteSize) {
			t.Errorf("%d bytes: %v", len(body), err)
		}
	}
	if err := without.Note(t.Context(), []byte("x")); !errors.Is(err, ErrNoNotes) {
		t.Errorf("no medium: %v", err)
	}
	waits := make(chan error)
	go func() { waits <- a.Note(t.Context(), []byte("nobody hears it")) }()
	a.Close()
	if err := <-waits; !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed while it waited: %v", err)
	}
	if err := a.Note(t.Context(), []byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestLongestNote fits one frame and comes as it was sent.
func TestLongestNote(t *testing.T) {
	body := bytes.Repeat([]byte{0xff}, MaxNote)
	want := message{typ: frameNote, boot: BootID{1}, counter: 1<<64 - 1, echo: BootID{2}, note: 1<<64 - 1, ack: 1<<64 - 1, body: body}
	f, err := want.encode()
	if err != nil {
		t.Fatal(err)
	}
	m, err := decode(f)
	if err != nil || !bytes.Equal(m.body, body) || m.note != want.note || m.ack != want.ack || m.echo != want.echo {
		t.Fatalf("%+v, %v", m, err)
	}
	for name, m := range map[string]message{
		"too long":            {typ: frameNote, note: 1, body: make([]byte, MaxNote+1)},
		"a number, no body":   {typ: frameNote, note: 1},
		"a body, no number":   {typ: frameNote, body: []byte("x")},
		"long for a commit":   {typ: frameCommit, body: make([]byte, MaxCommit+1)},
		"long for a presence": {typ: framePresence, body: make([]byte, MaxNote)},
	} {
		f, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decode(f); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
