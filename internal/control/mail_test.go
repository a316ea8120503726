package control

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/app/mail"
	"github.com/kithproject/kith/hub"
	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/registry"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

// station is a device that can be switched off and on again.
type station struct {
	*Server
	t      *testing.T
	medium *rendezvoustest.Network
	dir    string
	name   string
	hubs   []hubaddr.Address

	arrived chan struct{}
}

func newStation(t *testing.T, medium *rendezvoustest.Network, name string, hubs ...hubaddr.Address) *station {
	s := &station{t: t, medium: medium, dir: filepath.Join(t.TempDir(), name), name: name, hubs: hubs}
	t.Cleanup(s.off)
	s.on()
	return s
}

func (s *station) on() {
	s.t.Helper()
	n, err := kith.Open(s.t.Context(), kith.Config{
		Dir: s.dir, Name: s.name, NoLAN: true, NoDHT: true, Loopback: true, Hubs: s.hubs, Exchanges: []rendezvous.Exchange{s.medium.Exchange("memory")},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	srv, err := NewServer(n, filepath.Join(s.dir, "inbox"), slog.New(slog.DiscardHandler))
	if err != nil {
		s.t.Fatal(err)
	}
	arrived := make(chan struct{}, 100)
	srv.HandleMail(func() {
		select {
		case arrived <- struct{}{}:
		default:
		}
	}, nil)
	s.Server, s.arrived = srv, arrived
}

func (s *station) off() {
	if s.Server == nil {
		return
	}
	if err := errors.Join(s.Close(), s.node.Close()); err != nil {
		s.t.Error(err)
	}
	s.Server = nil
}

// letters waits until there are some, and returns them.
func (s *station) letters(ctx context.Context) []mail.Letter {
	s.t.Helper()
	for {
		select {
		case <-s.arrived:
		case <-ctx.Done():
			s.t.Fatalf("no letter came to %s: %+v", s.name, s.mailStatus(context.Background()).Keepers)
		}
		letters, err := s.Mail().Fetch(ctx)
		if err != nil {
			s.t.Fatal(err)
		}
		if len(letters) > 0 {
			return letters
		}
	}
}

// awaitKeeper waits until a place does as want says.
func (s *station) awaitKeeper(ctx context.Context, name string, want func(mail.PlaceStatus) bool) {
	s.t.Helper()
	for ctx.Err() == nil {
		for _, k := range s.mailStatus(ctx).Keepers {
			if k.Name == name && want(k) {
				return
			}
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	s.t.Fatalf("%s is not as wanted: %+v", name, s.mailStatus(context.Background()).Keepers)
}

func openHub(t *testing.T, change func(*hub.Config)) *hub.Hub {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "hub")
	cfg := hub.Config{Dir: dir, Listen: "127.0.0.1:0", AllowPrivate: true, Mail: true}
	change(&cfg)
	h, err := hub.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// TestMailByHub leaves letters at a hub for a device that is off, switches the sender
// off, and the receiver on.
func TestMailByHub(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var dir string
	h := openHub(t, func(c *hub.Config) { dir = c.Dir })
	medium := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	a, b := newStation(t, medium, "desk", h.Address()), newStation(t, medium, "laptop", h.Address())
	pair(ctx, t, a.node, b.node)
	to, from := b.node.ID(), a.node.ID()
	b.off()
	said := "meet me at the harbour"
	for _, text := range []string{said, "at nine"} {
		if err := a.Mail().Leave(ctx, to, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	a.awaitKeeper(ctx, "hub "+net.JoinHostPort(h.Address().Host, strconv.Itoa(int(h.Address().Port))), func(k mail.PlaceStatus) bool {
		return k.Ready && k.Sent != nil && k.Sent.Letters == 2 && k.Waiting.Letters == 0
	})
	a.off()
	// What the hub has says neither who, nor to whom, nor what.
	files, err := os.ReadDir(filepath.Join(dir, "mail"))
	if err != nil || len(files) != 2 {
		t.Fatalf("the hub keeps %d files, %v", len(files), err)
	}
	for _, f := range files {
		raw, err := os.ReadFile(filepath.Join(dir, "mail", f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range [][]byte{[]byte(said), []byte("desk"), []byte("laptop"), to[:], from[:], to[:8], from[:8]} {
			if bytes.Contains(raw, secret) || strings.Contains(f.Name(), string(secret)) {
				t.Errorf("%s holds %q", f.Name(), secret)
			}
		}
		if len(raw) != 1024 {
			t.Errorf("a short letter is a blob of %d bytes", len(raw))
		}
	}
	b.on()
	began := time.Now()
	letters := b.letters(ctx)
	t.Logf("fetched %v after the device was switched on", time.Since(began))
	if len(letters) != 2 || string(letters[0].Body) != said || letters[0].From != from {
		t.Fatalf("fetched %+v", letters)
	}
	for _, l := range letters {
		if err := l.Done(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if st, ok := h.MailStats(); !ok || st.Letters != 0 || st.Done != 2 {
		t.Errorf("the hub keeps %+v", st)
	}
}

// TestMailAtOnce holds that a letter comes at once where both devices hold a connection
// to the keeper, and the way it takes.
func TestMailAtOnce(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	h := openHub(t, func(*hub.Config) {})
	medium := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	a, b := newStation(t, medium, "desk", h.Address()), newStation(t, medium, "laptop", h.Address())
	pair(ctx, t, a.node, b.node)
	ready := func(k mail.PlaceStatus) bool { return k.Ready }
	name := a.node.MailHubs()[0]
	a.awaitKeeper(ctx, "hub "+name, ready)
	b.awaitKeeper(ctx, "hub "+name, ready)
	var took []time.Duration
	for i := range 5 {
		began := time.Now()
		if err := a.Mail().Leave(ctx, b.node.ID(), []byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
		for _, l := range b.letters(ctx) {
			if len(l.Body) != 1 || l.Body[0] != byte(i) {
				t.Fatalf("letter %d: %v", i, l.Body)
			}
			if err := l.Done(ctx); err != nil {
				t.Fatal(err)
			}
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	t.Logf("from Leave to Done: median %v, worst %v", took[2], took[4])
}

// TestMailOfAWeek leaves a letter on each of eight days for a device that is away, which
// comes back, meets the sender for a moment, so that both forget their old keys, and reads
// all letters with the sender away.
func TestMailOfAWeek(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	h := openHub(t, func(*hub.Config) {})
	medium := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	a, b := newStation(t, medium, "desk", h.Address()), newStation(t, medium, "laptop", h.Address())
	pair(ctx, t, a.node, b.node)
	to := b.node.ID()
	a.off()
	b.off()
	const day = 24 * time.Hour
	today := time.Now().Unix() / int64(day.Seconds())
	record := func(s *station, change func(*registry.Device)) registry.Device {
		store, err := registry.Open(s.dir)
		if err != nil {
			t.Fatal(err)
		}
		d, err := store.Update(store.List()[0].PairID, change)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for _, s := range []*station{a, b} { // they met a week ago
		record(s, func(d *registry.Device) { d.Chain, d.ChainDay, d.LastSeen = [32]byte{7}, today-8, time.Time{} })
	}
	a.on()
	conn, err := a.node.DialMailHub(ctx, a.node.MailHubs()[0])
	if err != nil {
		t.Fatal(err)
	}
	c, err := mail.NewClient(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for ago := 7; ago >= 0; ago-- {
		key, err := a.node.MailKeys().To(to, time.Now().Add(-time.Duration(ago)*day))
		if err != nil || key.Day != today-int64(ago) {
			t.Fatalf("%d days ago: day %d, %v", ago, key.Day, err)
		}
		blob, err := mail.Seal(rand.Reader, key.Seal, mail.BoxOf(key.Token), []byte(strconv.Itoa(ago)))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Put(ctx, mail.BoxOf(key.Token), blob); err != nil {
			t.Fatal(err)
		}
	}
	b.on()
	for seen := false; !seen; {
		if _, err := b.node.Ping(ctx, "desk"); err != nil {
			t.Fatal(err)
		}
		d, err := b.node.Device("desk")
		if err != nil {
			t.Fatal(err)
		}
		seen = !d.LastSeen.IsZero()
	}
	a.off()
	b.off()
	if d := record(b, func(*registry.Device) {}); d.ChainDay < today-1 || len(d.MailKeys) == 0 {
		t.Fatalf("the chain is at day %d of %d, with keys of %d days", d.ChainDay, today, len(d.MailKeys))
	}
	b.on()
	var got []string
	for _, l := range b.letters(ctx) {
		got = append(got, string(l.Body))
		if err := l.Done(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(got, []string{"7", "6", "5", "4", "3", "2", "1", "0"}) {
		t.Errorf("letters of these days ago: %q", got)
	}
}

// TestMailByDevice does the same as TestMailByHub by a third device, which has to allow
// it first.
func TestMailByDevice(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	medium := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	a, b, c := newStation(t, medium, "desk"), newStation(t, medium, "laptop"), newStation(t, medium, "shelf")
	pair(ctx, t, a.node, b.node)
	pair(ctx, t, a.node, c.node)
	pair(ctx, t, b.node, c.node)
	to, from := b.node.ID(), a.node.ID()
	b.off()
	a.awaitKeeper(ctx, "shelf", func(k mail.PlaceStatus) bool { return k.Off && strings.Contains(k.Error, "kith config mail on") })
	if err := a.Mail().Leave(ctx, to, []byte("x")); !errors.Is(err, mail.ErrNoKeeper) {
		t.Fatalf("no device keeps mail: %v", err)
	}
	if conn, err := a.node.Dial(ctx, "tcp", net.JoinHostPort("shelf", strconv.Itoa(mail.Port))); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("the port of a device that keeps no mail: %v, %v", conn, err)
	}
	c.off()
	c.on()
	if err := c.KeepMail(); err != nil {
		t.Fatal(err)
	}
	a.awaitKeeper(ctx, "shelf", func(k mail.PlaceStatus) bool { return k.Ready })
	if err := a.Mail().Leave(ctx, to, []byte("from desk")); err != nil {
		t.Fatal(err)
	}
	if st := c.mailStatus(ctx); st.Kept == nil || st.Kept.Letters != 1 {
		t.Errorf("the third device keeps %+v", st.Kept)
	}
	a.off()
	c.off() // it is restarted meanwhile
	c.on()
	if err := c.KeepMail(); err != nil {
		t.Fatal(err)
	}
	b.on()
	letters := b.letters(ctx)
	if len(letters) != 1 || string(letters[0].Body) != "from desk" || letters[0].From != from {
		t.Fatalf("fetched %+v", letters)
	}
	if err := letters[0].Done(ctx); err != nil {
		t.Fatal(err)
	}
	if st := c.mailStatus(ctx); st.Kept.Letters != 0 {
		t.Errorf("the third device keeps %+v", st.Kept)
	}

	// A device that is blocked is no keeper's client any more.
	b.awaitKeeper(ctx, "shelf", func(k mail.PlaceStatus) bool { return k.Ready })
	if _, err := c.node.SetRights("laptop", func(r *kith.Rights) error { r.Blocked = true; return nil }); err != nil {
		t.Fatal(err)
	}
	for c.post.keeper.Clients() > 0 {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("the connection of a device that is blocked stays")
		}
	}
}

// TestMailService holds what a paired device gets at the port of a device that keeps
// mail: nothing of others.
func TestMailService(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	medium := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	a, b := openServer(t, medium, "desk"), openServer(t, medium, "laptop")
	if err := b.KeepMail(); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(b.node.Ports(), mail.Port) {
		t.Errorf("ports %v", b.node.Ports())
	}
	if err := b.KeepMail(); err == nil {
		t.Error("twice")
	}
	pair(ctx, t, a.node, b.node)
	conn, err := a.node.Dial(ctx, "tcp", net.JoinHostPort("laptop", strconv.Itoa(mail.Port)))
	if err != nil {
		t.Fatal(err)
	}
	c, err := mail.NewClient(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := b.post.store.Put("other", mail.BoxOf([32]byte{9}), make([]byte, 1024)); err != nil {
		t.Fatal(err)
	}
	if items, err := c.Take(ctx, [][32]byte{{1}, {}, {8}}); err != nil || len(items) > 0 {
		t.Errorf("took %d letters of others, %v", len(items), err)
	}
	raw, err := a.node.Dial(ctx, "tcp", net.JoinHostPort("laptop", strconv.Itoa(mail.Port)))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if _, err := raw.Write(bytes.Repeat([]byte{0xff}, 1000)); err != nil {
		t.Fatal(err)
	}
	_ = raw.SetReadDeadline(time.Now().Add(10 * time.Second))
	if got, err := io.ReadAll(raw); errors.Is(err, os.ErrDeadlineExceeded) || len(got) > 20 {
		t.Errorf("nonsense is answered with %d bytes, %v", len(got), err)
	}
}
