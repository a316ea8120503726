package room

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/pairing/cpace"
)

// TestWrongPassword: the user is told, and a right one lets the device in.
func TestWrongPassword(t *testing.T) {
	for _, short := range []bool{false, true} {
		n := newNetwork(t)
		r := found(t, "host", Password)
		cfg := HostConfig{Identity: device(t, "host"), Roster: r, Password: "right"}
		c := longCode(t, r.Room)
		if short {
			cfg.Short = shortCode(t)
			c = cfg.Short
		}
		h := n.addHost(cfg)
		j := n.addJoiner("ann", JoinerConfig{Code: c})
		j.password = []string{"wrong", "Right", "right"}
		n.join(j)
		agreed(t, h, j)
		var kinds []string
		for _, e := range j.events {
			kinds = append(kinds, e.Kind.String())
		}
		if got := strings.Join(kinds, " "); got != "contact need-password wrong-password wrong-password admitted" {
			t.Errorf("short %v: events %s", short, got)
		}
		if len(h.notices) != 2 || h.notices[0] != WrongGuess {
			t.Errorf("short %v: notices %v", short, h.notices)
		}
	}
}

// TestSlowTyping: who thinks long about the password has no less time for it to count.
func TestSlowTyping(t *testing.T) {
	n := newNetwork(t)
	r := found(t, "host", Password)
	h := n.addHost(HostConfig{Identity: device(t, "host"), Roster: r, Password: "right"})
	j := n.addJoiner("ann", JoinerConfig{Code: longCode(t, r.Room), Lifetime: time.Minute})
	n.run(time.Hour, func() bool { return false }) // at the prompt
	for _, password := range []string{"wrong", "right"} {
		if j.failed != 0 {
			t.Fatalf("failed: %v", j.failed)
		}
		if err := j.joiner.Password(n.now, password); err != nil {
			t.Fatal(err)
		}
		n.drain(j)
		n.run(time.Hour, func() bool { return j.grant != nil })
	}
	agreed(t, h, j)
}

// TestGuessesVoidShortCode: three wrong passwords void the short code, the host
// is told, it stays void over a restart, and the long code goes on.
func TestGuessesVoidShortCode(t *testing.T) {
	n := newNetwork(t)
	r := found(t, "host", Password)
	short := shortCode(t)
	cfg := HostConfig{Identity: device(t, "host"), Roster: r, Password: "right", Short: short}
	h := n.addHost(cfg)
	for i := range 3 {
		eve := n.addJoiner("eve", JoinerConfig{Code: short, Password: fmt.Sprintf("guess %d", i)})
		n.run(time.Minute, func() bool { return len(eve.events) >= 2 })
		if eve.grant != nil || eve.events[1].Kind != EventWrongPassword {
			t.Fatalf("guess %d: %v", i, eve.events)
		}
		eve.joiner.Stop()
	}
	if len(h.notices) != 3 || h.notices[2] != ShortVoid || !h.guard.Void {
		t.Fatalf("the host was told %v", h.notices)
	}
	for range 2 {
		late := n.addJoiner("late", JoinerConfig{Code: short, Password: "right"})
		n.join(late)
		if late.failed != CodeVoid {
			t.Errorf("a void code: %q", late.failed)
		}
		n = newNetwork(t) // the host starts again
		cfg.Guard = h.guard
		h = n.addHost(cfg)
	}
	long := n.addJoiner("ann", JoinerConfig{Code: longCode(t, r.Room), Password: "right"})
	n.join(long)
	agreed(t, h, long)
}

// TestGuessesBeforeAnswers opens many handshakes first and guesses in all of
// them at once: no more than three are judged.
func TestGuessesBeforeAnswers(t *testing.T) {
	for _, c := range []struct {
		short bool
		most  int
	}{{true, ShortGuesses}, {false, Guesses}} {
		n := newNetwork(t)
		r := found(t, "host", Password)
		short := shortCode(t)
		h := n.addHost(HostConfig{Identity: device(t, "host"), Roster: r, Password: "guess 14", Short: short})
		jcode := longCode(t, r.Room)
		if c.short {
			jcode = short
		}
		var held []packet
		sealer := h.host.sealers[map[bool]int{true: 1}[c.short]]
		n.drop = func(p packet) bool {
			f, err := sealer.Open(p.frame)
			if err == nil && f.Type == frameJ3 {
				held = append(held, p)
				return true
			}
			return false
		}
		var eves []*side
		for i := range 15 {
			eves = append(eves, n.addJoiner("eve", JoinerConfig{Code: jcode, Password: fmt.Sprintf("guess %d", i)}))
		}
		n.settle()
		if len(held) < 15 {
			t.Fatalf("%d guesses", len(held))
		}
		for _, p := range held {
			n.deliver(h, p)
		}
		n.settle()
		if len(h.notices) != c.most || h.admission != 0 {
			t.Errorf("short %v: %d judged, %d admissions", c.short, len(h.notices), h.admission)
		}
		for _, e := range eves {
			if e.grant != nil {
				t.Error("the guess after the last was taken")
			}
		}
	}
}

// TestBucket: ten wrong passwords for the long code stop the judging, nothing is
// void, everybody is asked about meanwhile, and one guess comes back in ten
// minutes.
func TestBucket(t *testing.T) {
	n := newNetwork(t)
	r := found(t, "host", Password)
	cfg := HostConfig{Identity: device(t, "host"), Roster: r, Password: "right"}
	h := n.addHost(cfg)
	c := longCode(t, r.Room)
	guess := func(password string) *side {
		j := n.addJoiner("eve", JoinerConfig{Code: c, Password: password})
		n.run(5*time.Second, func() bool { return len(j.events) >= 2 })
		return j
	}
	for i := range Guesses {
		j := guess(fmt.Sprintf("guess %d", i))
		if j.events[1].Kind != EventWrongPassword {
			t.Fatalf("guess %d: %v", i, j.events)
		}
		j.joiner.Stop()
	}
	if len(h.notices) != Guesses || h.notices[Guesses-1] != Throttled || h.guard.Spent != Guesses || h.guard.Void {
		t.Fatalf("told %v, guard %+v", h.notices, h.guard)
	}
	// The right one and a wrong one are the same now: both wait for the user.
	for _, password := range []string{"right", "wrong"} {
		j := guess(password)
		if j.events[1].Kind != EventWaiting || len(h.notices) != Guesses {
			t.Errorf("%s: %v, %d told", password, j.events, len(h.notices))
		}
		j.joiner.Stop()
	}
	if len(h.asked) != 1 || !h.asked[0].Throttled || h.asked[0].Password {
		t.Errorf("asked %d times: %+v", len(h.asked), h.asked)
	}
	// The user knows who it is.
	bob := n.addJoiner("bob", JoinerConfig{Code: c, Password: "right"})
	n.run(5*time.Second, func() bool { return len(bob.events) >= 2 })
	if err := h.host.Decide(n.now, device(t, "bob").ID(), true); err != nil {
		t.Fatal(err)
	}
	n.join(bob)
	agreed(t, h, bob)
	// A member comes and goes as before.
	n.join(n.addJoiner("bob", JoinerConfig{Code: c, Password: "right"}))
	n.now = n.now.Add(GuessEvery)
	ann := n.addJoiner("ann", JoinerConfig{Code: c, Password: "right"})
	n.join(ann)
	agreed(t, h, ann)
	if j := guess("once more"); j.events[1].Kind != EventWrongPassword {
		t.Errorf("%v", j.events)
	}
	if j := guess("and again"); j.events[1].Kind != EventWaiting {
		t.Errorf("two guesses came back: %v", j.events)
	}
}

func TestGuardClock(t *testing.T) {
	var g Guard
	for range Guesses {
		g.wrong(start, false)
	}
	if !g.throttled(start.Add(GuessEvery-1)) || g.throttled(start.Add(GuessEvery)) {
		t.Error("one guess does not come back after GuessEvery")
	}
	g.wrong(start.Add(GuessEvery), false)
	if !g.throttled(start.AddDate(-1, 0, 0)) {
		t.Error("a clock that was set back regains guesses")
	}
	if g.throttled(start.AddDate(-1, 0, 0).Add(GuessEvery)) {
		t.Error("after a clock was set back nothing is regained")
	}
	if g.throttled(start.AddDate(100, 0, 0)) || g.Spent != 0 {
		t.Error("after a hundred years not all is forgotten")
	}
}

// transcript runs a join and returns all that went over the medium, opened with
// the frame key, which a recorder who has the code knows.
func transcript(t *testing.T, password string) (frames []wire.Frame, room *Roster) {
	t.Helper()
	n := newNetwork(t)
	r := found(t, "host", Password)
	h := n.addHost(HostConfig{Identity: device(t, "host"), Roster: r, Password: password})
	j := n.addJoiner("ann", JoinerConfig{Code: longCode(t, r.Room), Password: password})
	n.join(j)
	agreed(t, h, j)
	for _, p := range n.seen {
		f, err := h.host.sealers[0].Open(p.frame)
		if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, f)
	}
	return frames, r
}

// TestRecordedExchange: a recorder with the code tries a list with the password
// in it on all that was sent. It has every public value, but no ephemeral
// secret, and nothing tells the right one from the others: for each guess the
// generator is another point, and every key that it can compute from the values
// is as good as any other.
func TestRecordedExchange(t *testing.T) {
	frames, r := transcript(t, "hunter2")
	c := longCode(t, r.Room)
	keys, err := c.Keys()
	if err != nil {
		t.Fatal(err)
	}
	var j1, j2, j3, j4 []byte
	for _, f := range frames {
		switch f.Type {
		case frameJ1:
			j1 = f.Body[1:]
		case frameJ2:
			j2 = f.Body
		case frameJ3:
			j3 = f.Body
		case frameJ4:
			j4 = f.Body
		}
	}
	if j1 == nil || j2 == nil || j3 == nil || j4 == nil {
		t.Fatal("a message is missing")
	}
	list := []string{"123456", "password", "hunter2", "letmein", "the room"}
	opened := 0
	for _, guess := range list {
		prs, err := normalPassword(guess)
		if err != nil {
			t.Fatal(err)
		}
		for range 4 {
			// The recorder plays the host and the joiner with scalars of its own, and
			// with all that it can read: without the Noise keys it does not have n_H.
			ex, err := cpace.Start(cpace.Initiator, prs, channel(placeOf(c)), pakeSID(j1, make([]byte, nonceSize)), adHost, nil)
			if err != nil {
				t.Fatal(err)
			}
			isk, err := ex.Finish(j3[:cpace.PublicSize], adJoiner)
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range [][]byte{keys.PSK[:], keys.Frame[:], j1[:32], make([]byte, 32)} {
				s := &secrets{h: h, ikm: nil, yH: j2[:32]}
				s.open = wire.Extract(h, nil)
				s.withPassword(isk)
				if _, _, ok := s.splitJ3(j3); ok {
					opened++
				}
				if _, _, err := s.readRequest(j3[:32], j3[32:len(j3)-tagSize]); err == nil {
					opened++
				}
				if _, _, err := s.readJ4(j4[1:], device(t, "ann").ID()); err == nil {
					opened++
				}
			}
		}
	}
	if opened > 0 {
		t.Errorf("%d guesses opened something", opened)
	}
}

// TestOneGuessPerHandshake: the other end of a handshake, who knows all of it
// but the password, tests one guess and no second: with the same transcript no
// other password fits any more, the right one neither.
func TestOneGuessPerHandshake(t *testing.T) {
	r := found(t, "host", Password)
	c := longCode(t, r.Room)
	keys, err := c.Keys()
	if err != nil {
		t.Fatal(err)
	}
	right, wrong := []byte("right"), []byte("wrong")
	// An impostor answers as the host with a guess.
	js, err := newJoinerStart(keys.PSK[:], code.RoomWords, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	j2, hs, ex, err := answerJ1(keys.PSK[:], code.RoomWords, flagPassword, wrong, placeOf(c), js.j1, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, _, nH, err := js.readJ2(j2)
	if err != nil {
		t.Fatal(err)
	}
	honest, err := cpace.Start(cpace.Responder, right, channel(placeOf(c)), pakeSID(js.j1, nH), adJoiner, nil)
	if err != nil {
		t.Fatal(err)
	}
	isk, err := honest.Finish(s.yH, adHost)
	if err != nil {
		t.Fatal(err)
	}
	s.withPassword(isk)
	body, err := encodeRequest(device(t, "ann"), infoOf("ann"), 20000)
	if err != nil {
		t.Fatal(err)
	}
	j3, err := s.writeJ3(honest.Public(), device(t, "ann"), body)
	if err != nil {
		t.Fatal(err)
	}
	yJ, sealed, ok := hs.splitJ3(j3)
	if !ok {
		t.Fatal("the tag, which needs no password, does not fit")
	}
	impostor, err := ex.Finish(yJ, adJoiner)
	if err != nil {
		t.Fatal(err)
	}
	hs.withPassword(impostor)
	if _, _, err := hs.readRequest(yJ, sealed); err == nil {
		t.Fatal("a wrong guess opened the request")
	}
	// Later it hears the right password: its scalar was for another generator, so
	// that a fresh run with it does not open what was recorded.
	for _, guess := range [][]byte{right, wrong, []byte("other")} {
		again, err := cpace.Start(cpace.Initiator, guess, channel(placeOf(c)), pakeSID(js.j1, nH), adHost, nil)
		if err != nil {
			t.Fatal(err)
		}
		isk, err := again.Finish(yJ, adJoiner)
		if err != nil {
			t.Fatal(err)
		}
		hs.withPassword(isk)
		if _, _, err := hs.readRequest(yJ, sealed); err == nil {
			t.Errorf("after the run the guess %q opens the request", guess)
		}
	}
}

// TestNothingDependsOnPassword: up to the key the password has one effect, a
// public value that is a uniform point in either case. The bytes of j1, and the
// plaintext of j2 but for that point, are the same for two passwords and the same
// randomness, and so are the sizes of all.
func TestNothingDependsOnPassword(t *testing.T) {
	a, _ := transcript(t, "a")
	b, _ := transcript(t, "a much longer password than the other one")
	if len(a) != len(b) {
		t.Fatalf("%d and %d messages", len(a), len(b))
	}
	for i := range a {
		if a[i].Type != b[i].Type || len(a[i].Body) != len(b[i].Body) {
			t.Errorf("message %d is of type %d, %d bytes, or of type %d, %d bytes", i, a[i].Type, len(a[i].Body), b[i].Type, len(b[i].Body))
		}
	}
	r := found(t, "host", Password)
	c := longCode(t, r.Room)
	keys, err := c.Keys()
	if err != nil {
		t.Fatal(err)
	}
	js, err := newJoinerStart(keys.PSK[:], code.RoomWords, bytes.NewReader(make([]byte, 96)))
	if err != nil {
		t.Fatal(err)
	}
	var payloads [2][]byte
	for i, prs := range []string{"a", "b"} {
		j2, _, _, err := answerJ1(keys.PSK[:], code.RoomWords, flagPassword, []byte(prs), placeOf(c), js.j1, bytes.NewReader(bytes.Repeat([]byte{7}, 500)))
		if err != nil {
			t.Fatal(err)
		}
		s, flags, nH, err := js.readJ2(j2)
		if err != nil {
			t.Fatal(err)
		}
		payloads[i] = append([]byte{flags}, nH...)
		if bytes.Equal(s.yH, noPoint[:]) {
			t.Error("no point")
		}
	}
	if !bytes.Equal(payloads[0], payloads[1]) {
		t.Error("j2 depends on the password besides its point")
	}
}

// TestPasswordNowhere looks for the password, its hash-free forms and the
// request's names in everything that is sent or printed.
func TestPasswordNowhere(t *testing.T) {
	const password = "Tr0ub4dor&3"
	frames, _ := transcript(t, password)
	for _, f := range frames {
		if bytes.Contains(f.Body, []byte(password)) || bytes.Contains(f.Body, []byte("ann")) || bytes.Contains(f.Body, []byte("the room")) {
			t.Errorf("message of type %d tells it", f.Type)
		}
	}
	r := found(t, "host", Password)
	rec := Record{Room: r.Room, Roster: r, Password: password, Short: shortCode(t)}
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	log.Info("x", "record", rec, "roster", r, "secret", Grant{RoomName: "the room"})
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
		fmt.Fprintf(&out, verb+verb+verb, rec, r, Grant{RoomName: "the room"})
	}
	for _, secret := range []string{password, "the room", fmt.Sprintf("%x", r.Secret[:4])} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("%q is printed", secret)
		}
	}
}

// TestCodeWithoutPassword: who has the room's id and no password learns no name
// and no room name, in any mode, and cannot keep others out.
func TestCodeWithoutPassword(t *testing.T) {
	for _, c := range []struct {
		name     string
		mode     Mode
		password string
		hostID   bool // it learns the host's public key
	}{
		{"password", Password, "right", true}, // with the answer that says that it was wrong
		{"approve", Approve, "", true},
		{"approve and password", Approve, "right", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNetwork(t)
			r := found(t, "host", c.mode)
			h := n.addHost(HostConfig{Identity: device(t, "host"), Roster: mustAdmit(t, r, "carol"), Password: c.password, Info: infoOf("the host's name")})
			var eve *side
			if c.password == "" {
				eve = n.addJoiner("eve", JoinerConfig{Code: longCode(t, r.Room)})
			} else {
				eve = n.addJoiner("eve", JoinerConfig{Code: longCode(t, r.Room), Password: "wrong"})
			}
			start := eve.joiner.start
			claims := eve.joiner.claims
			n.alter = func(s *side, p packet) {
				n.deliver(s, p)
				if s == eve && len(eve.joiner.claims) > 0 {
					claims = eve.joiner.claims
				}
			}
			n.run(20*time.Second, func() bool { return false })
			if eve.grant != nil {
				t.Fatal("eve is in")
			}
			// All that eve can open, with all keys of its own handshake.
			var all []byte
			for _, p := range n.seen {
				f, err := h.host.sealers[0].Open(p.frame)
				if err != nil || f.SID != start.sid || p.from == eve {
					continue
				}
				for _, cl := range claims {
					if plain, err := cl.s.openPlain(f.Body); err == nil {
						all = append(all, plain...)
					}
					if len(f.Body) > 1 {
						if plain, err := cl.s.openPlain(f.Body[1:]); err == nil {
							all = append(all, plain...)
						}
						if _, body, err := cl.s.readJ4(f.Body[1:], device(t, "eve").ID()); err == nil {
							all = append(all, body...)
							id := device(t, "host").ID()
							all = append(all, id[:]...)
						}
					}
				}
			}
			if len(all) == 0 {
				t.Fatal("eve has opened nothing: the test looks at the wrong thing")
			}
			for _, name := range []string{"the room", "the host's name", "carol", "host"} {
				if bytes.Contains(all, []byte(name)) {
					t.Errorf("eve learns %q", name)
				}
			}
			id, carol := device(t, "host").ID(), device(t, "carol").ID()
			if bytes.Contains(all, carol[:]) {
				t.Error("eve learns who is in the room")
			}
			if bytes.Contains(all, id[:]) != c.hostID {
				t.Errorf("eve learns the host's key: %v", !c.hostID)
			}
			h.decide = func(q Request) (bool, bool) { return q.ID == device(t, "ann").ID(), true }
			ann := n.addJoiner("ann", JoinerConfig{Code: longCode(t, r.Room), Password: c.password})
			n.join(ann)
			agreed(t, h, ann)
		})
	}
}

// TestImpostorsGuess: impostors who have the code answer every joiner as if they
// were the host. They get no more than ten guesses of one person's password, and
// the joiner ends with a reason.
func TestImpostorsGuess(t *testing.T) {
	n := newNetwork(t)
	r := found(t, "host", Password)
	var evil []*side
	for i := range 5 {
		e := evilHost(t, n, r, device(t, fmt.Sprintf("evil %d", i)), "guess")
		evil = append(evil, e)
	}
	j := n.addJoiner("ann", JoinerConfig{Code: longCode(t, r.Room), Password: "right"})
	n.join(j)
	guesses := 0
	for _, e := range evil {
		guesses += len(e.notices)
	}
	if j.failed != TooManyHosts || guesses > maxTold || guesses == 0 {
		t.Errorf("failed with %q after %d guesses", j.failed, guesses)
	}
}
