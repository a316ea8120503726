package mail

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/durable"
)

// ring is the keys of a device: letters from device x to y have the token 100x+y.
type ring struct{ self byte }

func ringKey(from, to, other byte) Key {
	n := 100*int(from) + int(to)
	return Key{Device: id(other), Day: 1, Token: token(n), Seal: sealKey(n)}
}

func (r ring) To(to identity.DeviceID, _ time.Time) (Key, error) {
	if to[0] > 9 {
		return Key{}, errors.New("no such device")
	}
	return ringKey(r.self, to[0], to[0]), nil
}

func (r ring) From(time.Time) (out []Key) {
	for n := byte(1); n < 10; n++ {
		out = append(out, ringKey(n, r.self, n))
	}
	return out
}

func (r ring) Sent(time.Time) (out []Key) {
	for n := byte(1); n < 10; n++ {
		out = append(out, ringKey(r.self, n, n))
	}
	return out
}

// device is a Service of a test, and what it is told.
type device struct {
	*Service
	arrived, ready chan struct{}
}

func newDevice(t testing.TB, self byte) *device {
	t.Helper()
	d := &device{arrived: make(chan struct{}, 1000), ready: make(chan struct{}, 1000)}
	d.Service = NewService(ServiceConfig{
		Keys: ring{self}, Arrived: func() { d.arrived <- struct{}{} }, Ready: func() { d.ready <- struct{}{} },
	})
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// keeper is a place with a store of a test.
type keeper struct {
	store *Store
	place Place
	dials atomic.Int32
}

func newKeeper(t testing.TB, name string, cfg StoreConfig) *keeper {
	t.Helper()
	k := &keeper{store: openTest(t, cfg)}
	_, dial := serve(t, ServerConfig{Store: k.store})
	k.place = Place{ID: name, Name: name, Dial: func(context.Context) (net.Conn, error) {
		k.dials.Add(1)
		return dial("someone"), nil
	}}
	return k
}

func await(t testing.TB, what string, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-within(t).Done():
		t.Fatalf("waited in vain for %s", what)
	}
}

// fetch returns the letters' texts, and the letters.
func fetch(t testing.TB, d *device) (out []string, letters []Letter) {
	t.Helper()
	letters, err := d.Fetch(within(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range letters {
		out = append(out, fmt.Sprintf("%d:%s", l.From[0], l.Body))
	}
	return out, letters
}

// TestService leaves letters at two keepers, and fetches each once.
func TestService(t *testing.T) {
	ctx := within(t)
	hub, third := newKeeper(t, "hub", StoreConfig{}), newKeeper(t, "third", StoreConfig{})
	a, b := newDevice(t, 1), newDevice(t, 2)
	places := []Place{hub.place, third.place}
	if err := a.Leave(ctx, id(2), []byte("early")); !errors.Is(err, ErrNoKeeper) {
		t.Errorf("without a keeper: %v", err)
	}
	a.SetPlaces(places)
	for _, text := range []string{"one", "two"} { // the first waits for the connections
		if err := a.Leave(ctx, id(2), []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Leave(ctx, id(2), make([]byte, MaxBody+1)); !errors.Is(err, ErrTooLong) {
		t.Errorf("a letter that is too long: %v", err)
	}
	if err := a.Leave(ctx, id(99), nil); err == nil {
		t.Error("a letter to nobody was left")
	}
	b.SetPlaces(places)
	await(t, "mail", b.arrived)
	await(t, "the other keeper", b.ready)
	await(t, "the other keeper", b.ready)
	got, letters := fetch(t, b)
	slices.Sort(got)
	if !slices.Equal(got, []string{"1:one", "1:two"}) {
		t.Fatalf("fetched %q", got)
	}
	if again, _ := fetch(t, b); len(again) != 2 {
		t.Errorf("before they are done: %q", again)
	}
	for _, l := range letters {
		if err := l.Done(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if again, _ := fetch(t, b); again != nil {
		t.Errorf("after they are done: %q", again)
	}
	for _, k := range []*keeper{hub, third} {
		if st := k.store.Stats(); st.Letters != 0 {
			t.Errorf("%s keeps %+v", k.place.Name, st)
		}
		if n := k.dials.Load(); n != 2 {
			t.Errorf("%d connections to %s, want one of each device", n, k.place.Name)
		}
	}
	// What comes now is told at once.
	for len(b.arrived) > 0 {
		<-b.arrived
	}
	if err := a.Leave(ctx, id(2), []byte("three")); err != nil {
		t.Fatal(err)
	}
	await(t, "the third letter", b.arrived)
	if got, _ := fetch(t, b); !slices.Equal(got, []string{"1:three"}) {
		t.Errorf("fetched %q", got)
	}
	st := a.Status(ctx)
	if len(st) != 2 || !st[0].Ready || st[0].Sent == nil || st[0].Sent.Letters+st[1].Sent.Letters == 0 || st[0].Waiting.Letters != 0 {
		t.Errorf("status %+v", st)
	}
	if st := b.Status(ctx); st[0].Waiting.Letters+st[1].Waiting.Letters == 0 || st[0].Sent.Letters != 0 {
		t.Errorf("status of the receiver %+v", st)
	}
}

// TestManyTokens holds that with more tokens than one request has a fetch that stops in the
// first part goes on there and comes to the second: its letters are not passed over as
// they are older.
func TestManyTokens(t *testing.T) {
	ctx := within(t)
	store := openTest(t, StoreConfig{})
	_, dial := serve(t, ServerConfig{Store: store})
	c := client(t, dial("b"))
	var tokens [][32]byte
	for i := range maxTokens + 10 {
		tokens = append(tokens, token(i))
	}
	put := func(n int, text string) {
		t.Helper()
		if err := store.Put("a", BoxOf(token(n)), letter(t, n, text)); err != nil {
			t.Fatal(err)
		}
	}
	put(maxTokens+5, "older")
	big, many := strings.Repeat("x", MaxBody-10), MaxFetch/MaxBody+2
	for range many {
		put(3, big)
	}
	first, next, err := c.takeMore(ctx, cursor{}, tokens)
	if err != nil || next == (cursor{}) || len(first) >= many {
		t.Fatalf("the first fetch has %d letters, goes on at %+v, %v", len(first), next, err)
	}
	second, end, err := c.takeMore(ctx, next, tokens)
	if err != nil || end != (cursor{}) || len(first)+len(second) != many+1 {
		t.Fatalf("then %d of %d letters, goes on at %+v, %v", len(first)+len(second), many+1, end, err)
	}
	if last := second[len(second)-1]; last.Box != BoxOf(token(maxTokens+5)) {
		t.Error("the older letter did not come")
	}
	if all, end, err := c.takeMore(ctx, cursor{part: 7}, tokens); err != nil || len(all) != len(first) || end == (cursor{}) {
		t.Errorf("with fewer tokens than before: %d letters, %+v, %v", len(all), end, err)
	}
}

// TestManyLetters holds that what one fetch leaves out comes with the next, in order, also
// if none is done with: a letter that its reader cannot use yet is not in the way.
func TestManyLetters(t *testing.T) {
	const many = takeItems + 100
	big := strings.Repeat("x", MaxBody-10) // in all, more than MaxFetch
	ctx := within(t)
	k := newKeeper(t, "hub", StoreConfig{})
	key := ringKey(1, 2, 1)
	for i := range many {
		blob, err := Seal(rand.Reader, key.Seal, BoxOf(key.Token), []byte(strconv.Itoa(i)+" "+big[:i%3/2*len(big)/2]))
		if err != nil {
			t.Fatal(err)
		}
		if err := k.store.Put("a", BoxOf(key.Token), blob); err != nil {
			t.Fatal(err)
		}
	}
	b := newDevice(t, 2)
	b.SetPlaces([]Place{k.place})
	var got []Letter
	calls := 0
	for len(got) < many { // none is done with meanwhile
		await(t, "mail", b.arrived)
		calls++
		_, letters := fetch(t, b)
		got = append(got, letters...)
	}
	for i, l := range got {
		if text, _, _ := strings.Cut(string(l.Body), " "); text != strconv.Itoa(i) {
			t.Fatalf("letter %d is %s", i, text)
		}
	}
	if calls != 2 {
		t.Errorf("%d fetches of %d MiB", calls, k.store.Stats().Bytes>>20)
	}
	if _, again := fetch(t, b); len(again) == 0 || string(again[0].Body) != string(got[0].Body) {
		t.Error("after the last the first does not come again")
	}
	for _, l := range got {
		if err := l.Done(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if st := k.store.Stats(); st.Letters != 0 {
		t.Errorf("%d letters stay", st.Letters)
	}
}

// TestLeaveAtSome holds that one keeper that takes a letter is enough, that the sender is
// told what all others said, and that a device is not its own keeper.
func TestLeaveAtSome(t *testing.T) {
	ctx := within(t)
	full := newKeeper(t, "full", StoreConfig{MaxBytes: 1})
	good := newKeeper(t, "good", StoreConfig{})
	a := newDevice(t, 1)
	a.SetPlaces([]Place{full.place})
	await(t, "the keeper", a.ready)
	if err := a.Leave(ctx, id(2), []byte("x")); !errors.Is(err, ErrFull) {
		t.Errorf("all full: %v", err)
	}
	if st := a.Status(ctx); st[0].Error == "" {
		t.Errorf("status %+v", st)
	}
	a.SetPlaces([]Place{full.place, good.place})
	await(t, "the other keeper", a.ready)
	if err := a.Leave(ctx, id(2), []byte("x")); err != nil {
		t.Errorf("one is good: %v", err)
	}
	own := good.place
	own.ID, own.Device = "own", id(3)
	a.SetPlaces([]Place{own})
	await(t, "the keeper", a.ready)
	if err := a.Leave(ctx, id(3), []byte("x")); !errors.Is(err, ErrNoKeeper) {
		t.Errorf("at the receiver itself: %v", err)
	}
}

// TestKeeperOff holds that a place that keeps no mail is seen to be so, and not asked
// again and again.
func TestKeeperOff(t *testing.T) {
	ctx := within(t)
	a := newDevice(t, 1)
	dialled := make(chan struct{}, 10)
	a.SetPlaces([]Place{{ID: "off", Name: "off", Dial: func(context.Context) (net.Conn, error) {
		x, y := pipe(t)
		dialled <- struct{}{}
		return x, Refuse(y, ErrOff)
	}}})
	if err := a.Leave(ctx, id(2), []byte("x")); !errors.Is(err, ErrNoKeeper) {
		t.Errorf("leave: %v", err)
	}
	if st := a.Status(ctx); len(st) != 1 || !st[0].Off || st[0].Ready {
		t.Errorf("status %+v", st)
	}
	if n := len(dialled); n != 1 {
		t.Errorf("dialled %d times", n)
	}
	a.Changed()
	await(t, "another try", dialled)
	await(t, "another try", dialled)
}

// TestRestartOfKeeper holds that letters survive a keeper's restart, and that both sides
// come back to it.
func TestRestartOfKeeper(t *testing.T) {
	ctx := within(t)
	dir := t.TempDir()
	var mu sync.Mutex
	var dial func(string) net.Conn
	var srv *Server
	var store *Store
	start := func() {
		mu.Lock()
		defer mu.Unlock()
		store = openTest(t, StoreConfig{Dir: dir})
		srv, dial = serve(t, ServerConfig{Store: store})
	}
	start()
	place := Place{ID: "k", Name: "k", Dial: func(context.Context) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		return dial("someone"), nil
	}}
	a, b := newDevice(t, 1), newDevice(t, 2)
	a.SetPlaces([]Place{place})
	if err := a.Leave(ctx, id(2), []byte("x")); err != nil {
		t.Fatal(err)
	}
	b.SetPlaces([]Place{place})
	await(t, "mail", b.arrived)
	_, before := fetch(t, b)
	_, _ = srv.Close(), store.Close()
	start()
	await(t, "mail after the restart", b.arrived)
	got, letters := fetch(t, b)
	if !slices.Equal(got, []string{"1:x"}) {
		t.Fatalf("fetched %q", got)
	}
	if err := before[0].Done(ctx); err == nil {
		t.Error("done over a connection that is gone")
	}
	// It is known by now: it comes no more, and is removed there.
	if got, _ := fetch(t, b); got != nil {
		t.Errorf("fetched %q", got)
	}
	if err := letters[0].Done(ctx); err != nil {
		t.Error(err)
	}
	if got := store.Stats().Letters; got != 0 {
		t.Errorf("%d letters are left", got)
	}
}

// liar is a keeper in one process that hands out what it likes.
type liar struct {
	mu    sync.Mutex
	items []Item
	takes int
	dones int
	order uint64
}

// serve speaks the protocol. It says all the time that there is news, and that it has
// more.
func (l *liar) serve(conn net.Conn) {
	defer conn.Close()
	if _, err := conn.Write(hello(stOK, day).append(nil)); err != nil {
		return
	}
	for {
		f, err := readFrame(conn)
		if err != nil {
			return
		}
		var out []byte
		l.mu.Lock()
		switch f.kind {
		case fTake:
			l.takes++
			for _, it := range l.items {
				out = frame{kind: fItem, id: f.id, body: append(slices.Clip(it.Box[:]), it.Blob...)}.append(out)
			}
		case fDone:
			l.dones++
		}
		l.mu.Unlock()
		l.order++
		out = frame{kind: fOk, id: f.id, body: binary.BigEndian.AppendUint64([]byte{1}, l.order)}.append(out)
		out = frame{kind: fNews}.append(out)
		if _, err := conn.Write(out); err != nil {
			return
		}
	}
}

// TestLiar holds that a keeper that changes, mixes, invents, and repeats does no harm: a
// letter that was read does not come again, what is no letter never comes, and it gets
// no more than a few fetches.
func TestLiar(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(liar)
		key := ringKey(1, 2, 1)
		box := BoxOf(key.Token)
		blob, err := Seal(rand.Reader, key.Seal, box, []byte("true"))
		if err != nil {
			t.Fatal(err)
		}
		changed := bytes.Clone(blob)
		changed[100] ^= 1
		l.items = append(l.items, []Item{
			{Box: box, Blob: blob}, {Box: box, Blob: changed},
			{Box: BoxOf(ringKey(3, 2, 3).Token), Blob: blob}, // in another sender's box
			{Box: BoxOf(token(4711)), Blob: blob},            // in one that was not asked for
			{Box: box, Blob: make([]byte, 4096)},
		}...)
		var wg sync.WaitGroup
		d := newDevice(t, 2)
		d.SetPlaces([]Place{{ID: "liar", Name: "liar", Dial: func(context.Context) (net.Conn, error) {
			x, y := net.Pipe()
			wg.Go(func() { l.serve(&buffered{Conn: y}) })
			return x, nil
		}}})
		var got []string
		fetches := 0
		end := time.After(time.Hour)
		for more := true; more; {
			select {
			case <-d.arrived:
				fetches++
				letters, err := d.Fetch(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				for _, one := range letters {
					got = append(got, string(one.Body))
					_ = one.Done(t.Context()) // it may have been left by now
				}
			case <-end:
				more = false
			}
		}
		if !slices.Equal(got, []string{"true"}) {
			t.Errorf("got %q", got)
		}
		if fetches < 2 || fetches > 60 || l.takes > 200 {
			t.Errorf("%d fetches in an hour", fetches)
		}
		l.mu.Lock()
		t.Logf("an hour with a keeper that never stops: %d fetches, %d takes, %d dones", fetches, l.takes, l.dones)
		l.mu.Unlock()
		_ = d.Close()
		wg.Wait()
	})
}

// buffered reads frames and writes whole buffers over net.Pipe, whose writes wait for a
// reader.
type buffered struct{ net.Conn }

// TestIdle measures how often a device with a hub as keeper wakes up while nothing comes.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, err := durable.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		store, err := openStore(StoreConfig{}, d)
		if err != nil {
			t.Fatal(err)
		}
		srv := NewServer(ServerConfig{Store: store})
		var wg sync.WaitGroup
		var writes atomic.Int32
		dev := newDevice(t, 2)
		dial := func(context.Context) (net.Conn, error) {
			x, y := net.Pipe()
			wg.Go(func() { _ = srv.Serve(y, "a") })
			return &counted{Conn: x, writes: &writes}, nil
		}
		dev.SetPlaces([]Place{{ID: "hub", Name: "hub", Dial: dial, Ping: 4 * time.Minute}, {ID: "third", Name: "third", Device: id(7), Dial: dial}})
		await(t, "the keepers", dev.ready)
		await(t, "the keepers", dev.ready)
		writes.Store(0)
		time.Sleep(24 * time.Hour)
		n := writes.Load()
		if n < 24*60/5 || n > 24*60/3+10 {
			t.Errorf("%d requests in a day, want one in four minutes", n)
		}
		if len(dev.arrived) > 0 || srv.Clients() != 2 {
			t.Errorf("%d calls of arrived, %d connections", len(dev.arrived), srv.Clients())
		}
		t.Logf("requests in an idle day: %d, hub and third device together", n)
		_ = dev.Close()
		_ = srv.Close()
		wg.Wait()
	})
}

// counted counts writes.
type counted struct {
	net.Conn
	writes *atomic.Int32
}

func (c *counted) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}
