package tun

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/idna"
)

const (
	// dnsPort is the port number of DNS.
	dnsPort = 53
	// domain is the end of all names that are answered here.
	domain = ".kith."
	// ttl is how long an answer may be kept, in seconds: a name can get another device.
	ttl = 10
	// ednsSize is what we say to take over UDP, in bytes (RFC 9715).
	ednsSize = 1232
	// queryTimeout bounds the answer to one query, and streamIdle the wait for the next
	// one on a connection (RFC 7766 section 6.2.3).
	queryTimeout = 10 * time.Second
	streamIdle   = 30 * time.Second
)

// query answers a query over UDP, if there is room.
func (t *Tun) query(f flow, data []byte) {
	if !t.queries.take(struct{}{}) {
		return
	}
	data = bytes.Clone(data)
	if !t.start(func() {
		defer t.queries.give(struct{}{})
		ctx, cancel := context.WithTimeout(t.ctx, queryTimeout)
		defer cancel()
		if reply := t.answer(ctx, data, false); reply != nil {
			t.writeUDP(f, reply)
		}
	}) {
		t.queries.give(struct{}{})
	}
}

// serveStream answers queries over a TCP connection, one after the other (RFC 7766).
func (t *Tun) serveStream(conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(t.ctx, func() { conn.Close() })()
	for {
		if conn.SetDeadline(time.Now().Add(streamIdle)) != nil {
			return
		}
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		data := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(conn, data); err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(t.ctx, queryTimeout)
		reply := t.answer(ctx, data, true)
		cancel()
		if reply == nil || len(reply) > 0xffff {
			return
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)); err != nil {
			return
		}
	}
}

// A query is what was asked.
type query struct {
	header   dnsmessage.Header
	question dnsmessage.Question
	edns     bool
}

// parseQuery reads a query with one question. It reports false if b is no query; if it
// is one that cannot be answered, code says why.
func parseQuery(b []byte) (q query, code dnsmessage.RCode, ok bool) {
	var p dnsmessage.Parser
	var err error
	if q.header, err = p.Start(b); err != nil || q.header.Response {
		return q, 0, false
	}
	if q.header.OpCode != 0 {
		return q, dnsmessage.RCodeNotImplemented, true
	}
	q.question, err = p.Question()
	_, more := p.Question()
	if err != nil || !errors.Is(more, dnsmessage.ErrSectionDone) {
		return q, dnsmessage.RCodeFormatError, true
	}
	if p.SkipAllAnswers() == nil && p.SkipAllAuthorities() == nil {
		for h, err := p.AdditionalHeader(); err == nil; h, err = p.AdditionalHeader() {
			if h.Type == dnsmessage.TypeOPT {
				q.edns = true
				break
			}
			if p.SkipAdditional() != nil {
				break // then there is none that can be read
			}
		}
	}
	return q, dnsmessage.RCodeSuccess, true
}

// answer returns the reply to a query, or nil if it is none.
func (t *Tun) answer(ctx context.Context, b []byte, stream bool) []byte {
	q, code, ok := parseQuery(b)
	if !ok {
		return nil
	}
	if code != dnsmessage.RCodeSuccess {
		return q.reply(code, false, nil)
	}
	name := strings.ToLower(q.question.Name.String())
	if code, body, ours := t.local(name, q.question); ours {
		return q.reply(code, true, body)
	}
	if t.cfg.Forward == nil {
		return q.reply(dnsmessage.RCodeRefused, false, nil)
	}
	if !t.forwarded.take(struct{}{}) {
		return q.reply(dnsmessage.RCodeServerFailure, false, nil)
	}
	defer t.forwarded.give(struct{}{})
	reply, err := t.cfg.Forward(ctx, b, stream)
	if err != nil {
		t.cfg.Logger.Debug("dns query not answered", "err", err)
		return q.reply(dnsmessage.RCodeServerFailure, false, nil)
	}
	return reply
}

// local answers for a name in lower case that is ours.
func (t *Tun) local(name string, question dnsmessage.Question) (code dnsmessage.RCode, body dnsmessage.ResourceBody, ours bool) {
	want := func(typ dnsmessage.Type) bool {
		return question.Class == dnsmessage.ClassINET && (question.Type == typ || question.Type == dnsmessage.TypeALL)
	}
	if zone, ok := t.reverse(name); ok {
		if len(zone) < 32 {
			return dnsmessage.RCodeSuccess, nil, true // above the addresses
		}
		name, ok := t.nameOf(zone)
		if !ok {
			return dnsmessage.RCodeNameError, nil, true
		}
		if want(dnsmessage.TypePTR) {
			body = &dnsmessage.PTRResource{PTR: name}
		}
		return dnsmessage.RCodeSuccess, body, true
	}
	if name == domain[1:] {
		return dnsmessage.RCodeSuccess, nil, true
	}
	host, ours := strings.CutSuffix(name, domain)
	if !ours {
		return 0, nil, false
	}
	if strings.Contains(host, "xn--") {
		if decoded, err := idna.Lookup.ToUnicode(host); err == nil {
			host = decoded
		}
	}
	addr, ok := t.cfg.Lookup(host)
	if !ok {
		return dnsmessage.RCodeNameError, nil, true
	}
	if want(dnsmessage.TypeAAAA) {
		body = &dnsmessage.AAAAResource{AAAA: addr.As16()}
	}
	return dnsmessage.RCodeSuccess, body, true
}

const reverseZone = ".ip6.arpa."

// reverse returns the hexadecimal digits that a name of the reverse zone stands for, if
// it lies in that of the Prefix: at most 32.
func (t *Tun) reverse(name string) (string, bool) {
	labels, ok := strings.CutSuffix(name, reverseZone)
	if !ok {
		return "", false
	}
	digits := strings.Split(labels, ".")
	slices.Reverse(digits)
	for _, d := range digits {
		if len(d) != 1 {
			return "", false
		}
	}
	text := strings.Join(digits, "")
	whole := t.cfg.Prefix.Addr().As16()
	prefix := hex.EncodeToString(whole[:])[:t.cfg.Prefix.Bits()/4]
	return text, len(text) <= 32 && strings.HasPrefix(text, prefix)
}

// ReverseZone returns the name of a prefix's reverse zone (RFC 3596 section 2.5), whole
// nibbles of it, without the final dot.
func ReverseZone(prefix netip.Prefix) string {
	whole := prefix.Addr().As16()
	digits := strings.Split(hex.EncodeToString(whole[:])[:prefix.Bits()/4], "")
	slices.Reverse(digits)
	return strings.Join(digits, ".") + strings.TrimSuffix(reverseZone, ".")
}

// nameOf returns the name of the address with these 32 digits.
func (t *Tun) nameOf(digits string) (dnsmessage.Name, bool) {
	raw, err := hex.DecodeString(digits)
	if err != nil {
		return dnsmessage.Name{}, false
	}
	name, ok := t.cfg.Name(netip.AddrFrom16([16]byte(raw)))
	if !ok {
		return dnsmessage.Name{}, false
	}
	if ascii, err := idna.Lookup.ToASCII(name); err == nil {
		name = ascii
	}
	n, err := dnsmessage.NewName(name + domain)
	return n, err == nil
}

// reply returns the message that says code, with an answer if there is one.
func (q *query) reply(code dnsmessage.RCode, authoritative bool, body dnsmessage.ResourceBody) []byte {
	m := dnsmessage.Message{Header: dnsmessage.Header{
		ID: q.header.ID, Response: true, OpCode: q.header.OpCode, RCode: code, Authoritative: authoritative,
		RecursionDesired: q.header.RecursionDesired, RecursionAvailable: true,
	}}
	if q.question.Name.Length > 0 {
		m.Questions = []dnsmessage.Question{q.question}
	}
	if body != nil {
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.question.Name, Class: dnsmessage.ClassINET, TTL: ttl}, Body: body,
		}}
	}
	if q.edns { // RFC 6891 section 6.1.1
		opt := dnsmessage.Resource{Body: &dnsmessage.OPTResource{}}
		if opt.Header.SetEDNS0(ednsSize, code, false) == nil {
			m.Additionals = []dnsmessage.Resource{opt}
		}
	}
	b, err := m.Pack()
	if err != nil { // a name that is too long for DNS
		m.Answers, m.RCode = nil, dnsmessage.RCodeServerFailure
		if b, err = m.Pack(); err != nil {
			return nil
		}
	}
	return b
}
