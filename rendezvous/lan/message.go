package lan

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/kithproject/kith/rendezvous"
)

const (
	serviceName = "_kith._udp.local."
	recordTTL   = 120 // seconds, RFC 6762 section 10
	// cacheFlush marks records that only this host has (RFC 6762 section 10.2).
	cacheFlush = 1 << 15
	maxRecords = 64 // looked at per section of a message
)

var errMDNS = errors.New("lan: not a message of this service")

func subtype(tag rendezvous.Tag) string {
	return "_" + hex.EncodeToString(tag[:]) + "._sub." + serviceName
}

// tagOf reads a tag from a subtype's name.
func tagOf(name string) (rendezvous.Tag, bool) {
	low := strings.ToLower(name)
	text, ok := strings.CutSuffix(low, "._sub."+serviceName)
	if !ok || len(text) != 1+2*rendezvous.TagSize || text[0] != '_' {
		return rendezvous.Tag{}, false
	}
	raw, err := hex.DecodeString(text[1:])
	if err != nil {
		return rendezvous.Tag{}, false
	}
	return rendezvous.Tag(raw), true
}

// labelOf reads the random label from an instance's name.
func labelOf(name string) (string, bool) {
	label, ok := strings.CutSuffix(strings.ToLower(name), "."+serviceName)
	return label, ok && label != "" && !strings.Contains(label, ".")
}

// question builds a question for a tag.
func question(tag rendezvous.Tag) ([]byte, error) {
	name, err := dnsmessage.NewName(subtype(tag))
	if err != nil {
		return nil, fmt.Errorf("lan: %w", err)
	}
	m := dnsmessage.Message{Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypePTR, Class: dnsmessage.ClassINET}}}
	return m.Pack()
}

// answer builds the records of a tag: the subtype's pointer to the instance, and
// the instance's port and addresses. IPv4 and IPv6 sockets have ports of their
// own, so that there are two instances, label-4 and label-6.
func answer(label string, tag rendezvous.Tag, port4, port6 uint16, addrs []netip.Prefix, goodbye bool) ([]byte, error) {
	m := dnsmessage.Message{Header: dnsmessage.Header{Response: true, Authoritative: true}}
	ttl := uint32(recordTTL)
	if goodbye {
		ttl = 0
	}
	sub, err := dnsmessage.NewName(subtype(tag))
	if err != nil {
		return nil, fmt.Errorf("lan: %w", err)
	}
	for _, family := range []struct {
		tail string
		port uint16
		six  bool
	}{{"-4", port4, false}, {"-6", port6, true}} {
		if family.port == 0 {
			continue
		}
		instance, err := dnsmessage.NewName(label + family.tail + "." + serviceName)
		if err != nil {
			return nil, fmt.Errorf("lan: %w", err)
		}
		host, err := dnsmessage.NewName(label + family.tail + ".local.")
		if err != nil {
			return nil, fmt.Errorf("lan: %w", err)
		}
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: sub, Class: dnsmessage.ClassINET, TTL: ttl},
			Body:   &dnsmessage.PTRResource{PTR: instance},
		})
		own := dnsmessage.ResourceHeader{Name: instance, Class: dnsmessage.ClassINET | cacheFlush, TTL: ttl}
		m.Additionals = append(m.Additionals,
			dnsmessage.Resource{Header: own, Body: &dnsmessage.SRVResource{Port: family.port, Target: host}},
			dnsmessage.Resource{Header: own, Body: &dnsmessage.TXTResource{TXT: []string{""}}},
		)
		at := dnsmessage.ResourceHeader{Name: host, Class: dnsmessage.ClassINET | cacheFlush, TTL: ttl}
		for _, p := range addrs {
			switch a := p.Addr(); {
			case a.Is4() && !family.six:
				m.Additionals = append(m.Additionals, dnsmessage.Resource{Header: at, Body: &dnsmessage.AResource{A: a.As4()}})
			case a.Is6() && family.six:
				m.Additionals = append(m.Additionals, dnsmessage.Resource{Header: at, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
			}
		}
	}
	return m.Pack()
}

// mdnsMessage is what matters of a message.
type mdnsMessage struct {
	questions []rendezvous.Tag
	known     []string // labels that the asker knows already, without family
	found     []foundService
}

// foundService is where a tag can be reached.
type foundService struct {
	tag   rendezvous.Tag
	label string // without family
	port  uint16
	addrs []netip.Addr
}

// parseMDNS reads a message. It errs for bytes that are no DNS message, or one
// that has nothing of this service.
func parseMDNS(b []byte) (mdnsMessage, error) {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil {
		return mdnsMessage{}, errMDNS
	}
	var out mdnsMessage
	for range maxRecords {
		q, err := p.Question()
		if err != nil {
			break
		}
		if tag, ok := tagOf(q.Name.String()); ok && !h.Response && (q.Type == dnsmessage.TypePTR || q.Type == dnsmessage.TypeALL) {
			out.questions = append(out.questions, tag)
		}
	}
	if err := p.SkipAllQuestions(); err != nil {
		return mdnsMessage{}, errMDNS
	}
	r := newRecords()
	for range maxRecords {
		h, err := p.AnswerHeader()
		if err != nil {
			break
		}
		if r.add(&p, h) != nil {
			return mdnsMessage{}, errMDNS
		}
	}
	if p.SkipAllAnswers() == nil && p.SkipAllAuthorities() == nil {
		for range maxRecords {
			h, err := p.AdditionalHeader()
			if err != nil {
				break
			}
			if r.add(&p, h) != nil {
				break
			}
		}
	}
	if h.Response {
		out.found = r.found()
	} else {
		for _, instance := range r.pointers {
			if label, ok := labelOf(instance); ok {
				out.known = append(out.known, withoutFamily(label))
			}
		}
	}
	if len(out.questions)+len(out.found) == 0 {
		return mdnsMessage{}, errMDNS
	}
	return out, nil
}

func withoutFamily(label string) string {
	return strings.TrimSuffix(strings.TrimSuffix(label, "-4"), "-6")
}

// records are the records of one message, by lower-case name.
type records struct {
	pointers map[rendezvous.Tag]string // the last instance of a tag
	tags     []pointer
	services map[string]dnsmessage.SRVResource
	addrs    map[string][]netip.Addr
}

type pointer struct {
	tag      rendezvous.Tag
	instance string
}

func newRecords() *records {
	return &records{
		pointers: make(map[rendezvous.Tag]string), services: make(map[string]dnsmessage.SRVResource),
		addrs: make(map[string][]netip.Addr),
	}
}

// add reads one record's body; records that end (TTL 0) are passed over.
func (r *records) add(p *dnsmessage.Parser, h dnsmessage.ResourceHeader) error {
	name := strings.ToLower(h.Name.String())
	switch h.Type {
	case dnsmessage.TypePTR:
		body, err := p.PTRResource()
		if err != nil {
			return err
		}
		if tag, ok := tagOf(name); ok && h.TTL > 0 {
			instance := strings.ToLower(body.PTR.String())
			r.pointers[tag] = instance
			r.tags = append(r.tags, pointer{tag, instance})
		}
	case dnsmessage.TypeSRV:
		body, err := p.SRVResource()
		if err != nil {
			return err
		}
		r.services[name] = body
	case dnsmessage.TypeA:
		body, err := p.AResource()
		if err != nil {
			return err
		}
		r.addrs[name] = append(r.addrs[name], netip.AddrFrom4(body.A))
	case dnsmessage.TypeAAAA:
		body, err := p.AAAAResource()
		if err != nil {
			return err
		}
		r.addrs[name] = append(r.addrs[name], netip.AddrFrom16(body.AAAA).Unmap())
	default:
		if _, err := p.UnknownResource(); err != nil {
			return err
		}
	}
	return nil
}

// found joins pointers, services and addresses.
func (r *records) found() []foundService {
	var out []foundService
	for _, ptr := range r.tags {
		label, ok := labelOf(ptr.instance)
		srv, has := r.services[ptr.instance]
		if !ok || !has || srv.Port == 0 {
			continue
		}
		out = append(out, foundService{
			tag: ptr.tag, label: withoutFamily(label), port: srv.Port, addrs: r.addrs[strings.ToLower(srv.Target.String())],
		})
	}
	return out
}
