package cli

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/kithproject/kith/app/mail"
	"github.com/kithproject/kith/internal/control"
)

// keepMail keeps letters for paired devices if the settings say so.
func (e *env) keepMail(srv *control.Server) error {
	dir, err := e.dir()
	if err != nil {
		return err
	}
	s, err := loadSettings(dir)
	if err != nil || !s.Mail {
		return err
	}
	return srv.KeepMail()
}

// showMail writes what waits where: a line per keeper that keeps mail or should, and one
// for what this device keeps.
func showMail(w io.Writer, m *control.Mail) {
	if m == nil {
		return
	}
	for _, k := range m.Keepers {
		var line string
		switch {
		case k.Off && !k.Device.IsZero():
			continue // most devices do not
		case k.Off:
			line = "keeps no mail (kith hub --mail)"
		case !k.Ready:
			line = "not there: " + oneLine(strings.TrimPrefix(k.Error, "mail: "))
			if k.Error == "" {
				line = "connecting"
			}
		default:
			line = mailLine(k)
		}
		fmt.Fprintf(w, "  mail at %-14s %s\n", k.Name, line)
	}
	if m.Kept != nil {
		fmt.Fprintf(w, "  keeps for others       %s, %s of %s\n", letters(m.Kept.Letters), size(uint64(m.Kept.Bytes)), size(uint64(m.Kept.MaxBytes)))
	}
}

func mailLine(k mail.PlaceStatus) string {
	if k.Sent == nil || k.Waiting == nil {
		return "does not say what it has"
	}
	line := fmt.Sprintf("%s of this device, %s for it", letters(k.Sent.Letters), letters(k.Waiting.Letters))
	if k.Error != "" {
		line += "; the last was not taken: " + oneLine(strings.TrimPrefix(k.Error, "mail: "))
	}
	return line
}

func letters(n int) string {
	if n == 1 {
		return "1 letter"
	}
	return strconv.Itoa(n) + " letters"
}

// A byteSize is a flag with a number of bytes: 500MB, 1GiB, 1048576.
type byteSize int64

// Set reads a size.
func (b *byteSize) Set(text string) error {
	n, err := parseSize(text)
	*b = byteSize(n)
	return err
}

// String writes the size so that Set reads it.
func (b *byteSize) String() string {
	n := int64(*b)
	for _, u := range []struct {
		name string
		size int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.size && n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// Type is what help calls it.
func (*byteSize) Type() string { return "size" }

// parseSize reads a number of bytes with or without a unit.
func parseSize(text string) (int64, error) {
	digits := strings.TrimRight(text, "KMGTiB")
	factor := map[string]int64{
		"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
		"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40,
	}[text[len(digits):]]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || factor == 0 || n <= 0 || n > (1<<50)/factor {
		return 0, fmt.Errorf("%q is not a size: such as 500MB or 1GiB", text)
	}
	return n * factor, nil
}
