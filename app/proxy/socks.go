package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/kithproject/kith/app/forward"
)

// Numbers of RFC 1928 and of RFC 1929.
const (
	socksVersion = 5
	authVersion  = 1

	methodNone     = 0
	methodPassword = 2
	methodNoneFits = 0xff

	cmdConnect   = 1
	cmdAssociate = 3

	addrIPv4   = 1
	addrDomain = 3
	addrIPv6   = 4

	repSucceeded       = 0
	repFailure         = 1
	repNotAllowed      = 2
	repHostUnreachable = 4
	repRefused         = 5
	repNoCommand       = 7
	repNoAddressType   = 8
)

var (
	errSyntax      = errors.New("proxy: not SOCKS5")
	errAddressType = errors.New("proxy: an address type that SOCKS5 does not have")
	errMethods     = errors.New("proxy: no method of authentication fits")
	errPassword    = errors.New("proxy: wrong username or password")
)

// An address is a host and a port as a client writes them.
type address struct {
	host   string // an IP address, or a name
	domain bool   // it is written as a name, whatever it looks like
	port   uint16
}

// readAddress reads what begins with the type of the address (RFC 1928 section 5). It
// errs with errAddressType, errSyntax, and the reader's error.
func readAddress(r io.Reader) (address, error) {
	var b [256]byte
	if _, err := io.ReadFull(r, b[:1]); err != nil {
		return address{}, err
	}
	var size int
	kind := b[0]
	switch kind {
	case addrIPv4:
		size = 4
	case addrIPv6:
		size = 16
	case addrDomain:
		if _, err := io.ReadFull(r, b[:1]); err != nil {
			return address{}, err
		}
		if size = int(b[0]); size == 0 {
			return address{}, errSyntax
		}
	default:
		return address{}, errAddressType
	}
	if _, err := io.ReadFull(r, b[:size]); err != nil {
		return address{}, err
	}
	a := address{domain: kind == addrDomain}
	if a.domain {
		a.host = string(b[:size])
		for _, c := range []byte(a.host) {
			if c <= ' ' || c == 0x7f {
				return address{}, errSyntax
			}
		}
	} else {
		ip, _ := netip.AddrFromSlice(b[:size])
		a.host = ip.String()
	}
	if _, err := io.ReadFull(r, b[:2]); err != nil {
		return address{}, err
	}
	a.port = binary.BigEndian.Uint16(b[:])
	return a, nil
}

// append writes what readAddress reads.
func (a address) append(b []byte) []byte {
	ip, err := netip.ParseAddr(a.host)
	switch {
	case a.domain || err != nil:
		b = append(b, addrDomain, byte(len(a.host)))
		b = append(b, a.host...)
	case ip.Is4():
		b = append(append(b, addrIPv4), ip.AsSlice()...)
	default:
		b = append(append(b, addrIPv6), ip.AsSlice()...)
	}
	return binary.BigEndian.AppendUint16(b, a.port)
}

// addressOf returns what a reply says of a net.Addr; what is no IP address is all
// zeros.
func addressOf(addr net.Addr) address {
	if addr != nil {
		if ap, err := netip.ParseAddrPort(addr.String()); err == nil {
			return address{host: ap.Addr().Unmap().WithZone("").String(), port: ap.Port()}
		}
	}
	return address{host: "0.0.0.0"}
}

// readMethods reads a greeting after its version (RFC 1928 section 3). It errs with
// the reader's error.
func readMethods(r io.Reader) ([]byte, error) {
	var n [1]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	methods := make([]byte, n[0])
	_, err := io.ReadFull(r, methods)
	return methods, err
}

// readPassword reads a username and a password (RFC 1929 section 2). It errs with
// errSyntax and the reader's error.
func readPassword(r io.Reader) (username, password string, err error) {
	var b [255]byte
	field := func() string {
		if err != nil {
			return ""
		}
		if _, err = io.ReadFull(r, b[:1]); err != nil {
			return ""
		}
		n := int(b[0])
		_, err = io.ReadFull(r, b[:n])
		return string(b[:n])
	}
	if _, err := io.ReadFull(r, b[:1]); err != nil {
		return "", "", err
	}
	if b[0] != authVersion {
		return "", "", errSyntax
	}
	username = field()
	password = field()
	return username, password, err
}

// readRequest reads a request (RFC 1928 section 4). It errs with errSyntax,
// errAddressType and the reader's error.
func readRequest(r io.Reader) (command byte, to address, err error) {
	var b [3]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, address{}, err
	}
	if b[0] != socksVersion {
		return 0, address{}, errSyntax
	}
	to, err = readAddress(r)
	return b[1], to, err
}

// greet agrees on a method of authentication and carries it out. It errs if the
// client is not to be served.
func (s *server) greet(conn net.Conn) error {
	methods, err := readMethods(conn)
	if err != nil {
		return err
	}
	// A client that insists on a password gets its way: any is right where none is set.
	method := byte(methodNoneFits)
	switch {
	case !s.secured() && slices.Contains(methods, methodNone):
		method = methodNone
	case slices.Contains(methods, methodPassword):
		method = methodPassword
	}
	if _, err := conn.Write([]byte{socksVersion, method}); err != nil {
		return err
	}
	switch method {
	case methodNoneFits:
		return errMethods
	case methodNone:
		return nil
	}
	username, password, err := readPassword(conn)
	if err != nil {
		return err
	}
	right := !s.secured() || s.authorized(username, password)
	status := byte(0)
	if !right {
		status = 1
	}
	if _, err := conn.Write([]byte{authVersion, status}); err != nil {
		return err
	}
	if !right {
		return errPassword
	}
	return nil
}

// socks serves a client that has said that it speaks SOCKS5.
func (s *server) socks(ctx context.Context, conn net.Conn) {
	if err := s.greet(conn); err != nil {
		s.cfg.Logger.Info("proxy client refused", "err", err)
		finish(conn)
		return
	}
	command, to, err := readRequest(conn)
	switch {
	case errors.Is(err, errAddressType):
		reply(conn, repNoAddressType, nil)
		finish(conn)
		return
	case err != nil:
		return
	}
	// The client has said what it wants; how long the device takes is another matter.
	if conn.SetDeadline(time.Time{}) != nil {
		return
	}
	switch command {
	case cmdConnect:
		err = s.socksConnect(ctx, conn, to)
	case cmdAssociate:
		err = s.associate(ctx, conn, to)
	default:
		err = refuse(repNoCommand, 0, "", "SOCKS5 command %d is not served", command)
	}
	if err != nil {
		reply(conn, asRefusal(err).reply, nil)
		finish(conn)
	}
}

// reply answers a request; bound is what RFC 1928 section 6 calls the server's bound
// address. It reports whether the answer was sent.
func reply(conn net.Conn, code byte, bound net.Addr) bool {
	b := addressOf(bound).append([]byte{socksVersion, code, 0})
	if conn.SetWriteDeadline(time.Now().Add(replyTimeout)) != nil {
		return false
	}
	if _, err := conn.Write(b); err != nil {
		return false
	}
	return conn.SetWriteDeadline(time.Time{}) == nil
}

// replyTimeout is how long a client may take to take an answer of a few bytes.
const replyTimeout = 5 * time.Second

// socksConnect carries a connection. It errs with a *refusal, before anything was
// answered.
func (s *server) socksConnect(ctx context.Context, conn net.Conn, to address) error {
	far, err := s.dial(ctx, forward.TCP, to.host, to.port)
	if err != nil {
		return err
	}
	defer far.Close()
	if reply(conn, repSucceeded, far.LocalAddr()) {
		s.cfg.Counters.Carry(ctx, conn, far)
	}
	return nil
}

// readDatagram reads the header of a datagram (RFC 1928 section 7) and returns what
// follows it. Fragments are not served, as the RFC permits. It errs if it is none.
func readDatagram(b []byte) (to address, data []byte, err error) {
	if len(b) < 3 || b[0] != 0 || b[1] != 0 {
		return address{}, nil, errSyntax
	}
	if b[2] != 0 {
		return address{}, nil, fmt.Errorf("%w: a fragment", errSyntax)
	}
	r := reader{b[3:]}
	if to, err = readAddress(&r); err != nil {
		return address{}, nil, err
	}
	return to, r.b, nil
}

// A reader reads a slice, and knows what is left.
type reader struct{ b []byte }

func (r *reader) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.b)
	r.b = r.b[n:]
	return n, nil
}
