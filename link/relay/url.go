package relay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// A transport is how we reach the server; between relay and peer it is always UDP.
type transport uint8

const (
	overUDP transport = iota
	overTCP
	overTLS
)

func (t transport) String() string { return [...]string{"udp", "tcp", "tls"}[t] }

// network is what package net calls it.
func (t transport) network() string {
	if t == overUDP {
		return "udp"
	}
	return "tcp"
}

// A server is where a URL points.
type server struct {
	host string // name or address, without brackets
	port uint16
	via  transport
}

func (s server) String() string { return net.JoinHostPort(s.host, strconv.Itoa(int(s.port))) }

const (
	maxURL    = 512 // bytes
	plainPort = 3478
	tlsPort   = 443
)

// parseURL reads a TURN URI (RFC 7065, with another default port for turns). Its
// errors never repeat the text as a whole: somebody may have put a password in it.
func parseURL(text string) (server, error) {
	s, err := splitURL(text)
	if err != nil {
		return server{}, fmt.Errorf("%w: %w; write turn:host[:port][?transport=udp|tcp] or turns:host[:port]", ErrURL, err)
	}
	return s, nil
}

func splitURL(text string) (server, error) {
	if len(text) > maxURL {
		return server{}, errors.New("too long")
	}
	scheme, rest, ok := strings.Cut(text, ":")
	if !ok {
		return server{}, errors.New("no scheme")
	}
	var s server
	secure := strings.EqualFold(scheme, "turns")
	switch {
	case secure:
		s.via, s.port = overTLS, tlsPort
	case strings.EqualFold(scheme, "turn"):
		s.via, s.port = overUDP, plainPort
	default:
		return server{}, errors.New("the scheme is neither turn nor turns")
	}
	if strings.Contains(rest, "@") {
		return server{}, errors.New("the user and the password do not belong here")
	}
	authority, query, asked := strings.Cut(rest, "?")
	if asked {
		key, value, _ := strings.Cut(query, "=")
		switch {
		case key != "transport":
			return server{}, errors.New("the only option is transport")
		case value == "tcp" && !secure:
			s.via = overTCP
		case value == "udp" && secure:
			return server{}, errors.New("turns over udp (DTLS) is not supported")
		case value != "udp" && value != "tcp":
			return server{}, errors.New("the transport is neither udp nor tcp")
		}
	}
	if err := s.setHost(authority); err != nil {
		return server{}, err
	}
	return s, nil
}

// setHost reads host, host:port, [v6] or [v6]:port.
func (s *server) setHost(authority string) error {
	port := ""
	if v6, ok := strings.CutPrefix(authority, "["); ok {
		host, after, closed := strings.Cut(v6, "]")
		addr, err := netip.ParseAddr(host)
		if !closed || err != nil || !addr.Is6() {
			return errors.New("what stands in brackets is no IPv6 address")
		}
		s.host = host
		if after != "" {
			if port, ok = strings.CutPrefix(after, ":"); !ok {
				return errors.New("text behind the brackets")
			}
			return s.setPort(port)
		}
		return nil
	}
	host, port, given := strings.Cut(authority, ":")
	if !validHost(host) {
		return errors.New("no host name, or one with strange characters")
	}
	s.host = host
	if given {
		return s.setPort(port)
	}
	return nil
}

func (s *server) setPort(text string) error {
	if strings.Contains(text, ":") {
		return errors.New("an IPv6 address stands in brackets")
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 || text[0] == '+' {
		return errors.New("the port is no number between 1 and 65535")
	}
	s.port = uint16(port)
	return nil
}

// validHost is generous: names of home networks have underscores.
func validHost(host string) bool {
	if host == "" || len(host) > 253 {
		return false
	}
	for _, c := range []byte(host) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '.', c == '_', c >= 0x80:
		default:
			return false
		}
	}
	return true
}
