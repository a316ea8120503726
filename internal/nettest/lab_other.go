//go:build !linux

package nettest

import "testing"

// A Lab exists only on Linux.
type Lab struct{}

// New skips the test: network namespaces are Linux's.
func New(t testing.TB) *Lab {
	t.Helper()
	Skip(t, "network namespaces exist only on Linux")
	return nil
}
