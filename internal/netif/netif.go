// Package netif makes a network interface of this machine whose packets a program
// reads and writes (Linux), and has the machine ask a DNS server there for some names.
//
// The interface, its address and its routes belong to the open file: they are gone when
// the process ends, however it ends. What is left of names after a kill is mended by a
// guard process (Guard), and if that is killed, too, by the next start (Mend).
//
// Names go one of two ways. Where systemd-resolved answers this machine's programs, it
// is told of the server and of the domains to ask it for; that ends with the interface.
// Elsewhere /etc/resolv.conf is replaced by one that names the server alone, which asks
// the former servers for all other names (Upstream); the former file is kept beside it
// and comes back. Where /etc/resolv.conf is a mount of its own, as in containers, it is
// written in place.
package netif

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.zx2c4.com/wireguard/tun"
)

// MTU is that of the interface, in bytes: the largest there is. Nothing goes over a
// wire, and one large packet costs no more than a small one.
const MTU = 65535

// Config says what the interface is for.
type Config struct {
	// Name is that of the interface, in which %d is the first number that is free.
	Name string
	// Addr is the machine's address on it.
	Addr netip.Addr
	// Prefix is what the interface leads to.
	Prefix netip.Prefix
}

// An Interface is a network interface. Close removes it.
type Interface struct {
	tun.Device
	Name string
}

// An Error says why there is no interface, and what a person can do.
type Error struct {
	Text, Hint string
	Err        error // may be nil
}

func (e *Error) Error() string {
	if e.Err == nil {
		return "netif: " + e.Text
	}
	return fmt.Sprintf("netif: %s: %v", e.Text, e.Err)
}

// Unwrap returns the system's error.
func (e *Error) Unwrap() error { return e.Err }

// ErrSystem reports an operating system without this.
var ErrSystem = errors.New("netif: only Linux has it")
