package kith_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/internal/nettest"
)

// A kinLab is three devices in homes of their own, and a hub with the given arguments.
// desk and laptop are paired.
type kinLab struct {
	*reachLab
	desk, laptop, third *station
}

func newKinLab(ctx context.Context, t *testing.T, third string, hub ...string) *kinLab {
	t.Helper()
	lab := nettest.New(t)
	l := &kinLab{reachLab: &reachLab{lab: lab, inet: lab.Internet()}}
	l.hub = newStation(t, l.inet.Server("hub"))
	l.startHub(ctx, hub...)
	for i, s := range []**station{&l.desk, &l.laptop, &l.third} {
		name := []string{"desk", "laptop", third}[i]
		nat := []nettest.NAT{nettest.NATEasy, nettest.NATHard, nettest.NATEasy}[i]
		*s = newStation(t, l.inet.Site("home"+name, nat).Host(name))
		(*s).run(ctx, "config", "rendezvous", "lan", "off")
		(*s).run(ctx, "config", "hub", l.text)
		(*s).daemon(ctx)
	}
	pairStations(ctx, t, l.desk, l.laptop, "words")
	return l
}

// kill ends a station's daemon as a power cut would.
func (s *station) kill(ctx context.Context) {
	s.up.Kill()
	s.up.Wait(ctx)
}

// device is what a station knows of another one; false: nothing.
func (s *station) device(ctx context.Context, name string) (kith.Device, bool) {
	s.t.Helper()
	var all []kith.Device
	if err := json.Unmarshal([]byte(s.run(ctx, "devices", "--json")), &all); err != nil {
		s.t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(d kith.Device) bool { return d.Name == name })
	if i < 0 {
		return kith.Device{}, false
	}
	return all[i], true
}

// until repeats a command until its output is as it should be, and returns that.
func (s *station) until(ctx context.Context, what string, ok func(out string) bool, args ...string) string {
	s.t.Helper()
	start := time.Now()
	for {
		out := s.run(ctx, args...)
		if ok(out) {
			s.t.Logf("%s: %s after %v", s.host.Name, what, time.Since(start).Round(time.Millisecond))
			return out
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			s.t.Fatalf("%s: not %s: %s", s.host.Name, what, out)
		}
	}
}

// asked waits until a station's user is asked about an introduction, and returns its number.
func (s *station) asked(ctx context.Context) string {
	s.t.Helper()
	number := ""
	s.until(ctx, "is asked", func(out string) bool {
		var k struct {
			Received []struct {
				Number uint64
				State  string
			}
		}
		if err := json.Unmarshal([]byte(out), &k); err != nil {
			s.t.Fatal(err)
		}
		for _, r := range k.Received {
			if r.State == "delivered" {
				number = strconv.FormatUint(r.Number, 10)
			}
		}
		return number != ""
	}, "introductions", "--json")
	return number
}

// accept says yes to the introduction that waits.
func (s *station) accept(ctx context.Context) {
	s.t.Helper()
	s.run(ctx, "introductions", "accept", s.asked(ctx))
}

// know holds that two stations are paired by desk's word, and exchange lines.
func (l *kinLab) know(ctx context.Context, t *testing.T, a, b *station, line string) {
	t.Helper()
	for _, s := range []*station{a, b} {
		other := map[*station]*station{a: b, b: a}[s]
		s.until(ctx, "knows "+other.host.Name, func(out string) bool { return strings.Contains(out, "\n"+other.host.Name+" ") }, "devices")
		s.run(ctx, "ping", "-c", "1", "--wait", "30s", other.host.Name)
		if d, ok := s.device(ctx, other.host.Name); !ok || d.IntroducedBy != "desk" || d.State != kith.Paired {
			t.Errorf("%s says of %s: %+v", s.host.Name, other.host.Name, d)
		}
		if out := s.run(ctx, "devices"); !strings.Contains(out, "introduced by desk") {
			t.Errorf("%s does not say who vouched: %s", s.host.Name, out)
		}
	}
	if status, out := a.try(ctx, line+"\n", "chat", b.host.Name); status != 0 {
		t.Errorf("chat: exit status %d: %s", status, out)
	}
	if out := b.run(ctx, "chat", "--history", "1", a.host.Name); !strings.Contains(out, line) {
		t.Errorf("the line did not come: %q", out)
	}
}

// part has laptop end its pair with phone, and waits until both know. Of a device that
// was removed nothing is left but that.
func (l *kinLab) part(ctx context.Context, t *testing.T) {
	t.Helper()
	l.laptop.run(ctx, "unpair", "phone")
	l.third.until(ctx, "without laptop", func(out string) bool { return !strings.Contains(out, `"name":"laptop"`) }, "devices", "--json")
}

// TestNetworkIntroduce has desk introduce laptop and phone, which are behind NATs of their
// own: with both there, with one away, with the introducer killed at each point, and to
// users who say no.
func TestNetworkIntroduce(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
	defer cancel()
	l := newKinLab(ctx, t, "phone")
	pairStations(ctx, t, l.desk, l.third, "words")
	for _, phase := range []struct {
		name string
		run  func(*kinLab, context.Context, *testing.T)
	}{
		{"both say yes", (*kinLab).bothSayYes},
		{"one hop", (*kinLab).oneHop},
		{"removed", (*kinLab).removedStaysAway},
		{"declined", (*kinLab).declines},
		{"away, and the introducer is killed", (*kinLab).awayAndKilled},
		{"killed in the midst", (*kinLab).killedInTheMidst},
		{"unpaired from the introducer", (*kinLab).withoutTheIntroducer},
	} {
		start := time.Now()
		phase.run(l, ctx, t)
		t.Logf("%s: %v", phase.name, time.Since(start).Round(time.Millisecond))
		if t.Failed() {
			return // each begins where the one before has ended
		}
	}
}

// introduce begins an introduction on desk, which shows how far it is.
func (l *kinLab) introduce() *nettest.Process { return l.desk.start("introduce", "laptop", "phone") }

func (l *kinLab) bothSayYes(ctx context.Context, t *testing.T) {
	p := l.introduce()
	for _, s := range []*station{l.laptop, l.third} {
		s.up.Await(ctx, `"event":"introduced".*to answer: kith introductions accept 1`)
		s.accept(ctx)
	}
	if status := p.Wait(ctx); status != 0 {
		t.Fatalf("introduce: exit status %d", status)
	}
	p.Await(ctx, `^laptop and phone are paired\.$`)
	l.know(ctx, t, l.laptop, l.third, "we have a friend in common")
}

// oneHop: who was introduced introduces nobody, and is introduced by nobody.
func (l *kinLab) oneHop(ctx context.Context, t *testing.T) {
	status, out := l.laptop.try(ctx, "", "introduce", "desk", "phone")
	if status != 4 || !strings.Contains(out, "phone cannot be introduced: it was itself introduced") || strings.Count(out, "error:") != 1 {
		t.Errorf("laptop introduces whom it knows by desk: exit status %d: %s", status, out)
	}
}

// removedStaysAway: who was removed does not come back by an introduction, and the
// introducer is not told why.
func (l *kinLab) removedStaysAway(ctx context.Context, t *testing.T) {
	l.part(ctx, t)
	status, out := l.desk.try(ctx, "", "introduce", "laptop", "phone")
	if status != 4 || !strings.Contains(out, "were not introduced: laptop: said no") || strings.Contains(out, "removed") {
		t.Errorf("a removed device: exit status %d: %s", status, out)
	}
	for _, s := range []*station{l.laptop, l.third} {
		for _, name := range []string{"laptop", "phone"} {
			if d, ok := s.device(ctx, name); ok {
				t.Errorf("%s knows %s: %+v", s.host.Name, name, d)
			}
		}
	}
	if out := l.laptop.run(ctx, "introductions", "--forget", "phone"); !strings.Contains(out, "phone can be introduced to this device again") {
		t.Errorf("forget: %s", out)
	}
}

// declines: laptop has marked desk as its own and is not asked; phone's user says no.
func (l *kinLab) declines(ctx context.Context, t *testing.T) {
	l.laptop.run(ctx, "own", "desk")
	p := l.introduce()
	number := l.third.asked(ctx)
	l.laptop.up.Await(ctx, `accepted, since desk is your own device`)
	l.third.run(ctx, "introductions", "decline", number)
	if status := p.Wait(ctx); status != 4 {
		t.Errorf("introduce: exit status %d", status)
	}
	p.Await(ctx, `^error: laptop and phone were not introduced: phone: said no$`)
	l.laptop.until(ctx, "over", func(out string) bool { return strings.TrimSpace(out) == "" }, "introductions")
	if d, ok := l.laptop.device(ctx, "phone"); ok {
		t.Errorf("laptop has a pair with who said no: %+v", d)
	}
}

// awayAndKilled: phone is away. desk is killed as soon as it has said that it goes on by
// itself; it has handed the introduction to laptop after its return, and to phone after
// that one's. It is gone when phone says yes.
func (l *kinLab) awayAndKilled(ctx context.Context, t *testing.T) {
	l.third.kill(ctx)
	out := l.desk.run(ctx, "introduce", "--wait", "1ms", "laptop", "phone")
	l.desk.kill(ctx)
	if !strings.Contains(out, "It goes on by itself while kith up runs here, until ") {
		t.Errorf("introduce, of a device that is away: %s", out)
	}
	l.desk.daemon(ctx)
	l.desk.until(ctx, "has given it to laptop", func(out string) bool { return strings.Contains(out, "laptop: said yes") }, "introductions")
	l.desk.kill(ctx)
	l.third.daemon(ctx)
	l.desk.daemon(ctx)
	number := l.third.asked(ctx)
	l.desk.kill(ctx)
	l.third.run(ctx, "introductions", "accept", number)
	l.know(ctx, t, l.laptop, l.third, "our friend has left")
	l.desk.daemon(ctx)
	if out := l.desk.run(ctx, "introduce", "laptop", "phone"); !strings.Contains(out, "laptop and phone ") || !strings.Contains(out, "paired") {
		t.Errorf("after its return the introducer says %s", out)
	}
}

// killedInTheMidst: both have marked desk as their own. It is killed as soon as one side
// has said something.
func (l *kinLab) killedInTheMidst(ctx context.Context, t *testing.T) {
	l.third.run(ctx, "own", "desk")
	l.part(ctx, t)
	l.laptop.run(ctx, "introductions", "--forget", "phone")
	p := l.introduce()
	p.Await(ctx, "said yes|asks its user")
	l.desk.kill(ctx)
	if status := p.Wait(ctx); status == 0 {
		p.Await(ctx, "are paired") // it was quicker
	} else {
		p.Await(ctx, "^error: kith up has ended while it worked on this$")
		p.Await(ctx, "^hint: the introduction goes on when it runs again")
	}
	l.desk.daemon(ctx)
	l.know(ctx, t, l.laptop, l.third, "nobody was asked")
	if out := l.desk.run(ctx, "introduce", "laptop", "phone"); !strings.Contains(out, "laptop and phone ") || !strings.Contains(out, "paired") {
		t.Errorf("after its return the introducer says %s", out)
	}
}

// withoutTheIntroducer: laptop ends its pair with desk. What desk has introduced stays, if
// its user presses no more than the enter key.
func (l *kinLab) withoutTheIntroducer(ctx context.Context, t *testing.T) {
	enter := func(shown string) string {
		if strings.Contains(shown, "Keep them paired? [Y/n]") {
			return "\n"
		}
		return ""
	}
	if out := l.laptop.press(ctx, t, enter, "unpair", "desk"); !strings.Contains(out, "Unpaired from desk. It has been told.") || !strings.Contains(out, "What it had introduced stays paired: phone.") {
		t.Errorf("unpair: %s", out)
	}
	l.know(ctx, t, l.laptop, l.third, "still here")
}

// TestNetworkNewPairs has laptop pair with a stranger: its user's other device, desk, says
// so within seconds, or as soon as it is back, and ends that pair.
func TestNetworkNewPairs(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), netTimeout)
	defer cancel()
	l := newKinLab(ctx, t, "stranger")
	l.desk.run(ctx, "own", "laptop")
	l.laptop.run(ctx, "own", "desk")

	pairStations(ctx, t, l.laptop, l.third, "words")
	start := time.Now()
	l.desk.up.Await(ctx, `"event":"new-pair".*stranger.*by words; if that was not you: kith devices --new`)
	t.Logf("desk says so %v after the pairing", time.Since(start).Round(time.Millisecond))
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("desk says so after %v", took)
	}
	key := func(shown string) string { // of the stranger's line, once all are there
		table, _, asks := strings.Cut(shown, "other key leaves all as it is: ")
		for line := range strings.Lines(table) {
			if asks && strings.Contains(line, "stranger") {
				return line[:1]
			}
		}
		return ""
	}
	if out := l.desk.press(ctx, t, func(shown string) string { return strings.Repeat("q", len(key(shown))) }, "devices", "--new"); !strings.Contains(out, "Nothing was changed.") {
		t.Errorf("another key: %s", out)
	}
	if out := l.desk.press(ctx, t, key, "devices", "--new"); !strings.Contains(out, `Undone: laptop is no longer paired with "stranger".`) {
		t.Errorf("one key: %s", out)
	}
	if d, ok := l.laptop.device(ctx, "stranger"); ok {
		t.Errorf("laptop is still paired: %+v", d)
	}
	l.laptop.up.Await(ctx, `"event":"undone".*undone on desk`)
	l.third.until(ctx, "without laptop", func(out string) bool { return !strings.Contains(out, `"name":"laptop"`) }, "devices", "--json")

	// desk is away, and laptop when desk has one undone.
	l.desk.kill(ctx)
	pairStations(ctx, t, l.laptop, l.third, "words")
	l.desk.daemon(ctx)
	l.desk.up.Await(ctx, `"event":"new-pair".*stranger`)
	l.laptop.kill(ctx)
	var list []kith.NewPair
	if err := json.Unmarshal([]byte(l.desk.run(ctx, "devices", "--new", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(p kith.NewPair) bool { return p.On == "laptop" && p.Name == "stranger" && !p.Ended })
	if i < 0 {
		t.Fatalf("new pairs: %+v", list)
	}
	if out := l.desk.run(ctx, "devices", "--undo", list[i].ID.String()); !strings.Contains(out, "laptop has been asked and has not answered yet") {
		t.Errorf("undo of a device that is away: %s", out)
	}
	l.desk.kill(ctx) // the request is kept
	l.desk.daemon(ctx)
	l.laptop.daemon(ctx)
	l.laptop.until(ctx, "has undone it", func(out string) bool { return !strings.Contains(out, `"name":"stranger"`) }, "devices", "--json")
	l.desk.until(ctx, "knows", func(out string) bool { return strings.Count(out, " over\n") == 2 }, "devices", "--new")
}

// press runs a command on a terminal, presses the key that answers what it has shown, if
// there is one, and returns all that it showed.
func (s *station) press(ctx context.Context, t *testing.T, answer func(shown string) string, args ...string) string {
	t.Helper()
	master, tty := terminal(t)
	defer master.Close()
	cmd := s.host.Command(ctx, s.kith, s.args(args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	err := cmd.Start()
	tty.Close()
	if err != nil {
		t.Fatal(err)
	}
	var shown strings.Builder
	buf := make([]byte, 4096)
	for pressed := false; ; {
		n, err := master.Read(buf)
		shown.Write(buf[:n])
		if err != nil { // EIO: the command has ended
			break
		}
		if key := answer(shown.String()); !pressed && key != "" {
			pressed = true
			if _, err := master.WriteString(key); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %v: %s", args, err, shown.String())
	}
	return shown.String()
}

// terminal returns both sides of a new terminal.
func terminal(t *testing.T) (master, tty *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, tty
}
