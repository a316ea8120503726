package chat

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
)

// TestFolder does the same with a folder and with a disk of the tests.
func TestFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "chat")
	folder, err := openFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string]disk{"folder": folder, "memory": newMemDisk(1)} {
		buf := make([]byte, 10)
		if _, err := d.ReadAt("a", buf, 0); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a file that is not there: %v", name, err)
		}
		step := func(what string, err error) {
			t.Helper()
			if err != nil {
				t.Fatalf("%s: %s: %v", name, what, err)
			}
		}
		step("make", d.WriteAt("a", []byte("hello"), 0, true))
		step("append", d.WriteAt("a", []byte(" world"), 5, false))
		step("cut and append", d.WriteAt("a", []byte("!"), 5, true))
		n, err := d.ReadAt("a", buf, 1)
		if err != nil || string(buf[:n]) != "ello!" {
			t.Errorf("%s: read %q, %v", name, buf[:n], err)
		}
		if n, err = d.ReadAt("a", buf, 100); n != 0 || err != nil {
			t.Errorf("%s: read %d bytes after the end, %v", name, n, err)
		}
		step("another", d.WriteAt("b", bytes.Repeat([]byte("x"), 20), 0, true))
		step("rename", d.Rename("b", "a"))
		if n, err = d.ReadAt("a", buf, 0); n != 10 || err != nil || buf[0] != 'x' {
			t.Errorf("%s: read %q, %v", name, buf[:n], err)
		}
		if names, err := d.List(); err != nil || !slices.Equal(names, []string{"a"}) {
			t.Errorf("%s: %q, %v", name, names, err)
		}
		step("remove", d.Remove("a"))
		step("remove again", d.Remove("a"))
		step("make again", d.WriteAt("a", []byte("x"), 0, true))
	}
	if runtime.GOOS == "windows" {
		return // modes are those of the folder's owner there
	}
	for path, want := range map[string]fs.FileMode{dir: 0o700, filepath.Join(dir, "a"): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
	if _, err := openFolder(filepath.Join(dir, "a", "b")); err == nil {
		t.Error("a folder in a file")
	}
}
