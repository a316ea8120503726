package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/link/relay"
)

const (
	maxTargets   = 6 // servers that are tried, a count
	maxEndpoints = 8 // TCP endpoints that are tried, a count
)

// tcpPatience is how long a connection is waited for: two round trips of a slow network.
const tcpPatience = 6 * time.Second

// A server is one that this device is told to use, and how it is spoken to.
type server struct {
	Name  string // of a hub or TURN server the subject: host and port, or the URL; else as it was given
	Host  string
	Port  uint16      // 0: it cannot be read
	Alt   uint16      // of a hub: its second port of STUN; 0: none
	UDP   bool        // it answers STUN there
	TCP   bool        // it accepts connections there
	DHT   bool        // it is a node of the distributed hash table, which speaks UDP alone
	TLS   *tls.Config // nil: it does not speak TLS
	Hub   bool
	ways  []relay.Config // of relays, one for each transport
	names []string       // udp, tcp or tls, of the same
}

// servers lists what this device is told to use: those first that are known best.
func servers(env *Env) (out []server) {
	for _, h := range env.Hubs {
		s := server{Name: "hub " + hostPort(h.Host, h.Port), Host: h.Host, Port: h.Port, Alt: h.AltPort, UDP: true, TCP: true, TLS: h.TLSConfig(), Hub: true, names: []string{"udp", "tcp", "tls"}}
		for _, u := range h.TURNURLs() {
			s.ways = append(s.ways, relay.Config{URL: u, Secret: h.TURNSecret(), TLS: h.TLSConfig(), Logger: env.Logger})
		}
		out = append(out, s)
	}
	for _, text := range env.STUN {
		host, port, _ := splitHostPort(text, 0)
		out = append(out, server{Name: text, Host: host, Port: port, UDP: true})
	}
	for _, t := range env.TURN {
		if s, ok := turnServer(t); ok {
			out = append(out, s)
		}
	}
	for _, m := range env.Media {
		for _, text := range m.Servers {
			host, port, _ := splitHostPort(text, 0)
			out = append(out, server{Name: text, Host: host, Port: port, TCP: m.Name != dhtDriver, DHT: m.Name == dhtDriver})
		}
	}
	return out
}

// relays are the servers that this device relays by, the hubs first.
func relays(env *Env) []server {
	return slices.DeleteFunc(servers(env), func(s server) bool { return len(s.ways) == 0 })
}

// targets are the servers that are tried, one of each host and port.
func targets(env *Env) []server { return places(servers(env), maxTargets) }

// endpoints are those that TCP connections may be made to, one of each host and port.
func endpoints(env *Env) []server {
	return places(slices.DeleteFunc(servers(env), func(s server) bool { return !s.TCP }), maxEndpoints)
}

func places(all []server, most int) (out []server) {
	for _, s := range all {
		same := func(o server) bool { return o.Host == s.Host && o.Port == s.Port }
		if len(out) < most && s.Host != "" && s.Port != 0 && !slices.ContainsFunc(out, same) {
			out = append(out, s)
		}
	}
	return out
}

// literals are the addresses among the targets' hosts.
func literals(env *Env) (out []netip.Addr) {
	for _, s := range targets(env) {
		if a, err := netip.ParseAddr(s.Host); err == nil && !linkOnly(a) {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// hostNames are the names among the targets' hosts, which need DNS.
func hostNames(env *Env) (out []string) {
	for _, s := range targets(env) {
		if _, err := netip.ParseAddr(s.Host); err != nil && !slices.Contains(out, s.Host) {
			out = append(out, s.Host)
		}
	}
	return out
}

// turnServer reads a TURN URI (RFC 7065), as link/relay does. It reports false for what
// that refuses, too.
func turnServer(t relay.Config) (server, bool) {
	u, err := url.Parse(t.URL)
	if err != nil || u.Opaque == "" {
		return server{}, false
	}
	s := server{Name: strings.ToLower(u.Scheme) + ":" + u.Opaque, ways: []relay.Config{t}, Port: 3478}
	switch {
	case strings.EqualFold(u.Scheme, "turns"):
		s.TCP, s.names, s.Port = true, []string{"tls"}, 443
		if s.TLS = t.TLS; s.TLS == nil {
			s.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
		}
	case strings.Contains(u.RawQuery, "transport=tcp"):
		s.TCP, s.names = true, []string{"tcp"}
		s.Name += "?transport=tcp"
	default:
		s.UDP, s.names = true, []string{"udp"}
	}
	s.Host, s.Port, err = splitHostPort(u.Opaque, s.Port)
	return s, err == nil && s.Host != ""
}

func hostPort(host string, port uint16) string { return net.JoinHostPort(host, fmt.Sprint(port)) }

// serverNames are the subjects of the group.
func serverNames(env *Env) []string {
	out := []string{}
	for _, s := range relays(env) {
		if !slices.Contains(out, s.Name) {
			out = append(out, s.Name)
		}
	}
	return out
}

func serverNamed(env *Env, name string) (server, bool) {
	all := relays(env)
	i := slices.IndexFunc(all, func(s server) bool { return s.Name == name })
	if i < 0 {
		return server{}, false
	}
	return all[i], true
}

// outOfReach says what is wrong, and what helps, if all addresses of the server are of a family
// that this device has no way by.
func (s server) outOfReach(env *Env, addrs []netip.Addr) (cause, fix string) {
	own, _ := Fact[[]netip.Addr](env, factOutbound)
	if len(own) == 0 || slices.ContainsFunc(addrs, func(a netip.Addr) bool {
		return a.IsLoopback() || slices.ContainsFunc(own, func(o netip.Addr) bool { return o.Is4() == a.Is4() })
	}) {
		return "", ""
	}
	has, wants := family(addrs[0]), family(own[0])
	cause = fmt.Sprintf("The %s has only an %s address, and this network has only %s.", s.title(), has, wants)
	_, err := netip.ParseAddr(s.Host)
	switch literal := err == nil && wants == "IPv6"; { // DNS64 translates names (RFC 6147)
	case literal && s.Hub:
		return cause, "Use its name, which networks like this translate: kith hub address --host NAME on its machine shows what to set with kith config hub."
	case literal:
		return cause, "Put its name in place of the address in the settings, as networks like this translate names."
	}
	return cause, fmt.Sprintf("Give its machine an %s address, too, and put that into DNS, or use a network that has %s.", wants, has)
}

// deadOver6 returns the server's IPv6 address if it answers over IPv4, and not there.
func (s server) deadOver6(env *Env) (netip.AddrPort, bool) {
	seen, _ := Fact[[]sighting](env, factSeen)
	silent, _ := Fact[[]stunServer](env, factSilent)
	mine := func(x stunServer) bool { return x.Name == hostPort(s.Host, s.Port) }
	i := slices.IndexFunc(silent, func(x stunServer) bool { return mine(x) && x.Addr.Addr().Is6() })
	if i < 0 || !slices.ContainsFunc(seen, func(x sighting) bool { return mine(x.Server) && x.Server.Addr.Addr().Is4() }) {
		return netip.AddrPort{}, false
	}
	return silent[i].Addr, true
}

// A tcpProbe is what came of a connection to a host and port.
type tcpProbe struct {
	Err    error          // of the connection
	At     netip.AddrPort // of the server, the first of those that were tried if none took the connection
	RTT    time.Duration
	TLS    bool  // TLS was tried
	TLSErr error // of the handshake
	Took   time.Duration
	Expiry time.Time // of the certificate, if one came
}

// connected reports whether something accepted.
func (p tcpProbe) connected() bool { return p.Err == nil }

// proved reports whether the server itself answered, and no box in between.
func (p tcpProbe) proved() bool { return p.Err == nil && p.TLS && p.TLSErr == nil }

// refused reports whether somebody said no, which is an answer, too.
func (p tcpProbe) refused() bool { return deviceRefused(p.Err) }

// silent reports whether nothing came back from the server, whose name was found.
func (p tcpProbe) silent() bool {
	if _, ok := errors.AsType[*net.DNSError](p.Err); ok {
		return false
	}
	timeout, ok := errors.AsType[net.Error](p.Err)
	return errors.Is(p.Err, context.DeadlineExceeded) || errors.Is(p.Err, os.ErrDeadlineExceeded) || ok && timeout.Timeout()
}

// words says what came of it.
func (p tcpProbe) words() string {
	switch {
	case p.connected():
		return fmt.Sprintf("connected to %s after %d ms", p.At, p.RTT.Milliseconds())
	case p.refused():
		return "the connection was refused" + p.by(" by ")
	case p.silent():
		return "no answer" + p.by(" from ")
	}
	return "not connected: " + p.Err.Error()
}

// by is the server's address after a word, or "" if it has come to none.
func (p tcpProbe) by(word string) string {
	if !p.At.IsValid() {
		return ""
	}
	return word + p.At.String()
}

// probeTCP connects to a host and port, and with cfg speaks TLS: once in a run.
func probeTCP(ctx context.Context, env *Env, host string, port uint16, cfg *tls.Config) tcpProbe {
	name := fmt.Sprintf("tcp %s %v", hostPort(host, port), cfg != nil)
	return once(env, name, func() tcpProbe { return connectTCP(ctx, env, host, port, cfg) })
}

func connectTCP(ctx context.Context, env *Env, host string, port uint16, cfg *tls.Config) tcpProbe {
	ctx, cancel := context.WithTimeout(ctx, tcpPatience)
	defer cancel()
	conn, took, err := dialHedged(ctx, env, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", hostPort(host, port))
	})
	p := tcpProbe{Err: err, RTT: took}
	if err != nil {
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Addr != nil {
			p.At = tcpAddr(op.Addr)
		}
		return p
	}
	defer conn.Close()
	p.At = tcpAddr(conn.RemoteAddr())
	if cfg == nil {
		return p
	}
	p.TLS = true
	if p.TLSErr = env.Pacer.Wait(ctx, 12-tcpCost); p.TLSErr != nil {
		return p
	}
	start := time.Now()
	cfg = cfg.Clone()
	if cfg.ServerName == "" {
		cfg.ServerName = host
	}
	if verify := cfg.VerifyConnection; verify != nil {
		cfg.VerifyConnection = func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) > 0 {
				p.Expiry = cs.PeerCertificates[0].NotAfter
			}
			return verify(cs)
		}
	}
	t := tls.Client(conn, cfg)
	p.TLSErr = t.HandshakeContext(ctx)
	p.Took = took + time.Since(start)
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](p.TLSErr); ok && invalid.Cert != nil {
		p.Expiry = invalid.Cert.NotAfter
	}
	return p
}

const (
	hedges     = 4                      // attempts at one connection, a count
	hedgePause = 700 * time.Millisecond // between them
)

// dialHedged connects. As long as nothing comes back it begins again: the system repeats a
// lost request after one second and then three, in which a network that loses a third of
// all packets would look as if nobody answered. It also returns how long the attempt took
// that counts, without what the run's rate held it back.
func dialHedged(ctx context.Context, env *Env, dial func(context.Context) (net.Conn, error)) (net.Conn, time.Duration, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		conn net.Conn
		took time.Duration
		err  error
	}
	results := make(chan result, hedges)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var won net.Conn
	var took time.Duration
	var failed error
	for begun, ended := 0, 0; ended < begun || begun == 0 || won == nil && failed == nil && begun < hedges; {
		select {
		case <-timer.C:
			if won == nil && failed == nil && begun < hedges {
				begun++
				go func() { // awaited by this loop
					if err := env.Pacer.Wait(ctx, tcpCost); err != nil {
						results <- result{err: err}
						return
					}
					start := time.Now()
					conn, err := dial(ctx)
					results <- result{conn, time.Since(start), err}
				}()
				timer.Reset(hedgePause)
			}
		case r := <-results:
			ended++
			switch {
			case r.err != nil && failed == nil:
				failed = r.err
			case r.err == nil && won == nil:
				won, took = r.conn, r.took
			case r.err == nil:
				_ = r.conn.Close()
			}
			cancel() // what one says is true of all
		}
	}
	if won != nil {
		return won, took, nil
	}
	return nil, 0, failed
}

// tlsFinding names what is wrong with a handshake.
func (p tcpProbe) tlsFinding(now time.Time) string {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.Is(p.TLSErr, hubaddr.ErrPin):
		return pinFinding(p.TLSErr)
	case errors.As(p.TLSErr, &invalid) && invalid.Reason == x509.Expired && invalid.Cert != nil && now.Before(invalid.Cert.NotBefore):
		return "early"
	case errors.As(p.TLSErr, &invalid) && invalid.Reason == x509.Expired:
		return "expired"
	case errors.As(p.TLSErr, &unknown), errors.As(p.TLSErr, &name), errors.As(p.TLSErr, &invalid):
		return "untrusted"
	}
	return "failed"
}
