package code

import (
	"bytes"
	"errors"
	"image/color"
	"image/png"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// biggest is the largest code that New makes.
func biggest(t testing.TB) Code {
	return mustNew(t, MethodQR, Options{
		Commit:    [16]byte{1},
		Endpoints: endpoints("[fe80::1]:1", "[fe80::2]:2", "[fd00::1]:3", "[fd00::2]:4"),
		Hints:     []string{strings.Repeat("h", maxShown-18-6-18-2-4*19-2)},
	})
}

func TestQRCodesAreAsSmallAsTheyCanBe(t *testing.T) {
	tests := map[string]struct {
		c    Code
		size int
	}{
		"secret":                    {mustParse(t, someWords), 25},
		"secret, expiry":            {mustNew(t, MethodQR, Options{}), 29},
		"secret, expiry, commit":    {mustNew(t, MethodQR, Options{Commit: [16]byte{1}}), 33},
		"the same, four endpoints":  {mustNew(t, MethodQR, Options{Commit: [16]byte{1}, Endpoints: endpoints("10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1")}), 41},
		"as much as New lets in it": {biggest(t), maxTerminalSize},
	}
	for name, tt := range tests {
		m, err := tt.c.QR()
		if err != nil {
			t.Fatal(err)
		}
		if m.Size() != tt.size {
			t.Errorf("%s: %d modules, want %d", name, m.Size(), tt.size)
		}
	}
	if n := len(biggest(t).get().encode()); n != maxShown {
		t.Errorf("the biggest code has %d bytes, want %d", n, maxShown)
	}
}

func TestEveryCodeFitsATerminal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := drawCode(t)
		if c.URI() == "" {
			return
		}
		text, err := RenderTerminal(c.URI())
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		if len(lines) > 29 {
			t.Fatalf("%d lines", len(lines))
		}
		m, err := c.QR()
		if err != nil {
			t.Fatal(err)
		}
		for row, line := range lines {
			line, ok := strings.CutPrefix(line, "\x1b[38;5;16;48;5;231m")
			line, ok2 := strings.CutSuffix(line, "\x1b[0m")
			if !ok || !ok2 || utf8.RuneCountInString(line) != m.Size()+2*quietZone {
				t.Fatalf("line %d: %q", row, line)
			}
			column := 0
			for _, r := range line {
				x, y := column-quietZone, 2*row-quietZone
				upper, lower := r == '█' || r == '▀', r == '█' || r == '▄'
				if upper != m.Dark(x, y) || lower != m.Dark(x, y+1) {
					t.Fatalf("module %d,%d is drawn as %c", x, y, r)
				}
				column++
			}
		}
	})
}

func TestPNGShowsTheMatrixWithItsMargin(t *testing.T) {
	c := biggest(t)
	m, err := c.QR()
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if err := WritePNG(&file, c.URI()); err != nil {
		t.Fatal(err)
	}
	img, err := png.Decode(&file)
	if err != nil {
		t.Fatal(err)
	}
	side := (m.Size() + 2*quietZone) * pngScale
	if b := img.Bounds(); b.Dx() != side || b.Dy() != side {
		t.Fatalf("got %v, want %d", b, side)
	}
	for y := range side {
		for x := range side {
			dark := img.At(x, y) == color.RGBA{A: 255}
			if dark != m.Dark(x/pngScale-quietZone, y/pngScale-quietZone) {
				t.Fatalf("pixel %d,%d: %v", x, y, img.At(x, y))
			}
		}
	}
	if got := m.Image(0).Bounds().Dx(); got != m.Size()+2*quietZone {
		t.Errorf("scale 0: %d pixels", got)
	}
}

// The finder pattern is that of ISO/IEC 18004 section 6.3.3.
func TestMatrixHasItsThreeCorners(t *testing.T) {
	m, err := biggest(t).QR()
	if err != nil {
		t.Fatal(err)
	}
	far := m.Size() - 7
	for _, at := range [][2]int{{0, 0}, {far, 0}, {0, far}} {
		for y := range 7 {
			for x := range 7 {
				ring := max(x-3, 3-x, y-3, 3-y)
				if got := m.Dark(at[0]+x, at[1]+y); got != (ring != 2) {
					t.Errorf("corner at %v: module %d,%d is %v", at, x, y, got)
				}
			}
		}
	}
	if m.Dark(-1, 0) || m.Dark(0, -1) || m.Dark(m.Size(), 0) || m.Dark(0, m.Size()) {
		t.Error("dark outside")
	}
}

func TestPenaltyFindsWhatIsHardToRead(t *testing.T) {
	line := func(text string) int { return linePenalty(len(text), func(i int) bool { return text[i] == '#' }) }
	for text, want := range map[string]int{
		"#.#.#.#.": 0, "####.": 0, "#####.": 3, "#######": 5, ".....#####": 6,
		"#.###.#....": 40, "....#.###.#": 40, "#.###.#....#.###.#": 80, "#.###.#...#": 0,
	} {
		if got := line(text); got != want {
			t.Errorf("%s: %d, want %d", text, got, want)
		}
	}
	dark := &Matrix{size: 4, dark: bytesToBools("################")}
	if got := dark.penalty(); got != 9*3+100 {
		t.Errorf("all dark: %d", got)
	}
	half := &Matrix{size: 4, dark: bytesToBools("#.#..#.##.#..#.#")}
	if got := half.penalty(); got != 0 {
		t.Errorf("checkers: %d", got)
	}
}

func bytesToBools(text string) (out []bool) {
	for _, b := range text {
		out = append(out, b == '#')
	}
	return out
}

func TestQRRefusesWhatDoesNotFit(t *testing.T) {
	if _, err := EncodeQR(""); err == nil {
		t.Error("an empty text is encoded")
	}
	if _, err := EncodeQR(strings.Repeat("A", maxQRText+1)); err == nil {
		t.Error("too long a text is encoded")
	}
	for _, text := range []string{strings.Repeat("A", maxQRText), strings.Repeat("a", maxQRText)} {
		if _, err := EncodeQR(text); err != nil {
			t.Errorf("the longest text: %v", err)
		}
		if _, err := RenderTerminal(text); err == nil || !strings.Contains(err.Error(), "picture") {
			t.Errorf("the longest text on a terminal: %v", err)
		}
	}
	if _, err := RenderTerminal(""); err == nil {
		t.Error("an empty text is drawn")
	}
	if err := WritePNG(&bytes.Buffer{}, ""); err == nil {
		t.Error("an empty text is written")
	}
	full := errors.New("disk full")
	if err := WritePNG(failingWriter{full}, "A"); !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }
