//go:build !linux

package identity

import (
	"os"
	"testing"
)

// asUser calls f with the rights to files of an ordinary user.
func asUser(t *testing.T, _ string, f func()) {
	t.Helper()
	if os.Getuid() <= 0 {
		t.Skip("root, or a system without user ids, can write everywhere")
	}
	f()
}
