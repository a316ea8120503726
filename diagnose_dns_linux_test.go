package kith_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith/doctor"
	"github.com/kithproject/kith/internal/nettest"
	"github.com/kithproject/kith/rendezvous/dns"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

// TestDiagnoseDNS has a doctor look at a zone of a real server, and at one whose server
// does not run.
func TestDiagnoseDNS(t *testing.T) {
	named, err := exec.LookPath("/usr/sbin/named")
	if err != nil {
		nettest.Skip(t, "needs named (Debian: bind9)")
	}
	secret := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("x"), 32))
	port := func() int { // free a moment ago
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		return ln.Addr().(*net.TCPAddr).Port
	}
	dir, running := t.TempDir(), port()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	zone := write("zone", "$TTL 1\n@ SOA ns.kith.test. x.kith.test. 1 60 60 600 0\n@ NS ns\nns A 127.0.0.1\n")
	conf := write("named.conf", fmt.Sprintf(`
options {
	directory "%[1]s"; managed-keys-directory "%[1]s"; pid-file none; session-keyfile none;
	listen-on port %[2]d { 127.0.0.1; }; listen-on-v6 { none; };
	recursion no; dnssec-validation no; notify no;
};
controls { };
key "kith-key." { algorithm hmac-sha256; secret "%[3]s"; };
zone "kith.test." { type primary; file "%[4]s"; allow-update { key "kith-key."; }; allow-query { any; }; };
`, dir, running, secret, zone))
	var out bytes.Buffer
	cmd := exec.Command(named, "-g", "-n", "1", "-c", conf)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(out.String())
		}
	})
	for name, c := range map[string]struct {
		port int
		want []string
		echo doctor.State
	}{
		"there": {running, nil, doctor.Yes},
		"gone":  {port(), []string{"meeting.other/down"}, doctor.Skipped},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := dns.New(dns.Config{
				Server: fmt.Sprint("127.0.0.1:", c.port), Zone: "kith.test.", Key: "kith-key.", Secret: secret,
				Fast: 5 * time.Millisecond, Slow: 50 * time.Millisecond, Interval: time.Millisecond,
			})
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			if c.want == nil {
				rendezvoustest.Await(t, "the server answers", func() bool {
					e.Check()
					return e.Health().Ready
				})
			}
			env := &doctor.Env{Port: 1, Media: []doctor.Medium{doctor.MediumOf(e, nil)}, Pacer: doctor.NewPacer()}
			table := slices.DeleteFunc(doctor.Table(), func(c doctor.Check) bool { return c.Code.Group() != doctor.MeetingGroup })
			r := doctor.Run(t.Context(), doctor.Config{Env: env, Table: table, Only: []string{"meeting.other", "meeting.echo"}})
			var causes []string
			for _, x := range r.Causes {
				causes = append(causes, x.Name())
			}
			i := slices.IndexFunc(r.Results, func(x doctor.Result) bool { return x.Code == "meeting.echo" })
			if !slices.Equal(causes, c.want) || i < 0 || r.Results[i].State != c.echo {
				t.Fatalf("causes %q: %+v", causes, r.Results)
			}
			if text := strings.Join(r.Results[i].Evidence, " "); c.echo == doctor.Yes && !strings.Contains(text, "round trip of a frame") {
				t.Errorf("%q", text)
			}
		})
	}
}
