package signaling

import (
	"testing"
	"time"
)

// TestLateHint holds that a recorded presence of an old run, which comes after the
// live run was proved or before, keeps nobody from hearing the live one.
func TestLateHint(t *testing.T) {
	us, live, old := BootID{1}, BootID{2}, BootID{3}
	now := time.Unix(1e9, 0)
	presence := func(boot, echo BootID, counter uint64) message {
		return message{typ: framePresence, boot: boot, echo: echo, counter: counter, want: true}
	}
	for name, before := range map[string][]message{
		"after the proof":  {presence(live, us, 1), presence(old, BootID{}, 7)},
		"before the proof": {presence(old, BootID{}, 7), presence(live, us, 1)},
	} {
		c := &core{self: us}
		c.announce(now, Presence{Name: "desk"})
		c.presence(now)
		for _, m := range before {
			now = now.Add(time.Second)
			c.receive(now, m)
		}
		now = now.Add(time.Second)
		o := c.receive(now, presence(live, us, 2))
		if o.event == nil {
			t.Errorf("%s: the live run is not heard", name)
		}
		if m := c.presence(now); m.echo != live || m.seen != 2 {
			t.Errorf("%s: our presence echoes %v %d, want the live run", name, m.echo, m.seen)
		}
	}
}

// TestStoredPresence holds that what was said before this device listened neither
// takes its turns nor changes whom it speaks to, unless it speaks to this run.
func TestStoredPresence(t *testing.T) {
	us, live, old := BootID{1}, BootID{2}, BootID{3}
	now := time.Unix(1e9, 0)
	c := &core{self: us}
	c.announce(now, Presence{Name: "desk"})
	c.presence(now)
	if o := c.receive(now, message{typ: framePresence, boot: old, counter: 9, want: true, stored: true}); o.answer || o.event != nil {
		t.Error("a stored presence of nobody's run is answered")
	}
	if m := c.presence(now); m.echo != (BootID{}) {
		t.Errorf("our presence echoes %v", m.echo)
	}
	if o := c.receive(now, message{typ: framePresence, boot: live, counter: 1, want: true}); !o.answer {
		t.Error("one that is there is not answered")
	}
	now = now.Add(time.Second)
	if o := c.receive(now, message{typ: framePresence, boot: live, echo: us, counter: 2, stored: true}); o.event == nil {
		t.Error("what was said to this run is not heard")
	}
}

// TestReplayedPresences: recorded presences do not make a device that is gone look like
// one that speaks and does not hear.
func TestReplayedPresences(t *testing.T) {
	us, live, old, young := BootID{1}, BootID{2}, BootID{3}, BootID{4}
	now := time.Unix(1e9, 0)
	c := &core{self: us}
	take := func(boot, echo BootID, counter uint64) (counted bool) {
		now = now.Add(40 * time.Second)
		c.receive(now, message{typ: framePresence, boot: boot, echo: echo, counter: counter})
		return c.unproved.Equal(now)
	}
	for i, step := range []struct {
		boot, echo BootID
		counter    uint64
		want       bool
	}{
		{old, BootID{}, 1, true},   // perhaps it has just started
		{old, BootID{}, 1, false},  // recorded
		{live, us, 9, false},       // it hears us
		{live, BootID{}, 1, false}, // the first frame of the run that is proved
		{live, BootID{}, 9, false},
		{old, BootID{}, 1, false},
		{young, BootID{}, 3, true}, // it has started again, and does not hear us
		{young, BootID{}, 4, true}, // and goes on
		{old, BootID{}, 1, false},  // two recordings by turns
		{young, BootID{}, 4, false},
		{live, BootID{}, 10, true},
	} {
		if got := take(step.boot, step.echo, step.counter); got != step.want {
			t.Errorf("step %d: counted %v, want %v", i, got, step.want)
		}
	}
	for i := range 2 * maxUnheard {
		take(BootID{9, byte(i)}, BootID{}, 1)
	}
	if len(c.unheard) != maxUnheard {
		t.Errorf("%d runs are remembered, want %d", len(c.unheard), maxUnheard)
	}
}
