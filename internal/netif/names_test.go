package netif

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// query is a header of DNS, with a question of some bytes.
var query = append([]byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, "question"...)

func reply(to []byte, text string) []byte {
	r := append(bytes.Clone(to[:12]), text...)
	r[2] |= 0x80
	return r
}

// dnsServer answers at one port over UDP and TCP: over UDP first with what is no answer.
func dnsServer(t *testing.T, text string) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{}, 2)
	t.Cleanup(func() { pc.Close(); ln.Close(); <-done; <-done })
	go func() {
		defer func() { done <- struct{}{} }()
		buf := make([]byte, 1500)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			wrong := reply(buf[:n], "wrong")
			wrong[1]++
			for _, b := range [][]byte{{1}, wrong, buf[:n], reply(buf[:n], text)} {
				_, _ = pc.WriteTo(b, from)
			}
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			var size [2]byte
			_, _ = io.ReadFull(conn, size[:])
			b := make([]byte, binary.BigEndian.Uint16(size[:]))
			_, _ = io.ReadFull(conn, b)
			r := reply(b, text)
			_, _ = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(r))), r...))
			conn.Close()
		}
	}()
	ap, err := netip.ParseAddrPort(pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	return ap
}

// silent is a server that says nothing.
func silent(t *testing.T) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	return pc.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestUpstream(t *testing.T) {
	good := dnsServer(t, "good")
	for _, stream := range []bool{false, true} {
		up := Upstream{Servers: []netip.AddrPort{silent(t), good}, Wait: 100 * time.Millisecond}
		got, err := up.Ask(t.Context(), query, stream)
		if err != nil || !bytes.HasSuffix(got, []byte("good")) {
			t.Errorf("stream %v: %q, %v", stream, got, err)
		}
	}
	for what, up := range map[string]Upstream{"no server": {}, "a silent one": {Servers: []netip.AddrPort{silent(t)}, Wait: 10 * time.Millisecond}} {
		if _, err := up.Ask(t.Context(), query, false); !errors.Is(err, errNoServer) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := (&Upstream{Servers: []netip.AddrPort{good}}).Ask(t.Context(), query[:11], false); err == nil {
		t.Error("what is no query was sent")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (&Upstream{Servers: []netip.AddrPort{silent(t)}}).Ask(ended, query, false); !errors.Is(err, context.Canceled) {
		t.Errorf("after the context: %v", err)
	}
}

// TestNamesInFile takes the file, asks the former server, and gives the file back.
func TestNamesInFile(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir) // no resolvectl here
	write(t, dir, "resolv.conf", former)
	n, err := SetNames(t.Context(), NamesConfig{Interface: "kith9", Server: server, File: filepath.Join(dir, "resolv.conf")})
	if err != nil {
		t.Fatal(err)
	}
	if !n.Forwards() || n.How() != filepath.Join(dir, "resolv.conf") {
		t.Errorf("%v, %s", n.Forwards(), n.How())
	}
	if got := n.upstream.Servers; len(got) != 2 || got[0] != netip.MustParseAddrPort("192.0.2.1:53") {
		t.Errorf("servers %v", got)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if got := files(t, dir); !same(got, map[string]string{"resolv.conf": former}) {
		t.Errorf("left: %v", got)
	}
}

// TestNamesOfOthers lets another program write the file: theirs stays, and the copy of
// the former one goes.
func TestNamesOfOthers(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	write(t, dir, "resolv.conf", former)
	n, err := SetNames(t.Context(), NamesConfig{Interface: "kith9", Server: server, File: filepath.Join(dir, "resolv.conf")})
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "resolv.conf", "nameserver 192.0.2.9\n")
	if err := n.take(); err != nil { // as watch does
		t.Fatal(err)
	}
	if got := n.upstream.Servers; len(got) != 1 || got[0] != netip.MustParseAddrPort("192.0.2.9:53") {
		t.Errorf("servers %v", got)
	}
	write(t, dir, "resolv.conf", "nameserver 192.0.2.10\n")
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if got := files(t, dir); !same(got, map[string]string{"resolv.conf": "nameserver 192.0.2.10\n"}) {
		t.Errorf("left: %v", got)
	}
}

// TestNamesEdited has somebody write a line before ours: the file names our server still,
// and whom it named before is not lost, nor is our server asked to ask itself.
func TestNamesEdited(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	path := filepath.Join(dir, "resolv.conf")
	write(t, dir, "resolv.conf", former)
	n, err := SetNames(t.Context(), NamesConfig{Interface: "kith9", Server: server, File: path})
	if err != nil {
		t.Fatal(err)
	}
	edited := "search example.com\n" + files(t, dir)["resolv.conf"]
	write(t, dir, "resolv.conf", edited)
	if err := n.take(); !errors.Is(err, ErrEdited) { // as watch does
		t.Errorf("taken: %v", err)
	}
	if got := n.upstream.Servers; len(got) != 2 {
		t.Errorf("servers %v", got)
	}
	if err := n.Close(); !errors.Is(err, ErrEdited) {
		t.Errorf("closed: %v", err)
	}
	if n, err := SetNames(t.Context(), NamesConfig{Interface: "kith9", Server: server, File: path}); !errors.Is(err, ErrEdited) {
		t.Errorf("the next run: %v, %v", n, err)
	}
	if got := files(t, dir); !same(got, map[string]string{"resolv.conf": edited, "resolv.conf" + keptSuffix: former}) {
		t.Errorf("left: %v", got)
	}
}

// TestNamesAgain makes the file ours again when another program has written it.
func TestNamesAgain(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	write(t, dir, "resolv.conf", former)
	synctest.Test(t, func(t *testing.T) {
		n, err := SetNames(t.Context(), NamesConfig{Interface: "kith9", Server: server, File: filepath.Join(dir, "resolv.conf")})
		if err != nil {
			t.Fatal(err)
		}
		for i := range maxRetakes + 1 {
			theirs := fmt.Sprintf("nameserver 192.0.2.%d\n", i)
			write(t, dir, "resolv.conf", theirs)
			time.Sleep(lookEvery + time.Second)
			synctest.Wait()
			got := files(t, dir)
			if want := i < maxRetakes; strings.HasPrefix(got["resolv.conf"], marker) != want || want && got["resolv.conf"+keptSuffix] != theirs {
				t.Fatalf("%d: %v", i, got)
			}
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestNamesNotWritable changes nothing.
func TestNamesNotWritable(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	if n, err := SetNames(t.Context(), NamesConfig{Interface: "kith9", Server: server, File: filepath.Join(dir, "no", "resolv.conf")}); err == nil {
		t.Errorf("%+v", n)
	}
	if got := files(t, dir); len(got) > 0 {
		t.Errorf("left: %v", got)
	}
}

// TestNamesByResolved calls systemd's command where programs ask systemd-resolved, and
// takes the file where that fails.
func TestNamesByResolved(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the command of the test is a shell script")
	}
	for _, works := range []bool{true, false} {
		dir := t.TempDir()
		t.Setenv("PATH", dir+":/bin:/usr/bin")
		const stub = "nameserver 127.0.0.53\noptions edns0\n"
		write(t, dir, "resolv.conf", stub)
		script := "#!/bin/sh\necho \"$@\" >> " + filepath.Join(dir, "calls") + "\n"
		if !works { // a version that does not know it
			script += "if [ $1 = default-route ]; then exit 1; fi\n"
		}
		if err := os.WriteFile(filepath.Join(dir, "resolvectl"), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
		n, err := SetNames(t.Context(), NamesConfig{
			Interface: "kith9", Server: server, Domains: []string{"kith", "8.6.ip6.arpa"}, File: filepath.Join(dir, "resolv.conf"),
		})
		if err != nil {
			t.Fatal(err)
		}
		if n.Forwards() == works || (n.How() == "systemd-resolved") != works {
			t.Errorf("works %v: %s", works, n.How())
		}
		got := files(t, dir)
		const calls = "dns kith9 fd6b:6974:6800::53\ndomain kith9 ~kith ~8.6.ip6.arpa\ndefault-route kith9 no\ndnssec kith9 no\n"
		if works && (got["calls"] != calls || got["resolv.conf"] != stub) {
			t.Errorf("%v", got)
		}
		if !works && (!strings.HasPrefix(got["resolv.conf"], marker) || !strings.HasSuffix(got["calls"], "\nrevert kith9\n")) {
			t.Errorf("%v", got)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		if got := files(t, dir); got["resolv.conf"] != stub {
			t.Errorf("left: %v", got)
		}
	}
}
