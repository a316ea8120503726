package netif

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var server = netip.MustParseAddr("fd6b:6974:6800::53")

const former = "search lan\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\noptions edns0\n"

// files returns what a folder holds.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]string)
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if to, err := os.Readlink(path); err == nil {
			out[e.Name()] = "-> " + to
			continue
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = string(raw)
	}
	return out
}

func same(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}

// TestResolvConf takes the file over and gives it back, in the ways it may lie there.
func TestResolvConf(t *testing.T) {
	for _, tc := range []struct {
		name string
		make func(t *testing.T, dir string)
		want []string // servers
	}{
		{"a file", func(t *testing.T, dir string) { write(t, dir, "resolv.conf", former) }, []string{"192.0.2.1:53", "[fe80::1%eth0]:53"}},
		{"a link", func(t *testing.T, dir string) {
			write(t, dir, "real", former)
			if err := os.Symlink("real", filepath.Join(dir, "resolv.conf")); err != nil {
				t.Fatal(err)
			}
		}, []string{"192.0.2.1:53", "[fe80::1%eth0]:53"}},
		{"a link to nothing yet", func(t *testing.T, dir string) {
			if err := os.Symlink("later", filepath.Join(dir, "resolv.conf")); err != nil {
				t.Fatal(err)
			}
		}, nil},
		{"tabs", func(t *testing.T, dir string) {
			write(t, dir, "resolv.conf", "search lan\nnameserver\t192.0.2.1\noptions\tedns0\n")
		}, []string{"192.0.2.1:53"}},
		{"empty", func(t *testing.T, dir string) { write(t, dir, "resolv.conf", "") }, nil},
		{"none", func(*testing.T, string) {}, nil},
		{"an old copy beside it", func(t *testing.T, dir string) {
			write(t, dir, "resolv.conf", former)
			write(t, dir, "resolv.conf"+keptSuffix, "old")
		}, []string{"192.0.2.1:53", "[fe80::1%eth0]:53"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			tc.make(t, dir)
			before := files(t, dir)
			delete(before, "resolv.conf"+keptSuffix)
			path := filepath.Join(dir, "resolv.conf")
			r := newResolvConf(path, "kith9")
			was, err := r.take(server)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range servers(was) {
				got = append(got, s.String())
			}
			if strings.Join(got, " ") != strings.Join(tc.want, " ") {
				t.Errorf("servers %v, want %v", got, tc.want)
			}
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if s := servers(raw); len(s) != 1 || s[0].Addr() != server {
				t.Errorf("the file has servers %v", s)
			}
			if tc.want != nil && (!bytes.Contains(raw, []byte("\nsearch lan\n")) || !bytes.Contains(bytes.ReplaceAll(raw, []byte("\t"), []byte(" ")), []byte("\noptions edns0\n"))) {
				t.Errorf("search and options are lost:\n%s", raw)
			}
			if err := restore(path, "another run"); err != nil {
				t.Fatal(err)
			}
			if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, raw) {
				t.Fatalf("another run's guard touched it: %v", err)
			}
			if err := restore(path, r.run); err != nil {
				t.Fatal(err)
			}
			if after := files(t, dir); !same(before, after) {
				t.Errorf("before %v, after %v", before, after)
			}
		})
	}
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestResolvConfOfOthers leaves alone what is not ours any more.
func TestResolvConfOfOthers(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "resolv.conf")
	write(t, dir, "resolv.conf", former)
	r := newResolvConf(path, "kith9")
	if _, err := r.take(server); err != nil {
		t.Fatal(err)
	}
	ours, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "resolv.conf", string(ours)+"nameserver 192.0.2.9\n")
	if err := restore(path, r.run); !errors.Is(err, ErrEdited) {
		t.Errorf("edited: %v", err)
	}
	write(t, dir, "resolv.conf", "nameserver 192.0.2.9\n")
	for range 2 { // again, after it was written by another program
		if err := restore(path, r.run); err != nil {
			t.Error(err)
		}
	}
	if raw, err := os.ReadFile(path); err != nil || string(raw) != "nameserver 192.0.2.9\n" {
		t.Errorf("%q, %v", raw, err)
	}
}

// TestMend brings back what a killed run left, and not what a run uses: an interface
// or a process that exists.
func TestMend(t *testing.T) {
	loopback := "lo"
	if all, err := net.Interfaces(); err != nil || len(all) == 0 {
		t.Fatalf("interfaces: %v, %v", all, err)
	} else {
		loopback = all[0].Name
	}
	type run struct{ ifi, proc string }
	cases := map[run]bool{
		{"kith9", "1@1"}: true, {"kith9", "-"}: true, {"kith9", "0@0"}: true, {"kith9", "999999999@1"}: true, {loopback, "-"}: false,
	}
	if own := processOf(os.Getpid()); own != "-" { // where there is /proc
		cases[run{"kith9", own}] = false
	}
	for of, mended := range cases {
		ifi := of.ifi
		dir := t.TempDir()
		path := filepath.Join(dir, "resolv.conf")
		write(t, dir, "resolv.conf", former)
		r := newResolvConf(path, ifi)
		r.proc = of.proc
		if _, err := r.take(server); err != nil {
			t.Fatal(err)
		}
		if err := mend(path); err != nil {
			t.Fatal(err)
		}
		if raw, err := os.ReadFile(path); err != nil || (string(raw) == former) != mended {
			t.Errorf("%v: %q, %v", of, raw, err)
		}
		if _, err := newResolvConf(path, "kith8").take(server); (err == nil) != mended {
			t.Errorf("%v: taken by another run: %v", of, err)
		}
	}
}

// TestGuard brings the file back when the line ends.
func TestGuard(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "resolv.conf", former)
	r := newResolvConf(filepath.Join(dir, "resolv.conf"), "kith9")
	if _, err := r.take(server); err != nil {
		t.Fatal(err)
	}
	line, end, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer line.Close()
	done := make(chan error, 1)
	go func() { done <- Guard(line, r.path, r.run) }()
	if _, err := end.WriteString("still here"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		t.Fatalf("it ended before the line: %v", err)
	default:
	}
	end.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := files(t, dir); !same(got, map[string]string{"resolv.conf": former}) {
		t.Errorf("left: %v", got)
	}
}

// FuzzResolvConf takes over files of any content: ours names our server alone, and the
// former one comes back as it was.
func FuzzResolvConf(f *testing.F) {
	for _, s := range []string{former, "", "nameserver", "nameserver x\nsearch\x00\n", marker + "a b c kept d\nnameserver ::1\n", strings.Repeat("nameserver 1.1.1.1\n", 9)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, was []byte) {
		if len(servers(was)) > maxServers {
			t.Error("too many servers")
		}
		r := newResolvConf("x", "kith0")
		text := r.content(was, was == nil, server)
		m, ours := markOf(text)
		if !ours || !m.whole || m.run != r.run || m.ifi != "kith0" || m.none != (was == nil) {
			t.Fatalf("%+v, %v", m, ours)
		}
		if s := servers(text); len(s) != 1 || s[0].Addr() != server {
			t.Fatalf("servers %v of %q", s, text)
		}
	})
}
