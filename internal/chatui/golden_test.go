package chatui

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files")

func TestGolden(t *testing.T) {
	notice := Event{Kind: EventNotice, Notice: &Notice{
		Time: began.Add(24 * time.Hour), Text: "a new pairing on desk: tablet", Action: &Action{ID: "undo1", Label: "undo the pairing"},
	}}
	for _, view := range []struct {
		name string
		do   func(r *rig)
	}{
		{"chat", func(*rig) {}},
		{"room", func(r *rig) { r.keys("alt+3") }},
		{"away", func(r *rig) { r.keys("ctrl+n", "'a draft that stays") }},
		{"help", func(r *rig) { r.keys("f1") }},
		{"search", func(r *rig) { r.keys("ctrl+f", "'the", "enter") }},
		{"scrolled", func(r *rig) { r.keys("pgup"); r.message("c1", "aa11", "below") }},
		{"paste", func(r *rig) { r.keys("'so: "); r.m.paste("first\r\n\tsecond\r\nthird\r\n") }},
		{"notice", func(r *rig) {
			r.tell(notice, Event{Kind: EventNotice, Notice: &Notice{Conv: "c1", Time: began.Add(24 * time.Hour), Text: "laptop is called anvil now"}})
			r.f.fail = errFull
			r.keys("'this is not kept", "enter")
		}},
		{"transfer", func(r *rig) { r.keys("alt+a") }},
		{"files", func(r *rig) { files(r, "c3"); r.keys("alt+3") }},
	} {
		for _, size := range [][2]int{{80, 24}, {40, 20}, {120, 40}} {
			name := fmt.Sprintf("%s-%dx%d", view.name, size[0], size[1])
			t.Run(name, func(t *testing.T) {
				f := demo()
				for i := range f.lines["c1"] { // the files are ASCII
					f.lines["c1"][i].Text = asciiOnly(f.lines["c1"][i].Text)
				}
				f.convs[2].Members[2].Name = "Yamada"
				r := newRig(f, size[0], size[1], "LANG=C")
				r.tell(f.say()...)
				view.do(r)
				got := r.screen()
				file := filepath.Join("testdata", name+".golden")
				if *update {
					if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if got != string(want) {
					t.Errorf("got\n%s\nwant\n%s", got, want)
				}
				for i := range len(got) {
					if got[i] != '\n' && (got[i] < ' ' || got[i] > '~') {
						t.Fatalf("byte %d is %#x, and the terminal shows ASCII only", i, got[i])
					}
				}
			})
		}
	}
}

func asciiOnly(s string) string {
	out := ""
	for _, r := range s {
		if r < 0x80 {
			out += string(r)
		}
	}
	return out
}
