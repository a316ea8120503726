package identity

import (
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
)

// asUser calls f with the rights to files that an ordinary user has who owns dir:
// root can write everywhere.
func asUser(t *testing.T, dir string, f func()) {
	t.Helper()
	if os.Getuid() != 0 {
		f()
		return
	}
	const nobody = 65534
	if err := os.Chown(dir, nobody, -1); err != nil {
		t.Fatal(err)
	}
	// t.TempDir is root's alone, two directories of it.
	for _, above := range []string{filepath.Dir(dir), filepath.Dir(filepath.Dir(dir))} {
		if err := os.Chmod(above, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 1)
	go func() {
		// Only this thread changes, and it ends with the goroutine.
		runtime.LockOSThread()
		err := syscall.Setfsuid(nobody)
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
