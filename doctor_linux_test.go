package kith_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kithproject/kith/doctor"
	"github.com/kithproject/kith/internal/nettest"
)

const (
	// healthyWithin and brokenWithin bound a run of kith doctor, in all.
	healthyWithin = 15 * time.Second
	brokenWithin  = 30 * time.Second
	// doctorRate is how many packets a second a run may send.
	doctorRate = 200
	// doctorBuild bounds all of a case.
	doctorBuild = 3 * netTimeout
)

// A doctorCase is a network, what the doctor must say about it, and what must help then.
type doctorCase struct {
	name   string
	want   []string // names of causes, of which one must be the first; none: nothing worse than a note
	also   []string // names of causes worse than a note that are true, too
	left   []string // names of causes worse than a note that the fix cannot take away
	note   bool     // nothing is worse than a note, so that the exit status is 0
	says   string   // what the first cause and its fix must match, if not empty
	device string   // kith doctor DEVICE
	quick  bool     // part of the ordinary tests
	needs  string   // a command that must be there
	user   bool     // kith runs without the rights of root
	within time.Duration
	build  func(ctx context.Context, d *doctorLab)
	mend   func(ctx context.Context, d *doctorLab) // does what the first fix says, and no more
}

// A doctorLab is where a case is built. Its desk is the device that the doctor runs on.
type doctorLab struct {
	t      *testing.T
	lab    *nettest.Lab
	inet   *nettest.Internet
	server *station // another one on the internet
	turn   string   // the URL of a TURN server
	hub    *hubServer
	home   *nettest.Site // desk's
	desk   *station
	laptop *station
	names  map[string]netip.Addr // in DNS
	clock  wrongClock            // desk's, if it may be wrong
	undo   func()                // takes the fault away
	first  doctor.Result         // the first cause
}

// known is a public address behind which there is nothing, for names that must exist.
var known = netip.MustParseAddr("11.250.0.80")

// internet makes an internet.
func (d *doctorLab) internet() {
	d.inet = d.lab.Internet()
	d.names = map[string]netip.Addr{"example.com": known}
}

// withHub starts a hub on the internet.
func (d *doctorLab) withHub(ctx context.Context) {
	d.t.Helper()
	d.internet()
	d.hub = newHubServer(ctx, d.t, d.inet, "hub")
	d.hub.run(ctx)
}

// house makes a home whose router serves names.
func (d *doctorLab) house(name string, nat nettest.NAT) *nettest.Site {
	d.t.Helper()
	s := d.inet.Site(name, nat)
	s.ServeDNS(nettest.Names(d.names))
	return s
}

// newIn makes a device in a home.
func (d *doctorLab) newIn(s *nettest.Site, name string) *station {
	d.t.Helper()
	h := s.Host(name)
	h.Resolver(s.Gateway())
	return newStation(d.t, h)
}

// atHome makes the desk in a home of a kind, with a hub.
func (d *doctorLab) atHome(ctx context.Context, nat nettest.NAT) {
	d.t.Helper()
	d.withHub(ctx)
	d.home = d.house("left", nat)
	d.desk = d.newIn(d.home, "desk")
	d.useHub(ctx, d.desk)
}

func (d *doctorLab) useHub(ctx context.Context, all ...*station) {
	d.t.Helper()
	for _, s := range all {
		s.run(ctx, "config", "hub", d.hub.text)
	}
}

// start starts the daemons that are not yet.
func (d *doctorLab) start(ctx context.Context) {
	d.t.Helper()
	for _, s := range []*station{d.desk, d.laptop} {
		if s != nil && s.up == nil {
			s.daemon(ctx)
		}
	}
}

// pair starts and pairs both, and waits until they are connected.
func (d *doctorLab) pair(ctx context.Context) {
	d.t.Helper()
	d.start(ctx)
	pairStations(ctx, d.t, d.desk, d.laptop, "words")
	d.desk.run(ctx, "ping", "-c", "1", "--wait", "30s", "laptop")
}

// afar makes the laptop in another home and pairs the two.
func (d *doctorLab) afar(ctx context.Context, nat nettest.NAT) *nettest.Site {
	d.t.Helper()
	s := d.house("right", nat)
	d.laptop = d.newIn(s, "laptop")
	d.useHub(ctx, d.laptop)
	d.pair(ctx)
	return s
}

// both makes the desk and the laptop in one home, and pairs them.
func (d *doctorLab) both(ctx context.Context, nat nettest.NAT) {
	d.t.Helper()
	d.atHome(ctx, nat)
	d.laptop = d.newIn(d.home, "laptop")
	d.useHub(ctx, d.laptop)
	d.pair(ctx)
}

// onLAN makes the two on a LAN of their own that leads nowhere, and pairs them.
func (d *doctorLab) onLAN(ctx context.Context) *nettest.Bridge {
	d.t.Helper()
	sw := d.lab.Bridge("lan")
	at := func(name, addr string) *station {
		h := d.lab.Host(name).Attach(sw, addr)
		h.Resolver()
		return newStation(d.t, h)
	}
	d.desk, d.laptop = at("desk", "10.0.0.1/24"), at("laptop", "10.0.0.2/24")
	d.pair(ctx)
	return sw
}

// broker starts mosquitto with a configuration on a server of its own, which has the name
// broker.test in DNS, and returns that server's address.
func (d *doctorLab) broker(ctx context.Context, conf func(at netip.Addr) string) (netip.Addr, *nettest.Process) {
	d.t.Helper()
	d.server = newStation(d.t, d.inet.Server("broker"))
	at := d.server.host.Addrs()[0]
	d.names["broker.test"] = at
	return at, d.serveBroker(ctx, conf(at))
}

// serveBroker starts mosquitto on that server.
func (d *doctorLab) serveBroker(ctx context.Context, conf string) *nettest.Process {
	d.t.Helper()
	p := d.server.host.Start("mosquitto", "-v", "-c", conf)
	p.Await(ctx, "running")
	return p
}

// timeServer starts a server of network time on the internet that kith knows.
func (d *doctorLab) timeServer() {
	d.t.Helper()
	h := d.inet.Server("time")
	h.ServeNTP(h.Addrs()[0])
	names := doctor.DefaultNTP()
	for _, name := range names {
		d.names[name] = h.Addrs()[0]
	}
	h.ServeNTP(h.Addrs()[2])
	d.names[names[len(names)-1]] = h.Addrs()[2] // by IPv6 alone
}

// calm waits until what the daemon does at its start is over, so that what is counted
// later is the doctor's; not for long, as a broken network may keep it busy.
func (d *doctorLab) calm() {
	const little, seconds = 15, 6
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	last := d.desk.host.Sent()
	for range seconds {
		<-tick.C
		sent := d.desk.host.Sent()
		if sent-last <= little {
			return
		}
		last = sent
	}
}

// An examination is what a run of kith doctor said and did.
type examination struct {
	doctor.Report
	status  int
	whole   time.Duration // of the command
	packets int64         // of the desk, but for those of links
	busiest float64       // of these the most a second, over a second or more
	links   int64         // packets of links
}

// ofLinks is what the links to devices send meanwhile, and the measurement of kith doctor
// DEVICE fills: WireGuard's data (type 4), also as the data of a TURN channel, and probes,
// which look for a device that is not there at many of its ports.
const ofLinks = "meta l4proto udp @th,64,8 { 4, 64-79, 235 }"

// examine runs the doctor as a user would.
func (d *doctorLab) examine(ctx context.Context, device string) (e examination) {
	d.t.Helper()
	args := []string{"doctor", "--json"}
	if device != "" {
		args = append(args, device)
	}
	cmd := d.desk.host.Command(ctx, d.desk.kith, d.desk.args(args...)...)
	var said strings.Builder
	cmd.Stderr = &said
	stop, done := make(chan struct{}), make(chan struct{})
	began := time.Now()
	links := d.desk.host.Count(ofLinks)
	beside := func() int64 { // the packets sent first, so that none is missing
		sent := d.desk.host.Sent()
		e.links = links()
		return sent - e.links
	}
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for last, at := beside(), time.Now(); ; {
			ended := false
			select {
			case <-tick.C:
			case <-stop:
				ended = true
			}
			now, sent := time.Now(), beside()
			e.packets += sent - last
			if took := now.Sub(at); took >= time.Second || e.busiest == 0 {
				e.busiest = max(e.busiest, float64(sent-last)/max(took, time.Second).Seconds())
			}
			if last, at = sent, now; ended {
				return
			}
		}
	}()
	out, err := cmd.Output()
	e.whole = time.Since(began)
	close(stop)
	<-done
	if cmd.ProcessState == nil {
		d.t.Fatal(err)
	}
	e.status = cmd.ProcessState.ExitCode()
	if err := json.Unmarshal(out, &e.Report); err != nil {
		d.t.Fatalf("kith doctor: exit status %d, %v: %s%s", e.status, err, out, said.String())
	}
	return e
}

// first is the name of the first cause, "-" for none.
func (e examination) first() string {
	if len(e.Causes) == 0 {
		return "-"
	}
	return e.Causes[0].Name()
}

// worse are the names of causes that are more than a note.
func (e examination) worse() (names []string) {
	for _, r := range e.Causes {
		if r.Severity > doctor.Note {
			names = append(names, r.Name())
		}
	}
	return names
}

// judge says what of a run is not as it must be.
func (c doctorCase) judge(e examination) (wrong []string) {
	add := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	worse := e.worse()
	if len(c.want) > 0 {
		if !slices.Contains(c.want, e.first()) {
			add("the first cause is %s, want %s", e.first(), strings.Join(c.want, " or "))
		} else if first := e.Causes[0]; !regexp.MustCompile(c.says).MatchString(first.Cause + " " + first.Fix) {
			add("of %s it says %q, want %q in it", first.Name(), first.Cause+" "+first.Fix, c.says)
		}
	}
	if len(c.want) > 0 && !c.note && len(worse) > 0 {
		worse = worse[1:]
	}
	for _, name := range worse {
		if !slices.Contains(c.also, name) {
			add("it also accuses: %s", name)
		}
	}
	if e.whole > c.within {
		add("it took %v, more than %v", e.whole, c.within)
	}
	if e.busiest > doctorRate {
		add("it sent %.0f packets within a second, more than %d", e.busiest, doctorRate)
	}
	if e.Root == c.user || c.user && len(e.RootAdds) == 0 {
		add("it runs as root: %v, and says that root adds %q", e.Root, e.RootAdds)
	}
	want := map[doctor.Severity]int{doctor.Limit: 9, doctor.Fault: 10}[e.Verdict.Severity]
	if e.status != want {
		add("exit status %d, want %d for a %v", e.status, want, e.Verdict.Severity)
	}
	return wrong
}

// run builds a case, examines it, and has its fix followed.
func (c doctorCase) run(t *testing.T, all bool) (e examination, after string) {
	if c.needs != "" {
		if _, err := exec.LookPath(c.needs); err != nil {
			nettest.Skip(t, "the command "+c.needs+" is not installed")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), doctorBuild)
	defer cancel()
	began := time.Now()
	d := &doctorLab{t: t, lab: nettest.New(t)}
	c.build(ctx, d)
	d.calm()
	built := time.Since(began)
	e = d.examine(ctx, c.device)
	t.Logf("%s: %v (and %v to build), at most %.0f packets/s beside %d of links: %s", e.first(), e.whole.Round(100*time.Millisecond), built.Round(time.Second), e.busiest, e.links, e.Verdict)
	for _, text := range c.judge(e) {
		t.Error(text)
	}
	if t.Failed() {
		e.log(t)
	} else if c.mend != nil {
		d.first = e.Causes[0]
		after = c.follow(ctx, d, all)
	}
	return e, after
}

// log writes down all that was said.
func (e examination) log(t *testing.T) {
	for _, r := range e.Causes {
		t.Logf("cause: %s %s (%v): %s %s %q", r.Name(), r.Subject, r.Severity, r.Cause, r.Fix, r.Evidence)
	}
	for _, r := range e.Results {
		t.Logf("%s %s: %s, because %q, %v: %q", r.Name(), r.Subject, r.State, r.Because, r.Took.Round(time.Millisecond), r.Evidence)
	}
}

// TestDoctorMatrix breaks a network in one way each and checks that kith doctor names
// that one first, and accuses nothing where all is well; and that doing what it says
// helps. A few of them are part of the ordinary tests, which end with a ping then;
// KITH_DOCTOR_MATRIX=1 runs all, and asks the doctor again after the fix, and
// KITH_DOCTOR_MATRIX_FILE is a file for a table of what it said: make doctor-matrix.
func TestDoctorMatrix(t *testing.T) {
	all := wholeMatrix()
	cases := slices.Concat(brokenNetworks(), healthyNetworks())
	for i := range cases {
		cases[i].within = brokenWithin
		if i >= len(brokenNetworks()) {
			cases[i].within = healthyWithin
		}
	}
	lines := make([]string, len(cases))
	var mu sync.Mutex
	t.Run("of", func(t *testing.T) { // ends when all have
		for i, c := range cases {
			if !all && !c.quick {
				continue
			}
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				e, after := c.run(t, all)
				mu.Lock()
				defer mu.Unlock()
				lines[i] = c.line(e, after)
			})
		}
	})
	file := os.Getenv("KITH_DOCTOR_MATRIX_FILE")
	if !all || file == "" || t.Failed() {
		return
	}
	broken := len(brokenNetworks())
	text := doctorMatrixHead + fmt.Sprintf("## %d broken networks\n\n", broken) + doctorMatrixRow + strings.Join(lines[:broken], "") +
		fmt.Sprintf("\n## %d healthy networks\n\n", len(lines)-broken) + doctorMatrixRow + strings.Join(lines[broken:], "")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// wholeMatrix reports whether all networks are wanted, also those that take long.
func wholeMatrix() bool { return os.Getenv("KITH_DOCTOR_MATRIX") != "" }

const doctorMatrixRow = "| network | command | first cause | fix | after the fix | seconds | packets | most in a second | of links |\n|---|---|---|---|---|---|---|---|---|\n"

// line is a row of the table.
func (c doctorCase) line(e examination, after string) string {
	fix := ""
	if len(e.Causes) > 0 {
		fix = e.Causes[0].Fix
	}
	command := strings.TrimSpace("kith doctor " + c.device)
	first := e.first()
	if first != "-" {
		first = fmt.Sprintf("`%s` (%v)", first, e.Causes[0].Severity)
	}
	return fmt.Sprintf("| %s | `%s` | %s | %s | %s | %.1f | %d | %.0f | %d |\n", c.name, command, first, fix, after, e.whole.Seconds(), e.packets, e.busiest, e.links)
}

const doctorMatrixHead = `# What the doctor says

Networks in namespaces on one machine, broken in one way each, and others that are only
unusual. On each the command of the second column ran beside kith up, as root where
nothing else is said. It must name what is broken first, within 30 seconds, and accuse
nothing else but what is true, too; and where all is well nothing worse than a note,
within 15. It must send at most 200 packets a second. What the links to devices send
meanwhile is not the doctor's, and stands by itself: data of the tunnel, with which
kith doctor DEVICE measures the way, and probes, which look for a device that is gone.

"After the fix": somebody did what the fix says. "connected" is that a ping through the
tunnel came back from the other device then, "again" that it was not connected before, and
"well" that kith doctor found nothing worse than a note any more.
` + "`make doctor-matrix`" + ` writes this page.

`
