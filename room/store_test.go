package room

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/durable/disktest"
)

// fullRecord is one with every field set.
func fullRecord(t testing.TB) Record {
	t.Helper()
	r := mustAdmit(t, found(t, "host", Password), "ann")
	n := newNetwork(t)
	h := n.addHost(HostConfig{Identity: device(t, "host"), Roster: found(t, "host", Approve)})
	n.addJoiner("bob", JoinerConfig{Code: longCode(t, h.host.Roster().Room)})
	n.run(slowRetry, func() bool { return len(h.asked) > 0 })
	return Record{
		Room: r.Room, Roster: r, Base: found(t, "host", Open).with(t, r), Host: true, Password: "p\u00e9",
		Short: shortCode(t), Guard: Guard{Spent: 3, Since: start, Short: 2, Void: true},
		List: []identity.DeviceID{device(t, "ann").ID()}, Waiting: h.asked, Left: start,
		Taken: []Mark{{device(t, "bob").ID(), 3, 9}},
		Grant: Grant{
			Room: r.Room, Salt: r.Salt, Founder: r.Founder(), Host: r.Founder(), HostInfo: infoOf("host"),
			RoomName: "the room", Name: "me", Number: 7, PairID: [16]byte{1},
		},
	}
}

// with makes a roster one of another's room, for tests.
func (r *Roster) with(t testing.TB, of *Roster) *Roster {
	t.Helper()
	r.Room, r.Salt = of.Room, of.Salt
	return mustSign(t, r, "host")
}

func TestRecordSurvives(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := fullRecord(t)
	if err := s.Put(want); err != nil {
		t.Fatal(err)
	}
	s, err = OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	got, ok := s.Get(want.Room)
	if !ok {
		t.Fatalf("the room is gone: %v", s.Problems())
	}
	a, err := encodeRecord(want)
	if err != nil {
		t.Fatal(err)
	}
	b, err := encodeRecord(got)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(a, b) || got.Password != want.Password || got.Guard != want.Guard || !got.Short.Equal(want.Short) ||
		len(got.Waiting) != 1 || got.Waiting[0].ID != want.Waiting[0].ID || !got.Left.Equal(want.Left) ||
		got.Grant.Number != 7 || got.Base.Version != 1 || !reflect.DeepEqual(got.Roster, want.Roster) {
		t.Error("the record came back changed")
	}
	if runtime.GOOS != "windows" {
		info, err := os.Stat(filepath.Join(dir, "rooms", fileName(want.Room)))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the record's mode is %v, %v", info.Mode(), err)
		}
	}
	if err := s.Update(want.Room, func(r *Record) error { r.Password = "another"; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := s.Update(want.Room, func(*Record) error { return errDisk }); !errors.Is(err, errDisk) {
		t.Errorf("a change that fails: %v", err)
	}
	if err := s.Update(want.Room, func(r *Record) error { r.Password = strings.Repeat("x", 300); return nil }); !errors.Is(err, ErrPassword) {
		t.Errorf("a password that cannot be read again: %v", err)
	}
	if err := s.Update(ID{9}, func(*Record) error { return nil }); !errors.Is(err, ErrNotFound) {
		t.Errorf("a room that is not there: %v", err)
	}
	if len(s.List()) != 1 || s.List()[0].Password != "another" {
		t.Error("the list is not right")
	}
	if err := s.Delete(want.Room); err != nil || len(s.List()) != 0 {
		t.Errorf("delete: %v", err)
	}
}

func TestDamageIsAside(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	good, bad := found(t, "host", Open), found(t, "host", Open)
	for _, r := range []*Roster{good, bad} {
		if err := s.Put(Record{Room: r.Room, Roster: r, Host: true}); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "rooms", fileName(bad.Room))
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)/2] ^= 1
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err = OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.List()) != 1 || len(s.Problems()) != 1 || s.Problems()[0].KeptAs == "" || !strings.Contains(s.Problems()[0].String(), "not affected") {
		t.Errorf("%d rooms, problems %v", len(s.List()), s.Problems())
	}
}

// TestPowerCut cuts the power after each step of a write: what is there afterwards is the
// old record or the new one, whole.
func TestPowerCut(t *testing.T) {
	r := found(t, "host", Open)
	newer := mustAdmit(t, r, "ann")
	outcomes := make(map[int]int)
	for cut := range 6 {
		disk := disktest.New()
		s, err := openStore(disk, "rooms")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Put(Record{Room: r.Room, Roster: r, Host: true}); err != nil {
			t.Fatal(err)
		}
		disk.Cut(cut)
		err = s.Put(Record{Room: r.Room, Roster: newer, Host: true})
		for _, names := range []bool{false, true} {
			for _, data := range []bool{false, true} {
				after := disk.After(names, data)
				again, err2 := openStore(after, "rooms")
				if err2 != nil {
					t.Fatal(err2)
				}
				rec, ok := again.Get(r.Room)
				if !ok || len(again.Problems()) > 0 {
					t.Fatalf("cut after %d: no record, %v", cut, again.Problems())
				}
				n := len(rec.Roster.Members)
				outcomes[n]++
				if err == nil && n != 2 {
					t.Errorf("cut after %d: the write said that it was durable and is gone", cut)
				}
				if files, _ := after.List(); len(files) != 1 {
					t.Errorf("cut after %d: %v is left", cut, files)
				}
			}
		}
	}
	if outcomes[1] == 0 || outcomes[2] == 0 {
		t.Errorf("the cuts did not show both outcomes: %v", outcomes)
	}
}

func TestAsideDoesNotLose(t *testing.T) {
	disk := disktest.New()
	for i := range 3 {
		if err := disk.WriteSync(fileName(ID{byte(i)}), fmt.Appendf(nil, "garbage %d", i)); err != nil {
			t.Fatal(err)
		}
	}
	s, err := openStore(disk, "rooms")
	if err != nil {
		t.Fatal(err)
	}
	if files, _ := disk.List(); len(s.Problems()) != 3 || len(files) != 3 {
		t.Errorf("%d problems, %d files", len(s.Problems()), len(files))
	}
}

// TestTaken: a roster of another host is taken once, and no older one of it after that.
func TestTaken(t *testing.T) {
	r := mustAdmit(t, found(t, "host", Open), "ann")
	newer, kicked := r.Rename("newer"), r.Rename("kicked")
	kicked.Epoch++
	var rec Record
	rec.Took(newer)
	for name, c := range map[string]struct {
		r    *Roster
		want bool
	}{"older": {r, true}, "the same": {newer, true}, "a newer epoch": {kicked, false}, "newer": {newer.Rename("x"), false}} {
		c.r.Signer = newer.Signer
		if rec.HasTaken(c.r) != c.want {
			t.Errorf("%s: %v", name, !c.want)
		}
	}
	rec.Took(r)
	if !rec.HasTaken(newer) || len(rec.Taken) != 1 {
		t.Errorf("an older one is the mark: %v", rec.Taken)
	}
	kicked.Signer = device(t, "ann").ID()
	if rec.HasTaken(kicked) {
		t.Error("another host's was not taken")
	}
}
