// Package models holds the checked models of the pairing protocol and runs those
// that this machine can run.
package models

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// errorsLine is what pan says in the end.
var errorsLine = regexp.MustCompile(`(?m)^State-vector .* errors: (\d+)$`)

func need(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("KITH_REQUIRE_NETTEST") == "1" {
				t.Fatalf("%s is not installed, and nothing may be skipped", tool)
			}
			t.Skipf("%s is not installed", tool)
		}
	}
}

func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// TestSpin checks every property of the commit phase, of admission to a room and
// of its rosters, and that the controls fail.
func TestSpin(t *testing.T) {
	need(t, "spin", "gcc")
	roster := []string{"-DVECTORSZ=2048"}
	for _, c := range []struct {
		name, file string
		spin, cc   []string
		pan        []string
		holds      bool
	}{
		{"safe", "commit2.pml", nil, nil, []string{"-a", "-N", "safe"}, true},
		{"conv", "commit2.pml", nil, []string{"-DNFAIR=6"}, []string{"-a", "-f", "-N", "conv"}, true},
		{"unpair", "commit2.pml", nil, []string{"-DNFAIR=6"}, []string{"-a", "-f", "-N", "unpair"}, true},
		{"nostuck must fail", "commit2.pml", nil, []string{"-DNFAIR=6"}, []string{"-a", "-f", "-N", "nostuck"}, false},
		{"store then tell must fail", "commit.pml", []string{"-DVARIANT=1"}, nil, []string{"-N", "safe"}, false},
		{"store on hello must fail", "commit.pml", []string{"-DVARIANT=2"}, nil, []string{"-N", "safe"}, false},

		{"admitted is durable", "room_admit.pml", nil, nil, []string{"-a", "-N", "safe"}, true},
		{"admitted with one key", "room_admit.pml", nil, nil, []string{"-a", "-N", "keys"}, true},
		{"admitted in the end", "room_admit.pml", nil, []string{"-DNFAIR=3"}, []string{"-a", "-f", "-N", "live"}, true},
		{"tell then store must fail", "room_admit.pml", []string{"-DVARIANT=1"}, nil, []string{"-a", "-N", "safe"}, false},
		{"an earlier handshake must fail", "room_admit.pml", []string{"-DVARIANT=2"}, nil, []string{"-a", "-N", "keys"}, false},

		{"kicked: no host signs", "room_roster.pml", []string{"-DKICKS=2", "-DADMITS=1"}, roster, []string{"-a", "-N", "kept"}, true},
		{"kicked: no member takes", "room_roster.pml", []string{"-DKICKS=2", "-DADMITS=1"}, roster, []string{"-a", "-N", "gone"}, true},
		{"kicked: after admissions", "room_roster.pml", []string{"-DADMITS=2", "-DMAX=8"}, roster, []string{"-a", "-N", "gone"}, true},
		{"rosters settle", "room_roster.pml", []string{"-DKICKS=2", "-DADMITS=1", "-DMAX=8"}, append([]string{"-DNFAIR=9"}, roster...), []string{"-a", "-f", "-N", "settles"}, true},
		{"version alone must fail", "room_roster.pml", []string{"-DVARIANT=1", "-DADMITS=2", "-DMAX=8"}, roster, []string{"-a", "-N", "gone"}, false},
		{"no merge must fail", "room_roster.pml", []string{"-DVARIANT=2", "-DKICKS=2", "-DADMITS=1", "-DMAX=7"}, roster, []string{"-a", "-N", "kept"}, false},
		{"no merge never settles", "room_roster.pml", []string{"-DVARIANT=2", "-DKICKS=2", "-DADMITS=0", "-DMAX=7"}, append([]string{"-DNFAIR=9"}, roster...), []string{"-a", "-f", "-N", "settles"}, false},
		{"any winner must fail", "room_roster.pml", []string{"-DVARIANT=3", "-DKICKS=2", "-DADMITS=1", "-DMAX=7"}, roster, []string{"-a", "-N", "gone"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			model, err := os.ReadFile(c.file)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, c.file), model, 0o600); err != nil {
				t.Fatal(err)
			}
			run(t, dir, "spin", append(append([]string{"-a"}, c.spin...), c.file)...)
			run(t, dir, "gcc", append(append([]string{"-O2", "-w"}, c.cc...), "-o", "pan", "pan.c")...)
			out := run(t, dir, filepath.Join(dir, "pan"), c.pan...)
			m := errorsLine.FindStringSubmatch(out)
			if m == nil {
				t.Fatalf("pan does not say how many errors there are:\n%s", out)
			}
			if holds := m[1] == "0"; holds != c.holds {
				t.Errorf("errors: %s\n%s", m[1], out)
			}
		})
	}
}

// TestProVerif runs the models of the handshake that must hold.
func TestProVerif(t *testing.T) {
	if _, err := exec.LookPath("proverif"); err != nil {
		t.Skip("proverif is not installed (it is not in Debian); README.md has the recorded results")
	}
	for _, file := range []string{"t1_honest.pv", "t2_pfs.pv", "t5_impersonation.pv", "t6_quantum.pv", "t7_kci.pv"} {
		t.Run(file, func(t *testing.T) {
			out := run(t, ".", "proverif", file)
			if !regexp.MustCompile(`(?m)^RESULT .* is true\.$`).MatchString(out) {
				t.Errorf("no property holds:\n%s", out)
			}
		})
	}
}

// TestProVerifRooms runs the models of the join that are quick: in each the last
// query tells a model that holds from a control.
func TestProVerifRooms(t *testing.T) {
	if _, err := exec.LookPath("proverif"); err != nil {
		t.Skip("proverif is not installed (it is not in Debian); README.md has the recorded results")
	}
	for _, c := range []struct{ file, want, not string }{
		{"room_open.pv", `inj-event\(in_room.* is true`, `(attacker|inj-event).* is false`},
		{"room_n_unbound.pv", `inj-event\(in_room.* is false`, `inj-event\(in_room.* is true`},
		{"room_guess.pv", `Weak secret pw is true`, `is false`},
		{"room_n_hash.pv", `Weak secret pw is false`, `is true`},
	} {
		t.Run(c.file, func(t *testing.T) {
			out := run(t, ".", "proverif", "-lib", "room_join.pvl", c.file)
			results := strings.Join(regexp.MustCompile(`(?m)^RESULT .*$`).FindAllString(out, -1), "\n")
			if !regexp.MustCompile(c.want).MatchString(results) || regexp.MustCompile(c.not).MatchString(results) {
				t.Errorf("results:\n%s", results)
			}
		})
	}
}
