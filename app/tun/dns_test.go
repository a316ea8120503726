package tun

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// ask makes a query.
func ask(name string, typ dnsmessage.Type, edns bool) []byte {
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 0x1234, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET}},
	}
	if edns {
		opt := dnsmessage.Resource{Body: &dnsmessage.OPTResource{}}
		_ = opt.Header.SetEDNS0(4096, 0, true)
		m.Additionals = append(m.Additionals, opt)
	}
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// dnsPacket is a query as it comes from the interface.
func dnsPacket(name string) []byte {
	data := ask(name, dnsmessage.TypeAAAA, false)
	b := make([]byte, ipHeader+udpHeader)
	fillHeader(b, header.UDPProtocolNumber, own, resolver, udpHeader+len(data))
	header.UDP(b[ipHeader:]).Encode(&header.UDPFields{SrcPort: 4000, DstPort: dnsPort, Length: uint16(udpHeader + len(data))})
	return append(b, data...)
}

func TestDNS(t *testing.T) {
	tun, _, _ := open(t, 1500, func(c *Config) {
		c.Forward = func(_ context.Context, q []byte, stream bool) ([]byte, error) {
			if bytes.Contains(q, []byte("down")) {
				return nil, errors.New("no server answers")
			}
			if stream {
				return append([]byte("stream"), q...), nil
			}
			return append([]byte("forwarded"), q...), nil
		}
	})
	const A, AAAA, PTR, MX, ALL = dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypePTR, dnsmessage.TypeMX, dnsmessage.TypeALL
	zone := ReverseZone(prefix)
	if zone != "8.6.4.7.9.6.b.6.d.f.ip6.arpa" {
		t.Errorf("zone %s", zone)
	}
	ptr := func(a netip.Addr) string { return ReverseZone(netip.PrefixFrom(a, 128)) + "." }
	for _, c := range []struct {
		name string
		typ  dnsmessage.Type
		code dnsmessage.RCode
		want string // the answer; "" is none
	}{
		{"laptop.kith.", AAAA, dnsmessage.RCodeSuccess, laptop.String()},
		{"LapTop.KITH.", AAAA, dnsmessage.RCodeSuccess, laptop.String()},
		{"laptop.kith.", ALL, dnsmessage.RCodeSuccess, laptop.String()},
		{"desk.kith.", AAAA, dnsmessage.RCodeSuccess, own.String()},
		{"my phone.kith.", AAAA, dnsmessage.RCodeSuccess, nobody.String()},
		{"küche.kith.", AAAA, dnsmessage.RCodeSuccess, blocked.String()},
		{"xn--kche-0ra.kith.", AAAA, dnsmessage.RCodeSuccess, blocked.String()},
		{"laptop.kith.", A, dnsmessage.RCodeSuccess, ""},
		{"laptop.kith.", MX, dnsmessage.RCodeSuccess, ""},
		{"nobody.kith.", AAAA, dnsmessage.RCodeNameError, ""},
		{"www.laptop.kith.", AAAA, dnsmessage.RCodeNameError, ""},
		{"xn--.kith.", AAAA, dnsmessage.RCodeNameError, ""},
		{"kith.", AAAA, dnsmessage.RCodeSuccess, ""},
		{"down.kith.example.", AAAA, dnsmessage.RCodeServerFailure, ""},
		{ptr(laptop), PTR, dnsmessage.RCodeSuccess, "laptop.kith."},
		{strings.ToUpper(ptr(laptop)), PTR, dnsmessage.RCodeSuccess, "laptop.kith."},
		{ptr(blocked), PTR, dnsmessage.RCodeSuccess, "xn--kche-0ra.kith."},
		{ptr(laptop), AAAA, dnsmessage.RCodeSuccess, ""},
		{ptr(netip.MustParseAddr("fd6b:6974:68ff::1")), PTR, dnsmessage.RCodeNameError, ""},
		{"1." + zone + ".", PTR, dnsmessage.RCodeSuccess, ""},
		{"g" + ptr(laptop)[1:], PTR, dnsmessage.RCodeNameError, ""},
	} {
		for _, edns := range []bool{false, true} {
			raw := tun.answer(t.Context(), ask(c.name, c.typ, edns), false)
			var m dnsmessage.Message
			if err := m.Unpack(raw); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			got := ""
			for _, a := range m.Answers {
				switch b := a.Body.(type) {
				case *dnsmessage.AAAAResource:
					got += netip.AddrFrom16(b.AAAA).String()
				case *dnsmessage.PTRResource:
					got += b.PTR.String()
				}
				if a.Header.Name.String() != c.name {
					t.Errorf("%s: the answer is about %s", c.name, a.Header.Name)
				}
			}
			if m.RCode != c.code || got != c.want || m.ID != 0x1234 || !m.Response || len(m.Questions) != 1 || (len(m.Additionals) == 1) != edns {
				t.Errorf("%s %s: %v, %q: %+v", c.name, c.typ, m.RCode, got, m)
			}
		}
	}
	for _, name := range []string{"example.com.", "kith.example.com.", "laptop.kithx.", "laptopkith.", ".", "1.0.0.127.in-addr.arpa.", "1.ip6.arpa.", "x.ip6.arpa."} {
		if got := tun.answer(t.Context(), ask(name, AAAA, false), false); !bytes.HasPrefix(got, []byte("forwarded")) {
			t.Errorf("%s is not asked of others: %x", name, got)
		}
	}
	if got := tun.answer(t.Context(), ask("example.com.", AAAA, false), true); !bytes.HasPrefix(got, []byte("stream")) {
		t.Errorf("a query over TCP is not asked so: %x", got)
	}
}

// TestBadQueries answers what can be answered, and nothing else.
func TestBadQueries(t *testing.T) {
	tun, _, _ := open(t, 1500, nil)
	good := ask("laptop.kith.", dnsmessage.TypeAAAA, false)
	with := func(change func(b []byte)) []byte {
		b := bytes.Clone(good)
		change(b)
		return b
	}
	for what, c := range map[string]struct {
		query []byte
		code  int // -1: no reply
	}{
		"empty":          {nil, -1},
		"short":          {good[:11], -1},
		"a response":     {with(func(b []byte) { b[2] |= 0x80 }), -1},
		"another opcode": {with(func(b []byte) { b[2] |= 0x20 }), 4},
		"no question":    {with(func(b []byte) { b[5] = 0 })[:12], 1},
		"two questions":  {append(with(func(b []byte) { b[5] = 2 }), good[12:]...), 1},
		"cut":            {good[:20], 1},
		"other names":    {ask("example.com.", dnsmessage.TypeAAAA, false), 5},
	} {
		reply := tun.answer(t.Context(), c.query, false)
		switch {
		case c.code < 0 && reply != nil:
			t.Errorf("%s: %x", what, reply)
		case c.code >= 0 && (len(reply) < 12 || int(reply[3]&15) != c.code || !bytes.Equal(reply[:2], good[:2])):
			t.Errorf("%s: %x, want code %d", what, reply, c.code)
		}
	}
}

// TestDNSOnTheWire asks over UDP and TCP, as programs do.
func TestDNSOnTheWire(t *testing.T) {
	_, k, _ := open(t, 1500, nil)
	server := netip.AddrPortFrom(resolver, dnsPort)
	query := ask("laptop.kith.", dnsmessage.TypeAAAA, false)
	check := func(what string, raw []byte) {
		t.Helper()
		var m dnsmessage.Message
		if err := m.Unpack(raw); err != nil || len(m.Answers) != 1 || m.Answers[0].Body.(*dnsmessage.AAAAResource).AAAA != laptop.As16() {
			t.Errorf("%s: %v: %+v", what, err, m)
		}
	}
	conn := k.dialUDP(server)
	if _, err := conn.Write(query); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1500)
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	check("udp", buf[:n])
	stream, err := k.dial(patient(t), server)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // on one connection
		if err := sendStream(stream, query); err != nil {
			t.Fatal(err)
		}
		raw, err := readStream(stream)
		if err != nil {
			t.Fatal(err)
		}
		check("tcp", raw)
	}
	// There is a bound on connections, and one more has a place when one ends.
	open := []net.Conn{stream}
	for len(open) < maxStreams {
		c, err := k.dial(patient(t), server)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	if _, err := k.dial(patient(t), server); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("one connection too many: %v", err)
	}
	open[0].Close()
	for ctx := patient(t); ; {
		if _, err := k.dial(ctx, server); err == nil {
			break
		} else if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

// TestOwnNamesOffline answers for our own names while as many others as may be wait for
// servers that do not answer.
func TestOwnNamesOffline(t *testing.T) {
	gaveUp := make(chan struct{}, maxQueries)
	_, k, _ := open(t, 1500, func(c *Config) {
		c.Forward = func(ctx context.Context, _ []byte, _ bool) ([]byte, error) {
			<-ctx.Done()
			gaveUp <- struct{}{}
			return nil, ctx.Err()
		}
	})
	for range 2 * maxQueries {
		k.send(dnsPacket("elsewhere.test."))
	}
	for {
		k.send(dnsPacket("laptop.kith."))
		for more := true; more; {
			select {
			case raw := <-k.seen:
				if bytes.Contains(raw, laptop.AsSlice()) && bytes.Contains(raw, []byte("laptop")) {
					return
				}
			case <-gaveUp:
				t.Fatal("no answer until the others gave up")
			default:
				more = false
			}
		}
	}
}

func sendStream(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	return err
}

func readStream(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

// FuzzDNS answers anything with nothing or with a response to it.
func FuzzDNS(f *testing.F) {
	for _, name := range []string{"laptop.kith.", "xn--kche-0ra.kith.", ReverseZone(netip.PrefixFrom(laptop, 128)) + ".", "."} {
		f.Add(ask(name, dnsmessage.TypeAAAA, false))
		f.Add(ask(name, dnsmessage.TypePTR, true))
	}
	tun := &Tun{cfg: Config{
		Prefix: prefix, Lookup: func(string) (netip.Addr, bool) { return laptop, true }, Name: func(netip.Addr) (string, bool) { return "küche", true },
	}}
	f.Fuzz(func(t *testing.T, raw []byte) {
		reply := tun.answer(t.Context(), raw, false)
		if reply == nil {
			return
		}
		if len(reply) < 12 || !bytes.Equal(reply[:2], raw[:2]) || reply[2]&0x80 == 0 || len(reply) > 1232 {
			t.Errorf("%x", reply)
		}
	})
}
