package registry

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Rights are what a device may do here. The zero value is what every new pair has:
// to ping, to send lines of chat and to offer files.
type Rights struct {
	TCP    []uint16 `json:"tcp,omitempty"`    // ports of this machine's localhost that it may reach, sorted
	UDP    []uint16 `json:"udp,omitempty"`    // the same for UDP
	Files  bool     `json:"files,omitempty"`  // files that it offers are taken without asking
	Shares []Share  `json:"shares,omitempty"` // folders that it may get, sorted by name
	// ListenTCP are ports of this machine's localhost on which it may listen, so that
	// programs here reach a service of its own, sorted; AnyPort is each from 1024.
	ListenTCP []uint16 `json:"listen_tcp,omitempty"`
	ListenUDP []uint16 `json:"listen_udp,omitempty"` // the same for UDP
	Blocked   bool     `json:"blocked,omitempty"`    // it may do nothing, not even connect, whatever stands above
}

// A Share is a folder that a device may get, by a name that tells it nothing of where
// the folder is.
type Share struct {
	Name string `json:"name"`
	Path string `json:"path"` // absolute
}

// AnyPort stands for every port from FirstAnyPort in Rights.ListenTCP and ListenUDP;
// it is no port number that is used.
const AnyPort = 0

// FirstAnyPort is the lowest port number of those that AnyPort stands for: the ones below
// are the system's own services.
const FirstAnyPort = 1024

const (
	maxShares    = 64
	maxSharePath = 4096 // bytes
)

// ErrShare reports a share that cannot be given.
var ErrShare = errors.New("not a usable share")

// Allows reports whether a port of a network, "tcp" or "udp", may be reached.
func (r Rights) Allows(network string, port uint16) bool {
	_, found := slices.BinarySearch(*r.ports(network), port)
	return found && !r.Blocked
}

// Allow adds a port of a network, "tcp" or "udp".
func (r *Rights) Allow(network string, port uint16) { addPort(r.ports(network), port) }

// Deny takes a port of a network, "tcp" or "udp", away.
func (r *Rights) Deny(network string, port uint16) { removePort(r.ports(network), port) }

// AllowsListen reports whether the device may listen on a port of a network, "tcp" or
// "udp".
func (r Rights) AllowsListen(network string, port uint16) bool {
	list := *r.listens(network)
	_, found := slices.BinarySearch(list, port)
	_, each := slices.BinarySearch(list, AnyPort)
	return port != AnyPort && (found || each && port >= FirstAnyPort) && !r.Blocked
}

// AllowListen lets the device listen on a port of a network, "tcp" or "udp", or on
// AnyPort.
func (r *Rights) AllowListen(network string, port uint16) { addPort(r.listens(network), port) }

// DenyListen takes back what AllowListen gave for the same port or AnyPort.
func (r *Rights) DenyListen(network string, port uint16) { removePort(r.listens(network), port) }

func addPort(list *[]uint16, port uint16) {
	if i, found := slices.BinarySearch(*list, port); !found {
		*list = slices.Insert(slices.Clone(*list), i, port)
	}
}

func removePort(list *[]uint16, port uint16) {
	*list = slices.DeleteFunc(slices.Clone(*list), func(p uint16) bool { return p == port })
}

func (r *Rights) listens(network string) *[]uint16 {
	if strings.HasPrefix(network, "udp") {
		return &r.ListenUDP
	}
	return &r.ListenTCP
}

func (r *Rights) ports(network string) *[]uint16 {
	if strings.HasPrefix(network, "udp") {
		return &r.UDP
	}
	return &r.TCP
}

// AddShare adds a share, or gives that of the same name another folder. It errs with
// ErrShare if the name or the path cannot be used, or there are 64.
func (r *Rights) AddShare(s Share) error {
	if err := s.check(); err != nil {
		return err
	}
	i, found := slices.BinarySearchFunc(r.Shares, s.Name, func(s Share, name string) int { return strings.Compare(s.Name, name) })
	shares := slices.Clone(r.Shares)
	switch {
	case found:
		shares[i] = s
	case len(shares) >= maxShares:
		return fmt.Errorf("%w: a device has at most %d", ErrShare, maxShares)
	default:
		shares = slices.Insert(shares, i, s)
	}
	r.Shares = shares
	return nil
}

// RemoveShare takes the share of a name away, and reports whether there was one.
func (r *Rights) RemoveShare(name string) bool {
	n := len(r.Shares)
	r.Shares = slices.DeleteFunc(slices.Clone(r.Shares), func(s Share) bool { return s.Name == name })
	return len(r.Shares) < n
}

func (s Share) check() error {
	switch {
	case s.Name == "" || len(s.Name) > maxNameBytes || !utf8.ValidString(s.Name) || s.Name == "." || s.Name == "..":
		return fmt.Errorf("%w: a name is 1 to %d bytes of text", ErrShare, maxNameBytes)
	case strings.ContainsFunc(s.Name, func(r rune) bool { return r == '/' || r == '\\' || r == ':' || !unicode.IsPrint(r) }):
		return fmt.Errorf("%w: a name has no slash, colon or control character", ErrShare)
	case !filepath.IsAbs(s.Path) || len(s.Path) > maxSharePath || strings.ContainsRune(s.Path, 0):
		return fmt.Errorf("%w: a folder's path is absolute", ErrShare)
	}
	return nil
}

// clone returns a copy that shares nothing.
func (r Rights) clone() Rights {
	r.TCP, r.UDP, r.Shares = slices.Clone(r.TCP), slices.Clone(r.UDP), slices.Clone(r.Shares)
	r.ListenTCP, r.ListenUDP = slices.Clone(r.ListenTCP), slices.Clone(r.ListenUDP)
	return r
}
