package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"

	"github.com/kithproject/kith/doctor"
	"github.com/kithproject/kith/internal/control"
)

func yes(code doctor.Code, evidence ...string) doctor.Result {
	return doctor.Result{Code: code, Asks: "Is it so?", State: doctor.Yes, Evidence: evidence}
}

func no(code doctor.Code, subject string, s doctor.Severity, evidence ...string) doctor.Result {
	return doctor.Result{
		Code: code, Subject: subject, Asks: "Is it so?", State: doctor.No, Finding: "bad", Severity: s, Evidence: evidence,
		Cause: "It is bad at " + string(code) + ".", Fix: "Mend " + string(code) + ".",
	}
}

func because(r doctor.Result, why string) doctor.Result {
	r.Because = why
	return r
}

func without(code doctor.Code, s doctor.State, because string, evidence ...string) doctor.Result {
	return doctor.Result{Code: code, Asks: "Is it so?", State: s, Because: because, Evidence: evidence}
}

// report makes a report of results, with the causes and the verdict that belong to it.
func report(state string, results ...doctor.Result) doctor.Report {
	r := doctor.Report{Started: time.Date(2026, 11, 22, 3, 0, 0, 0, time.Local), Root: true, Results: results, Verdict: doctor.Verdict{State: state}}
	for s := doctor.Fault; s > doctor.Fine; s-- {
		for _, x := range results {
			if isCause(x) && x.Severity == s {
				r.Causes = append(r.Causes, x)
			}
		}
	}
	if len(r.Causes) > 0 && r.Causes[0].Severity > doctor.Note {
		first := r.Causes[0]
		r.Verdict.Severity, r.Verdict.Cause, r.Verdict.Fix = first.Severity, first.Cause, first.Fix
	}
	return r
}

func broken() doctor.Report {
	return report("This device cannot connect to others as it is.",
		yes("device.state", "/home/anna/.local/state/kith"), without("device.firewall", doctor.Unknown, "", "not as root"),
		no("nat.double", "", doctor.Note, "10.0.0.1"), without("nat.timeout", doctor.Skipped, "", "takes long: runs with --slow"),
		no("meeting.broker", "hub attic", doctor.Limit, "attic:443: connection refused"),
		no("relays.tcp", "attic", doctor.Fault, "attic:443: connection refused", strings.Repeat("a word and ", 12)+"an end"),
		without("relays.tls", doctor.Skipped, "relays.tcp"), because(no("relays.udp", "attic", doctor.Limit, "attic:443 is silent"), "relays.tcp/bad"),
	)
}

func TestWriteReport(t *testing.T) {
	healthy := report("Nothing is in the way of this device.", yes("device.state"), yes("device.dns"), yes("nat.udp"))
	known := report("Nothing is known to be in the way of this device; one answer could not be found out.", yes("device.state"), without("device.dns", doctor.Unknown, "", "silence"))
	unprivileged := broken()
	unprivileged.Root = false
	for name, test := range map[string]struct {
		report  doctor.Report
		options reportOptions
		want    string
	}{
		"healthy": {healthy, reportOptions{}, `This device       2 ok
NAT               1 ok

Nothing is in the way of this device.
`},
		"not all known": {known, reportOptions{device: "anna's laptop"}, `This device       1 ok, 1 unknown

Nothing is known to be in the way of this device; one answer could not be found
out.

To see which: kith doctor 'anna'\''s laptop' --all
`},
		"broken": {broken(), reportOptions{}, `This device       1 ok, 1 unknown
NAT               0 ok, 1 note
Meeting           0 ok, 1 limit
  limit  meeting.broker hub attic
         attic:443: connection refused
Relays            0 ok, 1 fault, 2 left out
  fault  relays.tcp attic
         attic:443: connection refused
         a word and a word and a word and a word and a word and a word and a
           word and a word and a word and a word and a word and a word and an
           end

This device cannot connect to others as it is.
It is bad at relays.tcp.
Mend relays.tcp.

Also:
  meeting.broker hub attic: It is bad at meeting.broker. Mend meeting.broker.

1 could not be found out, and 1 note: kith doctor --all
`},
		"not as root": {unprivileged, reportOptions{all: true}, `This device
  ok     state              /home/anna/.local/state/kith
  ?      firewall           could not find out: not as root
NAT
  note   double             It is bad at nat.double.
                            10.0.0.1
  -      timeout            takes long: runs with --slow
Meeting
  limit  broker hub attic   It is bad at meeting.broker.
                            attic:443: connection refused
Relays
  fault  tcp attic          It is bad at relays.tcp.
                            attic:443: connection refused
                            a word and a word and a word and a word and a word
                              and a word and a word and a word and a word and a
                              word and a word and a word and an end
  -      tls                follows from relays.tcp
  -      udp attic          follows from relays.tcp/bad
                            attic:443 is silent

This device cannot connect to others as it is.
It is bad at relays.tcp.
Mend relays.tcp.

Also:
  meeting.broker hub attic: It is bad at meeting.broker. Mend meeting.broker.

As root it could also say what the firewall of this device drops of what others
send.
`},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			if err := writeReport(&out, test.report, test.options); err != nil {
				t.Fatal(err)
			}
			if got := out.String(); got != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
		})
	}
}

// evil paints, turns text round and makes lines.
const evil = "a\x1b[31mb\u009b2Jc\u202ed\ne\U000e0041f"

// TestReportOfStrangers: nothing that others said reaches a terminal as more than a line
// of plain text, and JSON for programs holds it as escapes.
func TestReportOfStrangers(t *testing.T) {
	r := report(evil, no("relays.tcp", evil, doctor.Fault, evil), no("nat.double", evil, doctor.Limit, evil), without("nat.udp", doctor.Unknown, "", evil))
	for i := range r.Causes {
		r.Causes[i].Cause, r.Causes[i].Fix = evil, evil
	}
	r.Verdict.Cause, r.Verdict.Fix = evil, evil
	var out bytes.Buffer
	e := &env{out: &out, err: &out}
	for _, all := range []bool{false, true} {
		if err := writeReport(&out, r, reportOptions{all: all, device: evil}); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.watchBegin(r, false); err != nil {
		t.Fatal(err)
	}
	if err := e.watchError(r.Started, errors.New(evil), false); err != nil {
		t.Fatal(err)
	}
	if err := e.changed(r.Started, change{doctor.Yes, r.Results[0]}, false); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "bc") && !strings.Contains(out.String(), "b2J") {
		t.Error("nothing is shown of it")
	}
	if strings.ContainsAny(out.String(), "\x1b\u009b\u202e\U000e0041") || strings.Contains(out.String(), "\ne") {
		t.Errorf("%q", out.String())
	}
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(line, "2026") {
			continue // of a watch: one line each
		}
		if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > textWidth {
			t.Errorf("%d characters: %q", n, line)
		}
	}
	out.Reset()
	wrong := &control.Error{Kind: control.KindNotConnected, Text: "it is not connected; most likely: " + evil, Hint: evil} // as after a run in small
	if status := e.report(t.Context(), wrong); status != exitNotConnected || strings.ContainsAny(out.String(), "\x1b\u009b\u202e") || strings.Count(out.String(), "\n") != 2 {
		t.Errorf("exit status %d: %q", status, out.String())
	}
	out.Reset()
	if err := e.printReport(r); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(out.String(), "\x1b\u009b\u202e\U000e0041") {
		t.Errorf("%q", out.String())
	}
	var again doctor.Report
	if err := json.Unmarshal(out.Bytes(), &again); err != nil || again.Verdict != r.Verdict {
		t.Errorf("%v: %q, want %q", err, again.Verdict, r.Verdict)
	}
}

// A fakeDaemon answers requests of the doctor at the socket of a state directory.
type fakeDaemon struct {
	dir   string
	names []doctor.Name
	tells []control.Reply // to a request for a run
}

func (d *fakeDaemon) serve(t *testing.T) {
	t.Helper()
	ln, err := control.Listen(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			var req control.Request
			if json.NewDecoder(conn).Decode(&req) == nil && req.Op == control.OpDoctor {
				enc := json.NewEncoder(conn)
				replies := d.tells
				if req.Doctor.Names {
					replies = []control.Reply{{Names: d.names, Done: true}}
				}
				for _, r := range replies {
					if enc.Encode(r) != nil {
						break
					}
				}
			}
			conn.Close()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
}

// shortDir is a directory whose path leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kith")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// run is a command on a state directory, which a fake daemon may serve.
func runOn(t *testing.T, dir string, args ...string) (status int, out, said string) {
	t.Helper()
	var o, s bytes.Buffer
	e := &env{in: os.Stdin, out: &o, err: &s, home: dir}
	status = e.run(t.Context(), append([]string{"--home", dir}, args...))
	return status, o.String(), s.String()
}

// TestDoctorBundle: a bundle has no name of a device that the node knows, also of one
// that no check is about, nor of a server of the settings; it is a new file, or none.
func TestDoctorBundle(t *testing.T) {
	dir := shortDir(t)
	set := settings{
		Name: "annas-desk", MQTT: []broker{{URL: "mqtt://raspi-anna:1883", User: "annamqtt", Password: "sesame77"}},
		TURN: []turnServer{{URL: "turn:attic-anna:3478", User: "annaturn", Password: "sesame88"}}, STUN: []string{"cellar-anna:3478"},
		DHT: []string{"shed-anna:6881"}, Waku: []string{"/dns4/garage-anna/tcp/60000"},
	}
	if err := set.save(dir); err != nil {
		t.Fatal(err)
	}
	r := report("annas-secret-phone and office-boss cannot be reached.", no("nat.udp", "", doctor.Limit,
		"TCP to raspi-anna:1883", "attic-anna says that annaturn is unknown, annamqtt too", "cellar-anna, shed-anna, garage-anna and sesame77 and sesame88",
		"ANNAS-SECRET-PHONE was asked", "annas-desk on enx00e04c680102", "from 203.0.113.7"))
	r.Started = r.Started.In(time.FixedZone("far", 9*3600))
	daemon := &fakeDaemon{dir: dir, names: []doctor.Name{{Text: "annas-secret-phone", Kind: "device"}, {Text: "office-boss", Kind: "device"}}, tells: []control.Reply{{Report: &r, Done: true}}}
	daemon.serve(t)
	path := filepath.Join(t.TempDir(), "bundle.json")
	status, _, said := runOn(t, dir, "doctor", "--only", "nat", "--bundle", path)
	if status != exitLimit || !strings.Contains(said, "Look through it") {
		t.Fatalf("exit status %d: %s", status, said)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"anna", "boss", "sesame", "00e04c680102", "203.0.113.7"} {
		if strings.Contains(strings.ToLower(string(raw)), secret) {
			t.Errorf("%q is in the bundle: %s", secret, raw)
		}
	}
	if !strings.Contains(string(raw), `"started": "`+r.Started.UTC().Format(time.RFC3339)) {
		t.Errorf("the time is not that of UTC: %s", raw)
	}
	if st, err := os.Stat(path); runtime.GOOS != "windows" && (err != nil || st.Mode().Perm() != 0o600) {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	// What is there is not written over, and a link is not followed.
	link, target := filepath.Join(t.TempDir(), "link"), filepath.Join(t.TempDir(), "target")
	if err := os.Symlink(target, link); err != nil && runtime.GOOS != "windows" {
		t.Fatal(err)
	}
	for _, there := range []string{path, link} {
		status, _, said := runOn(t, dir, "doctor", "--bundle", there)
		if runtime.GOOS == "windows" && there == link {
			continue // may make none
		}
		if status != exitUsage || !strings.Contains(said, "is there already") {
			t.Errorf("%s: exit status %d: %s", there, status, said)
		}
	}
	if _, err := os.Stat(target); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a link was followed: %v", err)
	}
	// A daemon that tells no names, as an older one, or none of a report: no file.
	for what, d := range map[string]*fakeDaemon{
		"no names":  {dir: shortDir(t), tells: daemon.tells},
		"no report": {dir: shortDir(t), names: daemon.names, tells: []control.Reply{{Error: &control.Error{Kind: control.KindOther, Text: "no"}}}},
	} {
		d.serve(t)
		path := filepath.Join(t.TempDir(), "bundle.json")
		if status, _, said := runOn(t, d.dir, "doctor", "--bundle", path); status != exitError {
			t.Errorf("%s: exit status %d: %s", what, status, said)
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a file is left: %v", what, err)
		}
	}
}

// TestDoctorOpensNothing: what the settings are read for, beside a node, leaves nothing
// open that they name.
func TestDoctorOpensNothing(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	dir := shortDir(t)
	set := settings{MQTT: []broker{{URL: "mqtt://127.0.0.1:1"}}}
	if err := set.save(dir); err != nil {
		t.Fatal(err)
	}
	e := &env{home: dir, err: new(bytes.Buffer)}
	if _, err := e.pseudonyms(t.Context(), true); err != nil {
		t.Error(err)
	}
	if _, err := e.diagnoseAlone(t.Context(), errors.New("not today"), doctorFlags{only: []string{"device.proxy"}}, func(doctor.Result) {}); err != nil {
		t.Error(err)
	}
}

// TestDoctorShows: what a daemon tells is shown as it comes to, and decides the status.
func TestDoctorShows(t *testing.T) {
	r := broken()
	d := &fakeDaemon{dir: shortDir(t), tells: []control.Reply{{Check: &r.Results[0]}, {Report: &r, Done: true}}}
	d.serve(t)
	status, out, said := runOn(t, d.dir, "doctor")
	if status != exitFault || said != "" || !strings.HasPrefix(out, "This device       1 ok, 1 unknown\n") || !strings.Contains(out, "\nMend relays.tcp.\n") {
		t.Errorf("exit status %d: %s%s", status, out, said)
	}
	long := report("So it is.", no("meeting.lan.multicast", "", doctor.Limit, strings.Split(strings.Repeat("a line\n", 20), "\n")...))
	var b bytes.Buffer
	if err := writeReport(&b, long, reportOptions{}); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(b.String(), "a line"); n != shownEvidence || !strings.Contains(b.String(), fmt.Sprintf("and %d lines more: --all", 21-shownEvidence)) {
		t.Errorf("%d lines: %s", n, b.String())
	}
}

// TestReportWidth: a report fits the terminal, and stays readable in a very narrow one.
func TestReportWidth(t *testing.T) {
	r := report(strings.Repeat("so it is ", 30), no("relays.tcp", "attic", doctor.Fault, strings.Repeat("a word and ", 30)))
	for width, want := range map[int]int{0: textWidth, 200: textWidth, 80: textWidth, 60: 59, 10: leastWidth} {
		var b bytes.Buffer
		if err := writeReport(&b, r, reportOptions{all: true, width: width}); err != nil {
			t.Fatal(err)
		}
		longest := 0
		for line := range strings.Lines(b.String()) {
			longest = max(longest, utf8.RuneCountInString(strings.TrimRight(line, "\n")))
		}
		if longest > want || longest < want-9 {
			t.Errorf("in %d characters: lines of up to %d, want %d", width, longest, want)
		}
	}
}

// TestDoctorCommand holds that the command to be copied takes a device's name for a name.
func TestDoctorCommand(t *testing.T) {
	for name, want := range map[string]string{"": "kith doctor --all", "laptop": "kith doctor laptop --all", "--bundle": "kith doctor --all -- --bundle"} {
		w := &reportWriter{}
		w.o.device = name
		if got := w.command("--all"); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
}
