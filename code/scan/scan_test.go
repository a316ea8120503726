package scan_test

import (
	"bytes"

	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"math"
	"math/rand/v2"
	"net/netip"

	"testing"
	"time"

	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/code/scan"
)

var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// randomCode makes a code with some endpoints and hints, of a fixed seed.
func randomCode(t *testing.T, seed uint64) code.Code {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	var raw [32]byte
	for i := range raw {
		raw[i] = byte(r.Uint32())
	}
	opts := code.Options{Rand: bytes.NewReader(raw[:]), Now: now}
	if seed%2 == 0 {
		opts.Commit = [16]byte(raw[16:])
	}
	for range r.IntN(5) {
		a := netip.AddrFrom4([4]byte{192, 168, byte(r.Uint32()), byte(r.Uint32())})
		if r.IntN(2) == 0 {
			a = netip.AddrFrom16([16]byte{0: 0xfd, 1: byte(r.Uint32()), 15: byte(r.Uint32())})
		}
		opts.Endpoints = append(opts.Endpoints, netip.AddrPortFrom(a, uint16(1+r.IntN(65535))))
	}
	if seed%3 == 0 {
		opts.Hints = []string{"mqtts://broker.example:8883"}
	}
	c, err := code.New(code.MethodQR, opts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func count(full int) int {
	if testing.Short() {
		return max(full/10, 2)
	}
	return full
}

func TestEveryPNGOfWritePNGIsRead(t *testing.T) {
	for seed := range uint64(count(300)) {
		c := randomCode(t, seed)
		var file bytes.Buffer
		if err := code.WritePNG(&file, c.URI()); err != nil {
			t.Fatal(err)
		}
		got, err := scan.Image(&file)
		if err != nil || got != c.URI() {
			t.Errorf("seed %d: got %d characters, %v; want %d", seed, len(got), err, len(c.URI()))
		}
	}
}

// A picture of a code as a camera or a screenshot makes it.
type shot struct {
	scale   float64 // pixels to a module
	angle   float64 // degrees
	shear   float64 // part of the height that leans to the right
	dark    uint8   // grey of dark modules
	light   uint8   // grey of light modules
	noise   int     // greatest deviation of a pixel
	shade   int     // how much darker the right edge is
	margin  int     // pixels of background around
	quality int     // of JPEG; 0 = PNG
}

// take draws the code.
func (s shot) take(t *testing.T, c code.Code, seed uint64) []byte {
	t.Helper()
	m, err := c.QR()
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(seed, 2))
	side := int(float64(m.Size()+8)*s.scale*1.5) + 2*s.margin
	img := image.NewGray(image.Rect(0, 0, side, side))
	sin, cos := math.Sincos(s.angle * math.Pi / 180)
	const sub = 3 // samples to a pixel and direction
	for y := range side {
		for x := range side {
			sum := 0
			for i := range sub * sub {
				px := float64(x) + (float64(i%sub)+.5)/sub - float64(side)/2
				py := float64(y) + (float64(i/sub)+.5)/sub - float64(side)/2
				px -= s.shear * py
				mx := (px*cos+py*sin)/s.scale + float64(m.Size())/2
				my := (py*cos-px*sin)/s.scale + float64(m.Size())/2
				grey := int(s.light)
				if m.Dark(int(math.Floor(mx)), int(math.Floor(my))) {
					grey = int(s.dark)
				}
				sum += grey
			}
			grey := sum/(sub*sub) - s.shade*x/side
			if s.noise > 0 {
				grey += r.IntN(2*s.noise+1) - s.noise
			}
			img.SetGray(x, y, color.Gray{Y: uint8(max(0, min(255, grey)))})
		}
	}
	var file bytes.Buffer
	if s.quality > 0 {
		err = jpeg.Encode(&file, img, &jpeg.Options{Quality: s.quality})
	} else {
		err = png.Encode(&file, img)
	}
	if err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

func TestPhotosAndScreenshotsAreRead(t *testing.T) {
	tests := map[string]shot{
		"screenshot, 3 pixels a module":     {scale: 3, light: 255},
		"screenshot, not a whole scale":     {scale: 4.37, light: 255},
		"screenshot at 125 percent":         {scale: 10, light: 240, dark: 16},
		"light on dark":                     {scale: 6, light: 20, dark: 230},
		"photo, slightly turned":            {scale: 7, angle: 4, light: 225, dark: 40, noise: 12, quality: 80},
		"photo, turned by a quarter":        {scale: 7, angle: 90, light: 225, dark: 40, noise: 12, quality: 80},
		"photo, turned by 30 degrees":       {scale: 7, angle: 30, light: 225, dark: 40, noise: 12, quality: 80},
		"photo, upside down":                {scale: 7, angle: 183, light: 225, dark: 40, noise: 12, quality: 80},
		"photo, from the side":              {scale: 8, angle: 5, shear: .15, light: 225, dark: 40, noise: 12, quality: 80},
		"photo, uneven light, low contrast": {scale: 9, angle: 3, light: 200, dark: 110, noise: 8, shade: 60, quality: 70},
		"photo, far away":                   {scale: 5, angle: 2, light: 225, dark: 40, noise: 10, margin: 500, quality: 80},
	}
	for name, s := range tests {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(count(6)) {
				c := randomCode(t, seed)
				if got, err := scan.Image(bytes.NewReader(s.take(t, c, seed))); err != nil || got != c.URI() {
					t.Errorf("seed %d: got %d characters, %v", seed, len(got), err)
				}
			}
		})
	}
}
