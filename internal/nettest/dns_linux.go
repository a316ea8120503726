package nettest

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// resolvDir is where the command ip looks for files that programs of a namespace are to
// have in place of those in /etc.
const resolvDir = "/etc/netns"

// Resolver has the programs that Start, Command and Output run on the host ask these
// servers for names, at port 53; without any they have none. Do does not heed it.
func (h *Host) Resolver(servers ...netip.Addr) {
	t := h.lab.t
	t.Helper()
	dir := filepath.Join(resolvDir, h.ns)
	if !h.dns {
		h.dns = true
		t.Cleanup(func() {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
			_ = os.Remove(resolvDir) // unless others have files there
		})
	}
	var b strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte(b.String()), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// ServeDNS has a host answer questions for names over UDP at an address of its own and
// port 53 until the end of the test: look returns a name's address, IPv4 or IPv6, or the
// invalid one for a name that does not exist. Names are in lower case and without a dot at
// the end.
func (h *Host) ServeDNS(at netip.Addr, look func(name string) netip.Addr) {
	h.lab.t.Helper()
	h.serve(netip.AddrPortFrom(at, 53), func(b []byte, _ netip.AddrPort) []byte { return answerDNS(b, look) })
}

// ServeDNS is [Host.ServeDNS] of the home's router at its address in the LAN. While the
// uplink is cut it knows no names, as one that asks others for them.
func (s *Site) ServeDNS(look func(name string) netip.Addr) {
	s.inet.lab.t.Helper()
	s.Router.serve(netip.AddrPortFrom(s.Gateway(), 53), func(b []byte, _ netip.AddrPort) []byte {
		if s.dead.Load() {
			return answerDNS(b, nil)
		}
		return answerDNS(b, look)
	})
}

// Names is a look for ServeDNS: what is not in the map does not exist.
func Names(all map[string]netip.Addr) func(string) netip.Addr {
	return func(name string) netip.Addr { return all[name] }
}

// serve answers datagrams until the end of the test; nil is no answer.
func (h *Host) serve(at netip.AddrPort, answer func(b []byte, from netip.AddrPort) []byte) *net.UDPConn {
	t := h.lab.t
	t.Helper()
	var conn *net.UDPConn
	var err error
	h.Do(func() { conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)) })
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			if out := answer(buf[:n], from); out != nil {
				_, _ = conn.WriteToUDPAddrPort(out, from)
			}
		}
	})
	t.Cleanup(func() { conn.Close(); wg.Wait() })
	return conn
}

// answerDNS answers a message with one question (RFC 1035 section 4), nil for others.
// Without look that is that it cannot be answered.
func answerDNS(b []byte, look func(string) netip.Addr) []byte {
	const header = 12
	if len(b) < header || b[2]&0x80 != 0 || binary.BigEndian.Uint16(b[4:]) != 1 {
		return nil
	}
	var labels []string
	rest := b[header:]
	for {
		if len(rest) == 0 || int(rest[0]) > 63 || len(rest) < 1+int(rest[0]) {
			return nil
		}
		label := string(rest[1 : 1+rest[0]])
		rest = rest[1+len(label):]
		if label == "" {
			break
		}
		labels = append(labels, label)
	}
	if len(rest) < 4 {
		return nil
	}
	question := b[header : len(b)-len(rest)+4]
	const response, recursion, failure, nameError, a, aaaa, in = 0x8000, 0x0180, 2, 3, 1, 28, 1
	flags, answers := uint16(response|recursion), uint16(0)
	var addr netip.Addr
	if look != nil {
		addr = look(strings.ToLower(strings.Join(labels, ".")))
	}
	kind := uint16(a)
	if addr.Is6() {
		kind = aaaa
	}
	switch {
	case look == nil:
		flags |= failure
	case !addr.IsValid():
		flags |= nameError
	case binary.BigEndian.Uint16(rest) == kind && binary.BigEndian.Uint16(rest[2:]) == in:
		answers = 1
	}
	out := append([]byte(nil), b[:2]...)
	for _, v := range []uint16{flags, 1, answers, 0, 0} {
		out = binary.BigEndian.AppendUint16(out, v)
	}
	out = append(out, question...)
	if answers == 1 {
		const pointer, seconds = 0xc000 | header, 60
		for _, v := range []uint16{pointer, kind, in, 0, seconds, uint16(len(addr.AsSlice()))} {
			out = binary.BigEndian.AppendUint16(out, v)
		}
		out = append(out, addr.AsSlice()...)
	}
	return out
}
