package registry

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"pgregory.net/rapid"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/durable/disktest"
)

func testDevice(n byte) Device {
	return Device{
		PairID: PairID{n}, State: Active, ID: identity.DeviceID{n, 1}, WireGuard: [32]byte{n, 2},
		Name: fmt.Sprintf("device %d", n), PeerName: "peer", OS: "linux", Method: "words", Verified: true,
		Chain: [32]byte{n, 3}, ChainDay: 20000, CommitJ: [32]byte{n, 4}, CommitO: [32]byte{n, 5},
		Next:    NextKeys{PairID{n, 6}, [32]byte{n, 7}, 20001},
		Created: time.UnixMilli(1_700_000_000_000).UTC(), Rights: Rights{TCP: []uint16{22, 80}, UDP: []uint16{53}, ListenTCP: []uint16{0, 8080}, ListenUDP: []uint16{5353}, Files: true, Shares: []Share{{"docs", filepath.Join(os.TempDir(), "docs")}}, Blocked: true},
	}
}

func mustOpen(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustPut(t testing.TB, s *Store, d Device) Device {
	t.Helper()
	d, err := s.Put(d)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestRecordsSurvive(t *testing.T) {
	dir := t.TempDir()
	want := mustPut(t, mustOpen(t, dir), testDevice(1))
	got, ok := mustOpen(t, dir).Get(want.PairID)
	if !ok || fmt.Sprintf("%#v", record{}) == "" {
		t.Fatal("the record is gone")
	}
	a, err := encode(want, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := encode(got, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Error("the record came back changed")
	}
	if runtime.GOOS != "windows" {
		info, err := os.Stat(filepath.Join(dir, "pairs", fileName(want.PairID)))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the record's mode is %v, %v", info.Mode(), err)
		}
	}
}

// TestMailKeys holds that keys of letters are kept, as many as there may be, and that one
// that is damaged costs nothing else.
func TestMailKeys(t *testing.T) {
	dir := t.TempDir()
	d := testDevice(1)
	for n := range maxMailKeys + 3 {
		d.MailKeys = append(d.MailKeys, MailKey{Day: int64(20000 + n), Token: [32]byte{byte(n), 1}, Seal: [32]byte{byte(n), 2}})
	}
	mustPut(t, mustOpen(t, dir), d)
	got, _ := mustOpen(t, dir).Get(d.PairID)
	if !slices.Equal(got.MailKeys, d.MailKeys[:maxMailKeys]) {
		t.Errorf("%d keys came back", len(got.MailKeys))
	}
	raw, err := encode(d, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw = bytes.Replace(raw, []byte{0x58, mailKeySize, 0, 0, 0, 0, 0, 0, 0x4e, 0x20}, []byte{0x58, mailKeySize - 1, 0, 0, 0, 0, 0, 0x4e, 0x20}, 1)
	if got, _, err := decode(raw); err != nil || len(got.MailKeys) != maxMailKeys-1 || got.ID != d.ID {
		t.Errorf("with a damaged one: %d keys, %v", len(got.MailKeys), err)
	}
	for _, text := range []string{fmt.Sprint(got.MailKeys[1]), fmt.Sprintf("%#v", got.MailKeys[1])} {
		if text != "redacted" {
			t.Errorf("a key prints %q", text)
		}
	}
}

// TestUsableName: what a device calls itself is never taken for a flag or for more than a
// name in a command.
func TestUsableName(t *testing.T) {
	for name, want := range map[string]string{
		"laptop": "laptop", " --help ": "help", "/etc": "etc", "a:b/c": "a-b-c", "- -": "device", "": "device", "a-": "a-",
		strings.Repeat("é", 40): strings.Repeat("é", 32),
	} {
		if got := UsableName(name); got != want {
			t.Errorf("%q becomes %q, want %q", name, got, want)
		}
	}
}

func TestNamesAreUnique(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	for i, want := range []string{"laptop", "laptop-2", "laptop-3"} {
		d := testDevice(byte(i + 1))
		d.Name = "laptop"
		if got := mustPut(t, s, d); got.Name != want {
			t.Errorf("the name is %q, want %q", got.Name, want)
		}
	}
	for _, bad := range []string{"", "  ", "laptop-2", "LAPTOP-2", "a:b", "a/b", "-a", " --help", "tab\tbed", "\x1b[31m", strings.Repeat("x", 65), string([]byte{0xff})} {
		if err := s.Rename(PairID{1}, bad); !errors.Is(err, ErrName) {
			t.Errorf("rename to %q: %v, want ErrName", bad, err)
		}
	}
	if err := s.Rename(PairID{1}, "Küchenrechner 🍳"); err != nil {
		t.Error(err)
	}
	if err := s.Rename(PairID{9}, "nobody"); !errors.Is(err, ErrNotFound) {
		t.Errorf("rename of nobody: %v", err)
	}
}

func TestFind(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	a, b := testDevice(1), testDevice(2)
	b.ID = a.ID
	b.ID[31] = 9 // the same first characters
	mustPut(t, s, a)
	mustPut(t, s, b)
	for _, ref := range []string{"device 1", "DEVICE 1", " device 1 ", a.ID.String()} {
		if d, err := s.Find(ref); err != nil || d.PairID != a.PairID {
			t.Errorf("find %q: %v, %v", ref, d.Name, err)
		}
	}
	var amb *AmbiguousError
	if _, err := s.Find(a.ID.String()[:6]); !errors.As(err, &amb) || len(amb.Names) != 2 {
		t.Errorf("an ambiguous reference: %v", err)
	}
	for _, ref := range []string{"", "dev", a.ID.String()[:3], "nobody"} {
		if _, err := s.Find(ref); !errors.Is(err, ErrNotFound) {
			t.Errorf("find %q: %v, want ErrNotFound", ref, err)
		}
	}
}

// TestFindEnded: a name of a pair that is over says so, unless another device has it by now.
func TestFindEnded(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	old := mustPut(t, s, testDevice(1))
	if _, err := s.Update(old.PairID, func(d *Device) { d.State = Tomb }); err != nil {
		t.Fatal(err)
	}
	var ended *EndedError
	if _, err := s.Find("Device 1"); !errors.As(err, &ended) || !errors.Is(err, ErrNotFound) || ended.Since.IsZero() || !strings.Contains(err.Error(), "the pair with device 1 has ended") {
		t.Errorf("an ended pair: %v", err)
	}
	other := testDevice(2)
	other.Name = old.Name
	mustPut(t, s, other)
	if d, err := s.Find("device 1"); err != nil || d.PairID != other.PairID {
		t.Errorf("another device of that name: %v, %v", d.Name, err)
	}
}

func TestNewerPairEndsOlder(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	old := mustPut(t, s, testDevice(1))
	now := testDevice(2)
	now.ID = old.ID
	now.State = Prepared
	mustPut(t, s, now)
	if d, _ := s.Get(old.PairID); d.State != Active {
		t.Error("a pairing that is not finished ended the old pair")
	}
	if _, err := s.Update(now.PairID, func(d *Device) { d.State = Active }); err != nil {
		t.Fatal(err)
	}
	if d, _ := s.Get(old.PairID); d.State != Tomb {
		t.Error("the old pair is still there")
	}
	if d, ok := s.ByID(old.ID); !ok || d.PairID != now.PairID {
		t.Error("ByID does not give the new pair")
	}
	if len(s.List()) != 1 || len(s.Tombs()) != 1 {
		t.Errorf("%d pairs and %d ended ones", len(s.List()), len(s.Tombs()))
	}
	if err := s.Sweep(time.Now().Add(91 * 24 * time.Hour)); err != nil || len(s.Tombs()) != 0 {
		t.Errorf("an old ended pair stays: %v", err)
	}
}

func TestDamagedRecordIsKeptAside(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	good, bad := mustPut(t, s, testDevice(1)), mustPut(t, s, testDevice(2))
	path := filepath.Join(dir, "pairs", fileName(bad.PairID))
	for i := range 2 { // twice: the second is kept beside the first
		if err := os.WriteFile(path, []byte("garbage"), 0o600); err != nil {
			t.Fatal(err)
		}
		s = mustOpen(t, dir)
		if p := s.Problems(); len(p) != 1 || !strings.Contains(p[0].String(), "corrupt-"+fmt.Sprint(i+1)) {
			t.Errorf("problems: %v", p)
		}
		if _, ok := s.Get(good.PairID); !ok {
			t.Error("the other record was lost")
		}
		if kept, err := os.ReadFile(fmt.Sprintf("%s.corrupt-%d", path, i+1)); err != nil || string(kept) != "garbage" {
			t.Errorf("the damaged file was not kept: %q, %v", kept, err)
		}
	}
	if p := mustOpen(t, dir).Problems(); len(p) != 0 {
		t.Errorf("a file that was kept aside is a problem again: %v", p)
	}
}

func TestUnknownFieldsAreKept(t *testing.T) {
	dir := t.TempDir()
	d := mustPut(t, mustOpen(t, dir), testDevice(1))
	path := filepath.Join(dir, "pairs", fileName(d.PairID))
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var m map[uint64]any
	if err := cbor.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	m[4711] = "of a later version"
	if raw, err = cbor.Marshal(m); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := mustOpen(t, dir).Rename(d.PairID, "renamed"); err != nil {
		t.Fatal(err)
	}
	if raw, err = os.ReadFile(path); err != nil || !bytes.Contains(raw, []byte("of a later version")) {
		t.Errorf("a later version's field was lost: %v", err)
	}
}

func TestSecretsAreRedacted(t *testing.T) {
	d := testDevice(7)
	for _, f := range []string{"%v", "%+v", "%#v", "%s"} {
		if s := fmt.Sprintf(f, d); s != "redacted" {
			t.Errorf("%s prints %q", f, s)
		}
	}
}

// TestFaultsAndCrashes makes each step of a write fail, or be the last: what loads
// afterwards is the old record or the new one, whole, and a write that reported success is
// there.
func TestFaultsAndCrashes(t *testing.T) {
	for _, crash := range []bool{false, true} {
		for n := range 8 {
			disk := disktest.New()
			s, err := open(disk, "dir")
			if err != nil {
				t.Fatal(err)
			}
			old := mustPut(t, s, testDevice(1))
			if crash {
				disk.Cut(n)
			} else {
				disk.Fail(n)
			}
			_, failed := s.Update(old.PairID, func(d *Device) { d.State = Tomb })
			if (failed != nil) != (n < 5) {
				t.Errorf("step %d (crash %v): %v", n, crash, failed)
			}
			for _, names := range []bool{false, true} {
				for _, data := range []bool{false, true} {
					again, err := open(disk.After(names, data), "dir")
					if err != nil {
						t.Fatal(err)
					}
					if p := again.Problems(); len(p) > 0 {
						t.Fatalf("step %d (crash %v, names %v, data %v): %v", n, crash, names, data, p)
					}
					got, ok := again.Get(old.PairID)
					if !ok || (got.State != Active && got.State != Tomb) {
						t.Fatalf("step %d: neither the old nor the new record", n)
					}
					if failed == nil && got.State != Tomb {
						t.Fatalf("step %d: success was reported and the record is the old one", n)
					}
				}
			}
		}
	}
}

func TestFullDisk(t *testing.T) {
	disk := disktest.New()
	disk.Fail(1)
	s, err := open(disk, "dir")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(testDevice(1)); !errors.Is(err, disktest.ErrFault) {
		t.Errorf("put on a full disk: %v", err)
	}
	if left, _ := disk.List(); len(s.List()) != 0 || len(left) != 0 {
		t.Errorf("something is left of a write that failed: %v", left)
	}
}

// TestAgainstModel runs random operations on a store and on a map.
func TestAgainstModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		disk := disktest.New()
		s, err := open(disk, "dir")
		if err != nil {
			rt.Fatal(err)
		}
		model := make(map[PairID]State)
		rt.Repeat(map[string]func(*rapid.T){
			"put": func(rt *rapid.T) {
				d := testDevice(byte(rapid.IntRange(1, 5).Draw(rt, "n")))
				d.State = State(rapid.IntRange(1, 3).Draw(rt, "state"))
				if _, err := s.Put(d); err != nil {
					rt.Fatal(err)
				}
				model[d.PairID] = d.State
			},
			"delete": func(rt *rapid.T) {
				id := PairID{byte(rapid.IntRange(1, 5).Draw(rt, "n"))}
				if err := s.Delete(id); err != nil {
					rt.Fatal(err)
				}
				delete(model, id)
			},
			"reopen": func(rt *rapid.T) {
				if s, err = open(disk, "dir"); err != nil {
					rt.Fatal(err)
				}
			},
			"": func(rt *rapid.T) {
				if n := len(s.List()) + len(s.Tombs()); n != len(model) {
					rt.Fatalf("%d records, want %d", n, len(model))
				}
				for id, state := range model {
					if d, ok := s.Get(id); !ok || d.State != state {
						rt.Fatalf("record %x: %v %v, want %v", id[:1], ok, d.State, state)
					}
				}
			},
		})
	})
}

func TestConcurrentUse(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	changes, stop := s.Watch()
	defer stop()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			d := testDevice(byte(i + 1))
			for range 10 {
				if _, err := s.Put(d); err != nil {
					t.Error(err)
				}
				_ = s.List()
				if _, err := s.Update(d.PairID, func(d *Device) { d.LastSeen = time.Now() }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	select {
	case <-changes:
	default:
		t.Error("a watcher was not told")
	}
}

func FuzzDecode(f *testing.F) {
	raw, err := encode(testDevice(1), nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, keep, err := decode(raw)
		if err != nil {
			if !errors.Is(err, ErrRecord) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		again, err := encode(d, keep)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := decode(again); err != nil {
			t.Fatalf("what was read cannot be read again: %v", err)
		}
	})
}

func BenchmarkOpenThousand(b *testing.B) {
	dir := b.TempDir()
	s := mustOpen(b, dir)
	for i := range 1000 {
		d := testDevice(1)
		d.PairID, d.ID, d.Name = PairID{byte(i), byte(i >> 8)}, identity.DeviceID{byte(i), byte(i >> 8)}, fmt.Sprint("device ", i)
		mustPut(b, s, d)
	}
	for b.Loop() {
		mustOpen(b, dir)
	}
}

// TestMembers holds that members of rooms are no paired devices, and last.
func TestMembers(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	pair, member, both := testDevice(1), testDevice(2), testDevice(3)
	member.Room, member.Name = [16]byte{7}, "anna@friends"
	both.Room, both.ID = [16]byte{7}, pair.ID
	for _, d := range []Device{member, both, pair} {
		mustPut(t, s, d)
	}
	s = mustOpen(t, dir)
	if list := s.List(); len(list) != 1 || list[0].PairID != pair.PairID || list[0].State != Active {
		t.Errorf("%d pairs", len(list))
	}
	if list := s.Members(); len(list) != 2 || !list[0].Member() || list[0].Room != member.Room {
		t.Errorf("%d members", len(list))
	}
	if d, ok := s.ByID(member.ID); ok {
		t.Errorf("a member is a pair: %q", d.Name)
	}
	if d, ok := s.MemberByID(member.ID); !ok || d.PairID != member.PairID {
		t.Errorf("member not found: %v", ok)
	}
	if d, err := s.Find("anna@friends"); err != nil || d.PairID != member.PairID {
		t.Error(err)
	}
	if d, err := s.Find(pair.ID.String()[:8]); err != nil || d.PairID != pair.PairID {
		t.Errorf("a pair comes before a member: %v", err)
	}
	raw, err := encode(pair, nil)
	if err != nil {
		t.Fatal(err)
	}
	var m map[uint64]cbor.RawMessage
	if err := cbor.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	m[31] = cbor.RawMessage{0x41, 1} // one byte
	if raw, err = cbor.Marshal(m); err != nil {
		t.Fatal(err)
	}
	if _, _, err := decode(raw); !errors.Is(err, ErrRecord) {
		t.Errorf("a short room id: %v", err)
	}
}
