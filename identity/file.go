package identity

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

const (
	fileName   = "identity.key"
	fileHeader = "kith identity 1"
	// maxFile is more than the file ever has, in bytes.
	maxFile  = 1024
	seedSize = 32 // bytes
	dirMode  = 0o700
	fileMode = 0o600
)

// ErrKeyFile reports an identity file that cannot be understood. It is never
// replaced: whoever lost it is another device.
var ErrKeyFile = errors.New("identity: the key file is damaged")

// A PermissionError reports a file or directory that others can use.
type PermissionError struct {
	Path string
	Mode fs.FileMode // as it is
	Want fs.FileMode // as it should be
}

func (e *PermissionError) Error() string {
	return fmt.Sprintf("identity: others can use %s (mode %04o): keys must be this user's alone", e.Path, e.Mode)
}

// Hint says what to do about it.
func (e *PermissionError) Hint() string { return fmt.Sprintf("run: chmod %04o %s", e.Want, e.Path) }

// FromSeeds makes an identity from the seed of its Ed25519 key (RFC 8032) and
// its X25519 private key (RFC 7748), for tests and vectors. It errs if the X25519
// key is not valid.
func FromSeeds(sign, wg [32]byte) (*Identity, error) {
	key, err := ecdh.X25519().NewPrivateKey(wg[:])
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	return &Identity{sign: ed25519.NewKeyFromSeed(sign[:]), wg: key}, nil
}

// Open loads the identity of a state directory, or makes a new one. The
// directory must be this user's alone (mode 0700); it is made if it is not there.
// On Windows modes mean nothing and are not checked. It errs with a
// *PermissionError if others can use the directory or the file, with ErrKeyFile
// if the file is damaged, and with the system's reason otherwise.
func Open(dir string) (*Identity, error) {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return nil, fmt.Errorf("identity: state directory: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("identity: state directory: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("identity: state directory: %s is not a directory", dir)
	}
	if err := checkMode(dir, info, dirMode); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, fileName)
	id, err := load(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return id, err
	}
	return create(dir, path)
}

func checkMode(path string, info fs.FileInfo, want fs.FileMode) error {
	if mode := info.Mode().Perm(); runtime.GOOS != "windows" && mode&^want != 0 {
		return &PermissionError{Path: path, Mode: mode, Want: want}
	}
	return nil
}

func load(path string) (*Identity, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	if err := checkMode(path, info, fileMode); err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	id, err := parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: restore it from a backup, or move it away and pair again as a new device", err, path)
	}
	return id, nil
}

// parse reads the file's form: a header line, then a line each for the Ed25519
// seed and the X25519 private key in hexadecimal.
func parse(raw []byte) (*Identity, error) {
	lines := strings.Split(strings.TrimSuffix(string(raw), "\n"), "\n")
	if len(raw) > maxFile || len(lines) != 3 || lines[0] != fileHeader {
		return nil, ErrKeyFile
	}
	sign, err1 := hex.DecodeString(strings.TrimPrefix(lines[1], "ed25519 "))
	wg, err2 := hex.DecodeString(strings.TrimPrefix(lines[2], "x25519 "))
	if err1 != nil || err2 != nil || len(sign) != seedSize || len(wg) != seedSize {
		return nil, ErrKeyFile
	}
	id, err := FromSeeds([32]byte(sign), [32]byte(wg))
	if err != nil {
		return nil, ErrKeyFile
	}
	return id, nil
}

func (i *Identity) marshal() []byte {
	return fmt.Appendf(nil, "%s\ned25519 %x\nx25519 %x\n", fileHeader, i.sign.Seed(), i.wg.Bytes())
}

// create writes a new identity so that a crash leaves none or a whole one, and
// never replaces one that another process has just made.
func create(dir, path string) (*Identity, error) {
	id, err := Generate()
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(dir, fileName+".*.tmp") // mode 0600
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(id.marshal())
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	if err := os.Link(f.Name(), path); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return load(path)
		}
		if err := os.Rename(f.Name(), path); err != nil { // a file system without links
			return nil, fmt.Errorf("identity: %w", err)
		}
	}
	if d, err := os.Open(dir); err == nil {
		_ = d.Sync() // not every system can; the file itself is synced
		d.Close()
	}
	return id, nil
}
