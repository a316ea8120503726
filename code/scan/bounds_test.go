package scan_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/code/scan"
)

// pngHeader is a PNG file that claims a size and has no pixels.
func pngHeader(width, height uint32) []byte {
	chunk := append([]byte("IHDR"), binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, width), height)...)
	chunk = append(chunk, 8, 0, 0, 0, 0)
	out := append([]byte("\x89PNG\r\n\x1a\n"), 0, 0, 0, 13)
	out = append(out, chunk...)
	return binary.BigEndian.AppendUint32(out, crc32.ChecksumIEEE(chunk))
}

func encodePNG(t testing.TB, img image.Image) []byte {
	t.Helper()
	var file bytes.Buffer
	if err := png.Encode(&file, img); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

func TestWhatIsNoCodeIsToldApart(t *testing.T) {
	broken := errors.New("broken")
	var jpg bytes.Buffer
	if err := jpeg.Encode(&jpg, image.NewGray(image.Rect(0, 0, 64, 64)), nil); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		file io.Reader
		want error
	}{
		"empty":                   {strings.NewReader(""), scan.ErrFormat},
		"text":                    {strings.NewReader("abandon ability"), scan.ErrFormat},
		"a GIF":                   {strings.NewReader("GIF89a\x01\x00\x01\x00"), scan.ErrFormat},
		"PNG without pixels":      {bytes.NewReader(pngHeader(10, 10)), scan.ErrFormat},
		"PNG of no width":         {bytes.NewReader(pngHeader(0, 10)), scan.ErrFormat},
		"PNG too large":           {bytes.NewReader(pngHeader(5001, 5000)), scan.ErrTooLarge},
		"PNG as large as can be":  {bytes.NewReader(pngHeader(1<<31-1, 100)), scan.ErrTooLarge},
		"file too long":           {io.MultiReader(bytes.NewReader(jpg.Bytes()), zeros{}), scan.ErrTooLarge},
		"JPEG cut off":            {bytes.NewReader(jpg.Bytes()[:jpg.Len()/2]), scan.ErrFormat},
		"JPEG without a code":     {bytes.NewReader(jpg.Bytes()), scan.ErrNotFound},
		"one pixel":               {bytes.NewReader(encodePNG(t, image.NewGray(image.Rect(0, 0, 1, 1)))), scan.ErrNotFound},
		"one line of 3000 pixels": {bytes.NewReader(encodePNG(t, image.NewGray(image.Rect(0, 0, 3000, 1)))), scan.ErrNotFound},
		"a reader that fails":     {iotest.ErrReader(broken), broken},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if text, err := scan.Image(tt.file); !errors.Is(err, tt.want) || text != "" {
				t.Errorf("got %q, %v; want %v", text, err, tt.want)
			}
		})
	}
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestTransparentPictureIsReadOnWhite(t *testing.T) {
	c := randomCode(t, 1)
	m, err := c.QR()
	if err != nil {
		t.Fatal(err)
	}
	img := image.NewNRGBA(image.Rect(0, 0, (m.Size()+8)*5, (m.Size()+8)*5))
	for y := range img.Rect.Dy() {
		for x := range img.Rect.Dx() {
			if m.Dark(x/5-4, y/5-4) {
				img.Set(x, y, color.Black)
			}
		}
	}
	if got, err := scan.Image(bytes.NewReader(encodePNG(t, img))); err != nil || got != c.URI() {
		t.Errorf("got %d characters, %v", len(got), err)
	}
}

func TestCodeCroppedToItsEdgeIsRead(t *testing.T) {
	c := randomCode(t, 2)
	m, err := c.QR()
	if err != nil {
		t.Fatal(err)
	}
	img := image.NewGray(image.Rect(0, 0, m.Size()*4, m.Size()*4))
	for y := range img.Rect.Dy() {
		for x := range img.Rect.Dx() {
			if !m.Dark(x/4, y/4) {
				img.SetGray(x, y, color.Gray{Y: 255})
			}
		}
	}
	if got, err := scan.Image(bytes.NewReader(encodePNG(t, img))); err != nil || got != c.URI() {
		t.Errorf("got %d characters, %v", len(got), err)
	}
}

func FuzzImage(f *testing.F) {
	for _, text := range []string{"KITH:1/AEAA", "kith:1#AQ", strings.Repeat("A", 200)} {
		m, err := code.EncodeQR(text)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(encodePNG(f, m.Image(2))) // small enough to be fuzzed
	}
	var jpg bytes.Buffer
	if err := jpeg.Encode(&jpg, image.NewGray(image.Rect(0, 0, 40, 40)), nil); err != nil {
		f.Fatal(err)
	}
	f.Add(jpg.Bytes())
	f.Add(pngHeader(30, 30))
	f.Fuzz(func(t *testing.T, file []byte) {
		config, _, err := image.DecodeConfig(bytes.NewReader(file))
		if err == nil && config.Width > 1<<14/max(config.Height, 1) {
			t.Skip("allowed, but too slow to fuzz")
		}
		text, err := scan.Image(bytes.NewReader(file))
		if (text == "") != (err != nil) {
			t.Errorf("got %q and %v", text, err)
		}
	})
}

// FuzzPixels gives the decoder pictures that are near a code, which random
// files never are.
func FuzzPixels(f *testing.F) {
	m, err := code.EncodeQR("KITH:1/AEAAAAAAAAAAAAAAAAAAAAAAAAAA")
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{}, uint16(0))
	f.Add(bytes.Repeat([]byte{0xff}, 40), uint16(100))
	f.Fuzz(func(t *testing.T, flips []byte, from uint16) {
		img := m.Image(1).(*image.Paletted)
		for i, b := range flips {
			at := (int(from) + i) * 8
			for bit := range 8 {
				if b>>bit&1 == 1 && at+bit < len(img.Pix) {
					img.Pix[at+bit] ^= 1
				}
			}
		}
		text, err := scan.Image(bytes.NewReader(encodePNG(t, img)))
		if (text == "") != (err != nil) {
			t.Errorf("got %q and %v", text, err)
		}
	})
}

func BenchmarkImage(b *testing.B) {
	var file bytes.Buffer
	if err := code.WritePNG(&file, "KITH:1/AEAAAAAAAAAAAAAAAAAAAAAAAAAA"); err != nil {
		b.Fatal(err)
	}
	photo := image.NewGray(image.Rect(0, 0, 4000, 3000))
	for i := range photo.Pix { // stripes and dots that look like a code everywhere
		photo.Pix[i] = byte(i/7%2*i/12000%2) * 255
	}
	for name, raw := range map[string][]byte{"own PNG": file.Bytes(), "12 megapixels without a code": encodePNG(b, photo)} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := scan.Image(bytes.NewReader(raw)); err != nil && !errors.Is(err, scan.ErrNotFound) {
					b.Fatal(err)
				}
			}
		})
	}
}

// A picture of nothing but corners made the decoder compare all triples of
// them: 300 pixels took 7 seconds, 1000 would have taken hours.
func TestPictureFullOfCornersIsGivenUpSoon(t *testing.T) {
	const side, corner = 1000, 9
	img := image.NewGray(image.Rect(0, 0, side, side))
	for y := range side {
		for x := range side {
			u, v := x%corner-3, y%corner-3
			ring := max(u, -u, v, -v)
			if ring != 0 && ring != 1 && ring != 3 {
				img.Pix[y*side+x] = 255
			}
		}
	}
	file, start := encodePNG(t, img), time.Now()
	if _, err := scan.Image(bytes.NewReader(file)); !errors.Is(err, scan.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("took %v", took)
	}
}
