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
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
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

// headerSize is what the kernel has before each packet, in bytes (struct virtio_net_hdr).
const headerSize = 10

// An Interface is a network interface, from which whole IP packets are read and to which
// they are written. It is safe for concurrent use. Close removes it.
//
// The kernel leaves checksums and the splitting of large TCP packets to whom it gives
// them, and takes packets whose checksum is not computed. (The library of WireGuard does
// the one and the other, for packets that leave the machine.)
type Interface struct {
	Name string
	file *os.File
}

// Read reads one packet to b[10:], and returns its length. It errs with os.ErrClosed
// after Close.
func (i *Interface) Read(b []byte) (int, error) {
	n, err := i.file.Read(b)
	if err == nil && n < headerSize {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return 0, err
	}
	return n - headerSize, nil
}

// Write sends the packet b[10:], and overwrites what is before it. If partial, it is TCP
// over IPv6 without extension headers, and its checksum covers the pseudo-header alone.
// It errs if the system does not take it, and with os.ErrClosed after Close.
func (i *Interface) Write(b []byte, partial bool) error {
	clear(b[:headerSize])
	if partial {
		b[0] = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
		binary.NativeEndian.PutUint16(b[6:], 40)
		binary.NativeEndian.PutUint16(b[8:], 16)
	}
	_, err := i.file.Write(b)
	return err
}

// MTU returns the largest packet that should be written, in bytes.
func (i *Interface) MTU() int { return MTU }

// Close removes the interface. A Read that waits ends.
func (i *Interface) Close() error { return i.file.Close() }

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
