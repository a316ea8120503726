//go:build !linux

package hub

func benchChild() bool { return false }
