package forward

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// A loopNetwork is other devices that are all this machine.
type loopNetwork struct {
	expose func(context.Context, Spec, Options, func(string, error)) error
	down   error
}

func (l *loopNetwork) Dial(ctx context.Context, p Protocol, _ string, port uint16) (net.Conn, error) {
	if l.down != nil {
		return nil, l.down
	}
	return dialLocal(ctx, p, port)
}

func (l *loopNetwork) Expose(ctx context.Context, spec Spec, o Options, report func(string, error)) error {
	return l.expose(ctx, spec, o, report)
}

// newSet returns a Set, and the channel of what it says.
func newSet(t *testing.T, n *loopNetwork) (*Set, <-chan Status) {
	t.Helper()
	changed := make(chan Status, 100)
	s := NewSet(SetConfig{Network: n, Changed: func(st Status) { changed <- st }})
	t.Cleanup(func() { s.Close() })
	return s, changed
}

// await returns the next status of id that fits.
func await(t *testing.T, changed <-chan Status, id string, fits func(Status) bool) Status {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case st := <-changed:
			if st.ID == id && fits(st) {
				return st
			}
		case <-timeout:
			t.Fatalf("%s never came to be so", id)
		}
	}
}

func listening(st Status) bool { return st.Listening != "" }

func apply(t *testing.T, s *Set, specs ...Spec) {
	t.Helper()
	if err := s.Apply(specs); err != nil {
		t.Fatal(err)
	}
}

func statusOf(t *testing.T, s *Set, id string) Status {
	t.Helper()
	for _, st := range s.Status() {
		if st.ID == id {
			return st
		}
	}
	t.Fatalf("%s is not in the set", id)
	return Status{}
}

func dialTCP(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestSetChangesOneWithoutTheOthers(t *testing.T) {
	s, changed := newSet(t, &loopNetwork{})
	first := Spec{ID: "a", Address: "127.0.0.1:0", Device: "laptop", Port: portOf(echo(t))}
	second := Spec{ID: "b", Address: "127.0.0.1:0", Device: "laptop", Port: portOf(echo(t))}
	datagrams := Spec{ID: "c", Protocol: UDP, Address: "127.0.0.1:0", Device: "laptop", Port: echoUDP(t)}
	apply(t, s, first, second, datagrams)
	at := map[string]string{}
	for len(at) < 3 {
		select {
		case st := <-changed:
			at[st.ID] = st.Listening
		case <-time.After(patience):
			t.Fatal("not all listen")
		}
	}
	a, b := dialTCP(t, at["a"]), dialTCP(t, at["b"])
	for _, c := range []net.Conn{a, b} {
		if got := ask(t, c, []byte("hello")); string(got) != "hello" {
			t.Fatalf("got %q", got)
		}
	}
	udp, err := net.ResolveUDPAddr("udp", at["c"])
	if err != nil {
		t.Fatal(err)
	}
	if got := ask(t, dialUDP(t, udp), []byte("datagram")); string(got) != "datagram" {
		t.Fatalf("got %q", got)
	}
	if st := statusOf(t, s, "c"); st.Total != 1 || st.Sent != 8 || st.Received != 8 {
		t.Errorf("counted %+v", st.Traffic)
	}

	second.Port = portOf(echo(t))
	second.Address = at["b"] // the same port, which must be free by then
	apply(t, s, first, second)
	if st := await(t, changed, "b", listening); st.Listening != at["b"] || st.Total != 0 {
		t.Errorf("began anew as %+v, want on %s", st, at["b"])
	}
	if _, err := b.Read(make([]byte, 1)); err == nil {
		t.Error("a connection of the changed forward stays open")
	}
	if got := ask(t, a, []byte("still here")); string(got) != "still here" {
		t.Errorf("the other forward's connection got %q", got)
	}
	if st := statusOf(t, s, "a"); st.Open != 1 || st.Total != 1 || st.Sent != 15 || st.Received != 15 {
		t.Errorf("counted %+v", st.Traffic)
	}
	if n := len(s.Status()); n != 2 {
		t.Errorf("%d forwards, want 2", n)
	}
	if got := ask(t, dialTCP(t, at["b"]), []byte("anew")); string(got) != "anew" {
		t.Errorf("got %q", got)
	}
	s.Close()
	if _, err := a.Read(make([]byte, 1)); err == nil {
		t.Error("a connection stays open after Close")
	}
	if err := s.Apply(nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Apply after Close: %v", err)
	}
}

func TestSetSaysPortInUseAndTriesAgain(t *testing.T) {
	taken := listen(t)
	s, changed := newSet(t, &loopNetwork{})
	apply(t, s, Spec{ID: "web", Address: taken.Addr().String(), Device: "laptop", Port: 80})
	st := await(t, changed, "web", func(st Status) bool { return st.Err != "" })
	if !strings.Contains(st.Err, "port in use") || !strings.Contains(st.Err, taken.Addr().String()) || !strings.Contains(st.Hint, "another port") {
		t.Errorf("said %q, %q", st.Err, st.Hint)
	}
	taken.Close()
	if st := await(t, changed, "web", listening); st.Err != "" || st.Hint != "" {
		t.Errorf("listens, and says %+v", st)
	}
}

func TestSetTellsWhyConnectionsFail(t *testing.T) {
	s, changed := newSet(t, &loopNetwork{down: errors.New("laptop is asleep")})
	apply(t, s, Spec{ID: "web", Address: "127.0.0.1:0", Device: "laptop", Port: 80})
	st := await(t, changed, "web", listening)
	if err := refusedAt(t, st.Listening); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("got %v, want a reset: an end would look like an empty answer", err)
	}
	for { // the reset may come before it is counted
		if st := statusOf(t, s, "web"); st.Failed == 1 && st.LastFailure != "" {
			if st.LastFailure != "laptop is asleep" || st.Open != 0 || st.FailedAt.IsZero() {
				t.Errorf("said %+v", st)
			}
			return
		}
		if t.Context().Err() != nil {
			t.Fatal("never counted")
		}
	}
}

func TestSetExposes(t *testing.T) {
	spec := Spec{ID: "expose", Direction: Expose, Protocol: TCP, Address: "localhost:80", Device: "phone", Port: 8080}
	denied := errors.New("not allowed")
	steps := make(chan error)
	s, changed := newSet(t, &loopNetwork{expose: func(ctx context.Context, got Spec, o Options, report func(string, error)) error {
		if got != spec || o.Counters == nil || o.Failed == nil {
			t.Errorf("exposes %+v", got)
		}
		for {
			select {
			case err := <-steps:
				where := "phone:8080"
				if err != nil {
					where = ""
				}
				report(where, err)
			case <-ctx.Done():
				return nil
			}
		}
	}})
	apply(t, s, spec)
	steps <- denied
	if st := await(t, changed, "expose", func(Status) bool { return true }); st.Listening != "" || st.Err != "not allowed" || !errors.Is(st.Cause, denied) {
		t.Errorf("got %+v", st)
	}
	steps <- nil
	if st := await(t, changed, "expose", listening); st.Listening != "phone:8080" || st.Err != "" {
		t.Errorf("got %+v", st)
	}
	apply(t, s)
	if n := len(s.Status()); n != 0 {
		t.Errorf("%d remain", n)
	}
}

func TestSetRefusesWrongEntries(t *testing.T) {
	good := Spec{ID: "x", Address: "127.0.0.1:0", Device: "laptop", Port: 80}
	change := func(f func(*Spec)) []Spec { s := good; f(&s); return []Spec{s} }
	for name, specs := range map[string][]Spec{
		"no ID":         change(func(s *Spec) { s.ID = "" }),
		"twice":         {good, good},
		"no device":     change(func(s *Spec) { s.Device = "" }),
		"no port":       change(func(s *Spec) { s.Port = 0 }),
		"no address":    change(func(s *Spec) { s.Address = "8080" }),
		"odd protocol":  change(func(s *Spec) { s.Protocol = "sctp" }),
		"odd direction": change(func(s *Spec) { s.Direction = "sideways" }),
	} {
		s, _ := newSet(t, &loopNetwork{})
		if err := s.Apply(specs); err == nil {
			t.Errorf("%s is no error", name)
		}
		if n := len(s.Status()); n != 0 {
			t.Errorf("%s: %d forwards run", name, n)
		}
	}
}

func TestListenErrors(t *testing.T) {
	for _, err := range []error{windowsAccess, windowsInUse, windowsNotAvail} {
		var e *ListenError
		if !errors.As(explainListen("127.0.0.1:80", err), &e) || e.Hint == "" || !strings.Contains(e.Error(), "127.0.0.1:80") || !errors.Is(e, err) {
			t.Errorf("%v is told as %v", err, e)
		}
	}
	other := errors.New("something else")
	if err := explainListen("x", other); !strings.Contains(err.Error(), "something else") {
		t.Errorf("got %v", err)
	}
}
