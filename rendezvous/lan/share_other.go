//go:build unix && !linux

package lan

// onlyOwnGroups does nothing: these systems give a socket no other groups.
func onlyOwnGroups(int) {}
