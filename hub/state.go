package hub

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/internal/durable"
)

const (
	keyFile      = "hub.key"      // 32 random bytes
	certFile     = "hub-cert.pem" // self-signed certificate
	certKeyFile  = "hub-cert.key" // its key
	settingsFile = "hub.json"     // what LastAddress needs
	stateKeySize = 32             // bytes
	maxStateFile = 64 << 10       // bytes
	certLife     = 50 * 365 * 24 * time.Hour
)

// state is a hub's directory.
type state struct {
	dir string
	key [stateKeySize]byte
}

// settings is what LastAddress needs besides the key; nothing of it is secret.
type settings struct {
	Host    string `json:"host"`
	Port    uint16 `json:"port"`
	AltPort uint16 `json:"alt_port"`
	Pin     string `json:"pin"`
}

func (s settings) pin() (p hubaddr.Pin) {
	raw, err := hex.DecodeString(s.Pin)
	if err == nil && len(raw) == len(p) {
		p = hubaddr.Pin(raw)
	}
	return p
}

// loadState opens a directory, and makes it and the key if they are missing.
func loadState(dir string) (*state, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("hub: %w", err)
	}
	s, err := readState(dir)
	if !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	s = &state{dir: dir}
	if _, err := rand.Read(s.key[:]); err != nil {
		return nil, fmt.Errorf("hub: %w", err)
	}
	return s, s.write(keyFile, s.key[:])
}

// readState opens a directory that has a key.
func readState(dir string) (*state, error) {
	s := &state{dir: dir}
	if err := private(dir, 0o077); err != nil {
		return nil, err
	}
	raw, err := s.read(keyFile)
	if err != nil {
		return nil, err
	}
	if len(raw) != len(s.key) {
		return nil, fmt.Errorf("hub: %s has %d bytes instead of %d: put the right one there from a backup, or remove it for a new hub",
			filepath.Join(dir, keyFile), len(raw), len(s.key))
	}
	copy(s.key[:], raw)
	return s, nil
}

// private refuses what others may read.
func private(path string, mask fs.FileMode) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	if runtime.GOOS == "windows" || info.Mode().Perm()&mask == 0 {
		return nil // Windows keeps access lists, which the directory inherits
	}
	want := "600"
	if info.IsDir() {
		want = "700"
	}
	return fmt.Errorf("hub: others may open %s: run chmod %s %s: %w", path, want, path, fs.ErrPermission)
}

func (s *state) read(name string) ([]byte, error) {
	path := filepath.Join(s.dir, name)
	if name != settingsFile {
		if err := private(path, 0o077); err != nil {
			return nil, err
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("hub: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxStateFile))
	if err != nil {
		return nil, fmt.Errorf("hub: %w", err)
	}
	return raw, nil
}

// write replaces a file so that it is there whole or not at all.
func (s *state) write(name string, data []byte) error {
	if err := durable.WriteFile(s.dir, name, data); err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	return nil
}

// access derives the secret that lets clients in.
func (s *state) access() (a hubaddr.Access) {
	key, err := hkdf.Key(sha256.New, s.key[:], nil, "kith/1 hub access", len(a))
	if err != nil {
		panic(err) // only for an output of more than 8160 bytes
	}
	return hubaddr.Access(key)
}

// certificate returns the given certificate, or the hub's own, which it makes
// once.
func (s *state) certificate(cert, key string) (tls.Certificate, hubaddr.Pin, error) {
	if cert == "" {
		cert, key = filepath.Join(s.dir, certFile), filepath.Join(s.dir, certKeyFile)
		if _, err := os.Stat(cert); errors.Is(err, fs.ErrNotExist) {
			if err := s.makeCertificate(); err != nil {
				return tls.Certificate{}, hubaddr.Pin{}, err
			}
		}
		if err := private(key, 0o077); err != nil {
			return tls.Certificate{}, hubaddr.Pin{}, err
		}
	}
	c, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return tls.Certificate{}, hubaddr.Pin{}, fmt.Errorf("%w: the certificate %s with the key %s: %w", ErrConfig, cert, key, err)
	}
	return c, hubaddr.PinOf(c.Leaf.RawSubjectPublicKeyInfo), nil
}

// makeCertificate writes a self-signed certificate: the key first, so that there
// is never a certificate without its key.
func (s *state) makeCertificate() error {
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "kith hub"}, DNSNames: []string{hubaddr.CertificateName},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(certLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, priv.Public(), priv)
	if err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	pkcs, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	if err := s.write(certKeyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs})); err != nil {
		return err
	}
	return s.write(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// settings returns what was used last, or nothing if that cannot be read: it is
// written anew at every start.
func (s *state) settings() (out settings) {
	raw, err := s.read(settingsFile)
	if err != nil || json.Unmarshal(raw, &out) != nil {
		return settings{}
	}
	if host, err := hubaddr.CleanHost(out.Host); err != nil || host != out.Host {
		return settings{}
	}
	return out
}

func (s *state) saveSettings(set settings) error {
	if set == s.settings() {
		return nil
	}
	raw, err := json.Marshal(set)
	if err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	return s.write(settingsFile, append(raw, '\n'))
}

// serverTLS is for clients of this kind: TLS 1.3, which hides the certificate
// from onlookers, and the names of the protocols (RFC 7443 for the first two).
func serverTLS(cert tls.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
		NextProtos: []string{"stun.turn", "stun.nat-discovery", "mqtt", "http/1.1"},
	}
}
