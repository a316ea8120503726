package control

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/quick"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/app/chat"
	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
	"github.com/kithproject/kith/room"
)

// joinRoom lets a device into a room.
func joinRoom(ctx context.Context, t *testing.T, host, guest *Server, name string) {
	t.Helper()
	long, _, err := host.node.RoomCode(name)
	if err != nil {
		t.Fatal(err)
	}
	c, err := code.ParseRoom(long.Words())
	if err != nil {
		t.Fatal(err)
	}
	j, err := guest.node.JoinRoom(ctx, c, kith.JoinRoomConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if _, err := j.Wait(ctx); err != nil {
		t.Fatal(err)
	}
}

// ask is a request of a client, as it runs.
func ask(t *testing.T, s *Server, req Request) *Call {
	t.Helper()
	call, err := Local(s).Call(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(call.Close)
	return call
}

// do is a request to its end.
func do(t *testing.T, s *Server, req Request) (Reply, error) {
	t.Helper()
	call := ask(t, s, req)
	for {
		r, err := call.Next()
		if err != nil || r.Done {
			return r, err
		}
	}
}

// fileSoon waits until the conversation has a line with a file that is as far as wanted.
func fileSoon(ctx context.Context, t *testing.T, s *Server, conv, what string, fits func(FileState) bool) FileState {
	t.Helper()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	last := "no line"
	for {
		r, err := do(t, s, Request{Op: OpHistory, Device: conv, Count: 50})
		if err == nil && len(r.Files) > 0 {
			f := r.Files[len(r.Files)-1]
			if fits(f) {
				return f
			}
			last = fmt.Sprintf("%+v", f)
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s never: %s; %s, %v", s.node.Name(), what, last, err)
		case <-look.C:
		}
	}
}

func is(step FileStep) func(FileState) bool {
	return func(f FileState) bool { return f.State == step }
}

// TestFileInRoom has a file offered to a room: each member has its line, one takes it, one
// declines it and one was told of another's, which it cannot take for it.
func TestFileInRoom(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	medium := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	host, anna, bob := openServer(t, medium, "host"), openServer(t, medium, "anna"), openServer(t, medium, "bob")
	if _, err := host.node.CreateRoom(kith.CreateRoomConfig{Name: "friends", Mode: room.Open}); err != nil {
		t.Fatal(err)
	}
	joinRoom(ctx, t, host, anna, "friends")
	joinRoom(ctx, t, host, bob, "friends")
	path := filepath.Join(t.TempDir(), "photo.jpg")
	content := bytes.Repeat([]byte("picture "), 40_000)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	// The host hears of all that happens in the conversation, as a screen does.
	screen := ask(t, host, Request{Op: OpChat, Device: "friends", Events: true, Peek: true})
	fileSteps := make(chan []FileStep, 1)
	go func() {
		var steps []FileStep
		defer func() { fileSteps <- steps }()
		for {
			r, err := screen.Next()
			if err != nil {
				return
			}
			for _, f := range r.Files {
				if len(steps) == 0 || steps[len(steps)-1] != f.State {
					steps = append(steps, f.State)
				}
				if f.State == FileDone {
					return
				}
			}
		}
	}()
	// All members are there before it is offered.
	for _, s := range []*Server{host, anna, bob} {
		awaitMembers(ctx, t, s, "friends", 3)
	}
	send := ask(t, host, Request{Op: OpSend, Device: "friends", Paths: []string{path}, Wait: time.Minute})
	type heard struct {
		Reply
		err error
	}
	sending := make(chan heard, 100)
	go func() { // ends with the request
		for {
			r, err := send.Next()
			sending <- heard{r, err}
			if err != nil || r.Done {
				return
			}
		}
	}()

	from := host.node.ID().String()
	at := fileSoon(ctx, t, anna, "friends", "an offer that waits", func(f FileState) bool { return f.State == FileOffered && f.Number > 0 })
	if at.Name != "photo.jpg" || at.Total != int64(len(content)) {
		t.Errorf("the offer says %+v", at)
	}
	own := fileSoon(ctx, t, host, "friends", "an offer to two", is(FileOffered))
	if len(own.To) != 2 {
		t.Errorf("offered to %+v", own.To)
	}
	if _, err := do(t, anna, Request{Op: OpAccept, Device: bob.node.ID().String(), Offer: at.Offer}); err == nil {
		t.Error("the offer of one was taken as that of another")
	}
	// Bob writes a line about the host's offer, as if it were his own.
	c, err := bob.conv("friends")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bob.chat.SendFile(ctx, c.ID, chat.FileRef{Name: "kitten.jpg", Size: 3, Offer: at.Offer}); err != nil {
		t.Fatal(err)
	}
	fileSoon(ctx, t, anna, "friends", "a line of bob about nothing that he offers", func(f FileState) bool {
		return f.From == bob.node.ID() && f.State == FileUnknown
	})

	dir := t.TempDir()
	if _, err := do(t, anna, Request{Op: OpAccept, Device: from, Offer: at.Offer, Dir: dir}); err != nil {
		t.Fatal(err)
	}
	waits := func(s *Server) FileState {
		return s.book.state(fileKey{from: host.node.ID(), offer: at.Offer})
	}
	until(ctx, t, "bob has the offer", func() bool { return waits(bob).State == FileOffered })
	if _, err := do(t, bob, Request{Op: OpDecline, Device: from, Offer: at.Offer}); err != nil {
		t.Fatal(err)
	}
	ends := make(map[string]*Sent)
	for {
		r := <-sending
		if r.err != nil {
			t.Fatal(r.err)
		}
		if r.Sent != nil {
			ends[r.Sent.Device] = r.Sent
		}
		if r.Done {
			break
		}
	}
	switch a, b := ends["anna"], ends["bob"]; {
	case a == nil || a.Error != nil || a.Bytes != int64(len(content)):
		t.Errorf("of anna it was said: %+v", a)
	case b == nil || b.Error == nil || b.Error.Kind != KindRefused:
		t.Errorf("of bob it was said: %+v", b)
	}
	got, err := os.ReadFile(filepath.Join(dir, "photo.jpg"))
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("anna has %d bytes, %v", len(got), err)
	}
	until(ctx, t, "anna knows that it is done", func() bool { f := waits(anna); return f.State == FileDone && strings.Contains(f.Note, dir) })
	until(ctx, t, "bob knows that he declined", func() bool { return waits(bob).State == FileDeclined })
	r, err := do(t, host, Request{Op: OpHistory, Device: "friends", Count: 50})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(r.Files, func(f FileState) bool { return f.Conv == c.ID })
	if i < 0 || r.Files[i].State != FileDone || r.Files[i].Note != "1 of 2 has it, 1 declined" {
		t.Errorf("the host's line says %+v", r.Files)
	}
	select {
	case steps := <-fileSteps:
		if !slices.Contains(steps, FileOffered) || steps[len(steps)-1] != FileDone {
			t.Errorf("the screen was told %v", steps)
		}
	case <-ctx.Done():
		t.Error("the screen was never told that it is done")
	}
	// Offered again in the same place, it is said again, as bob does not have it.
	if n := fileLines(t, host, c.ID); n != 1 {
		t.Errorf("%d lines of the host", n)
	}
}

func fileLines(t *testing.T, s *Server, c chat.ConvID) int {
	t.Helper()
	lines, err := s.chat.History(c, nil, 100)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, m := range lines {
		if m.Mine && m.File != nil {
			n++
		}
	}
	return n
}

func until(ctx context.Context, t *testing.T, what string, holds func() bool) {
	t.Helper()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			t.Fatal("never: " + what)
		case <-look.C:
		}
	}
}

func awaitMembers(ctx context.Context, t *testing.T, s *Server, name string, n int) {
	t.Helper()
	until(ctx, t, fmt.Sprintf("%s sees %d members", s.node.Name(), n), func() bool {
		c, err := s.conv(name)
		if err != nil || len(c.Members) != n {
			return false
		}
		return !slices.ContainsFunc(c.Members, func(m chat.Member) bool { return !m.Online })
	})
}

// TestOfferFile has a file offered to a paired device by the daemon: who asked for it does
// not stay. It is not taken, the sender ends, and the line says so; an interrupted send that
// is repeated writes no second line.
func TestOfferFile(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	medium := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	a, b := openServer(t, medium, "desk"), openServer(t, medium, "laptop")
	pair(ctx, t, a.node, b.node)
	path := filepath.Join(t.TempDir(), "report.txt")
	if err := os.WriteFile(path, []byte("all is well"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := do(t, a, Request{Op: OpOfferFile, Device: "laptop", Paths: []string{path + "x"}}); err == nil {
		t.Error("a file was offered that is not there")
	}
	if _, err := do(t, a, Request{Op: OpOfferFile, Device: "laptop", Paths: []string{path}}); err != nil {
		t.Fatal(err)
	}
	f := fileSoon(ctx, t, b, "desk", "an offer", is(FileOffered))
	for _, tr := range a.files.Transfers() {
		a.files.Decline(tr.Progress().Number)
	}
	fileSoon(ctx, t, b, "desk", "its end", is(FileExpired))
	fileSoon(ctx, t, a, "laptop", "its end", func(f FileState) bool { return f.State == FileFailed && f.Note != "" })
	if _, err := do(t, b, Request{Op: OpAccept, Device: "desk", Offer: f.Offer}); err == nil {
		t.Error("an offer was taken that has ended")
	}
	if _, err := do(t, a, Request{Op: OpOfferFile, Device: "laptop", Paths: []string{path}}); err != nil {
		t.Fatal(err)
	}
	fileSoon(ctx, t, b, "desk", "the same offer", is(FileOffered))
	if n := fileLines(t, a, chat.PairConv(a.node.ID(), b.node.ID())); n != 1 {
		t.Errorf("%d lines of one file", n)
	}
	if _, err := do(t, b, Request{Op: OpAccept, Device: "desk", Offer: f.Offer}); err != nil {
		t.Fatal(err)
	}
	fileSoon(ctx, t, b, "desk", "the file", is(FileDone))
	fileSoon(ctx, t, a, "laptop", "that it has gone", is(FileDone))
	if raw, err := os.ReadFile(filepath.Join(b.inboxDir, "report.txt")); err != nil || string(raw) != "all is well" {
		t.Errorf("%q, %v", raw, err)
	}
}

// someFiles are states of a kind each.
func someFiles() []FileState {
	me, you := identity.DeviceID{1}, identity.DeviceID{2}
	return []FileState{
		{From: you, Offer: "a1", State: FileOffered, Number: 4, Name: "secret name"},
		{From: you, Offer: "a2", State: FileDone, Note: "in a secret place", Bytes: 7, Total: 7},
		{From: you, Offer: "a3", State: FileRunning, Bytes: 3, Total: 7},
		{Conv: chat.ConvID{3}, From: me, Offer: "a4", State: FileOffered, Name: "secret name", To: []FileTaker{
			{ID: you, State: FileDone}, {ID: identity.DeviceID{4}, State: FileOffered, Note: "secret name"},
		}},
	}
}

func TestFileBookKept(t *testing.T) {
	dir := t.TempDir()
	b := newFileBook()
	for _, f := range someFiles() {
		b.change(f.key(), func(g *FileState) { *g = f })
	}
	if err := b.save(dir); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, statesFile))
	if err != nil || bytes.Contains(raw, []byte("secret")) {
		t.Errorf("kept: %s, %v", raw, err)
	}
	again := newFileBook()
	if err := again.load(dir); err != nil {
		t.Fatal(err)
	}
	for offer, want := range map[string]FileStep{"a1": FileExpired, "a2": FileDone, "a3": FileWaiting, "a4": FileDone} {
		key := fileKey{from: identity.DeviceID{2}, offer: offer}
		if offer == "a4" {
			key = fileKey{chat.ConvID{3}, identity.DeviceID{1}, offer}
		}
		if f := again.state(key); f.State != want {
			t.Errorf("%s is %s after a restart, want %s", offer, f.State, want)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, statesFile), raw[:len(raw)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := newFileBook().load(dir); err == nil {
		t.Error("half a file was taken for a whole one")
	}
}

// TestFileBookBound holds that one device that offers without end leaves room for others.
func TestFileBookBound(t *testing.T) {
	b := newFileBook()
	for _, f := range someFiles() {
		b.change(f.key(), func(g *FileState) { *g = f })
	}
	for i := range 3 * maxFileStates {
		b.change(fileKey{from: identity.DeviceID{9}, offer: fmt.Sprint(i)}, func(f *FileState) { f.State = FileOffered })
	}
	if len(b.all) != maxStatesOf+len(someFiles()) {
		t.Errorf("%d states", len(b.all))
	}
	for _, f := range someFiles() {
		if b.state(f.key()).State == FileUnknown {
			t.Errorf("%s is forgotten", f.Offer)
		}
	}
	for i := range 3 * maxFileStates {
		b.change(fileKey{from: identity.DeviceID{8, byte(i), byte(i >> 8)}, offer: "x"}, func(f *FileState) { f.State = FileOffered })
	}
	if len(b.all) != maxFileStates {
		t.Errorf("%d states", len(b.all))
	}
}

// TestFileSum holds what a line says of a file that went to several.
func TestFileSum(t *testing.T) {
	steps := func(all ...FileStep) FileState {
		f := FileState{}
		for _, s := range all {
			f.To = append(f.To, FileTaker{State: s, Bytes: 1, Total: 2})
		}
		f.sum()
		return f
	}
	for _, c := range []struct {
		all   []FileStep
		state FileStep
		note  string
	}{
		{[]FileStep{FileOffered, FileOffered}, FileOffered, ""},
		{[]FileStep{FileOffered, FileDone}, FileOffered, "1 of 2 has it"},
		{[]FileStep{FileRunning, FileDone, FileDone}, FileRunning, "2 of 3 have it"},
		{[]FileStep{FileDone, FileDeclined, FileFailed}, FileDone, "1 of 3 has it, 1 declined, 1 did not get it"},
		{[]FileStep{FileDeclined, FileDeclined}, FileDeclined, ""},
		{[]FileStep{FileDeclined, FileFailed}, FileFailed, "1 declined, 1 did not get it"},
		{[]FileStep{FileDone}, FileDone, ""},
	} {
		if f := steps(c.all...); f.State != c.state || f.Note != c.note {
			t.Errorf("%v: %s %q, want %s %q", c.all, f.State, f.Note, c.state, c.note)
		}
	}
}

func TestOfferName(t *testing.T) {
	fits := func(name string) bool {
		n := offerName([]string{name})
		return len(n) <= maxFileName && offerName([]string{n}) == n && strings.ToValidUTF8(n, "") == n
	}
	if err := quick.Check(fits, nil); err != nil {
		t.Error(err)
	}
	if n := offerName([]string{strings.Repeat("ü", 300)}); n != strings.Repeat("ü", maxFileName/2) {
		t.Errorf("%d bytes: %s", len(n), n)
	}
}

func FuzzFileStates(f *testing.F) {
	dir := f.TempDir()
	b := newFileBook()
	for _, s := range someFiles() {
		b.change(s.key(), func(g *FileState) { *g = s })
	}
	if err := b.save(dir); err != nil {
		f.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, statesFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`[{"from":"x"}]`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		all, err := parseFileStates(raw)
		if err != nil {
			return
		}
		for _, s := range all {
			if s.State == FileOffered || s.State == FileRunning || len(s.Offer) > maxOfferID || len(s.To) > maxFileTakers {
				t.Errorf("after a restart: %+v", s)
			}
		}
	})
}
