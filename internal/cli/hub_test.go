package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/kithproject/kith/hub"
	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/link/relay"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/mqtt"
)

// TestHubServesDevices runs what devices use, the MQTT exchange and the relay's
// client, against a hub, with nothing but its address.
func TestHubServesDevices(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	h, err := hub.Open(ctx, hub.Config{Dir: filepath.Join(t.TempDir(), "hub"), Listen: "127.0.0.1:0", AllowPrivate: true})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	a, err := hubaddr.Parse(h.Address().Text())
	if err != nil {
		t.Fatal(err)
	}

	var topic [20]byte
	copy(topic[:], "a topic of this test")
	var sessions []rendezvous.Session
	for _, u := range a.MQTTURLs() {
		ex, err := mqtt.New(mqtt.Config{URL: u, User: hubaddr.MQTTUser, Password: a.MQTTPassword(), TLS: a.TLSConfig()})
		if err != nil {
			t.Fatal(err)
		}
		defer ex.Close()
		s, err := ex.Join(ctx, rendezvous.Point{Topic: topic})
		if err != nil {
			t.Fatal(err)
		}
		sessions = append(sessions, s)
	}
	frame := bytes.Repeat([]byte{7}, rendezvous.FrameSize)
	repeat := time.NewTicker(500 * time.Millisecond) // QoS 0: the other may not have subscribed yet
	defer repeat.Stop()
	came := make(chan rendezvous.Message, 1)
	go func() {
		if m, err := sessions[1].Receive(ctx); err == nil {
			came <- m
		}
	}()
	for got := false; !got; {
		if err := sessions[0].Publish(ctx, frame); err != nil && !errors.Is(err, rendezvous.ErrUnreachable) {
			t.Fatal(err)
		}
		select {
		case m := <-came:
			got = bytes.Equal(m.Frame, frame)
		case <-repeat.C:
		case <-ctx.Done():
			t.Fatal("no frame came over the hub")
		}
	}

	for _, u := range a.TURNURLs() {
		got := make(chan []byte, 16)
		receive := func(_ netip.AddrPort, p []byte) { got <- bytes.Clone(p) }
		var ends [2]*relay.Relay
		for i := range ends {
			ends[i], err = relay.Dial(ctx, relay.Config{URL: u, Secret: a.TURNSecret(), TLS: a.TLSConfig(), Receive: receive})
			if err != nil {
				t.Fatalf("%s: %v", u, err)
			}
		}
		packet := bytes.Repeat([]byte{byte(len(u))}, 1200)
		for arrived := false; !arrived; {
			for i, r := range ends { // both make a permission for the other
				if err := r.Send([][]byte{packet}, ends[1-i].Addr()); err != nil {
					t.Fatalf("%s: %v", u, err)
				}
			}
			select {
			case p := <-got:
				if !bytes.Equal(p, packet) {
					t.Fatalf("%s: another packet came", u)
				}
				arrived = true
			case <-repeat.C:
			case <-ctx.Done():
				t.Fatalf("%s: no packet came over the hub", u)
			}
		}
		for _, r := range ends {
			if err := r.Close(); err != nil {
				t.Errorf("%s: %v", u, err)
			}
		}
	}
}

// TestHubErrors holds the exit status and hint of what goes wrong at the start.
func TestHubErrors(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no modes of files, and other numbers of errors")
	}
	var ln net.ListenConfig
	taken, err := ln.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	open := t.TempDir()
	if err := os.MkdirAll(filepath.Join(open, "hub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args   []string
		status int
		text   string
	}{
		"port taken":     {[]string{"--listen", taken.Addr().String()}, exitError, "hint: another program"},
		"no such host":   {[]string{"--listen", "192.0.2.1:0"}, exitError, "hint: choose an address"},
		"open directory": {[]string{"--home", open}, exitInUse, "chmod 700"},
	} {
		var out, errs bytes.Buffer
		e := &env{in: os.Stdin, out: &out, err: &errs}
		args := append([]string{"hub", "--home", t.TempDir(), "--listen", "127.0.0.1:0"}, c.args...)
		if got := e.run(t.Context(), args); got != c.status || !bytes.Contains(errs.Bytes(), []byte(c.text)) {
			t.Errorf("%s: status %d, want %d: %s", name, got, c.status, errs.String())
		}
	}
	low := hubError(errors.Join(hub.ErrListen, syscall.EACCES))
	if _, _, hint := classify(low); !bytes.Contains([]byte(hint), []byte("--systemd")) {
		t.Errorf("a low port: %q", hint)
	}
}

// TestHubStops ends the command as Ctrl-C does.
func TestHubStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, w := io.Pipe()
	e := &env{in: os.Stdin, out: w, err: io.Discard}
	status := make(chan int, 1)
	go func() {
		status <- e.run(ctx, []string{"hub", "--home", t.TempDir(), "--listen", "127.0.0.1:0", "--json"})
	}()
	var ev struct{ Event, Address string }
	if err := json.NewDecoder(r).Decode(&ev); err != nil {
		t.Fatal(err)
	}
	if _, err := hubaddr.Parse(ev.Address); err != nil || ev.Event != "hub" {
		t.Errorf("%q: %v", ev.Event, err)
	}
	cancel()
	if got := <-status; got != exitOK {
		t.Errorf("status %d", got)
	}
}

// TestSystemdQuote keeps arguments whole.
func TestSystemdQuote(t *testing.T) {
	for in, want := range map[string]string{
		"--listen=:443": "--listen=:443", "/a dir/kith": `"/a dir/kith"`, "100%": "100%%", "$HOME": "$$HOME", `a"b`: `"a\"b"`,
	} {
		if got := systemdQuote(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
