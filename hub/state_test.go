package hub

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/kithproject/kith/hub/hubaddr"
)

// TestState makes a key once, for this user only, and derives from it.
func TestState(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "hub")
	one, err := loadState(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, pin, err := one.certificate("", "")
	if err != nil {
		t.Fatal(err)
	}
	two, err := loadState(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, again, err := two.certificate("", "")
	if err != nil || pin != again || one.access() != two.access() || one.key != two.key {
		t.Errorf("the second time it is another hub: %v", err)
	}
	other, err := loadState(filepath.Join(t.TempDir(), "hub"))
	if err != nil || other.access() == one.access() {
		t.Errorf("another hub has the same secret: %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Fatalf("%v %v", entries, err)
	}
	if runtime.GOOS == "windows" {
		return
	}
	for _, path := range []string{dir, filepath.Join(dir, keyFile), filepath.Join(dir, certKeyFile)} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v %v", path, info.Mode(), err)
		}
		if err := os.Chmod(path, info.Mode().Perm()|0o044); err != nil {
			t.Fatal(err)
		}
		s, err := loadState(dir)
		if err == nil {
			_, _, err = s.certificate("", "")
		}
		if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "chmod") {
			t.Errorf("%s open to others: %v", path, err)
		}
		if err := os.Chmod(path, info.Mode().Perm()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStateDamaged never takes a damaged key for a new one.
func TestStateDamaged(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "hub")
	if _, err := loadState(dir); err != nil {
		t.Fatal(err)
	}
	for _, raw := range [][]byte{nil, make([]byte, 31), make([]byte, 33)} {
		if err := os.WriteFile(filepath.Join(dir, keyFile), raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := loadState(dir); err == nil {
			t.Errorf("a key of %d bytes was taken", len(raw))
		}
		if got, err := os.ReadFile(filepath.Join(dir, keyFile)); err != nil || !bytes.Equal(got, raw) {
			t.Error("the key was replaced")
		}
	}
}

// TestGivenCertificate uses a certificate of the user's.
func TestGivenCertificate(t *testing.T) {
	made, err := loadState(filepath.Join(t.TempDir(), "hub"))
	if err != nil {
		t.Fatal(err)
	}
	_, pin, err := made.certificate("", "")
	if err != nil {
		t.Fatal(err)
	}
	h := open(t, func(c *Config) {
		c.CertFile, c.KeyFile = filepath.Join(made.dir, certFile), filepath.Join(made.dir, certKeyFile)
	})
	if h.Address().Pin != pin {
		t.Error("another pin")
	}
	dialMQTT(t, h, h.Address().MQTTURLs()[0], nil)
}

// FuzzSettings reads anything as the settings of the last run.
func FuzzSettings(f *testing.F) {
	f.Add([]byte(`{"host":"hub.example.org","port":443,"alt_port":444,"pin":"000102030405060708090a0b0c0d0e0f"}`))
	f.Add([]byte(`{"host":"a b"}`))
	f.Add([]byte(`[`))
	dir := filepath.Join(f.TempDir(), "hub")
	s, err := loadState(dir)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if err := os.WriteFile(filepath.Join(dir, settingsFile), raw, 0o600); err != nil {
			t.Fatal(err)
		}
		set := s.settings()
		if host, err := hubaddr.CleanHost(set.Host); set.Host != "" && (err != nil || host != set.Host) {
			t.Errorf("host %q", set.Host)
		}
		if a, err := LastAddress(dir, ""); err == nil && !a.Valid() {
			t.Error("an address that is none")
		}
	})
}
