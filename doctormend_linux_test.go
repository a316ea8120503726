package kith_test

import (
	"context"
	endian "encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	// mendedPing is how long a device may take to be connected after what the fix says.
	mendedPing = "60s"
	// mendedRuns is how often the doctor may be asked until it is content, in number.
	mendedRuns = 3
)

// follow does what the fix says. Then the two devices must be connected, if there are two,
// and the doctor must find nothing worse than a note, which takes longer; it returns what
// was seen.
func (c doctorCase) follow(ctx context.Context, d *doctorLab, all bool) (seen string) {
	d.t.Helper()
	seen = "connected again"
	if d.desk.up != nil && d.laptop != nil && d.connected(ctx) {
		seen = "connected" // all the time, if not as well
	}
	start := time.Now()
	c.mend(ctx, d)
	if d.laptop == nil {
		seen = ""
	} else {
		cmd := d.desk.host.Command(ctx, d.desk.kith, d.desk.args("ping", "-c", "1", "--wait", mendedPing, "laptop")...)
		if out, err := cmd.CombinedOutput(); err != nil {
			d.t.Errorf("what the fix says does not help: ping: %v: %s", err, out)
			return ""
		}
		d.t.Logf("%s %v after the fix was begun", seen, time.Since(start).Round(100*time.Millisecond))
	}
	if !all {
		return seen
	}
	var e examination
	var worse []string
	for range mendedRuns {
		e = d.examine(ctx, c.device)
		worse = slices.DeleteFunc(e.worse(), func(name string) bool { return slices.Contains(c.left, name) })
		if len(worse) == 0 {
			d.t.Logf("well %v after the fix was begun", time.Since(start).Round(100*time.Millisecond))
			return strings.TrimPrefix(seen+", well", ", ")
		}
		d.t.Logf("after the fix: %s", strings.Join(worse, ", "))
	}
	d.t.Errorf("what the fix says does not help: it still names %s", strings.Join(worse, ", "))
	e.log(d.t)
	return ""
}

// undone has the fault taken away by what built it.
func undone(_ context.Context, d *doctorLab) { d.undo() }

// connected says whether the laptop is at the moment, as the desk knows it. kith runs there.
func (d *doctorLab) connected(ctx context.Context) bool {
	d.t.Helper()
	dev, ok := d.desk.device(ctx, "laptop")
	return ok && dev.Connected
}

// reconnect does what connecting to the network again does.
func (d *doctorLab) reconnect() {
	d.t.Helper()
	h := d.desk.host
	h.IP("link", "set", "eth0", "up")
	h.IP("addr", "replace", netip.PrefixFrom(h.Addrs()[0], 24).String(), "dev", "eth0")
	d.reroute()
}

// reroute sets the router's address as default route.
func (d *doctorLab) reroute() {
	d.t.Helper()
	d.desk.host.IP("route", "replace", "default", "via", d.home.Gateway().String())
}

// restart stops kith up and starts it again, as kith config says that a setting needs.
func (d *doctorLab) restart(ctx context.Context) {
	d.t.Helper()
	d.desk.up.Stop()
	d.desk.daemon(ctx)
}

// evidence finds something in the evidence of the first cause.
func (d *doctorLab) evidence(pattern string) string {
	d.t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(strings.Join(d.first.Evidence, "\n"))
	if len(m) < 2 {
		d.t.Fatalf("the evidence %q does not say %q", d.first.Evidence, pattern)
	}
	return m[1]
}

// set changes a setting of the desk, and starts kith up again if the command or the fix
// says that this is needed.
func (d *doctorLab) set(ctx context.Context, args ...string) {
	d.t.Helper()
	cmd := d.desk.host.Command(ctx, d.desk.kith, d.desk.args(append([]string{"config"}, args...)...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		d.t.Fatalf("kith config: %v: %s", err, out)
	}
	if d.desk.up != nil && (strings.Contains(string(out), "after its next start") || strings.Contains(d.first.Fix, "start kith again")) {
		d.restart(ctx)
	}
}

// login opens a page in a browser, and says yes to what it leads to.
func (d *doctorLab) login() {
	d.t.Helper()
	b := d.desk.host.Browser()
	resp, err := b.Get("http://" + known.String() + "/")
	if err != nil {
		d.t.Fatal(err)
	}
	resp.Body.Close()
	if resp, err = b.PostForm(resp.Request.URL.String(), url.Values{"ok": {"1"}}); err != nil {
		d.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		d.t.Fatalf("the portal says %s", resp.Status)
	}
}

// A wrongClock is a file whose content is by how many seconds a clock is wrong.
type wrongClock struct{ file string }

// be makes it wrong by some seconds, for processes that run, too.
func (c wrongClock) be(seconds int64) error {
	f, err := os.OpenFile(c.file, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(endian.NativeEndian.AppendUint64(nil, uint64(seconds)), 0)
	return errors.Join(err, f.Close())
}

// skew has the desk's wall clock be wrong by some seconds from now on. kith must not run.
func (d *doctorLab) skew(seconds int64) {
	d.t.Helper()
	kith, err := skewed()
	if err != nil {
		d.t.Fatal(err)
	}
	d.clock.file = fileWith(d.t, "")
	d.setClock(seconds)
	d.desk.kith = fileWith(d.t, fmt.Sprintf("#!/bin/sh\nKITH_TEST_SKEW_FILE=%s exec %s \"$@\"\n", d.clock.file, kith))
	if err := os.Chmod(d.desk.kith, 0o700); err != nil {
		d.t.Fatal(err)
	}
}

func (d *doctorLab) setClock(seconds int64) {
	d.t.Helper()
	if err := d.clock.be(seconds); err != nil {
		d.t.Fatal(err)
	}
}
