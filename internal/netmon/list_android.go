package netmon

import (
	"net"

	"github.com/wlynxg/anet"
)

// Android 11 and later deny the netlink calls of package net to applications;
// anet asks in another way.
func netInterfaces() ([]net.Interface, error) { return anet.Interfaces() }

func interfaceAddrs(i *net.Interface) ([]net.Addr, error) { return anet.InterfaceAddrsByInterface(i) }
