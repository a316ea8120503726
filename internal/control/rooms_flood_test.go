package control

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/app/chat"
	"github.com/kithproject/kith/app/files"
	"github.com/kithproject/kith/app/mesh"
	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
	"github.com/kithproject/kith/room"
)

// A mallory is a member of a room who keeps to no protocol. Its node is honest up to the
// tunnel: what comes through that is its own.
type mallory struct {
	t    *testing.T
	node *kith.Node
	conv chat.ConvID
}

func newMallory(ctx context.Context, t *testing.T, medium *rendezvoustest.Network, c code.Room, name string) *mallory {
	t.Helper()
	n, err := kith.Open(t.Context(), kith.Config{
		Dir: filepath.Join(t.TempDir(), "mallory"), Name: name, NoLAN: true, NoDHT: true, Loopback: true,
		Exchanges: []rendezvous.Exchange{medium.Exchange("memory")},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	j, err := n.JoinRoom(ctx, c, kith.JoinRoomConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	r, err := j.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &mallory{t, n, chat.ConvID(r.ID)}
}

// again dials a port of a member over and over, and says something there, until ctx ends.
// It counts how often that was begun.
func (m *mallory) again(ctx context.Context, to *Server, port int, say func(net.Conn, int)) (n int) {
	for ; ctx.Err() == nil; n++ {
		conn, err := m.node.Dial(ctx, "tcp", net.JoinHostPort(to.node.ID().String(), strconv.Itoa(port)))
		if err != nil {
			continue
		}
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		say(conn, n)
		conn.Close()
	}
	return n
}

// hello begins to chat (app/chat has the format).
func hello() []byte { return []byte{0, 0, 0, 2, 1, 1} }

// line is a line as it is carried, with any text, time, and author's name.
func (m *mallory) line(log byte, seq uint64, at time.Time, author identity.DeviceID, text string) []byte {
	b := append([]byte{1}, m.conv[:]...)
	b = append(append(b, author[:]...), log, 0, 0, 0, 0, 0, 0, 0)
	for _, n := range []uint64{seq, seq, uint64(at.UnixMilli())} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	b = append(binary.BigEndian.AppendUint16(append(b, 1), uint16(len(text))), text...)
	b = append(b, m.node.Sign(append([]byte(wire.Label("chat entry")), b...))...)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b)+1)), append([]byte{3}, b...)...)
}

// dirty are texts that would do something at a terminal.
var dirty = []string{ //nolint:gochecknoglobals // a table
	"\x1b[2J\x1b[H\x1b]0;owned\x07gone", "\u202egnp.exe\u202c", "x\n*** host closed the room\r\n", "\u2028host: hello", "\u009b31mred\u009c",
	"a\u2066b\u2069c\u200fd", "\x00\x08\x7f", "\ufeff\U000e0001tag",
}

// isPlain reports whether a terminal just shows a text.
func isPlain(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool {
		return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) && r != '\u200d' || r == '\u2028' || r == '\u2029' || r == unicode.ReplacementChar
	})
}

// TestRoomWithMallory has members of a room that flood it with lines and offers, call
// themselves as others, lie about the time, and send lines of 1 MiB and rosters of 10^6
// members. Meanwhile two honest members talk.
func TestRoomWithMallory(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	medium := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	host, anna, ben := openServer(t, medium, "host"), openServer(t, medium, "anna"), openServer(t, medium, "ben")
	made, err := host.node.CreateRoom(kith.CreateRoomConfig{Name: "friends", Mode: room.Open})
	if err != nil {
		t.Fatal(err)
	}
	c := roomCode(t, host, "friends")
	for _, s := range []*Server{anna, ben} {
		enter(ctx, t, s, c, "")
	}
	honest := []*Server{host, anna, ben}
	for _, s := range honest {
		soon(ctx, t, "together", func() bool { return sees(s, "friends", 3) })
	}
	conv := chat.ConvID(made.ID)
	var events []<-chan kith.Event
	for _, s := range honest {
		ev, stop := s.node.Events()
		defer stop()
		events = append(events, ev)
	}
	shown := make(chan string, 100_000) // all that happened, as a program shows it
	for _, ev := range events {
		go func() {
			for e := range ev {
				if raw, err := json.Marshal(e); err == nil {
					select {
					case shown <- string(raw):
					default:
					}
				}
			}
		}()
	}

	names := []string{"host", "ANNA", "*** host closed the room", "anna\u202e"}
	var evil []*mallory
	for _, name := range names {
		evil = append(evil, newMallory(ctx, t, medium, c, name))
	}
	for _, s := range honest {
		soon(ctx, t, "all are there", func() bool { return sees(s, "friends", 3+len(evil)) })
	}
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)

	// Each of them does one thing to all three, as fast as it can.
	flood, end := context.WithTimeout(ctx, 6*time.Second)
	defer end()
	var wg sync.WaitGroup
	counts := make([][3]int, 5)
	each := func(what int, f func(s *Server) int) {
		for i, s := range honest {
			wg.Go(func() { counts[what][i] = f(s) })
		}
	}
	big := append(binary.BigEndian.AppendUint32(nil, 1<<20), bytes.Repeat([]byte("x"), 1<<20)...)
	promise := []byte{0xa1, 0x0a, 0x9a, 0x00, 0x0f, 0x42, 0x40} // CBOR: 10^6 members
	each(0, func(s *Server) int {                               // lines, dirty ones and with any time
		lines := 0
		evil[0].again(flood, s, chat.Port, func(conn net.Conn, n int) {
			_, _ = conn.Write(hello())
			at := []time.Time{time.Now(), time.UnixMilli(0), time.Now().Add(400 * 24 * time.Hour), time.UnixMilli(253402300799999)}
			for i := uint64(1); flood.Err() == nil; i++ {
				text := dirty[int(i)%len(dirty)] + strings.Repeat("y", int(i*97)%4000)
				if _, err := conn.Write(evil[0].line(byte(n), i, at[int(i)%len(at)], evil[0].node.ID(), text)); err != nil {
					return
				}
				lines++
			}
		})
		return lines
	})
	each(1, func(s *Server) int { // in the name of others
		return evil[1].again(flood, s, chat.Port, func(conn net.Conn, n int) {
			_, _ = conn.Write(append(hello(), evil[1].line(1, uint64(n+1), time.Now(), honest[n%3].node.ID(), "forged")...))
			_, _ = conn.Read(make([]byte, 64))
		})
	})
	each(2, func(s *Server) int { // 1 MiB at once
		return evil[2].again(flood, s, chat.Port, func(conn net.Conn, _ int) { _, _ = conn.Write(append(hello(), big...)) })
	})
	each(3, func(s *Server) int { // 10^6 members, in a message that is too long, and in one that is not
		return evil[2].again(flood, s, mesh.Port, func(conn net.Conn, n int) {
			_, _ = conn.Write([]byte{1})
			if n%2 == 0 {
				_, _ = conn.Write(append([]byte{3, 0xff, 0xff, 0xff}, big...))
				return
			}
			body := slices.Concat(conv[:], make([]byte, 64), promise, make([]byte, 100_000))
			for range 50 {
				_, _ = conn.Write(append([]byte{3, byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}, body...))
			}
		})
	})
	offers, err := files.New(files.Config{
		Dir: t.TempDir(),
		Dial: func(ctx context.Context, peer string, _ files.Lane) (net.Conn, error) {
			return evil[3].node.Dial(ctx, "tcp", net.JoinHostPort(peer, strconv.Itoa(files.Port)))
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer offers.Close()
	var paths []string
	for i := range 20 {
		path := filepath.Join(t.TempDir(), fmt.Sprint(i, "\u202egnp\x1b[31m.exe"))
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	each(4, func(s *Server) (n int) { // offers of files, many at once and given up again
		var all sync.WaitGroup
		defer all.Wait()
		for ; flood.Err() == nil; n++ {
			short, stop := context.WithTimeout(flood, 200*time.Millisecond)
			some := paths[:1+n%len(paths)]
			for range 10 {
				all.Go(func() { _, _ = offers.Send(short, s.node.ID().String(), some, files.SendOptions{}) })
			}
			<-short.Done()
			stop()
		}
		return 10 * n
	})

	// Meanwhile anna and ben talk, and the host answers its user.
	heard := map[*Server]chan string{anna: make(chan string, 1000), ben: make(chan string, 1000)}
	for s, lines := range heard {
		all, stop := s.chat.Events()
		defer stop()
		go func() {
			for ev := range all {
				if ev.Kind == chat.EventMessage && strings.HasPrefix(ev.Message.Text, "honest") && !ev.Message.Mine {
					lines <- ev.Message.Author.String() + ev.Message.Text
				}
			}
		}()
	}
	var slowest, answers time.Duration
	said := 0
	for flood.Err() == nil {
		begin := time.Now()
		text := fmt.Sprint("honest line ", said)
		from, to := anna, ben
		if said%2 == 1 {
			from, to = ben, anna
		}
		if _, err := from.chat.Send(ctx, conv, text); err != nil {
			t.Fatal(err)
		}
		for line := ""; line != from.node.ID().String()+text; {
			select {
			case line = <-heard[to]:
			case <-ctx.Done():
				t.Fatal("an honest line does not arrive")
			}
		}
		slowest = max(slowest, time.Since(begin))
		said++
		begin = time.Now()
		if _, err := host.node.Room("friends"); err != nil {
			t.Fatal(err)
		}
		if _, err := host.chat.Convs(); err != nil {
			t.Fatal(err)
		}
		answers = max(answers, time.Since(begin))
	}
	grown := func() int64 {
		runtime.GC()
		runtime.ReadMemStats(&after)
		return (int64(after.HeapAlloc) - int64(before.HeapAlloc)) >> 20
	}
	most := grown()
	wg.Wait()
	t.Logf("%d honest lines, the slowest took %v, the slowest answer %v; %d MiB more in use in all 7 nodes; tries %v", said, slowest.Round(time.Millisecond), answers.Round(time.Millisecond), most, counts)
	if most > 768 { // most of it are buffers of WireGuard's, one for each packet that waits
		t.Errorf("%d MiB more are in use", most)
	}
	soon(ctx, t, "memory is given back", func() bool { return grown() < 256 })
	if slowest > 10*time.Second || answers > 5*time.Second || said < 3 {
		t.Errorf("honest members wait: %d lines, %v, %v", said, slowest, answers)
	}
	for what, n := range counts {
		if n[0] == 0 || n[1] == 0 || n[2] == 0 {
			t.Errorf("flood %d did nothing: %v", what, n)
		}
	}

	// Who is who, and what is shown.
	for _, s := range honest {
		r, err := s.node.Room("friends")
		if err != nil {
			t.Fatal(err)
		}
		called := make(map[string]int)
		for _, m := range r.Members {
			called[strings.ToLower(m.Name)]++
			if !isPlain(m.Name) || called[strings.ToLower(m.Name)] > 1 {
				t.Errorf("a member is called %q", m.Name)
			}
		}
		for ref, want := range map[string]*Server{"host": host, "anna": anna, "ben": ben} {
			i := slices.IndexFunc(r.Members, func(m kith.RoomMember) bool { return m.Name == ref })
			if i < 0 || r.Members[i].ID != want.node.ID() {
				t.Errorf("%s is another", ref)
			}
		}
		all, err := s.chat.History(conv, nil, 100_000)
		if err != nil {
			t.Fatal(err)
		}
		theirs := 0
		for _, m := range all {
			switch {
			case !isPlain(m.Text):
				t.Fatalf("shown: %q", m.Text)
			case m.Author == evil[0].node.ID():
				theirs++
			case m.Text == "forged":
				t.Fatal("a forged line is there")
			}
		}
		if theirs < 10 {
			t.Errorf("%d lines of the flood were taken", theirs)
		}
		if n := len(s.files.Offers()); n > 8 {
			t.Errorf("%d offers of one member wait", n)
		}
		for _, o := range s.files.Offers() {
			if text := describeOffer(o); !isPlain(text) {
				t.Errorf("an offer is shown as %q", text)
			}
		}
	}
	for len(shown) > 0 {
		var back any
		raw := <-shown
		if err := json.Unmarshal([]byte(raw), &back); err != nil || !isPlain(fmt.Sprint(back)) {
			t.Fatalf("an event shows %q", raw)
		}
	}
	// The host is its user's: they are put out, and it is quiet.
	for _, m := range evil {
		if _, err := host.node.KickMember("friends", m.node.ID().String(), true); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range honest {
		soon(ctx, t, "they are out", func() bool { return sees(s, "friends", 3) })
	}
}
