//go:build !linux

package link

import "testing"

func disableOffload(*udpBind, bool) {}

func markOf(t *testing.T, _ *udpBind) int {
	t.Skip("this system has no packet marks")
	return 0
}
