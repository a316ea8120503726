package doctor

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/kithproject/kith/hub/hubaddr"
)

// deviceHub is a server of TLS at a hub's address.
func deviceHub(t *testing.T, handler http.HandlerFunc) hubaddr.Address {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// The certificate has ended long ago: the pin counts alone.
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1, 0)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(handler)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	at := netip.MustParseAddrPort(srv.Listener.Addr().String())
	return hubaddr.Address{Host: at.Addr().String(), Port: at.Port(), AltPort: 0, Pin: hubaddr.PinOf(cert.RawSubjectPublicKeyInfo)}
}

// TestDeviceNeeds runs all checks on a device without a way out: that is the only cause.
func TestDeviceNeeds(t *testing.T) {
	d, env := testDevice(), deviceEnv()
	env.Dir = t.TempDir()
	deviceChmod(t, env.Dir, 0o700)
	env.Peers = []Peer{{Name: "laptop"}}
	d.outbound = deviceWays(netip.Addr{}, netip.Addr{})
	r := Run(t.Context(), Config{Table: d.checks(), Env: env})
	if got := codes(r.Causes); !slices.Equal(got, []string{"device.routes/none"}) {
		t.Errorf("causes %q", got)
	}
	// And one with nothing wrong, but with nobody to ask: no cause at all.
	d, env.facts, env.Peers = testDevice(), nil, nil
	d.ask = deviceAnswers(map[string]deviceAnswer{"192.168.1.1:5351": {Refused: true}})
	r = Run(t.Context(), Config{Table: d.checks(), Env: env})
	if len(r.Causes) != 0 {
		t.Errorf("causes %q", codes(r.Causes))
	}
}
