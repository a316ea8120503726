package chatui

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
)

func TestSendInOrder(t *testing.T) {
	r := newRig(demo(), 80, 24)
	r.hold = true
	r.keys("'first", "enter", "'second", "enter")
	r.wants(t, "... me: first", "... me: second")
	r.release()
	r.called(t, "send c1 first", "send c1 second")
	r.lacks(t, "... me:")
	if n := strings.Count(r.screen(), "second"); n != 1 {
		t.Errorf("a line that came as an answer and as an event is there %d times", n)
	}
}

func TestErrorKeepsText(t *testing.T) {
	r := newRig(demo(), 80, 24)
	r.f.fail = errFull
	r.keys("'dear laptop", "enter")
	r.wants(t, "!!! me: dear laptop", "! not sent: control: the disk is full")
	r.keys("'something else", "ctrl+n", "ctrl+p")
	r.wants(t, "!!! me: dear laptop", "> something else")
	r.keys("ctrl+u", "esc")
	r.wants(t, "> dear laptop")
	r.lacks(t, "not sent")
	r.keys("enter")
	r.f.fail = nil
	r.keys("enter") // tries again
	r.lacks(t, "not sent", "!!!")
	r.called(t, "send c1 dear laptop", "send c1 dear laptop", "send c1 dear laptop")

	r.f.fail = errors.New("no such file")
	r.keys("'/send /no/such", "enter")
	r.wants(t, "> /send /no/such", "! no such file")
	r.keys("esc")
	r.lacks(t, "! no such file")
}

func TestFailedInTheMiddle(t *testing.T) {
	r := newRig(demo(), 80, 24)
	r.m.paste("one\n\n  two\nthree")
	r.wants(t, "3 lines: Enter sends each as a message")
	r.f.fail = errFull
	r.keys("enter")
	r.wants(t, "!!! me: one", "!!! me: two", "!!! me: three")
	r.keys("up")
	if got := r.m.current().ed.text; got != "one\ntwo\nthree" {
		t.Errorf("the input has %q", got)
	}
	r.f.fail = nil
	r.keys("enter")
	r.called(t, "send c1 one", "send c1 one", "send c1 two", "send c1 three")
}

func TestPaste(t *testing.T) {
	r := newRig(demo(), 80, 24)
	r.m.paste("a\x1b[31mb\tc\u202ed\r\n")
	if got := r.m.current().ed.text; got != "a[31mb    cd" {
		t.Errorf("the input has %q", got)
	}
	r.keys("ctrl+u")
	r.m.paste("x\ny\nz")
	r.keys("alt+j", "enter")
	r.called(t, "send c1 x y z")
	r.keys("'kept")
	r.m.paste(strings.Repeat("y", maxInput))
	r.wants(t, "> kept", "too much for the input")
	r.keys("ctrl+u")
	long := strings.Repeat("word ", 2000)
	r.m.paste(long)
	r.f.calls = nil
	r.keys("enter")
	whole := ""
	for _, c := range r.f.calls {
		text, is := strings.CutPrefix(c, "send c1 ")
		if is && len(text) > MaxText {
			t.Errorf("a line of %d bytes was sent", len(text))
		}
		whole += text + " "
	}
	if whole != long {
		t.Errorf("%d bytes of %d were sent", len(whole), len(long))
	}
}

func TestMessages(t *testing.T) {
	for in, want := range map[string][]string{
		"": nil, " \n ": nil, "a": {"a"}, "a\n\nb ": {"a", "b"},
		strings.Repeat("日", 1366): {strings.Repeat("日", 1365), "日"},
	} {
		if got := messages(in); !slices.Equal(got, want) {
			t.Errorf("%.20q: %.40q", in, got)
		}
	}
}

func TestInputHistoryAndDrafts(t *testing.T) {
	r := newRig(demo(), 80, 24)
	r.keys("'one", "enter", "'two", "enter", "'draft", "up", "up")
	r.wants(t, "\n> one\n")
	r.keys("up", "down")
	r.wants(t, "\n> two\n")
	r.keys("down")
	r.wants(t, "\n> draft\n")
	r.keys("alt+2", "'for the phone")
	r.wants(t, "\n> for the phone\n")
	r.keys("ctrl+p")
	r.wants(t, "\n> draft\n")
	r.keys("alt+2", "up") // the input of another conversation is not here
	r.wants(t, "\n> for the phone\n")
}

func TestEditing(t *testing.T) {
	for _, tc := range []struct {
		keys []string
		want string
	}{
		{[]string{"'abc", "left", "left", "'X"}, "aX|bc"},
		{[]string{"'日本", "backspace", "left", "'x"}, "x|日"},
		{[]string{"'e\u0301a", "left", "left", "'x"}, "x|e\u0301a"},
		{[]string{"'e\u0301", "backspace"}, "|"},
		{[]string{"'👨\u200d👩\u200d👧x", "left", "backspace"}, "|x"},
		{[]string{"'one two three", "ctrl+w", "ctrl+w"}, "one |"},
		{[]string{"'one two", "ctrl+left", "ctrl+k", "ctrl+a", "ctrl+y"}, "two|one "},
		{[]string{"'one two", "home", "ctrl+right", "delete"}, "one|two"},
		{[]string{"'one", "alt+enter", "'two", "up", "end", "'!"}, "one!|\ntwo"},
		{[]string{"'one", "alt+enter", "'two", "home", "ctrl+u", "ctrl+k"}, "one\n|"},
	} {
		r := newRig(demo(), 80, 24)
		r.keys(tc.keys...)
		e := r.m.current().ed
		if got := e.text[:e.at] + "|" + e.text[e.at:]; got != tc.want {
			t.Errorf("%q: %q, want %q", tc.keys, got, tc.want)
		}
		sound(t, r)
	}
}

func TestEditorView(t *testing.T) {
	var c cleaner
	for _, tc := range []struct {
		text    string
		at      int
		want    string
		x, y    int
		columns int
	}{
		{"", 0, "", 0, 0, 10},
		{"abc", 1, "abc", 1, 0, 10},
		{"0123456789ab", 12, "0123456789|ab", 2, 1, 10},
		{"0123456789", 10, "0123456789|", 0, 1, 10},
		{"日本語", 9, "日本|語", 2, 1, 5},
		{"a\nb\nc\nd", 7, "b|c|d", 1, 2, 10},
		{"a\nb\nc\nd", 0, "a|b|c", 0, 0, 10},
	} {
		e := editor{text: tc.text, at: tc.at}
		rows, x, y := e.view(c, tc.columns, 3)
		if got := strings.Join(rows, "|"); got != tc.want || x != tc.x || y != tc.y {
			t.Errorf("%q at %d: %q, cursor %d,%d", tc.text, tc.at, got, x, y)
		}
	}
}

func TestScrollKeepsPlace(t *testing.T) {
	f := demo()
	for i := range 300 {
		f.add("c1", "aa11", fmt.Sprintf("number %d %s", i, strings.Repeat("and more ", i%20)))
	}
	r := newRig(f, 80, 24)
	r.wants(t, "number 299")
	r.keys("pgup", "pgup", "pgup")
	first := func() string {
		_, after, _ := strings.Cut(r.screen(), "number ")
		n, _, _ := strings.Cut(after, " ")
		return n
	}
	before := first()
	r.message("c1", "aa11", "at the end")
	r.message("c1", "aa11", "and another")
	if got := first(); got != before {
		t.Errorf("lines that came moved the view from %s to %s", before, got)
	}
	r.wants(t, "2 new below")
	for _, size := range [][2]int{{40, 20}, {130, 50}, {61, 10}, {20, 8}, {80, 24}} {
		r.send(tea.WindowSizeMsg{Width: size[0], Height: size[1]})
	}
	if got := first(); got != before {
		t.Errorf("resizes moved the view from %s to %s", before, got)
	}
	r.keys("end")
	r.wants(t, "and another")
	r.lacks(t, "new below")
	for range 100 { // the whole history comes as it is needed
		r.keys("pgup")
	}
	r.wants(t, "good morning", "Fri 20 Nov 2026")
	if !r.m.current().whole {
		t.Error("the history is not all there")
	}
	for range 100 {
		r.keys("pgdown")
	}
	if !r.m.current().follow {
		t.Error("at the end the view does not follow")
	}
	r.keys("home")
	r.wants(t, "good morning")
	r.send(tea.MouseWheelMsg{Button: tea.MouseWheelDown})
	r.lacks(t, "Fri 20 Nov")
}

func TestSearch(t *testing.T) {
	f := demo()
	for i := range 1000 {
		f.add("c1", "aa11", fmt.Sprintf("number %d", i))
	}
	f.add("c1", "aa11", "Good MORNING again")
	r := newRig(f, 80, 24)
	r.keys("'a draft", "ctrl+f", "'good morning")
	r.wants(t, "search: good morning", "Enter searches")
	r.keys("enter")
	r.wants(t, ">01:56", "MORNING again", "1 of 2")
	r.keys("enter") // far back: it is loaded until it is there
	r.wants(t, ">09:59 laptop  good morning", "2 of 2")
	rows, _, _ := r.m.lines()
	if !strings.Contains(strings.Join(rows, ""), "\x1b[7mgood morning\x1b[m") {
		t.Error("what was found is not marked")
	}
	r.keys("down")
	r.wants(t, "1 of 2", "MORNING again")
	r.keys("ctrl+u", "'nowhere to be found", "enter")
	r.wants(t, "nothing found")
	r.keys("esc")
	r.wants(t, "> a draft")
	r.keys("ctrl+u", "'/search number 7", "enter")
	r.wants(t, ">", "number 799", "1 of 111")
}

func TestMatches(t *testing.T) {
	for _, tc := range []struct {
		text, query string
		want        []span
	}{
		{"Straße STRASSE", "straße", []span{{0, 7}}},
		{"aAa", "aa", []span{{0, 2}}},
		{"ÄÖ äö", "äö", []span{{0, 4}, {5, 9}}},
		{"x", "", nil},
		{"", "x", nil},
	} {
		if got := matches(tc.text, tc.query); !slices.Equal(got, tc.want) {
			t.Errorf("%q in %q: %v", tc.query, tc.text, got)
		}
	}
}

func TestFiles(t *testing.T) {
	r := newRig(demo(), 80, 24)
	r.keys("alt+a")
	r.wants(t, "no file waits")
	r.tell(r.f.say()...)
	r.wants(t, "[1: Alt-A takes it, Alt-D declines]")
	m := r.f.add("c1", "aa11", "")
	m.Kind, m.File = KindFile, &File{Name: "\x1b[2Jevil\u202efdp.exe", Size: 5, Offer: "o2"}
	r.tell(Event{Kind: EventMessage, Message: &m}, Event{Kind: EventTransfer, Transfer: &Transfer{Offer: "o2", State: TransferOffered}})
	r.wants(t, "file [2Jevilfdp.exe (5 B)", "[2: /accept 2 or /decline 2]")
	r.keys("alt+a") // the first, though another came in between
	r.wants(t, "] 40 %, 1.3 MB of 3.2 MB", "[2: Alt-A takes it")
	r.keys("'/decline 2", "enter")
	r.wants(t, "[declined]")
	r.called(t, "accept o1", "decline o2")
	r.keys("'/accept 7", "enter")
	r.wants(t, "> /accept 7", "no open offer 7")
	m.File.Now = &Transfer{Offer: "o2", State: TransferDone} // as it was when the line was read: older than what was told
	r.tell(Event{Kind: EventMessage, Message: &m})
	r.wants(t, "[declined]")
	for state, want := range map[string]string{TransferDone: "[done: in the inbox]", TransferFailed: "[failed: in the inbox]", TransferWaiting: "[waits for a connection: in the inbox]"} {
		r.tell(Event{Kind: EventTransfer, Transfer: &Transfer{Offer: "o1", State: state, Note: "in the inbox", Bytes: 1, Total: 2}})
		r.wants(t, want)
	}
}

func TestSendFileAndComplete(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"report one.pdf", "report two.pdf", "other", ".hidden", "evil\x1b[2J"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Skip("the file system takes no such name: ", err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	r := newRig(demo(), 160, 24)
	typed := func() string { return r.m.current().ed.text }
	r.keys("'/se", "tab")
	if typed() != "/se" {
		t.Errorf("input %q, and there are /send and /search", typed())
	}
	r.wants(t, "send", "search")
	r.keys("'n", "tab", "'"+dir+"/rep", "tab")
	r.wants(t, "report one.pdf  report two.pdf")
	if want := "/send " + dir + "/report "; typed() != want {
		t.Errorf("input %q, want %q", typed(), want)
	}
	r.keys("'t", "tab", "enter")
	r.called(t, "file c1 "+dir+"/report two.pdf")
	r.keys("'/send "+dir+"/s", "tab")
	if !strings.HasSuffix(typed(), "/sub/") {
		t.Errorf("input %q", typed())
	}
	r.keys("ctrl+u", "'/send "+dir+"/", "tab")
	r.lacks(t, "hidden", "evil")
	r.keys("ctrl+u", "'/go hik", "tab", "enter")
	r.wants(t, "#hiking - 2 of 3 here: anna, Bob the builder")
	r.keys("'/nonsense", "enter")
	r.wants(t, "there is no command /nonsense", "> /nonsense")
	r.keys("ctrl+u", "'//etc is a directory", "enter", "'/quit", "enter")
	r.called(t, "file c1 "+dir+"/report two.pdf", "send c3 /etc is a directory")
	if !r.quit {
		t.Error("/quit did not leave")
	}
}

func TestNotices(t *testing.T) {
	r := newRig(demo(), 80, 24)
	n := func(i int) Event {
		return Event{Kind: EventNotice, Notice: &Notice{Time: began, Text: fmt.Sprintf("pairing %d", i), Action: &Action{ID: fmt.Sprint("undo", i), Label: "undo it"}}}
	}
	r.tell(n(1))
	r.wants(t, "-- pairing 1", "!! [Alt-U: undo it, Esc: keep] pairing 1")
	r.tell(n(2), n(3)) // the first stays what the key is about
	r.wants(t, "pairing 1 (and 2 more)")
	r.keys("alt+u")
	r.called(t, "act undo1")
	r.wants(t, "-- done: undo it", "!! [Alt-U: undo it, Esc: keep] pairing 2")
	r.keys("esc", "esc")
	r.wants(t, "keep] pairing 3")
	r.keys("esc", "alt+u")
	r.called(t, "act undo1")
}

func TestPresenceUnreadAndRead(t *testing.T) {
	r := newRig(demo(), 80, 24)
	if !slices.Contains(r.f.calls, fmt.Sprintf("read c1 %d", 6)) {
		t.Errorf("what is seen was not told: %q", r.f.calls)
	}
	r.wants(t, "○ phone           2")
	r.message("c2", "bb22", "hello?")
	r.wants(t, "○ phone           3")
	r.f.convs[0].Members[0].Online, r.f.convs[1].Members[0].Online = false, true
	r.tell(Event{Kind: EventPresence, Device: "bb22", Online: true}, Event{Kind: EventPresence, Device: "aa11"})
	r.wants(t, "● phone           3", "laptop is away; lines are kept")
	r.f.calls = nil
	r.send(tea.BlurMsg{})
	r.message("c1", "aa11", "nobody looks")
	if len(r.f.calls) > 0 {
		t.Errorf("read without anybody looking: %q", r.f.calls)
	}
	r.send(tea.FocusMsg{})
	if len(r.f.calls) != 1 {
		t.Errorf("asked %q", r.f.calls)
	}
	r.keys("tab")
	r.wants(t, "phone - here", "---- new", "hello?", "○ laptop")
	r.keys("'yes", "enter")
	r.lacks(t, "---- new")
	r.send(tea.MouseClickMsg{Button: tea.MouseLeft, X: 3, Y: 2})
	r.wants(t, "#hiking - 2 of 3 here")
	r.tell(Event{Kind: EventMessage, Message: &Message{Conv: "c3", Author: "zz99", Name: "anna", Log: "1", Seq: 1, Lamport: 999, Time: began, Text: "I am not anna"}})
	r.wants(t, "anna~zz99")
}

func TestLateLinesSortIn(t *testing.T) {
	r := newRig(demo(), 80, 24)
	m := Message{Conv: "c1", Author: "aa11", Log: "2", Seq: 1, Lamport: 1, Time: began, Text: "much later", Late: true}
	r.tell(Event{Kind: EventMessage, Message: &m})
	r.keys("home")
	screen := r.screen()
	if a, b := strings.Index(screen, "good morning"), strings.Index(screen, "~09:58 laptop  much later"); a < 0 || b < a {
		t.Errorf("the late line is not where it belongs:\n%s", screen)
	}
	m.Late = false // told again: it was late all the same
	r.tell(Event{Kind: EventMessage, Message: &m})
	r.wants(t, "~09:58 laptop  much later")
}

func TestBackendComesAndGoes(t *testing.T) {
	r := newRig(demo(), 80, 24)
	r.send(eventsMsg{closed: true})
	r.wants(t, "Ctrl-R tries again")
	r.f.add("c1", "aa11", "missed")
	r.keys("'still here", "ctrl+r")
	r.lacks(t, "Ctrl-R tries again")
	r.wants(t, "missed", "> still here")
	r.f.add("c1", "aa11", "missed as well")
	r.tell(Event{Kind: EventMissed})
	r.wants(t, "missed as well")
	r.tell(Event{Kind: EventConvs, Convs: r.f.convs[1:]}) // a conversation with a draft stays
	r.wants(t, "> still here")

	empty := newRig(newFake(), 80, 24)
	empty.wants(t, "no conversations yet")
	empty.keys("'x", "enter", "tab", "pgup", "ctrl+f", "alt+1", "f1", "esc", "ctrl+d")
	if !empty.quit {
		t.Error("Ctrl-D did not leave")
	}
}

func TestFloodIsBounded(t *testing.T) {
	r := newRig(demo(), 80, 24)
	for range 100 {
		var all []Event
		for range mostEvents {
			m := r.f.add("c1", "aa11", "flood")
			all = append(all, Event{Kind: EventMessage, Message: &m})
		}
		r.tell(all...)
	}
	if n := len(r.m.current().items); n > mostLines+mostEvents {
		t.Errorf("%d lines are held", n)
	}
	if n := len(r.m.byID("c3").items); n > 0 {
		t.Errorf("%d lines of a conversation that was not opened are held", n)
	}
	r.keys("pgup")
	r.wants(t, "flood")
}

func TestColors(t *testing.T) {
	for _, tc := range []struct {
		env         string
		color, attr bool
	}{{"TERM=xterm", true, true}, {"NO_COLOR=1", false, true}, {"TERM=dumb", false, false}} {
		r := newRig(demo(), 80, 24, tc.env)
		r.keys("alt+3")
		rows, _, _ := r.m.lines()
		all := strings.Join(rows, "\n")
		if strings.Contains(all, "38;5;") != tc.color || strings.Contains(all, "\x1b") != tc.attr {
			t.Errorf("%s: %q", tc.env, all)
		}
	}
	s := newSigns(false, true, true)
	if s.author("a", false, "x") != s.author("a", false, "x") {
		t.Error("a device changes its colour")
	}
}

func TestNamesAreToldApart(t *testing.T) {
	k := newConversation(cleaner{}, Conv{Room: true, Members: []Member{{ID: "a1b2c3", Name: "Anna"}, {ID: "d4e5f6", Name: "an\u200bna"}, {ID: "0789", Name: "me"}, {ID: "77", Name: "bob"}}})
	want := map[string]string{"a1b2c3": "Anna~a1b2", "d4e5f6": "anna~d4e5", "0789": "me~0789", "77": "bob"}
	for id, name := range want {
		if k.names[id] != name {
			t.Errorf("%s is %q, want %q", id, k.names[id], name)
		}
	}
}

func TestHelpLeaves(t *testing.T) {
	r := newRig(demo(), 80, 24)
	r.keys("f1", "down", "pgdown", "pgup", "up")
	r.wants(t, "Commands", "/help")
	r.keys("f1")
	r.lacks(t, "/decline")
	r.keys("'/help", "enter", "'q")
	r.lacks(t, "/decline")
	if !r.m.known || r.m.zone != time.UTC {
		t.Error("the model lost its state")
	}
}

func TestLeavingKeepsUnsentLines(t *testing.T) {
	r := newRig(demo(), 80, 24)
	r.f.fail = errFull
	r.keys("'not yet", "enter", "ctrl+c")
	r.wants(t, "1 of your lines are not sent")
	if r.keys("'x", "backspace", "ctrl+d"); r.quit {
		t.Error("left without a word")
	}
	if r.keys("ctrl+c"); !r.quit {
		t.Error("did not leave")
	}
}

func TestClocksThatDiffer(t *testing.T) {
	r := newRig(demo(), 80, 24)
	m := Message{Conv: "c1", Author: "aa11", Log: "1", Seq: 900, Lamport: 900, Time: began.AddDate(30, 0, 0), ClockDiffers: true, Text: "from the future"}
	r.tell(Event{Kind: EventMessage, Message: &m})
	r.message("c1", "aa11", "from today")
	r.wants(t, "??:?? laptop  from the future")
	r.lacks(t, "2056")
	if n := strings.Count(r.screen(), " 2026 ---"); n != 2 {
		t.Errorf("%d lines of days:\n%s", n, r.screen())
	}
}

func TestFileNamesKeepTheirEnd(t *testing.T) {
	var c cleaner
	if got := c.file(strings.Repeat("holiday.pdf ", 30) + ".exe"); !strings.HasSuffix(got, ".exe") || c.width(got) > maxFileCell {
		t.Errorf("%q", got)
	}
}

func TestRingsOnce(t *testing.T) {
	r := newRig(demo(), 80, 24)
	r.hold = true
	rings := func() int {
		n := 0
		var count func(tea.Cmd)
		count = func(c tea.Cmd) {
			if c == nil {
				return
			}
			switch msg := c().(type) {
			case tea.BatchMsg:
				for _, c := range msg {
					count(c)
				}
			case tea.RawMsg:
				n++
			}
		}
		for _, c := range r.held {
			count(c)
		}
		r.held = nil
		return n
	}
	event := func(conv string) {
		m := r.f.add(conv, "aa11", "hey")
		r.send(eventsMsg{events: []Event{{Kind: EventMessage, Message: &m}}})
	}
	event("c2")
	if rings() != 0 {
		t.Error("rings though somebody looks")
	}
	r.send(tea.BlurMsg{})
	event("c3") // muted
	event("c2")
	event("c2")
	if n := rings(); n != 1 {
		t.Errorf("rings %d times", n)
	}
}

func TestHintsAndWho(t *testing.T) {
	r := newRig(demo(), 80, 24)
	r.keys("alt+3", "'/")
	r.wants(t, "-- /help  /send  /accept  /decline  /search  /who  /go  /quit")
	r.keys("'se")
	r.wants(t, "-- /send  /search")
	r.keys("'nd x")
	r.wants(t, "-- /send PATH: offer a file; Tab completes")
	r.keys("ctrl+u", "'//x")
	r.lacks(t, "-- /")
	r.keys("ctrl+u", "'/who", "enter")
	r.wants(t, "-- here: anna, Bob the builder; away: 天野")
}

func TestConversationsComeAndGo(t *testing.T) {
	r := newRig(newFake(), 80, 24)
	r.wants(t, "no conversations yet")
	r.f.add("n1", "aa11", "the first line")
	r.tell(Event{Kind: EventConv, Convs: []Conv{{ID: "n1", Name: "tablet", Unread: 1}}})
	r.wants(t, "tablet - away", "~aa11  the first line")
	r.tell(Event{Kind: EventConv, Convs: []Conv{{ID: "n2", Name: "camp", Room: true, Unread: 4}}})
	r.wants(t, "○ #camp           4")
	r.tell(Event{Kind: EventConv, Convs: []Conv{{ID: "n1", Name: "slate", Kept: 2, Unread: 1}}})
	r.wants(t, "slate - away", "2 kept")
	r.tell(Event{Kind: EventGone, Convs: []Conv{{ID: "n1"}}})
	r.wants(t, "#camp - 0 of 0 here")
	r.lacks(t, "slate")
}
