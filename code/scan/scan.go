// Package scan reads QR codes from pictures: a photo or a screenshot of the
// code that another device shows. It is apart from package code so that only
// programs that read pictures carry the picture and character set decoders.
//
// A picture is untrusted: its size is bounded before it is decoded, and so are
// the attempts to find a code in it.
package scan

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/jpeg"
	"image/png"
	"io"

	"github.com/makiuchi-d/gozxing"
	"github.com/makiuchi-d/gozxing/qrcode"
)

const (
	// MaxFile is the largest picture file that Image reads, in bytes.
	MaxFile = 32 << 20
	// MaxPixels is the largest area of a picture, in pixels: a photo of 24
	// megapixels. Decoding one takes up to 300 MB for a moment.
	MaxPixels = 25_000_000
)

var (
	// ErrFormat reports bytes that are not a PNG or JPEG picture.
	ErrFormat = errors.New("scan: not a PNG or JPEG picture")
	// ErrTooLarge reports a picture over MaxFile or MaxPixels.
	ErrTooLarge = errors.New("scan: the picture is too large: crop it to the code")
	// ErrNotFound reports a picture in which there is no QR code that can be read.
	ErrNotFound = errors.New("scan: no QR code found: take the picture closer, straight and in focus")
)

// Image returns the text of the QR code in a PNG or JPEG picture, in whatever
// direction, also light on dark. If there are several codes it returns one of
// them. The text is as untrusted as the picture; code.Parse tells whether it is
// a code. Image errs with ErrFormat, ErrTooLarge or ErrNotFound, or as r does.
// It takes up to some seconds of one core for a large photo without a code.
func Image(r io.Reader) (string, error) {
	img, err := decode(r)
	if err != nil {
		return "", err
	}
	for _, variant := range variants(img.Bounds()) {
		for picture, try := variant(img), 0; try < len(attempts); try++ {
			if text, ok := read(picture, attempts[try]); ok {
				return text, nil
			}
		}
	}
	return "", ErrNotFound
}

// decode reads the picture within its bounds.
func decode(r io.Reader) (image.Image, error) {
	raw, err := io.ReadAll(io.LimitReader(bufio.NewReader(r), MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("scan: read picture: %w", err)
	}
	if len(raw) > MaxFile {
		return nil, ErrTooLarge
	}
	// Not image.Decode, whose formats depend on what else the program links.
	config, full := png.DecodeConfig, png.Decode
	switch {
	case bytes.HasPrefix(raw, []byte("\x89PNG\r\n\x1a\n")):
	case bytes.HasPrefix(raw, []byte("\xff\xd8")):
		config, full = jpeg.DecodeConfig, jpeg.Decode
	default:
		return nil, ErrFormat
	}
	size, err := config(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if size.Width <= 0 || size.Height <= 0 || size.Width > MaxPixels/size.Height {
		return nil, ErrTooLarge
	}
	img, err := full(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return img, nil
}

// variants returns the sizes in which to look for a code: a decoder that fails
// at one, because edges fall between its samples, mostly succeeds at another.
// Averaging whole blocks also takes away the noise and the moiré of photos of
// screens; a margin replaces the one that cropping took away.
func variants(bounds image.Rectangle) []func(image.Image) *image.Gray {
	long := max(bounds.Dx(), bounds.Dy())
	shrunk := func(side int) func(image.Image) *image.Gray {
		return func(img image.Image) *image.Gray { return grey(img, (long+side-1)/side) }
	}
	enlarged := func(factor int) func(image.Image) *image.Gray {
		return func(img image.Image) *image.Gray { return enlarge(grey(img, 1), factor) }
	}
	switch {
	case long <= 200: // 1 to 4 pixels to a module
		return []func(image.Image) *image.Gray{enlarged(4), enlarged(3), enlarged(6)}
	case long <= 600:
		return []func(image.Image) *image.Gray{shrunk(long), enlarged(2), enlarged(3)}
	case long <= 1000:
		return []func(image.Image) *image.Gray{shrunk(long), shrunk(600), enlarged(2)}
	}
	return []func(image.Image) *image.Gray{shrunk(1000), shrunk(1600), shrunk(600)}
}

// grey averages blocks of factor x factor pixels, over white where img is
// transparent. What is left at the right and the bottom is a smaller block.
func grey(img image.Image, factor int) *image.Gray {
	b := img.Bounds()
	out := image.NewGray(image.Rect(0, 0, (b.Dx()+factor-1)/factor, (b.Dy()+factor-1)/factor))
	at := luminance(img)
	for y := range out.Rect.Dy() {
		for x := range out.Rect.Dx() {
			sum, n := uint32(0), uint32(0)
			for v := b.Min.Y + y*factor; v < min(b.Min.Y+(y+1)*factor, b.Max.Y); v++ {
				for u := b.Min.X + x*factor; u < min(b.Min.X+(x+1)*factor, b.Max.X); u++ {
					sum += at(u, v)
					n++
				}
			}
			out.Pix[y*out.Stride+x] = byte(sum / n)
		}
	}
	return out
}

// luminance returns a function for the brightness of a pixel, 0 to 255.
func luminance(img image.Image) func(x, y int) uint32 {
	switch img := img.(type) {
	case *image.YCbCr: // JPEG: it is there already
		return func(x, y int) uint32 { return uint32(img.Y[img.YOffset(x, y)]) }
	case *image.Gray:
		return func(x, y int) uint32 { return uint32(img.GrayAt(x, y).Y) }
	}
	return func(x, y int) uint32 {
		r, g, b, a := img.At(x, y).RGBA() // premultiplied with a
		return ((r+2*g+b)/4 + 0xffff - a) >> 8
	}
}

// enlarge makes img larger by factor, bilinear, so that a module edge between
// two pixels comes to lie where it was, and adds a white margin.
func enlarge(img *image.Gray, factor int) *image.Gray {
	const margin = 4 // pixels of img
	w, h := img.Rect.Dx(), img.Rect.Dy()
	pixel := func(x, y int) int {
		if x < 0 || y < 0 || x >= w || y >= h {
			return 0xff
		}
		return int(img.Pix[y*img.Stride+x])
	}
	out := image.NewGray(image.Rect(0, 0, (w+2*margin)*factor, (h+2*margin)*factor))
	unit := 2 * factor // positions are counted in parts of a pixel of img, from the middle of the first
	for y := range out.Rect.Dy() {
		v := 2*y + 1 - factor
		for x := range out.Rect.Dx() {
			u := 2*x + 1 - factor
			left, top := floorDiv(u, unit), floorDiv(v, unit)
			du, dv := u-left*unit, v-top*unit
			left, top = left-margin, top-margin
			upper := pixel(left, top)*(unit-du) + pixel(left+1, top)*du
			lower := pixel(left, top+1)*(unit-du) + pixel(left+1, top+1)*du
			out.Pix[y*out.Stride+x] = byte((upper*(unit-dv) + lower*dv) / (unit * unit))
		}
	}
	return out
}

func floorDiv(a, b int) int {
	if a < 0 {
		return -((b - 1 - a) / b)
	}
	return a / b
}

// An attempt is one way to look for a code.
type attempt struct {
	global bool // one threshold for the whole picture, better for flat pictures
	pure   bool // the picture is nothing but the code, upright
	invert bool // light on dark, as on a terminal without colours
}

var attempts = []attempt{{}, {global: true}, {global: true, pure: true}, {invert: true}, {global: true, invert: true}} //nolint:gochecknoglobals // a table

// maxCorners is how many things like the corner of a QR code a picture may
// have. The decoder compares all triples of them, so that a picture of nothing
// but corners would take it hours; photos have some dozens.
const maxCorners = 300

// read tries one attempt. The decoder is not ours and not made for hostile
// pictures, so a panic in it is a picture that cannot be read.
func read(img *image.Gray, a attempt) (text string, ok bool) {
	defer func() {
		if recover() != nil {
			text, ok = "", false
		}
	}()
	source := gozxing.NewLuminanceSourceFromImage(img)
	if a.invert {
		source = source.Invert()
	}
	binarizer := gozxing.NewHybridBinarizer(source)
	if a.global {
		binarizer = gozxing.NewGlobalHistgramBinarizer(source)
	}
	bitmap, err := gozxing.NewBinaryBitmap(binarizer)
	if err != nil {
		return "", false
	}
	corners := 0
	hints := map[gozxing.DecodeHintType]any{
		gozxing.DecodeHintType_TRY_HARDER: true,
		gozxing.DecodeHintType_NEED_RESULT_POINT_CALLBACK: gozxing.ResultPointCallback(func(gozxing.ResultPoint) {
			if corners++; corners > maxCorners {
				panic("too many corners") // the only way to stop the decoder
			}
		}),
	}
	if a.pure {
		hints[gozxing.DecodeHintType_PURE_BARCODE] = true
	}
	result, err := qrcode.NewQRCodeReader().Decode(bitmap, hints)
	if err != nil || result.GetText() == "" {
		return "", false
	}
	return result.GetText(), true
}
