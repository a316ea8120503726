package cli

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func FuzzSettings(f *testing.F) {
	f.Add([]byte(`{"name":"x","port":1,"mqtt":[{"url":"mqtt://h"}]}`))
	f.Add([]byte(`[]`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, raw []byte) {
		if err := os.WriteFile(filepath.Join(dir, "config.json"), raw, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := loadSettings(dir)
		if err != nil {
			return
		}
		if err := s.save(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := loadSettings(dir); err != nil {
			t.Fatalf("what was saved cannot be read: %v", err)
		}
	})
}

func TestAnswers(t *testing.T) {
	choices := []string{"111111", "222222", "333333", "444444"}
	for _, c := range []struct {
		line    string
		joining bool
		accept  string
		cancel  bool
		ok      bool
	}{
		{"222222", false, "222222", false, true},
		{"222 222", false, "222222", false, true},
		{"3", false, "333333", false, true},
		{"5", false, "", false, false},
		{"yes", false, "", false, false},
		{"n", false, "", true, true},
		{"12345", false, "", false, false},
		{"Y", true, "", false, true},
		{"no", true, "", true, true},
		{"1", true, "", false, false},
	} {
		in, ok := readAnswer(c.line, c.joining, choices)
		if ok != c.ok || in.Cancel != c.cancel || (ok && !c.cancel && *in.Accept != c.accept) {
			t.Errorf("%q (joining %v): %+v %v", c.line, c.joining, in, ok)
		}
	}
}

func TestLocalAddress(t *testing.T) {
	for in, want := range map[string]string{"8080": "127.0.0.1:8080", "0": "127.0.0.1:0", "0.0.0.0:80": "0.0.0.0:80", "[::1]:80": "[::1]:80", "53/udp": "127.0.0.1:53/udp", "1.2.3.4:53/udp": "1.2.3.4:53/udp", "80/tcp": "127.0.0.1:80"} {
		got, network, err := localAddress(in)
		if network == "udp" {
			got += "/udp"
		}
		if err != nil || got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, bad := range []string{"", "x", "-1", "70000", "a:b:c", "host:", "53/sctp", "/udp"} {
		if got, _, err := localAddress(bad); err == nil {
			t.Errorf("%q became %q", bad, got)
		}
	}
}

func TestOneLine(t *testing.T) {
	if got := oneLine("a\nb\r\n  c"); strings.ContainsAny(got, "\r\n") || got != "a b c" {
		t.Errorf("%q", got)
	}
}

// TestPortTaken: where another process has the port, the error says what can be done.
func TestPortTaken(t *testing.T) {
	conn, err := net.ListenUDP("udp", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	dir := shortDir(t)
	port := strconv.Itoa(conn.LocalAddr().(*net.UDPAddr).Port)
	if status, _, said := runOn(t, dir, "config", "port", port); status != exitOK {
		t.Fatal(said)
	}
	status, _, said := runOn(t, dir, "up")
	if status != exitError || !strings.Contains(said, "kith doctor names it, and kith config port 0") {
		t.Errorf("exit status %d: %s", status, said)
	}
}
