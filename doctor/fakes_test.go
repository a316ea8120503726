package doctor

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"io"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/stun/v4"

	"github.com/kithproject/kith/doctor/dialback"
	"github.com/kithproject/kith/hub/hubaddr"
)

// A fakeSTUN answers binding requests on loopback, as a test wants it to.
type fakeSTUN struct {
	main, alt *net.UDPConn
	mapped    func(netip.AddrPort) netip.AddrPort // what it says that it sees; nil: what it sees
	changes   atomic.Bool                         // it answers from its other port when asked to
	refuses   atomic.Bool                         // it says that it does not know such requests
	responds  atomic.Bool                         // it answers at another port when asked to
	ignores   atomic.Bool                         // it overlooks such requests
	mute      atomic.Bool
}

func newFakeSTUN(t *testing.T, mapped func(netip.AddrPort) netip.AddrPort) *fakeSTUN {
	t.Helper()
	s := &fakeSTUN{mapped: mapped}
	var wg sync.WaitGroup
	for _, c := range []**net.UDPConn{&s.main, &s.alt} {
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		*c = conn
		t.Cleanup(func() { _ = conn.Close() })
	}
	t.Cleanup(wg.Wait)
	t.Cleanup(func() { _, _ = s.main.Close(), s.alt.Close() })
	for _, conn := range []*net.UDPConn{s.main, s.alt} {
		wg.Go(func() { s.serve(conn) })
	}
	return s
}

func (s *fakeSTUN) serve(conn *net.UDPConn) {
	buf := make([]byte, maxSTUN)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		m := &stun.Message{Raw: append([]byte(nil), buf[:n]...)}
		if m.Decode() != nil || m.Type != stun.BindingRequest || s.mute.Load() {
			continue
		}
		out, to, saw := conn, from, from
		if s.mapped != nil {
			saw = s.mapped(from)
		}
		set := []stun.Setter{stun.NewTransactionIDSetter(m.TransactionID), stun.BindingSuccess, &stun.XORMappedAddress{IP: saw.Addr().AsSlice(), Port: int(saw.Port())}}
		refuse := []stun.Setter{stun.NewTransactionIDSetter(m.TransactionID), stun.BindingError, stun.CodeUnknownAttribute}
		if v, err := m.Get(stun.AttrChangeRequest); err == nil {
			switch {
			case s.refuses.Load() || v[3]&changeIP != 0: // it has one address
				set = refuse
			case !s.changes.Load():
				continue // a filter drops what it sends
			default:
				out = s.alt
			}
		}
		if v, err := m.Get(stun.AttrResponsePort); err == nil && !s.ignores.Load() {
			if s.responds.Load() {
				to = netip.AddrPortFrom(from.Addr(), binary.BigEndian.Uint16(v))
			} else {
				set = refuse
			}
		}
		if answer, err := stun.Build(set...); err == nil {
			_, _ = out.WriteToUDPAddrPort(answer.Raw, to)
		}
	}
}

func (s *fakeSTUN) addr() netip.AddrPort { return udpAddr(s.main.LocalAddr()) }

func (s *fakeSTUN) server() stunServer { return stunServer{Name: s.addr().String(), Addr: s.addr()} }

// place is an address and port in short.
func place(text string) netip.AddrPort { return netip.MustParseAddrPort(text) }

// sees is a sighting by a server.
func sees(server, local, mapped string) sighting {
	return sighting{
		Server: stunServer{Name: server, Addr: place(server)}, Local: place(local), At: time.Unix(1e9, 0),
		stunAnswer: stunAnswer{Mapped: place(mapped)},
	}
}

// given has a value stand for what once would find out.
func given[T any](env *Env, name string, value T) { once(env, name, func() T { return value }) }

// certificateFor makes a certificate for a loopback address, which could be a hub's.
func certificateFor(t *testing.T, until time.Time) (tls.Certificate, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{hubaddr.CertificateName},
		NotBefore: until.Add(-48 * time.Hour), NotAfter: until, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, cert
}

// A fakeHub speaks TLS on loopback and answers those who want to be dialed back.
type fakeHub struct {
	addr   hubaddr.Address
	answer func(dialback.Request, netip.AddrPort) (dialback.Answer, bool) // false: it hangs up
}

func newFakeHub(t *testing.T, answer func(dialback.Request, netip.AddrPort) (dialback.Answer, bool)) *fakeHub {
	t.Helper()
	cert, parsed := certificateFor(t, time.Now().Add(time.Hour))
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	h := &fakeHub{answer: answer, addr: hubaddr.Address{
		Host: "127.0.0.1", Port: tcpAddr(ln.Addr()).Port(), Access: hubaddr.Access{7}, Pin: hubaddr.PinOf(parsed.RawSubjectPublicKeyInfo),
	}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { h.serve(conn) })
		}
	})
	t.Cleanup(wg.Wait)
	t.Cleanup(func() { _ = ln.Close() })
	return h
}

func (h *fakeHub) serve(conn net.Conn) {
	defer conn.Close()
	login := make([]byte, hubaddr.DialBackLoginSize)
	if _, err := io.ReadFull(conn, login); err != nil || string(login) != string(h.addr.DialBackLogin()) || h.answer == nil {
		return
	}
	if r, err := dialback.ReadRequest(conn); err == nil {
		if a, ok := h.answer(r, tcpAddr(conn.RemoteAddr())); ok {
			_ = dialback.WriteAnswer(conn, a)
		}
	}
}

// env is one with this hub.
func (h *fakeHub) env() *Env { return &Env{Hubs: []hubaddr.Address{h.addr}} }

// An answerCase is a check's environment and the answer to it.
type answerCase struct {
	env   *Env
	want  string // the state, or the finding of a no
	holds string // in the evidence or the cause
}

// runCases runs a check of the table in each environment.
func runCases(t *testing.T, code Code, subject string, cases map[string]answerCase) {
	t.Helper()
	table := Table()
	i := slices.IndexFunc(table, func(c Check) bool { return c.Code == code })
	if i < 0 {
		t.Fatalf("there is no check %s", code)
	}
	for name, test := range cases {
		t.Run(name, func(t *testing.T) {
			a := table[i].Run(t.Context(), test.env, subject)
			got := string(a.State)
			if a.State == No {
				got = a.Finding
				if !slices.ContainsFunc(table[i].Findings, func(f Finding) bool { return f.ID == got }) {
					t.Errorf("the finding %q is not in the table", got)
				}
			}
			if text := a.Cause + "\n" + strings.Join(a.Evidence, "\n"); got != test.want || !strings.Contains(text, test.holds) {
				t.Errorf("%s, want %s with %q: %s", got, test.want, test.holds, text)
			}
			for _, sentence := range []string{a.Cause, a.Fix} {
				if sentence != "" && (!strings.HasSuffix(sentence, ".") || strings.Contains(sentence, ". ")) {
					t.Errorf("not one sentence: %q", sentence)
				}
			}
		})
	}
}
