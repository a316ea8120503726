package lane

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"math/big"
	"net/netip"
	"sync"
	"time"

	"github.com/kithproject/kith/internal/wire"
)

const (
	inviteLife = 10 * time.Second
	// maxCalls is how many connections may name one invitation: one for each
	// endpoint, and as many by whoever has seen its name on the wire.
	maxCalls = 2 * maxEndpoints
)

// An invite is an invitation of this device to another: what the door knows of
// those who may come in.
type invite struct {
	token [tokenSize]byte
	name  string // what a TLS client calls it by
	cert  tls.Certificate
	// welcome is given each connection whose TLS has shown the pinned key; it closes
	// what it does not keep.
	welcome func(s *session)

	door   bool            // the door was opened for it
	gone   <-chan struct{} // closed when nobody waits for it any more
	pinned chan struct{}   // closed when pin is set
	pin    ed25519.PublicKey

	expires time.Time
	calls   int  // guarded by the ledger
	spent   bool // guarded by the ledger
}

// nameOf is the server name by which a TLS client calls an invitation. It is seen on
// the wire and says nothing about the token.
func nameOf(token [tokenSize]byte) string {
	name := wire.Expand(token[:], "lane name")
	return hex.EncodeToString(name[:16])
}

// newInvite makes an invitation with a key and a token of its own. It errs if the
// system has no randomness.
func newInvite(now time.Time) (*invite, error) {
	inv := &invite{pinned: make(chan struct{}), expires: now.Add(inviteLife)}
	if _, err := rand.Read(inv.token[:]); err != nil {
		return nil, err
	}
	inv.name = nameOf(inv.token)
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	// Name, serial number and times are the same in all certificates of all devices:
	// only the key in it means something.
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		return nil, err
	}
	inv.cert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
	return inv, nil
}

// offer is the invitation as it is sent.
func (i *invite) offer(to []netip.AddrPort) offered {
	o := offered{token: i.token, to: to}
	copy(o.key[:], i.cert.PrivateKey.(ed25519.PrivateKey).Public().(ed25519.PublicKey))
	return o
}

// setPin says whose key the invitation is for. It is called once.
func (i *invite) setPin(key [keySize]byte) {
	i.pin = key[:]
	close(i.pinned)
}

// config is for both sides of TLS: our certificate, and no key but the pinned one.
func (i *invite) config() *tls.Config {
	pin := i.pin
	return &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		CurvePreferences:            []tls.CurveID{tls.X25519MLKEM768},
		Certificates:                []tls.Certificate{i.cert},
		ClientAuth:                  tls.RequireAnyClientCert,
		InsecureSkipVerify:          true, //nolint:gosec // there is no authority: VerifyConnection compares the key itself
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true, // bulk data: full records from the first
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) != 1 {
				return errKey
			}
			key, ok := state.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
			if !ok || !key.Equal(pin) {
				return errKey
			}
			return nil
		},
	}
}

// A ledger holds the invitations that are open. It has no clock.
type ledger struct {
	mu     sync.Mutex
	byName map[string]*invite
}

func (l *ledger) add(i *invite) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byName == nil {
		l.byName = make(map[string]*invite)
	}
	l.byName[i.name] = i
}

func (l *ledger) remove(i *invite) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.byName, i.name)
}

// call returns the invitation of a name, or nil if there is none, or it has been
// called too often. The name is no secret to whoever sees the wire and is worth
// nothing without the key, so a map's timing tells nobody anything.
func (l *ledger) call(name string, now time.Time) *invite {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := l.byName[name]
	if i == nil || i.spent || !now.Before(i.expires) || i.calls == maxCalls {
		return nil
	}
	i.calls++
	return i
}

// spend uses an invitation up, and reports whether it still could be used.
func (l *ledger) spend(i *invite, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byName[i.name] != i || i.spent || !now.Before(i.expires) {
		return false
	}
	i.spent = true
	return true
}
