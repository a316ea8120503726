package durable_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/kithproject/kith/internal/durable"
	"github.com/kithproject/kith/internal/durable/disktest"
)

// TestReplace makes each step of two writes fail, or be the last: the file has the old
// content or the new one then, and no half-written one is left but after a power cut.
func TestReplace(t *testing.T) {
	const old, next = "old content", "next"
	seen := make(map[string]bool)
	for _, cut := range []bool{false, true} {
		for n := range 5 {
			d := disktest.New()
			if err := errors.Join(durable.Replace(d, "x", []byte(old)), d.SyncDir()); err != nil {
				t.Fatal(err)
			}
			d.Fail(n)
			if cut {
				d.Cut(n)
			}
			failed := durable.Replace(d, "x", []byte(next))
			if (failed != nil) != (n < 4) {
				t.Errorf("step %d: %v", n, failed)
			}
			if files, err := d.List(); !cut && len(files) != 1 {
				t.Errorf("step %d leaves %v, %v", n, files, err)
			}
			for _, names := range []bool{false, true} {
				got, err := d.After(names, false).Read("x", 100)
				if err != nil || string(got) != old && string(got) != next {
					t.Errorf("step %d (names %v): %q, %v", n, names, got, err)
				}
				seen[string(got)] = true
			}
		}
	}
	if len(seen) != 2 {
		t.Errorf("only %v were seen", seen)
	}
}

// TestDir holds what Files promise, of a real directory.
func TestDir(t *testing.T) {
	d, err := durable.Open(filepath.Join(t.TempDir(), "a", "b"))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"one", "two"} {
		if err := durable.WriteFile(string(d), "x", []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := d.Read("x", 2); err != nil || string(got) != text[:2] {
			t.Errorf("%q, %v", got, err)
		}
	}
	if err := os.Mkdir(filepath.Join(string(d), "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	if files, err := d.List(); err != nil || len(files) != 1 || files[0] != (durable.File{Name: "x", Size: 3}) {
		t.Errorf("%v, %v", files, err)
	}
	for _, want := range []string{"x.corrupt-1", "x.corrupt-2", ""} {
		if got := durable.Aside(d, "x"); got != want {
			t.Errorf("aside as %q, want %q", got, want)
		}
		if want == "x.corrupt-1" {
			if err := durable.WriteFile(string(d), "x", nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := d.Read("x", 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read what is not there: %v", err)
	}
	if err := errors.Join(d.Remove("x"), d.Remove("x.corrupt-1"), d.SyncDir()); err != nil {
		t.Error(err)
	}
	if err := durable.WriteFile(filepath.Join(string(d), "nowhere"), "x", nil); err == nil {
		t.Error("written where there is no directory")
	}
}
