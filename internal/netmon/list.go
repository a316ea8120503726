package netmon

import "net"

// On Android 11 and later an app may not list interfaces this way (a terminal's
// programs mostly may); then there is an error, and what needs interfaces says so.
func netInterfaces() ([]net.Interface, error) { return net.Interfaces() }

func interfaceAddrs(i *net.Interface) ([]net.Addr, error) { return i.Addrs() }
