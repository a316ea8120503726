//go:build !android

package netmon

import "net"

func netInterfaces() ([]net.Interface, error) { return net.Interfaces() }

func interfaceAddrs(i *net.Interface) ([]net.Addr, error) { return i.Addrs() }
