package netif

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

const (
	// ResolvConf is the file that tells programs whom to ask for names (resolv.conf(5)).
	ResolvConf = "/etc/resolv.conf"
	// keptSuffix is added to the name of the former file.
	keptSuffix = ".before-kith"
	// maxResolvConf is how much of such a file is read, in bytes, and maxServers how many
	// servers programs ask, in number.
	maxResolvConf = 64 << 10
	maxServers    = 3
	// marker begins a file of ours; the run, the interface, the process, whether there was
	// a file, and a checksum of what follows the line come after it.
	marker = "# kith up --tun wrote this: "
)

// ErrEdited reports a file of ours that somebody has changed since, and which therefore
// stays as it is.
var ErrEdited = errors.New("netif: the file was changed by hand; the former one lies beside it, with " + keptSuffix)

// A resolvConf is such a file while it is ours.
type resolvConf struct {
	path string
	run  string // tells this run's file from others'
	ifi  string
	proc string // as processOf says
}

func newResolvConf(path, ifi string) *resolvConf {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never errs
	return &resolvConf{path: path, run: hex.EncodeToString(id[:]), ifi: ifi, proc: processOf(os.Getpid())}
}

func (r *resolvConf) kept() string { return r.path + keptSuffix }

// readBounded reads a file; one that is not there is nil.
func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxResolvConf+1))
	if err == nil && len(raw) > maxResolvConf {
		err = errors.New("too large")
	}
	return raw, err // not nil, even if empty
}

// A mark is what the first line of a file of ours says.
type mark struct {
	run, ifi string
	proc     string
	none     bool // there was no file before
	whole    bool // what follows is as it was written
}

// markOf reports whether a file was written here.
func markOf(raw []byte) (mark, bool) {
	line, body, _ := bytes.Cut(raw, []byte("\n"))
	rest, ours := strings.CutPrefix(string(line), marker)
	words := strings.Fields(rest)
	if !ours || len(words) != 5 {
		return mark{}, false
	}
	return mark{run: words[0], ifi: words[1], proc: words[2], none: words[3] == "none", whole: words[4] == digest(body)}, true
}

func digest(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:8])
}

// content is the file that names the server alone. Former servers do not follow it: a
// C library may ask all at once, or in turn, and theirs is not to know our names.
func (r *resolvConf) content(former []byte, none bool, server netip.Addr) []byte {
	var body bytes.Buffer
	fmt.Fprintf(&body, "# Names in .kith are those of paired devices; kith asks the former servers for\n"+
		"# all others. When it ends, the former file comes back; until then it is\n# %s\n", r.kept())
	fmt.Fprintf(&body, "nameserver %s\n", server)
	for line := range bytes.Lines(former) {
		words := bytes.Fields(line)
		if len(words) == 0 {
			continue
		}
		switch string(words[0]) {
		case "search", "domain", "options":
			fmt.Fprintf(&body, "%s\n", bytes.TrimSpace(line))
		}
	}
	was := "kept"
	if none {
		was = "none"
	}
	return append(fmt.Appendf(nil, "%s%s %s %s %s %s\n", marker, r.run, r.ifi, r.proc, was, digest(body.Bytes())), body.Bytes()...)
}

// servers returns whom a file has programs ask, at most three.
func servers(raw []byte) (out []netip.AddrPort) {
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for lines.Scan() && len(out) < maxServers {
		words := strings.Fields(lines.Text())
		if len(words) < 2 || words[0] != "nameserver" {
			continue
		}
		if addr, err := netip.ParseAddr(words[1]); err == nil && !addr.IsUnspecified() {
			out = append(out, netip.AddrPortFrom(addr.Unmap(), 53))
		}
	}
	return out
}

// names reports whether a file has programs ask a server of ours.
func names(raw []byte, server netip.Addr) bool {
	return slices.ContainsFunc(servers(raw), func(s netip.AddrPort) bool { return s.Addr() == server })
}

// take makes the file ours, and returns what it was. A file that is ours already, of a
// run that has ended, is mended first. It errs if the file cannot be written, and with
// ErrEdited if it names our server and is not as it was written here: whom it named before
// is known to the copy beside it alone, which therefore stays.
func (r *resolvConf) take(server netip.Addr) (former []byte, err error) {
	if err := mend(r.path); err != nil {
		return nil, err
	}
	if former, err = readBounded(r.path); err != nil {
		return nil, fmt.Errorf("netif: %w", err)
	}
	if m, ours := markOf(former); ours {
		if m.run == r.run {
			return nil, ErrEdited
		}
		return nil, fmt.Errorf("netif: %s is that of another kith up --tun (%s)", r.path, m.ifi)
	}
	if names(former, server) {
		return nil, ErrEdited
	}
	_, err = os.Lstat(r.path) // a link to nothing comes back, too
	text := r.content(former, errors.Is(err, fs.ErrNotExist), server)
	err = keep(r.path, r.kept())
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("netif: this user may not replace %s: %w", r.path, fs.ErrPermission)
	}
	if err != nil {
		return nil, fmt.Errorf("netif: keep %s: %w", r.path, err)
	}
	if err := replace(r.path, text); err != nil {
		_ = os.Remove(r.kept()) // it is the same as the file
		return nil, fmt.Errorf("netif: %w", err)
	}
	return former, nil
}

// keep has a second name for a file, or a copy where that cannot be. A link is kept as
// one.
func keep(path, as string) error {
	if err := os.Remove(as); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if os.Link(path, as) == nil {
		return nil
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		to, err := os.Readlink(path)
		if err != nil {
			return err
		}
		return os.Symlink(to, as)
	}
	raw, err := readBounded(path)
	if err != nil {
		return err
	}
	return writeNew(as, raw)
}

// writeNew writes a file that is whole or not there.
func writeNew(path string, raw []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // it is there only if something failed
	_, err = tmp.Write(raw)
	if err := errors.Join(err, tmp.Chmod(0o644), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// replace writes a file as writeNew does, or in place where it is a mount.
func replace(path string, raw []byte) error {
	err := writeNew(path, raw)
	if !errors.Is(err, syscall.EBUSY) {
		return err
	}
	return inPlace(path, raw)
}

// inPlace writes a file with one call.
func inPlace(path string, raw []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	return errors.Join(err, f.Truncate(int64(len(raw))), f.Sync(), f.Close())
}

// restore brings the former file back if the file is still that of a run. It errs with
// ErrEdited if it is and was changed, and if it cannot be written.
func restore(path, run string) error {
	raw, err := readBounded(path)
	if err != nil {
		return fmt.Errorf("netif: %w", err)
	}
	m, ours := markOf(raw)
	switch {
	case !ours || m.run != run: // another program has written it since
		return nil
	case !m.whole:
		return fmt.Errorf("%w: %s", ErrEdited, path)
	case m.none:
		err = os.Remove(path)
	default:
		err = bringBack(path, path+keptSuffix)
	}
	if err != nil {
		return fmt.Errorf("netif: bring the former %s back: %w", path, err)
	}
	return nil
}

func bringBack(path, kept string) error {
	if err := os.Rename(kept, path); !errors.Is(err, syscall.EBUSY) {
		return err
	}
	raw, err := readBounded(kept)
	if err != nil {
		return err
	}
	if err := inPlace(path, raw); err != nil {
		return err
	}
	return os.Remove(kept)
}

// alive reports whether the run of a mark goes on: its interface exists, or, for one in
// another network namespace, its process.
func (m *mark) alive() bool {
	if _, err := net.InterfaceByName(m.ifi); err == nil {
		return true
	}
	number, _, _ := strings.Cut(m.proc, "@")
	pid, err := strconv.Atoi(number)
	return err == nil && pid > 0 && processOf(pid) == m.proc
}

// processOf names a process that runs, by its number and when it started; "-" is none,
// or cannot be told (proc_pid_stat(5)).
func processOf(pid int) string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "-"
	}
	const state, started = 0, 19 // after the command's name
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(fields) <= started || strings.ContainsAny(fields[state], "ZX") {
		return "-"
	}
	return fmt.Sprintf("%d@%s", pid, fields[started])
}

// mend brings the former file back if the file is ours and its run has ended.
func mend(path string) error {
	raw, err := readBounded(path)
	if err != nil {
		return fmt.Errorf("netif: %w", err)
	}
	m, ours := markOf(raw)
	if !ours || m.alive() {
		return nil
	}
	return restore(path, m.run)
}

// Mend brings back what a kith that was killed together with its guard has left of
// /etc/resolv.conf. It errs if it cannot.
func Mend() error { return mend(ResolvConf) }
