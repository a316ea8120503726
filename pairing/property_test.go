package pairing

import (
	"crypto/rand"
	"errors"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kithproject/kith/internal/retry"
)

// pairID names a record, as on the disk.
type pairID = [16]byte

// party is one side under a random scheduler: its disk, and its RAM, which is a
// Machine while the code is known here, and a Commit for every durable record.
type party struct {
	cfg     Config
	m       *Machine
	commits map[pairID]*Commit
	disk    map[pairID]*Record
	order   []pairID // records in the order in which they were made
	// What has happened, whatever is forgotten:
	told    map[pairID]bool // EventPaired was told
	spoke   map[pairID]bool // a commit message was sent
	ended   map[pairID]bool // the user ended the pair, or a newer one replaced it
	refused bool            // the user, or a full disk, said no in a handshake

	writes []write // asked for by the machine and the commits, not done yet
	full   int     // how many of the next writes fail
	slow   bool    // writes take time, so that other things happen before
}

// A write is a record on its way to the disk. from is the Commit that asked, or
// nil for the machine m.
type write struct {
	id    pairID
	state State
	rec   Record // from the machine
	m     *Machine
	from  *Commit
}

// message is what a side sent: a frame on the code's topic, or a commit body on
// the topics of a pair.
type message struct {
	frame []byte
	body  []byte
	pair  pairID
}

// world is both sides and every message that was ever sent: the network may lose,
// repeat, reorder and reflect all of them for ever.
type world struct {
	t     *rapid.T
	now   time.Time
	sides [2]*party
	sent  [2][]message // by sender

	others bool // an active pair ends every other one, as in package registry, and not only older ones
}

func (p *party) start(w *world) {
	m, err := New(p.cfg, w.now)
	if err != nil {
		w.t.Fatal(err)
	}
	p.m = m
}

// follow starts the commit phase of a record from the disk alone.
func (w *world) follow(p *party, id pairID) {
	r := p.disk[id]
	c, err := NewCommit(r.State, r.PairID, r.Role, r.CommitJ, r.CommitO, rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	p.commits[id] = c
	c.Tick(w.now)
}

// drain carries out what side i wants, and writes what is not slow.
func (w *world) drain(i int) {
	p := w.sides[i]
	for {
		w.poll(i)
		if len(p.writes) == 0 || p.slow {
			break
		}
		w.write(i)
	}
	w.check()
}

func (w *world) poll(i int) {
	p := w.sides[i]
	for p.m != nil {
		a, ok := p.m.Poll()
		if !ok {
			break
		}
		switch a.Kind {
		case ActionSend:
			if f, err := p.m.sealers[0].Open(a.Frame); err == nil && f.Type == frameCommit {
				w.speaks(i, p.m.keys.id)
			}
			w.sent[i] = append(w.sent[i], message{frame: a.Frame})
		case ActionStore:
			p.writes = append(p.writes, write{id: a.Record.PairID, state: a.Record.State, rec: a.Record, m: p.m})
		case ActionEvent:
			if a.Event.Kind == EventPaired {
				p.told[p.m.keys.id] = true
			}
		}
	}
	for _, id := range p.order {
		c := p.commits[id]
		for {
			a, ok := c.Poll()
			if !ok {
				break
			}
			switch a.Kind {
			case CommitSend:
				w.speaks(i, id)
				w.sent[i] = append(w.sent[i], message{body: a.Body, pair: id})
			case CommitStore:
				p.writes = append(p.writes, write{id: id, state: a.State, from: c})
			case CommitDone:
			}
		}
	}
}

// speaks holds S2: PREPARED and what follows it is sent only from the disk.
func (w *world) speaks(i int, id pairID) {
	p := w.sides[i]
	if p.disk[id] == nil {
		w.t.Fatal("S2: a commit message was sent before the record was durable")
	}
	p.spoke[id] = true
}

// write does the first write, or fails it, and reports to whoever asked.
func (w *world) write(i int) {
	p := w.sides[i]
	job := p.writes[0]
	p.writes = p.writes[1:]
	report := func(err error) {
		if job.m != nil && job.m == p.m {
			p.m.Stored(w.now, job.state, err)
		} else if job.from != nil && job.from == p.commits[job.id] {
			job.from.Stored(w.now, job.state, err)
		}
	}
	old := p.disk[job.id]
	switch {
	case p.full > 0:
		p.full--
		p.refused = p.refused || job.state == Prepared
		report(errors.New("no space left"))
		return
	case old != nil && old.State == Tomb && job.state != Tomb:
		report(errors.New("the pair was ended"))
		return
	case old == nil:
		r := job.rec
		p.disk[job.id] = &r
		p.order = append(p.order, job.id)
		w.follow(p, job.id)
	case old.State < job.state:
		w.become(p, job.id, job.state, job.from)
	}
	report(nil)
}

// become changes a record's state and tells every machine of this side but the
// one that asked.
func (w *world) become(p *party, id pairID, s State, from *Commit) {
	p.disk[id].State = s
	if p.commits[id] != from {
		w.follow(p, id)
	}
	if s != Active {
		return
	}
	if p.m != nil && from != nil && p.m.commit != nil && p.m.keys.id == id {
		p.m.Promoted(w.now)
	}
	others := p.order[:slices.Index(p.order, id)] // a new pairing replaces an old one
	if w.others {
		others = p.order
	}
	for _, older := range others {
		if older != id && p.disk[older].State != Tomb {
			p.ended[older] = true
			w.become(p, older, Tomb, nil)
		}
	}
}

// check holds S1 to S3 after every step.
func (w *world) check() {
	for i, p := range w.sides {
		other := w.sides[1-i]
		for id := range p.told {
			if r := p.disk[id]; r == nil || r.State == Prepared {
				w.t.Fatal("S1: paired was said without an active record")
			}
		}
		for id := range p.spoke {
			if p.disk[id] == nil {
				w.t.Fatal("S2: a side that has spoken has forgotten")
			}
		}
		for id, r := range p.disk {
			if r.PairID != id {
				w.t.Fatal("S3: a record moved")
			}
			theirs := other.disk[id]
			if theirs == nil {
				if r.State == Active || p.told[id] {
					w.t.Fatal("S1: a side is paired and the other never had the record")
				}
				continue
			}
			if r.Chain.Key != theirs.Chain.Key || r.Chain.Day != theirs.Chain.Day || r.CommitJ != theirs.CommitJ || r.CommitO != theirs.CommitO {
				w.t.Fatal("S3: one pair id, two keys")
			}
			if r.Peer != other.cfg.Identity.ID() || r.Role == theirs.Role {
				w.t.Fatal("S3: a record names another device or role")
			}
		}
	}
}

func (w *world) deliver(to int, m message) {
	p := w.sides[to]
	if m.frame != nil && p.m != nil {
		p.m.Receive(w.now, 0, m.frame)
	}
	if c := p.commits[m.pair]; m.body != nil && c != nil {
		c.Receive(w.now, m.body)
	}
	w.drain(to)
}

// crash loses the RAM of a side, and the writes that were not done, and starts it
// again from its disk, without the code.
func (w *world) crash(i int) {
	p := w.sides[i]
	p.m, p.writes, p.commits = nil, nil, make(map[pairID]*Commit)
	for _, id := range p.order {
		w.follow(p, id)
	}
	w.drain(i)
}

// next is when either side's earliest timer runs.
func (w *world) next() time.Time {
	var times []time.Time
	for _, p := range w.sides {
		if p.m != nil {
			times = append(times, p.m.Next())
		}
		for _, id := range p.order {
			times = append(times, p.commits[id].Next())
		}
	}
	return retry.Earliest(times...)
}

// patience is how long the users wait: longer than any wait between messages in
// the first day, shorter than the code's life.
const patience = 10 * time.Minute

// tick moves the time to the next timer, if that is not too far, and lets side i
// look at its own.
func (w *world) tick(i int) {
	if next := w.next(); next.After(w.now) && next.Sub(w.now) < patience {
		w.now = next
	}
	p := w.sides[i]
	if p.m != nil {
		p.m.Tick(w.now)
	}
	for _, id := range p.order {
		p.commits[id].Tick(w.now)
	}
	w.drain(i)
}

// converse carries the last few messages of both sides, in order.
func (w *world) converse() {
	for i := range w.sides {
		for _, m := range w.sent[i][max(0, len(w.sent[i])-6):] {
			w.deliver(1-i, m)
		}
		w.now = w.now.Add(answerGap)
	}
}

// settle lets both sides talk without faults until nothing can change any more.
func (w *world) settle() {
	for i, p := range w.sides {
		p.full, p.slow = 0, false
		w.drain(i)
	}
	for range 30 {
		w.tick(0)
		w.tick(1)
		for range 3 {
			w.converse()
		}
	}
}

// counts says how worlds end, so that the test cannot pass because nothing
// happens in it.
type counts struct{ worlds, paired, ended, doubt, nothing, again int }

// verdict holds what must be true in the end, for every pair id that both sides
// have had a record of.
func (w *world) verdict(n *counts) {
	a, b := w.sides[0], w.sides[1]
	n.worlds++
	if len(a.disk)+len(b.disk) == 0 {
		n.nothing++
	}
	if len(a.disk) > 1 && len(b.disk) > 1 {
		n.again++
	}
	for id, r := range a.disk {
		s := b.disk[id]
		if s == nil {
			n.doubt++
			continue
		}
		if a.ended[id] || b.ended[id] {
			n.ended++
			if r.State != Tomb || s.State != Tomb {
				w.t.Fatalf("an end did not reach the other side: %v, %v", r.State, s.State)
			}
			continue
		}
		n.paired++
		if r.State != Active || s.State != Active {
			w.t.Fatalf("both hold the record, nobody ended it, and it is %v, %v", r.State, s.State)
		}
	}
}

func newWorld(t *rapid.T, tb testing.TB) *world {
	oc, jc := configs(tb)
	oc.Lifetime, jc.Lifetime = time.Hour, time.Hour
	if rapid.Bool().Draw(t, "joiner needs no yes") {
		jc.AutoAccept = true
	}
	w := &world{t: t, now: t0}
	for i, cfg := range []Config{oc, jc} {
		p := &party{
			cfg: cfg, commits: make(map[pairID]*Commit), disk: make(map[pairID]*Record), told: make(map[pairID]bool),
			spoke: make(map[pairID]bool), ended: make(map[pairID]bool), slow: rapid.IntRange(0, 2).Draw(t, "slow disk") == 0,
		}
		p.start(w)
		w.sides[i] = p
	}
	w.drain(0)
	w.drain(1)
	// Half of the worlds begin later, as the first messages are not the hard part.
	if begin := rapid.IntRange(0, 3).Draw(t, "begin"); begin > 1 {
		for range 4 {
			w.converse()
		}
		for i := range begin - 1 {
			if p := w.sides[i]; p.m.phase == asking {
				if err := p.m.Accept(w.now, p.m.keys.check); err != nil {
					t.Fatal(err)
				}
			}
			w.drain(i)
		}
	}
	return w
}

// actions are what may happen at any time.
func (w *world) actions() map[string]func(*rapid.T) {
	crashes, starts := 3, 2
	side := func(rt *rapid.T) (int, *party) {
		i := rapid.IntRange(0, 1).Draw(rt, "side")
		return i, w.sides[i]
	}
	seldom := func(rt *rapid.T) {
		if rapid.IntRange(0, 7).Draw(rt, "seldom") > 0 {
			rt.Skip()
		}
	}
	return map[string]func(*rapid.T){
		"deliver": func(rt *rapid.T) {
			from, _ := side(rt)
			if len(w.sent[from]) == 0 {
				rt.Skip()
			}
			back := rapid.IntRange(0, 8).Draw(rt, "back") // mostly recent, so that something happens
			if rapid.IntRange(0, 4).Draw(rt, "old") == 0 {
				back = rapid.IntRange(0, len(w.sent[from])-1).Draw(rt, "which")
			}
			m := w.sent[from][len(w.sent[from])-1-min(back, len(w.sent[from])-1)]
			to := 1 - from
			if rapid.IntRange(0, 9).Draw(rt, "reflect") == 0 {
				to = from
			}
			w.deliver(to, m)
		},
		"converse": func(rt *rapid.T) {
			for range rapid.IntRange(1, 4).Draw(rt, "rounds") {
				w.converse()
			}
		},
		"wait": func(rt *rapid.T) { // for the code to expire, or a clock that jumps
			seldom(rt)
			seldom(rt)
			w.now = w.now.Add(time.Duration(rapid.IntRange(-3600, 7200).Draw(rt, "seconds")) * time.Second)
			w.tick(0)
			w.tick(1)
		},
		"tick": func(rt *rapid.T) {
			i, _ := side(rt)
			w.tick(i)
		},
		"write": func(rt *rapid.T) {
			i, p := side(rt)
			if len(p.writes) == 0 {
				rt.Skip()
			}
			w.write(i)
			w.drain(i)
		},
		"full": func(rt *rapid.T) {
			seldom(rt)
			_, p := side(rt)
			p.full = 1
		},
		"crash": func(rt *rapid.T) {
			seldom(rt)
			if crashes == 0 {
				rt.Skip()
			}
			crashes--
			i, _ := side(rt)
			w.crash(i)
		},
		"start again": func(rt *rapid.T) {
			i, p := side(rt)
			if starts == 0 || (p.m != nil && p.m.phase < committing) {
				rt.Skip()
			}
			starts--
			p.writes = slices.DeleteFunc(p.writes, func(j write) bool { return j.m != nil })
			p.start(w)
			w.drain(i)
		},
		"accept": func(rt *rapid.T) {
			i, p := side(rt)
			if p.m == nil || p.m.phase != asking {
				rt.Skip()
			}
			if err := p.m.Accept(w.now, p.m.keys.check); err != nil {
				rt.Fatal(err)
			}
			w.drain(i)
		},
		"reject": func(rt *rapid.T) {
			seldom(rt)
			i, p := side(rt)
			if p.m == nil {
				rt.Skip()
			}
			p.refused = true
			p.m.Reject(w.now)
			w.drain(i)
		},
		"unpair": func(rt *rapid.T) {
			seldom(rt)
			i, p := side(rt)
			if len(p.order) == 0 {
				rt.Skip()
			}
			id := p.order[rapid.IntRange(0, len(p.order)-1).Draw(rt, "pair")]
			p.commits[id].Cancel(w.now)
			w.drain(i)
			if p.disk[id].State == Tomb {
				p.ended[id] = true // a crash or a full disk may have come first
			}
		},
	}
}

// TestAnySchedule runs both sides under random losses, repeats, reorderings,
// reflections, crashes, slow and full disks, restarts of the pairing and
// decisions. It checks S1 to S3 after every step, and in the end that a record
// that both sides hold is active on both, or ended on both if one has ended it.
func TestAnySchedule(t *testing.T) {
	var n counts
	world := func(rt *rapid.T) {
		w := newWorld(rt, t)
		rt.Repeat(w.actions())
		for i, p := range w.sides { // a cancel whose write was still to come counts if it came
			p.slow = false
			w.drain(i)
			for id, r := range p.disk {
				if r.State == Tomb && !w.sides[1-i].ended[id] {
					p.ended[id] = true
				}
			}
		}
		w.settle()
		w.verdict(&n)
	}
	for range 4 { // more worlds than rapid makes by default
		rapid.Check(t, world)
	}
	t.Logf("%+v", n)
	if n.worlds >= 100 && !t.Failed() && (n.paired == 0 || n.ended == 0 || n.doubt == 0) {
		t.Errorf("not every end was seen: %+v", n)
	}
}

// TestCalmSchedule has loss, copies and disorder but no crash, no full disk and
// no refusal: then the pairing must succeed.
func TestCalmSchedule(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(rt, t)
		all := w.actions()
		for _, name := range []string{"crash", "full", "reject", "unpair", "start again", "wait"} {
			delete(all, name)
		}
		rt.Repeat(all)
		w.settle()
		for i, p := range w.sides {
			if p.m.phase == asking {
				if err := p.m.Accept(w.now, p.m.keys.check); err != nil {
					rt.Fatal(err)
				}
				w.drain(i)
			}
		}
		w.settle()
		for _, p := range w.sides {
			if len(p.disk) != 1 || p.disk[p.order[0]].State != Active || !p.told[p.order[0]] {
				rt.Fatalf("not paired: %d records", len(p.disk))
			}
		}
	})
}
