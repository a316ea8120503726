//go:build !linux

package punch

func openSockets(n int, c control) (sockets, error) { return openNet(n, c) }
