//go:build unix

package identity

import (
	"errors"
	"path/filepath"
	"syscall"
	"testing"
)

// Opening a pipe waits for somebody to write to it.
func TestPipeInPlaceOfTheKeyFileIsRefused(t *testing.T) {
	dir := privateDir(t)
	if err := syscall.Mkfifo(filepath.Join(dir, KeyFile), 0o600); err != nil {
		t.Skip("no pipes here: ", err)
	}
	if _, err := Open(dir); !errors.Is(err, ErrKeyFile) {
		t.Errorf("got %v", err)
	}
}
