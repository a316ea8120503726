package files

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestSafeName(t *testing.T) {
	for _, name := range []string{
		"report.pdf", "Grüße aus Köln.txt", "日本語", "a b", ".hidden", "👩‍👩‍👧.png", "x~1", "README", "console.log", "a.con",
	} {
		if got := safeName(name, NamesPortable); got != name {
			t.Errorf("%q became %q", name, got)
		}
	}
	for _, name := range []string{
		"a\nb", "\x1b[31mred", "gpj.\u202eexe", "x\u2066y", "bad\xff", "a:b", `a\b`, "what?", "a*", "con", "NUL.txt", "Com1.tar.gz",
		"lpt\u00b9", "trailing.", "trailing ", " leading", "...", partialName, ".KITH-partial", "a\u2028b", "a\x7f", "zero\u200bwidth",
		strings.Repeat("é", 127) + "ab", "aux .txt",
	} {
		got := safeName(name, NamesPortable)
		if got == name && len(name) <= maxName {
			t.Errorf("%q was kept", name)
		}
		checkSafe(t, got)
	}
	if a, b := safeName("a:b", NamesPortable), safeName("a?b", NamesPortable); a == b {
		t.Errorf("two names became %q", a)
	}
	for name, keep := range map[string]bool{"a:b": true, "con": true, "end.": true, "a\nb": false, "\u202ex": false, "\xff": false, partialName: false} {
		if got := safeName(name, NamesLocal); (got == name) != keep {
			t.Errorf("NamesLocal: %q became %q", name, got)
		}
	}
}

// checkSafe fails the test if a name is one that some system cannot hold or shows
// as something else.
func checkSafe(t *testing.T, got string) {
	t.Helper()
	if got == "" || got == "." || got == ".." || len(got) > maxName || !utf8.ValidString(got) || strings.ContainsAny(got, "/\\:*?\"<>|") ||
		strings.EqualFold(got, partialName) || strings.HasSuffix(got, ".") || strings.HasSuffix(got, " ") || reservedName(got) {
		t.Errorf("%q is not safe", got)
	}
	for _, r := range got {
		if unsafeRune(r) {
			t.Errorf("%q has %U", got, r)
		}
	}
	if again := safeName(got, NamesPortable); again != got {
		t.Errorf("%q becomes %q in turn", got, again)
	}
}

func FuzzSafeName(f *testing.F) {
	for _, s := range []string{"a", "con", "a\u202eb", "\xff\xfe", "..", " . ", strings.Repeat("x", 300) + ".pdf", "a.", "~"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if !validPath(name) || strings.Contains(name, "/") {
			return
		}
		checkSafe(t, safeName(name, NamesPortable))
		if shown := ShowName(name); len(shown) > maxName || strings.ContainsAny(shown, "\n\r\x1b") {
			t.Errorf("%q is shown as %q", name, shown)
		}
	})
}

func TestLinkInside(t *testing.T) {
	for _, c := range []struct {
		path, target string
		in           bool
	}{
		{"d/l", "f", true}, {"d/l", "./f", true}, {"d/e/l", "../f", true}, {"d/e/l", "..", true}, {"d/l", "e/f", true},
		{"l", "f", false}, {"d/l", "..", false}, {"d/l", "../f", false}, {"d/e/l", "../../f", false}, {"d/l", "/etc", false},
		{"d/l", "e/../f", false}, {"d/e/l", "x/../../f", false}, {"d/l", "", false}, {"d/l", "C:/x", false}, {"d/l", `..\x`, false},
		{"d/l", "f\x00", false}, {"d/e/l", "../g/../../f", false},
	} {
		if got := linkInside(c.path, c.target); got != c.in {
			t.Errorf("%s -> %q: %v", c.path, c.target, got)
		}
	}
}

func TestNumbered(t *testing.T) {
	for _, c := range []struct {
		name string
		n    int
		dir  bool
		want string
	}{
		{"report.pdf", 0, false, "report.pdf"},
		{"report.pdf", 1, false, "report (1).pdf"},
		{"v1.2", 2, true, "v1.2 (2)"},
		{".profile", 1, false, ".profile (1)"},
		{strings.Repeat("x", 255), 1, false, strings.Repeat("x", 251) + " (1)"},
	} {
		if got := numbered(c.name, c.n, c.dir); got != c.want {
			t.Errorf("%q %d: %q", c.name, c.n, got)
		}
	}
}

// TestOddNames sends names and times that programs stumble over: all of it arrives, under
// names that can be shown.
func TestOddNames(t *testing.T) {
	src := filepath.Join(t.TempDir(), "odd names")
	times := map[string]time.Time{
		"with space": time.Unix(-300_000_000, 0), "🙂 emoji.txt": time.Unix(7_000_000_000, 5), "new\nline": time.Unix(0, 0),
		"-rf": time.Unix(1, 1), "not\xffutf8": time.Unix(1e9, 0), "tab\t": time.Unix(1e9, 0), "quote\"'$(id)": time.Unix(1e9, 0),
		"Grüße": time.Unix(1e9, 0), "Gru\u0308ße": time.Unix(1e9, 0), strings.Repeat("long", 63): time.Unix(1e9, 0),
	}
	made := 0
	for name, at := range times {
		p := filepath.Join(src, name)
		write(t, filepath.Join(src, "keep"), 1)
		if err := os.WriteFile(p, []byte(name), 0o644); err != nil {
			t.Logf("not here: %q: %v", name, err)
			continue
		}
		made++
		if err := os.Chtimes(p, at, at); err != nil {
			t.Fatal(err)
		}
	}
	l, dir := newLab(t)
	res, err := l.a.Send(t.Context(), "b", []string{src}, SendOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range res.Notes {
		if n.Problem != ProblemRenamed || strings.ContainsAny(n.String(), "\n\t\xff") {
			t.Errorf("note %q", n)
		}
	}
	list, err := os.ReadDir(filepath.Join(dir, "odd names"))
	if err != nil || len(list) != made+1 {
		t.Errorf("%d of %d names, %v", len(list), made+1, err)
	}
	for _, d := range list {
		checkSafe(t, d.Name())
		b, err := os.ReadFile(filepath.Join(dir, "odd names", d.Name()))
		if err != nil || d.Name() == "keep" {
			continue
		}
		want, ok := times[string(b)]
		if fi, err := d.Info(); !ok || err != nil || !fi.ModTime().Equal(want) {
			t.Errorf("%q is %q of %v: %v", d.Name(), b, fi.ModTime(), err)
		}
		if safeName(string(b), NamesPortable) != d.Name() {
			t.Errorf("%q became %q", b, d.Name())
		}
	}
}

func TestTextOf(t *testing.T) {
	want := Progress{ID: TransferID{1, 2, 255}, State: StateBroken, Bytes: 7}
	raw, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(raw), `"id":"0102ff00000000000000000000000000"`) || !strings.Contains(string(raw), `"state":"broken"`) {
		t.Errorf("%s", raw)
	}
	var got Progress
	if err := json.Unmarshal(raw, &got); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{`{"state":"x"}`, `{"id":"01"}`, `{"id":"zz02ff00000000000000000000000000"}`, `{"id":"0102ff0000000000000000000000000000"}`} {
		if err := json.Unmarshal([]byte(bad), &got); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}
