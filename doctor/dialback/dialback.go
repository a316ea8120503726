// Package dialback proves that a device can be reached: another one connects to the
// address and port that the device believes in, over TLS, and says a random code.
//
// The device that wants to know listens, and hands address, code and pin to the other:
//
//	l, err := dialback.Listen(ctx, netip.AddrPort{})
//	defer l.Close()
//	// … the other one: dialback.Dial(ctx, address, l.Code(), l.Pin())
//	from, err := l.Wait(ctx) // somebody who knows the code came from there
//
// The pin is of a certificate that is made for this listener alone, so that a router
// or another program that answers at the address is not mistaken for the device; the
// code tells the one who was asked from everybody else on the internet. Both sides
// hear how the other one is seen. A connection that a device makes to itself proves
// nothing: it need not leave the machine.
//
// A hub dials back, too. A client of it (package hub/hubaddr has the login) speaks with
// Ask; the hub reads with ReadRequest and writes with WriteAnswer. It dials only the
// address that the question came from.
//
// # Messages
//
//	dialer   "KDB1" code (16 bytes), inside TLS 1.3
//	listener "KDB1" address of the dialer as it is seen (16), its port (2)
//
//	client   port (2; 0: nothing is dialed), code (16), pin (32), after the hub's login
//	hub      "KDB1" outcome (1), address of the client as it is seen (16), port (2),
//	         milliseconds that the dialing took (4)
//
// Numbers are big endian, addresses those of IPv6 or mapped into it.
package dialback

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// Magic begins every message of this package.
	Magic = "KDB1"
	// Timeout is how long a dial-back takes at most.
	Timeout = 5 * time.Second

	maxConns  = 8 // a listener serves at once, a count
	fromOne   = 3 // of one address, so that a stranger does not take all
	placeSize = 18
	certLife  = time.Hour
)

// A Code is what the one that was asked says. It prints redacted.
type Code [16]byte

// String returns "redacted".
func (Code) String() string { return "redacted" }

// Format writes "redacted" for every verb.
func (Code) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("redacted")) }

// LogValue returns "redacted".
func (Code) LogValue() slog.Value { return slog.StringValue("redacted") }

// A Pin is the SHA-256 of a listener's certificate.
type Pin [sha256.Size]byte

// A Listener waits for dial-backs. It is safe for concurrent use.
type Listener struct {
	ln    net.Listener
	tls   *tls.Config
	code  Code
	pin   Pin
	came  chan netip.AddrPort
	slots chan struct{}
	ctx   context.Context //nolint:containedctx // ends with Close
	stop  context.CancelFunc
	wg    sync.WaitGroup
	once  sync.Once
	err   error

	mu   sync.Mutex // guards from
	from map[netip.Addr]int
}

// Listen listens at an address and port of TCP: the zero value is all addresses and
// any port. It errs if the system does not let it.
func Listen(ctx context.Context, at netip.AddrPort) (*Listener, error) {
	cert, pin, err := ephemeral()
	if err != nil {
		return nil, fmt.Errorf("dialback: %w", err)
	}
	address := ":0"
	if at.IsValid() {
		address = at.String()
	} else if at.Port() != 0 {
		address = fmt.Sprintf(":%d", at.Port())
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("dialback: %w", err)
	}
	l := &Listener{
		ln: ln, pin: pin, came: make(chan netip.AddrPort, maxConns), slots: make(chan struct{}, maxConns),
		tls: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, SessionTicketsDisabled: true},
	}
	_, _ = rand.Read(l.code[:]) // never errs
	l.ctx, l.stop = context.WithCancel(context.Background())
	l.wg.Go(l.accept)
	return l, nil
}

// ephemeral makes a certificate that nobody keeps.
func ephemeral() (tls.Certificate, Pin, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, Pin{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return tls.Certificate{}, Pin{}, err
	}
	// Nobody compares the times: the pin is all that counts, and clocks may be wrong.
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "dial-back"}, DNSNames: []string{"dial-back"},
		NotBefore: now.Add(-certLife), NotAfter: now.Add(certLife), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, Pin{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, sha256.Sum256(der), nil
}

// Addr returns where it listens; the address may be the unspecified one.
func (l *Listener) Addr() netip.AddrPort { return addrOf(l.ln.Addr()) }

// Port returns the port number that it listens at.
func (l *Listener) Port() uint16 { return l.Addr().Port() }

// Code returns what a dialer has to say.
func (l *Listener) Code() Code { return l.code }

// Pin returns what a dialer knows the listener by.
func (l *Listener) Pin() Pin { return l.pin }

// Wait returns from where a dialer with the code came, each once. It errs with the
// context's error, or net.ErrClosed.
func (l *Listener) Wait(ctx context.Context) (netip.AddrPort, error) {
	select {
	case from := <-l.came:
		return from, nil
	case <-ctx.Done():
		return netip.AddrPort{}, ctx.Err()
	case <-l.ctx.Done():
		return netip.AddrPort{}, fmt.Errorf("dialback: %w", net.ErrClosed)
	}
}

// Close ends it and waits. It errs as closing a listener of the system does.
func (l *Listener) Close() error {
	l.once.Do(func() {
		l.stop()
		l.err = l.ln.Close()
	})
	l.wg.Wait()
	return l.err
}

func (l *Listener) accept() {
	for {
		select {
		case l.slots <- struct{}{}:
		case <-l.ctx.Done():
			return
		}
		conn, err := l.ln.Accept()
		if err != nil {
			return // closed, or no file is left: then nobody comes, which is what is told
		}
		who, ok := l.enter(addrOf(conn.RemoteAddr()).Addr())
		if !ok {
			_ = conn.Close()
			<-l.slots
			continue
		}
		l.wg.Go(func() {
			defer func() { <-l.slots }()
			defer l.leave(who)
			l.serve(conn)
		})
	}
}

// enter takes one of those that an address may have at once, and of IPv6 a network.
func (l *Listener) enter(a netip.Addr) (who netip.Addr, ok bool) {
	if p, err := a.Prefix(64); a.Is6() && err == nil {
		a = p.Addr()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.from[a] == fromOne {
		return a, false
	}
	if l.from == nil {
		l.from = make(map[netip.Addr]int)
	}
	l.from[a]++
	return a, true
}

func (l *Listener) leave(who netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.from[who]--; l.from[who] == 0 {
		delete(l.from, who)
	}
}

// serve hears a dialer out.
func (l *Listener) serve(conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(l.ctx, func() { _ = conn.Close() })()
	_ = conn.SetDeadline(time.Now().Add(Timeout))
	t := tls.Server(conn, l.tls)
	var said [len(Magic) + len(Code{})]byte
	if _, err := io.ReadFull(t, said[:]); err != nil {
		return
	}
	want := append([]byte(Magic), l.code[:]...)
	if subtle.ConstantTimeCompare(said[:], want) != 1 {
		return
	}
	from := addrOf(conn.RemoteAddr())
	if _, err := t.Write(appendPlace([]byte(Magic), from)); err != nil {
		return
	}
	select {
	case l.came <- from:
	default: // nobody waits
	}
	_ = t.Close()
}

// Dial connects to an address, makes sure that it is the listener of the pin, and says
// the code. It returns how the listener sees this side, if the outcome is OK. It takes
// Timeout at most, or until ctx ends.
func Dial(ctx context.Context, to netip.AddrPort, code Code, pin Pin) (Outcome, netip.AddrPort) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return outcomeOf(err), netip.AddrPort{}
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	t := tls.Client(conn, &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: "dial-back",
		InsecureSkipVerify: true, //nolint:gosec // the pin is compared instead
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return errOther
			}
			got := sha256.Sum256(cs.PeerCertificates[0].Raw)
			if subtle.ConstantTimeCompare(got[:], pin[:]) != 1 {
				return errOther
			}
			return nil
		},
	})
	seen, err := exchange(ctx, t, code)
	if err != nil {
		return Other, netip.AddrPort{}
	}
	return OK, seen
}

var errOther = errors.New("dialback: somebody else answers")

func exchange(ctx context.Context, t *tls.Conn, code Code) (netip.AddrPort, error) {
	if err := t.HandshakeContext(ctx); err != nil {
		return netip.AddrPort{}, err
	}
	if _, err := t.Write(append([]byte(Magic), code[:]...)); err != nil {
		return netip.AddrPort{}, err
	}
	var answer [len(Magic) + placeSize]byte
	if _, err := io.ReadFull(t, answer[:]); err != nil {
		return netip.AddrPort{}, err
	}
	if !bytes.HasPrefix(answer[:], []byte(Magic)) {
		return netip.AddrPort{}, errOther
	}
	return placeOf(answer[len(Magic):]), nil
}

// appendPlace appends an address and port.
func appendPlace(b []byte, ap netip.AddrPort) []byte {
	var a [16]byte
	if ap.Addr().IsValid() {
		a = ap.Addr().As16()
	}
	return binary.BigEndian.AppendUint16(append(b, a[:]...), ap.Port())
}

// placeOf reads what appendPlace wrote, placeSize bytes.
func placeOf(b []byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b)).Unmap(), binary.BigEndian.Uint16(b[16:]))
}

func addrOf(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(t.AddrPort().Addr().Unmap().WithZone(""), t.AddrPort().Port())
}
