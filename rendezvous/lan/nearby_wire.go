package lan

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	pairService = "_kith-pair._udp.local."
	// nearbyMagic starts a message on kith's own groups. What follows is the DNS
	// message that mDNS carries; it is never as long as a frame's datagram.
	nearbyMagic = "knb\x01"
	maxNearby   = 1200 // bytes of a message on kith's own groups
	instanceLen = 16   // hexadecimal digits
	maxAnswers  = 8    // announcements looked at per message
	maxHosts    = 8    // addresses named per message
	maxName     = 64   // bytes of a device's name
	maxKind     = 32   // bytes of a device's kind
	nearbyTTL   = uint32(nearbyLife / 1e9)
)

// cleanName makes a text fit for a terminal and a table: without control, escape,
// bidirectional and other invisible characters, with single spaces, at most limit
// bytes of UTF-8. It is the rule of package pairing, which this one must not know.
func cleanName(name string, limit int) string {
	name = name[:min(len(name), 4*limit)]
	name = strings.Map(func(r rune) rune {
		switch {
		case r == utf8.RuneError:
			return -1
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsGraphic(r), unicode.Is(unicode.Cf, r), unicode.Is(unicode.Co, r):
			return -1
		}
		return r
	}, name)
	name = strings.Join(strings.Fields(name), " ")
	for len(name) > limit {
		_, size := utf8.DecodeLastRuneInString(name)
		name = name[:len(name)-size]
	}
	return strings.TrimSpace(name)
}

// pairQuestion asks who is in pairing mode.
func pairQuestion() ([]byte, error) {
	m := dnsmessage.Message{Questions: []dnsmessage.Question{{
		Name: dnsmessage.MustNewName(pairService), Type: dnsmessage.TypePTR, Class: dnsmessage.ClassINET,
	}}}
	return m.Pack()
}

// pairAnswer says that a device is in pairing mode, or with bye that it no longer
// is. It holds the addresses of one family, with the port of that family's socket.
func pairAnswer(instance string, d Device, port uint16, hosts []netip.Prefix, six, bye bool) ([]byte, error) {
	ttl := nearbyTTL
	if bye {
		ttl = 0
	}
	service, err := dnsmessage.NewName(pairService)
	if err != nil {
		return nil, fmt.Errorf("lan: %w", err)
	}
	name, err := dnsmessage.NewName(instance + "." + pairService)
	if err != nil {
		return nil, fmt.Errorf("lan: %w", err)
	}
	host, err := dnsmessage.NewName("kith-" + instance + ".local.")
	if err != nil {
		return nil, fmt.Errorf("lan: %w", err)
	}
	m := dnsmessage.Message{Header: dnsmessage.Header{Response: true, Authoritative: true}}
	m.Answers = []dnsmessage.Resource{{
		Header: dnsmessage.ResourceHeader{Name: service, Class: dnsmessage.ClassINET, TTL: ttl},
		Body:   &dnsmessage.PTRResource{PTR: name},
	}}
	if bye {
		return m.Pack()
	}
	shows := "0"
	if d.ShowsCode {
		shows = "1"
	}
	// Without the flush bit: the other family's message adds to this one's.
	own := dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: ttl}
	m.Additionals = []dnsmessage.Resource{
		{Header: own, Body: &dnsmessage.SRVResource{Port: port, Target: host}},
		{Header: own, Body: &dnsmessage.TXTResource{TXT: []string{"txtvers=1", "n=" + d.Name, "k=" + d.Kind, "c=" + shows}}},
	}
	at := dnsmessage.ResourceHeader{Name: host, Class: dnsmessage.ClassINET, TTL: ttl}
	for _, p := range hosts {
		a := p.Addr()
		if a.Is6() != six || len(m.Additionals) >= 2+maxHosts {
			continue
		}
		if six {
			m.Additionals = append(m.Additionals, dnsmessage.Resource{Header: at, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		} else {
			m.Additionals = append(m.Additionals, dnsmessage.Resource{Header: at, Body: &dnsmessage.AResource{A: a.As4()}})
		}
	}
	return m.Pack()
}

// A pairMessage is what matters of a message.
type pairMessage struct {
	asks  bool
	heard []pairRecord
}

// A pairRecord is one announcement, cleaned. The addresses in it are not read: a
// device is at the address that it sends from.
type pairRecord struct {
	instance string
	device   Device // name, kind and which way it goes
	port     uint16
	bye      bool
}

// instanceOf reads the instance from its name.
func instanceOf(name string) (string, bool) {
	s, ok := strings.CutSuffix(strings.ToLower(name), "."+pairService)
	if !ok || len(s) != instanceLen {
		return "", false
	}
	_, err := hex.DecodeString(s)
	return s, err == nil
}

// parsePair reads a message. It errs for bytes that are no DNS message, or one
// that has nothing of this service.
func parsePair(b []byte) (pairMessage, error) {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil {
		return pairMessage{}, errMDNS
	}
	var out pairMessage
	for range maxRecords {
		q, err := p.Question()
		if err != nil {
			break
		}
		out.asks = out.asks || !h.Response && (q.Type == dnsmessage.TypePTR || q.Type == dnsmessage.TypeALL) &&
			strings.EqualFold(q.Name.String(), pairService)
	}
	if h.Response && p.SkipAllQuestions() == nil {
		r := pairRecords{ports: make(map[string]uint16), texts: make(map[string]Device)}
		if r.section(&p, p.AnswerHeader) == nil && p.SkipAllAnswers() == nil && p.SkipAllAuthorities() == nil {
			_ = r.section(&p, p.AdditionalHeader) // what could be read counts
		}
		out.heard = r.heard()
	}
	if !out.asks && len(out.heard) == 0 {
		return pairMessage{}, errMDNS
	}
	return out, nil
}

type pairRecords struct {
	list  []pairRecord
	ports map[string]uint16
	texts map[string]Device
}

// section reads the records of a section. It errs where one cannot be read.
func (r *pairRecords) section(p *dnsmessage.Parser, next func() (dnsmessage.ResourceHeader, error)) error {
	for range maxRecords {
		h, err := next()
		if err != nil {
			return nil // the end
		}
		name := h.Name.String()
		instance, isOurs := instanceOf(name)
		switch {
		case h.Type == dnsmessage.TypePTR && strings.EqualFold(name, pairService):
			body, err := p.PTRResource()
			if err != nil {
				return err
			}
			if i, ok := instanceOf(body.PTR.String()); ok && len(r.list) < maxAnswers {
				r.list = append(r.list, pairRecord{instance: i, bye: h.TTL == 0})
			}
		case h.Type == dnsmessage.TypeSRV && isOurs:
			body, err := p.SRVResource()
			if err != nil {
				return err
			}
			r.ports[instance] = body.Port
		case h.Type == dnsmessage.TypeTXT && isOurs:
			body, err := p.TXTResource()
			if err != nil {
				return err
			}
			r.texts[instance] = readText(body.TXT)
		default:
			if _, err := p.UnknownResource(); err != nil {
				return err
			}
		}
	}
	return nil
}

// readText reads the key/value pairs of RFC 6763 section 6; the first of a key
// counts.
func readText(list []string) Device {
	seen := make(map[string]bool)
	var d Device
	for _, s := range list {
		key, value, _ := strings.Cut(s, "=")
		key = strings.ToLower(key)
		if seen[key] {
			continue
		}
		switch key {
		case "n":
			d.Name = cleanName(value, maxName)
		case "k":
			d.Kind = cleanName(value, maxKind)
		case "c":
			d.ShowsCode = value == "1"
		default:
			continue
		}
		seen[key] = true
	}
	return d
}

// heard joins the records. An announcement without a text says too little.
func (r *pairRecords) heard() []pairRecord {
	var out []pairRecord
	for _, a := range r.list {
		d, has := r.texts[a.instance]
		if !has && !a.bye {
			continue
		}
		if d.Name == "" {
			d.Name = "unnamed"
		}
		a.device, a.port = d, r.ports[a.instance]
		out = append(out, a)
	}
	return out
}
