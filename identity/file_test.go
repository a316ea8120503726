package identity

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

func seeds(t testing.TB) *Identity {
	t.Helper()
	id, err := FromSeeds([32]byte{0: 1, 31: 2}, [32]byte{0: 3, 31: 4})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// privateDir returns a directory that Open accepts, which t.TempDir is not.
func privateDir(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t testing.TB, dir string, raw []byte, mode fs.FileMode) string {
	t.Helper()
	path := filepath.Join(dir, KeyFile)
	if err := os.WriteFile(path, raw, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
	return path
}

func same(a, b *Identity) bool {
	return a.ID() == b.ID() && a.WireGuardPrivate() == b.WireGuardPrivate()
}

func TestOpenMakesAnIdentityOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "state")
	first, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	second, err := Open(dir)
	if err != nil || !same(first, second) {
		t.Fatalf("the second time another identity, %v", err)
	}
	again, err := os.ReadFile(filepath.Join(dir, KeyFile))
	if err != nil || !bytes.Equal(raw, again) {
		t.Errorf("the key file has changed, %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("files left over: %v, %v", entries, err)
	}
	other, err := Open(privateDir(t))
	if err != nil || other.ID() == first.ID() {
		t.Errorf("another directory has the same identity, %v", err)
	}
	if runtime.GOOS == "windows" {
		return
	}
	for path, want := range map[string]fs.FileMode{dir: 0o700, filepath.Join(dir, KeyFile): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
}

func TestOpenAtOnceGivesOneIdentity(t *testing.T) {
	dir := privateDir(t)
	var all [8]*Identity
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() {
			id, err := Open(dir)
			if err != nil {
				t.Error(err)
				return
			}
			all[i] = id
		})
	}
	wg.Wait()
	for _, id := range all {
		if id == nil || !same(id, all[0]) {
			t.Fatal("two identities")
		}
	}
}

func TestOpenRefusesWhatOthersCanGetAt(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no such modes")
	}
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o666, 0o777, 0o700} {
		t.Run(fmt.Sprintf("file %o", mode), func(t *testing.T) {
			dir := privateDir(t)
			path := write(t, dir, seeds(t).keyFile(), mode)
			checkRefused(t, dir, path, mode, 0o600)
		})
	}
	for _, mode := range []fs.FileMode{0o750, 0o705, 0o755, 0o777, 0o710, 0o701} {
		t.Run(fmt.Sprintf("directory %o", mode), func(t *testing.T) {
			dir := privateDir(t)
			write(t, dir, seeds(t).keyFile(), 0o600)
			if err := os.Chmod(dir, mode); err != nil {
				t.Fatal(err)
			}
			checkRefused(t, dir, dir, mode, 0o700)
		})
	}
	t.Run("narrower modes are fine", func(t *testing.T) {
		dir := privateDir(t)
		write(t, dir, seeds(t).keyFile(), 0o400)
		if err := os.Chmod(dir, 0o500); err != nil {
			t.Fatal(err)
		}
		if id, err := Open(dir); err != nil || !same(id, seeds(t)) {
			t.Errorf("got %v", err)
		}
	})
}

// checkRefused opens dir, then does what the hint says, and opens it again.
func checkRefused(t *testing.T, dir, path string, mode, want fs.FileMode) {
	t.Helper()
	_, err := Open(dir)
	var e *PermissionError
	if !errors.As(err, &e) || e.Path != path || e.Mode != mode || e.Want != want || !errors.Is(err, fs.ErrPermission) {
		t.Fatalf("got %v", err)
	}
	if hint := fmt.Sprintf("run: chmod %o %q", want, path); e.Hint() != hint || strings.Contains(e.Error(), "\n") {
		t.Errorf("got %q and %q, want the hint %q", e.Error(), e.Hint(), hint)
	}
	if err := os.Chmod(path, e.Want); err != nil {
		t.Fatal(err)
	}
	if id, err := Open(dir); err != nil || !same(id, seeds(t)) {
		t.Errorf("after the hint: %v", err)
	}
}

func TestDamagedKeyFileIsReportedAndLeftAlone(t *testing.T) {
	whole := string(seeds(t).keyFile())
	lines := strings.SplitAfter(whole, "\n")
	tests := map[string]string{
		"empty":              "",
		"only the comment":   lines[0],
		"zeros, as ext4 can": strings.Repeat("\x00", len(whole)),
		"another file":       "-----BEGIN OPENSSH PRIVATE KEY-----\n",
		"a line missing":     lines[0] + lines[1] + lines[2] + lines[4],
		"lines swapped":      lines[0] + lines[1] + lines[3] + lines[2] + lines[4],
		"a line twice":       whole + lines[4],
		"version 1 line off": lines[0] + "kith identity one\n" + lines[2] + lines[3] + lines[4],
		"short key":          strings.Replace(whole, "ed25519 01", "ed25519 ", 1),
		"long key":           strings.Replace(whole, "ed25519 01", "ed25519 0101", 1),
		"not hexadecimal":    strings.Replace(whole, "ed25519 01", "ed25519 0g", 1),
		"no check":           strings.Join(lines[:4], ""),
		"empty check":        strings.Join(lines[:4], "") + "check \n",
		"too long":           whole + strings.Repeat("#\n", maxKeyFile),
	}
	for name, text := range tests {
		t.Run(name, func(t *testing.T) {
			dir := privateDir(t)
			path := write(t, dir, []byte(text), 0o600)
			if id, err := Open(dir); id != nil || err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v", err)
			} else if !errors.Is(err, ErrKeyFile) && !strings.Contains(err.Error(), "another version") {
				t.Errorf("got %v", err)
			}
			if raw, err := os.ReadFile(path); err != nil || string(raw) != text {
				t.Errorf("the file has changed, %v", err)
			}
		})
	}
}

func TestKeyFileOfALaterVersionIsToldApart(t *testing.T) {
	_, err := parseKeyFile([]byte("kith identity 2\nsomething\n"))
	if err == nil || errors.Is(err, ErrKeyFile) || !strings.Contains(err.Error(), "update kith") {
		t.Errorf("got %v", err)
	}
}

func TestEveryFlippedBitAndEveryCutIsSeen(t *testing.T) {
	id := seeds(t)
	whole := id.keyFile()
	start := bytes.Index(whole, []byte(keyFileVersion))
	for i := start; i < len(whole); i++ {
		for bit := range 8 {
			bad := bytes.Clone(whole)
			bad[i] ^= 1 << bit
			// Case of a digit, kind of line end and trailing bytes of it do not matter.
			if got, err := parseKeyFile(bad); err == nil && !same(got, id) {
				t.Fatalf("bit %d of byte %d makes another device", bit, i)
			}
		}
		if got, err := parseKeyFile(whole[:i]); err == nil && i < len(whole)-1 {
			t.Fatalf("the first %d bytes are a device, %v", i, got.ID())
		}
	}
}

func TestKeyFileSurvivesEditors(t *testing.T) {
	id := seeds(t)
	whole := string(id.keyFile())
	for name, text := range map[string]string{
		"as written":        whole,
		"CRLF":              strings.ReplaceAll(whole, "\n", "\r\n"),
		"no last line end":  strings.TrimSuffix(whole, "\n"),
		"another comment":   "# of my desk\n\n" + whole[strings.Index(whole, "\n")+1:],
		"comment taken out": whole[strings.Index(whole, "\n")+1:],
	} {
		if got, err := parseKeyFile([]byte(text)); err != nil || !same(got, id) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestKeyFileWithoutHardLinks(t *testing.T) {
	dir := privateDir(t)
	path := filepath.Join(dir, KeyFile)
	noLinks := func(string, string) error { return errors.ErrUnsupported }
	if err := store(path, seeds(t), noLinks); err != nil {
		t.Fatal(err)
	}
	if id, err := Open(dir); err != nil || !same(id, seeds(t)) {
		t.Errorf("got %v", err)
	}
	other, err := Generate()
	if err != nil {
		t.Fatal(err)
	}
	for name, link := range map[string]func(string, string) error{"links": os.Link, "no links": noLinks} {
		if err := store(path, other, link); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: stored over the other: %v", name, err)
		}
	}
	if id, err := Open(dir); err != nil || !same(id, seeds(t)) {
		t.Errorf("got %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("files left over: %v, %v", entries, err)
	}
}

func TestOpenOnWhatIsNoDirectoryOrFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, filepath.Join(file, "below"), ""} {
		if _, err := Open(dir); err == nil {
			t.Errorf("%q is opened", dir)
		}
	}
	dir := privateDir(t)
	if err := os.Mkdir(filepath.Join(dir, KeyFile), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); !errors.Is(err, ErrKeyFile) {
		t.Errorf("a directory in place of the key file: %v", err)
	}
}

func TestOpenFollowsALinkToTheKeyFile(t *testing.T) {
	elsewhere, dir := privateDir(t), privateDir(t)
	path := write(t, elsewhere, seeds(t).keyFile(), 0o600)
	if err := os.Symlink(path, filepath.Join(dir, KeyFile)); err != nil {
		t.Skip("no symbolic links here: ", err)
	}
	if id, err := Open(dir); err != nil || !same(id, seeds(t)) {
		t.Errorf("got %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	// The link leads nowhere: making a second identity would hide that.
	if _, err := Open(dir); err == nil {
		t.Error("a link that leads nowhere is replaced")
	}
}

func TestOpenInAReadOnlyDirectorySaysSo(t *testing.T) {
	writable := privateDir(t)
	asUser(t, writable, func() { // so that the mode alone makes the difference
		if _, err := Open(writable); err != nil {
			t.Error(err)
		}
	})
	dir := privateDir(t)
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	asUser(t, dir, func() {
		if _, err := Open(dir); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("got %v", err)
		}
	})
}

func FuzzKeyFile(f *testing.F) {
	f.Add(seeds(f).keyFile())
	f.Add([]byte("kith identity 1\ned25519 \nx25519 \ncheck \n"))
	f.Add([]byte("kith identity 2\n"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		id, err := parseKeyFile(raw)
		if (id == nil) != (err != nil) {
			t.Fatalf("got %v", err)
		}
		if err != nil {
			return
		}
		again, err := parseKeyFile(id.keyFile())
		if err != nil || !same(again, id) {
			t.Fatalf("does not come back: %v", err)
		}
	})
}
