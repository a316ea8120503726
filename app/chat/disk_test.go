package chat

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
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
	if err := folder.WriteAt("c", []byte("x"), -1, true); err == nil { // made, and not written
		t.Error("written at -1")
	}
	if _, err := folder.ReadAt("c", make([]byte, 1), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file of which nobody knows whether its name is durable stays: %v", err)
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

// TestDamagedTwice damages a file, and later again: what was cut off is kept aside, all of
// it and once.
func TestDamagedTwice(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, l *lab) {
		a, c := l.nodes[0], l.pair(0, 1)
		name := c.String() + vaultExt
		var want []byte
		for range 2 {
			a.start()
			for i := range 40 {
				a.send(t, c, fmt.Sprint(i, strings.Repeat("x", 4000)))
			}
			a.stop()
			at := len(vaultMagic) + 1000
			a.disk.now[name] = slices.Clone(a.disk.now[name])
			a.disk.now[name][at] ^= 1
			want = append(want, a.disk.now[name][len(vaultMagic):]...)
			for range 2 {
				a.start()
				if got := a.texts(t, c); len(got) != 0 {
					t.Errorf("%d lines are left", len(got))
				}
				a.stop()
			}
		}
		if got := a.disk.now[name+damagedExt]; !bytes.Equal(got, want) {
			t.Errorf("%d bytes are kept aside, want %d", len(got), len(want))
		}
	})
}
