package code

import (
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"log/slog"
	"strings"

	"rsc.io/qr/coding"
)

const (
	// quietZone is the light margin around a QR code, in modules (ISO/IEC 18004
	// section 6.3.8).
	quietZone = 4
	// maxTerminalSize is the side of the largest QR code that RenderTerminal
	// draws, in modules: version 8, which with its margin takes 57 columns and
	// 29 lines.
	maxTerminalSize = 17 + 4*8
	// pngScale is the side of a module in a PNG picture, in pixels: the readers
	// of phones and of package scan are sure of it, and it makes no picture
	// wider than 1500 pixels.
	pngScale = 8
	// maxQRText is the longest text of a QR code, in bytes: a frame carried by hand.
	maxQRText = 2400
)

// A Matrix is a QR code (ISO/IEC 18004) as a square of modules, without the
// light margin. Printing one prints "redacted", as it holds a code.
type Matrix struct {
	size int
	dark []bool
}

// QR returns the QR code of URI. It errs with ErrNone if the code is a number
// or the zero Code, which have no URI.
func (c Code) QR() (*Matrix, error) {
	uri := c.URI()
	if uri == "" {
		return nil, fmt.Errorf("%w that a QR code can hold", ErrNone)
	}
	return EncodeQR(uri)
}

// EncodeQR returns the smallest QR code that holds text with error correction
// level M, or level L if only that fits a terminal; what the version leaves
// room for goes into a higher level. It errs if text is empty or over 2400
// bytes.
func EncodeQR(text string) (*Matrix, error) {
	if text == "" || len(text) > maxQRText {
		return nil, fmt.Errorf("code: a QR code holds 1 to %d bytes here, not %d", maxQRText, len(text))
	}
	var enc coding.Encoding = coding.Alpha(text)
	if enc.Check() != nil {
		enc = coding.String(text)
	}
	version, err := qrVersion(enc, coding.M)
	if size := 17 + 4*int(version); err != nil || size > maxTerminalSize {
		if version, err = qrVersion(enc, coding.L); err != nil {
			return nil, err
		}
	}
	level := coding.H
	for level > coding.L && enc.Bits(version) > version.DataBytes(level)*8 {
		level--
	}
	var best *Matrix
	least := 0
	for mask := coding.Mask(0); mask < 8; mask++ {
		plan, err := coding.NewPlan(version, level, mask)
		if err != nil {
			return nil, fmt.Errorf("code: plan QR code: %w", err)
		}
		drawn, err := plan.Encode(enc)
		if err != nil {
			return nil, fmt.Errorf("code: encode QR code: %w", err)
		}
		m := &Matrix{size: drawn.Size, dark: make([]bool, 0, drawn.Size*drawn.Size)}
		for y := range drawn.Size {
			for x := range drawn.Size {
				m.dark = append(m.dark, drawn.Black(x, y))
			}
		}
		if p := m.penalty(); best == nil || p < least {
			best, least = m, p
		}
	}
	return best, nil
}

// qrVersion returns the smallest version that holds enc at a level.
func qrVersion(enc coding.Encoding, level coding.Level) (coding.Version, error) {
	for v := coding.Version(coding.MinVersion); v <= coding.MaxVersion; v++ {
		if enc.Bits(v) <= v.DataBytes(level)*8 {
			return v, nil
		}
	}
	return coding.MaxVersion, errors.New("code: text too long for a QR code")
}

// penalty scores how hard the matrix is to read (ISO/IEC 18004 section 7.8.3);
// of the eight masks the one with the lowest score is used.
func (m *Matrix) penalty() int {
	score, darkCount := 0, 0
	for a := range m.size {
		score += linePenalty(m.size, func(b int) bool { return m.Dark(b, a) })
		score += linePenalty(m.size, func(b int) bool { return m.Dark(a, b) })
		for b := range m.size {
			d := m.Dark(a, b)
			if d {
				darkCount++
			}
			if a > 0 && b > 0 && d == m.Dark(a-1, b) && d == m.Dark(a, b-1) && d == m.Dark(a-1, b-1) {
				score += 3
			}
		}
	}
	off := darkCount*20 - m.size*m.size*10 // in 1/20 of all modules, from one half
	return score + max(off, -off)/(m.size*m.size)*10
}

// linePenalty scores a row or column: 3 and more for each run of 5 and more
// modules of one colour, 40 for each 1:1:3:1:1 with 4 light modules beside it,
// which looks like a corner.
func linePenalty(size int, dark func(int) bool) int {
	score, run := 0, 0
	window := 0 // the last 11 modules, 1 is dark
	for i := range size {
		if i > 0 && dark(i) == dark(i-1) {
			run++
		} else {
			run = 1
		}
		switch {
		case run == 5:
			score += 3
		case run > 5:
			score++
		}
		window = window << 1 & 0x7ff
		if dark(i) {
			window |= 1
		}
		if i >= 10 && (window == 0b10111010000 || window == 0b00001011101) {
			score += 40
		}
	}
	return score
}

// Size returns the number of modules on a side, 21 to 177.
func (m *Matrix) Size() int { return m.size }

// Dark reports whether the module in column x of row y, both from 0, is dark.
// Everything outside the matrix is light.
func (m *Matrix) Dark(x, y int) bool {
	return x >= 0 && y >= 0 && x < m.size && y < m.size && m.dark[y*m.size+x]
}

// Terminal returns lines of half blocks, two modules one above the other in a
// cell, with the margin. Colours are set (entries 16 and 231 of the 256-colour
// palette, which themes leave alone), so that it is dark on light whatever the
// terminal's background.
func (m *Matrix) Terminal() string {
	const darkOnLight, reset = "\x1b[38;5;16;48;5;231m", "\x1b[0m\n"
	var out strings.Builder
	for y := -quietZone; y < m.size+quietZone; y += 2 {
		out.WriteString(darkOnLight)
		for x := -quietZone; x < m.size+quietZone; x++ {
			switch upper, lower := m.Dark(x, y), m.Dark(x, y+1); {
			case upper && lower:
				out.WriteString("█")
			case upper:
				out.WriteString("▀")
			case lower:
				out.WriteString("▄")
			default:
				out.WriteByte(' ')
			}
		}
		out.WriteString(reset)
	}
	return out.String()
}

// Image returns the matrix with its margin in black and white, scale pixels to
// a module; a scale below 1 counts as 1.
func (m *Matrix) Image(scale int) image.Image {
	scale = max(scale, 1)
	side := (m.size + 2*quietZone) * scale
	img := image.NewPaletted(image.Rect(0, 0, side, side), color.Palette{color.White, color.Black})
	for y := range side {
		for x := range side {
			if m.Dark(x/scale-quietZone, y/scale-quietZone) {
				img.Pix[y*img.Stride+x] = 1
			}
		}
	}
	return img
}

// String returns "redacted".
func (m *Matrix) String() string { return redacted }

// GoString returns "redacted".
func (m *Matrix) GoString() string { return redacted }

// LogValue returns "redacted".
func (m *Matrix) LogValue() slog.Value { return slog.StringValue(redacted) }

// Format prints "redacted" for every verb.
func (m *Matrix) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// RenderTerminal returns the QR code of uri as Matrix.Terminal draws it, at
// most 57 columns and 29 lines. It errs if uri is empty or does not fit; every
// URI of a Code that New made fits.
func RenderTerminal(uri string) (string, error) {
	m, err := EncodeQR(uri)
	if err != nil {
		return "", err
	}
	if m.size > maxTerminalSize {
		return "", fmt.Errorf("code: a QR code of %d modules does not fit a terminal of 80x30, save it as a picture", m.size)
	}
	return m.Terminal(), nil
}

// WritePNG writes the QR code of uri to w as a PNG picture. It errs if uri is
// empty or over 2400 bytes, or if w fails.
func WritePNG(w io.Writer, uri string) error {
	m, err := EncodeQR(uri)
	if err != nil {
		return err
	}
	enc := png.Encoder{CompressionLevel: png.BestCompression}
	if err := enc.Encode(w, m.Image(pngScale)); err != nil {
		return fmt.Errorf("code: write PNG: %w", err)
	}
	return nil
}
