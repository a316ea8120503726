package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/kithproject/kith/app/files"
	"github.com/kithproject/kith/internal/control"
)

// TestLine holds that a transfer's line says what it must, and fits.
func TestLine(t *testing.T) {
	at := time.Unix(1000, 0)
	moving := func(p files.Progress) (control.Transfer, *pace) {
		pace := &pace{}
		x := control.Transfer{Progress: p, Device: "laptop"}
		x.State = files.StateRunning
		x.Bytes = 0
		pace.measure(x, at)
		x.Bytes = p.Bytes
		pace.measure(x, at.Add(2*time.Second))
		return x, pace
	}
	for want, p := range map[string]files.Progress{
		"report.pdf  [==========          ]   50 %  5.0 MB of 10.0 MB  2.5 MB/s  2 s left": {
			Name: "report.pdf", Bytes: 5e6, TotalBytes: 10e6, TotalKnown: true,
		},
		"report.pdf  5.0 MB  2.5 MB/s": {Name: "report.pdf", Bytes: 5e6, TotalBytes: 10e6},
		"a-very-long-na…uld-give.pdf  [======]   33 %  1.0 GB of 3.0 GB  500.0 MB/s  4 s left": {
			Name: "a-very-long-name-that-nobody-should-give.pdf", Bytes: 1e9, TotalBytes: 3e9, TotalKnown: true,
		},
		"more  [====================]  100 %  12 B of 10 B  6 B/s": {Name: "more", Bytes: 12, TotalBytes: 10, TotalKnown: true},
	} {
		x, pace := moving(p)
		if got := pace.line(x, 79); len([]rune(got)) > 79 || !alike(got, want) {
			t.Errorf("%q\nwant like %q", got, want)
		}
		for width := 20; width < 200; width++ {
			if got := pace.line(x, width); len([]rune(got)) > width || strings.Contains(got, "\n") {
				t.Errorf("%d: %q", width, got)
			}
		}
	}
	for seconds, want := range map[float64]string{0: "0 s", 59.4: "59 s", 61: "1 min 1 s", 7260: "2 h 1 min", 200_000: "2 days", 1e12: "years"} {
		if got := shortly(seconds); got != want {
			t.Errorf("%v: %q", seconds, got)
		}
	}
}

// alike compares the words of two lines, without the bar and what is left out of a name.
func alike(a, b string) bool {
	words := func(s string) string {
		var out []string
		for _, w := range strings.Fields(s) {
			if !strings.ContainsAny(w, "[]=…") {
				out = append(out, w)
			}
		}
		return strings.Join(out, " ")
	}
	return words(a) == words(b)
}

// TestBoard holds what the inbox shows on a terminal, where it writes over what it wrote,
// and elsewhere, where it says each thing once.
func TestBoard(t *testing.T) {
	offer := control.FileOffer{Offer: files.Offer{Number: 3, Names: []string{"a", "b", "c", "d"}, Files: 9, Bytes: 10, Known: true}, Device: "desk"}
	run := control.Transfer{Progress: files.Progress{Number: 4, Name: "x", State: files.StateRunning, Bytes: 1, TotalBytes: 4, TotalKnown: true}, Device: "phone"}
	broken := run
	broken.State = files.StateBroken
	steps := []control.Reply{
		{Offers: []control.FileOffer{offer}, Transfers: []control.Transfer{run}},
		{Offers: []control.FileOffer{offer}, Transfers: []control.Transfer{run}},
		{Transfers: []control.Transfer{broken}},
		{Transfers: []control.Transfer{run}},
		{},
	}
	var plain strings.Builder
	b := newBoard(&plain, 0, 0)
	for i, r := range steps {
		b.show(r, time.Unix(int64(i), 0))
	}
	if want := "3  desk offers a, b, c, 1 more (9 files, 10 B): kith inbox accept 3\n" +
		"4  from phone  x is on its way\n4  from phone  x waits for a connection\n4  from phone  x is on its way\n"; plain.String() != want {
		t.Errorf("%s", plain.String())
	}
	var tty strings.Builder
	b = newBoard(&tty, 80, 0)
	for i, r := range steps[:3] {
		b.show(r, time.Unix(int64(i), 0))
	}
	b.happened("x is there")
	b.show(control.Reply{}, time.Unix(9, 0))
	if up := strings.Count(tty.String(), "\x1b[2A"); up != 2 || strings.Count(tty.String(), "\x1b[1A") != 1 {
		t.Errorf("%q", tty.String())
	}
	for line := range strings.SplitSeq(tty.String(), "\n") {
		line = strings.NewReplacer("\r", "", "\x1b[2A", "", "\x1b[1A", "", "\x1b[J", "").Replace(line)
		if len([]rune(line)) > 79 {
			t.Errorf("%d characters: %q", len([]rune(line)), line)
		}
	}
	// One alone.
	var one strings.Builder
	b = newBoard(&one, 0, 4)
	for i, r := range steps {
		b.show(r, time.Unix(int64(i), 0))
	}
	if strings.Contains(one.String(), "offers") || !strings.Contains(one.String(), "x is on its way") {
		t.Errorf("%s", one.String())
	}
}
