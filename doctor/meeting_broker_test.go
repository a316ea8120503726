package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	broker "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"

	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/mqtt"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
	"github.com/kithproject/kith/rendezvous/waku"
)

// startBroker runs an MQTT broker on loopback and returns its host:port.
func startBroker(t *testing.T, cfg *tls.Config, ledger *auth.Ledger) string {
	t.Helper()
	s := broker.New(&broker.Options{Logger: slog.New(slog.DiscardHandler)})
	err := s.AddHook(new(auth.AllowHook), nil)
	if ledger != nil {
		s = broker.New(&broker.Options{Logger: slog.New(slog.DiscardHandler)})
		err = s.AddHook(new(auth.Hook), &auth.Options{Ledger: ledger})
	}
	l := listeners.NewTCP(listeners.Config{ID: "l", Address: "127.0.0.1:0", TLSConfig: cfg})
	if err = errors.Join(err, s.AddListener(l), s.Serve()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return l.Address()
}

// brokerMedium is a broker as a medium.
func brokerMedium(t *testing.T, address string, cfg mqtt.Config) Medium {
	t.Helper()
	x, err := mqtt.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	m := MediumOf(x, nil)
	if want := "mqtt " + address; m.Name != want || m.Servers[0] != address {
		t.Fatalf("%q, %q", m.Name, m.Servers)
	}
	return m
}

func TestMeetingBroker(t *testing.T) {
	nobody := func(t *testing.T) string {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		return ln.Addr().String()
	}
	anna := &auth.Ledger{
		Auth: auth.AuthRules{{Username: "anna", Password: "hunter2", Allow: true}},
		ACL:  auth.ACLRules{{Username: "anna", Filters: auth.Filters{"#": auth.ReadWrite}}},
	}
	secure := func(from, until time.Duration, trust bool) func(*testing.T) (string, mqtt.Config) {
		return func(t *testing.T) (string, mqtt.Config) {
			server, client := rendezvoustest.Certificate(t, from, until)
			if !trust {
				client = nil
			}
			a := startBroker(t, server, nil)
			return a, mqtt.Config{URL: "mqtts://" + a, TLS: client}
		}
	}
	for name, c := range map[string]struct {
		open func(*testing.T) (address string, cfg mqtt.Config)
		want []string
		says string
	}{
		"healthy": {open: func(t *testing.T) (string, mqtt.Config) {
			a := startBroker(t, nil, nil)
			return a, mqtt.Config{URL: "mqtt://" + a}
		}},
		"healthy with TLS and a password": {open: func(t *testing.T) (string, mqtt.Config) {
			server, client := rendezvoustest.Certificate(t, -time.Hour, time.Hour)
			a := startBroker(t, server, anna)
			return a, mqtt.Config{URL: "mqtts://" + a, TLS: client, User: "anna", Password: "hunter2"}
		}},
		"down": {func(t *testing.T) (string, mqtt.Config) {
			a := nobody(t)
			return a, mqtt.Config{URL: "mqtt://" + a}
		}, []string{"meeting.broker/refused"}, "The host of the broker 127.0.0.1:"},
		"wrong password": {func(t *testing.T) (string, mqtt.Config) {
			a := startBroker(t, nil, anna)
			return a, mqtt.Config{URL: "mqtt://" + a, User: "anna", Password: "hunter3"}
		}, []string{"meeting.broker/credentials"}, " refuses the user"},
		"expired":     {secure(-48*time.Hour, -24*time.Hour, true), []string{"meeting.broker/expired"}, "has expired"},
		"not yet":     {secure(24*time.Hour, 48*time.Hour, true), []string{"meeting.broker/early"}, "not valid yet"},
		"self-signed": {secure(-time.Hour, time.Hour, false), []string{"meeting.broker/untrusted"}, "not one that this device trusts"},
		"no TLS there": {func(t *testing.T) (string, mqtt.Config) {
			a := startWeb(t)
			return a, mqtt.Config{URL: "mqtts://" + a}
		}, []string{"meeting.broker/mute"}, "does not speak as a broker"},
		"no messages": {func(t *testing.T) (string, mqtt.Config) {
			a := startBroker(t, nil, &auth.Ledger{
				Auth: auth.AuthRules{{Username: "anna", Password: "hunter2", Allow: true}},
				ACL:  auth.ACLRules{{Username: "anna", Filters: auth.Filters{"#": auth.Deny}}},
			})
			return a, mqtt.Config{URL: "mqtt://" + a, User: "anna", Password: "hunter2"}
		}, []string{"meeting.echo/lost"}, "does not bring it to others"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address, cfg := c.open(t)
			m := brokerMedium(t, address, cfg)
			r := meet(t, &Env{Media: []Medium{m}}, 0, "meeting.broker", "meeting.echo")
			wantCauses(t, r, c.want...)
			if len(c.want) > 0 && len(r.Causes) > 0 && !strings.Contains(r.Causes[0].Cause, c.says) {
				t.Errorf("%q does not say %q", r.Causes[0].Cause, c.says)
			}
			if len(c.want) == 0 && !strings.Contains(strings.Join(result(t, r, "meeting.echo").Evidence, " "), "round trip of a frame") {
				t.Errorf("%+v", result(t, r, "meeting.echo"))
			}
			if text := fmt.Sprint(r); strings.Contains(text, "hunter") {
				t.Error("the password is in the report")
			}
		})
	}
}

// startWeb runs something that is no broker.
func startWeb(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			conn.Close()
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

// TestServerAnswer holds what is made of what is known: nothing is said of a server
// that may only be far away, or of a name that nobody looked up.
func TestServerAnswer(t *testing.T) {
	slow := errors.New("mqtt: timeout")
	for name, c := range map[string]struct {
		err  error
		done []shake
		want string
	}{
		"no such name":          {slow, []shake{{err: &net.DNSError{IsNotFound: true}}}, "name"},
		"no DNS":                {slow, []shake{{err: &net.DNSError{IsTimeout: true}}}, ""},
		"silent":                {slow, []shake{{err: context.DeadlineExceeded}}, "silent"},
		"silent, says the net":  {slow, []shake{{err: &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}}}, "silent"},
		"there, but mute":       {slow, []shake{{took: time.Millisecond}}, "mute"},
		"far away":              {slow, []shake{{took: 2 * time.Second}}, ""},
		"one of two there":      {slow, []shake{{err: context.DeadlineExceeded}, {took: time.Millisecond}}, "mute"},
		"no server known":       {context.DeadlineExceeded, nil, "silent"},
		"nothing known":         {slow, nil, ""},
		"another key":           {fmt.Errorf("tls: %w", hubaddr.ErrPin), []shake{{took: time.Millisecond}}, "pin"},
		"old protocol":          {fmt.Errorf("mqtt: %w", mqtt.ErrVersion), nil, "version"},
		"membership":            {fmt.Errorf("x: %w", waku.ErrProof), nil, "proof"},
		"no service":            {fmt.Errorf("x: %w", waku.ErrService), nil, "service"},
		"certificate of others": {x509.HostnameError{Certificate: new(x509.Certificate)}, nil, "untrusted"},
	} {
		t.Run(name, func(t *testing.T) {
			a := anyBroker().answer(c.err, c.done, nil)
			if a.Finding != c.want || (a.State == No) != (c.want != "") || (a.Cause == "") != (c.want == "") {
				t.Errorf("%+v, want %q", a, c.want)
			}
		})
	}
}

// An at is a medium in memory that says that it has a server.
type at struct {
	*rendezvoustest.Memory
	server string
}

func (a at) Servers() []string { return []string{a.server} }

// TestServerWords: a hub is called one, and how it is set.
func TestServerWords(t *testing.T) {
	address := hubaddr.Address{Host: "hub.example", Port: 8443}
	x := at{rendezvoustest.NewNetwork(1, rendezvoustest.Faults{}).Exchange("mqtt"), "hub.example:8443"}
	hub := MediumOf(x, []hubaddr.Address{address})
	if hub.Name != "hub hub.example" || hub.Hub != address {
		t.Errorf("%+v", hub)
	}
	a := hub.place().fails("credentials", nil)
	if a.Cause != "The hub hub.example refuses the user or the password." || !strings.Contains(a.Fix, "kith config hub") {
		t.Errorf("%+v", a)
	}
}

// refused is an exchange that was not let in.
type refused struct{ rendezvous.Exchange }

func (refused) Health() rendezvous.Health {
	return rendezvous.Health{Err: fmt.Errorf("mqtt: %w", mqtt.ErrCredentials)}
}

// TestMeetingStale: a connection that was there before does not hide that no new one is
// let in.
func TestMeetingStale(t *testing.T) {
	server, client := rendezvoustest.Certificate(t, -time.Hour, time.Hour)
	a := startBroker(t, server, nil)
	m := brokerMedium(t, a, mqtt.Config{URL: "mqtts://" + a, TLS: client})
	m.Fresh = func() (rendezvous.Exchange, error) {
		later := client.Clone() // the certificate has expired since
		later.Time = func() time.Time { return time.Now().Add(48 * time.Hour) }
		return mqtt.New(mqtt.Config{URL: "mqtts://" + a, TLS: later})
	}
	r := meet(t, &Env{Media: []Medium{m}}, 0)
	wantCauses(t, r, "meeting.echo/second")
	if len(r.Causes) > 0 && !strings.Contains(r.Causes[0].Cause, "has expired") {
		t.Errorf("%q", r.Causes[0].Cause)
	}

	// It was not let in the last time, and would be now.
	a = startBroker(t, nil, nil)
	m = brokerMedium(t, a, mqtt.Config{URL: "mqtt://" + a})
	m.Exchange = refused{m.Exchange}
	r = meet(t, &Env{Media: []Medium{m}}, 0, "meeting.broker")
	wantCauses(t, r)
	if x := result(t, r, "meeting.broker"); x.State != Yes {
		t.Errorf("%s %q", x.Name(), x.Evidence)
	}

	// The server is gone without a word: the driver has not noticed.
	synctest.Test(t, func(t *testing.T) {
		x := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{}).Exchange("mqtt")
		s := &shakes{count: 1, done: []shake{{err: context.DeadlineExceeded}}, cancel: func() {}}
		time.AfterFunc(2*time.Second, func() { x.Cut(true) })
		if h := settled(t.Context(), x, s); h.Ready {
			t.Errorf("%+v", h)
		}
		s.done[0].err = nil
		x.Cut(false)
		start := time.Now()
		if h := settled(t.Context(), x, s); !h.Ready || time.Since(start) > 0 {
			t.Errorf("%+v after %v", h, time.Since(start))
		}
	})
}
