package identity

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/kithproject/kith/internal/durable"
)

const (
	// KeyFile is the name of the key file in the state directory.
	KeyFile = "identity.key"

	dirMode, fileMode fs.FileMode = 0o700, 0o600

	seedSize   = 32
	checkSize  = 8
	maxKeyFile = 1024 // bytes; a key file has under 300
)

// ErrKeyFile reports a key file that is not as Open writes it. Open never
// writes over such a file: it may be all that is left of the device's identity.
var ErrKeyFile = errors.New("identity: the key file is damaged: restore it from a backup, or move it away to pair again as a new device")

// A PermissionError reports a key file, or the directory it is in, that other
// users of the machine can get at. It unwraps to fs.ErrPermission.
type PermissionError struct {
	Path string
	Mode fs.FileMode // permission bits that Path has
	Want fs.FileMode // permission bits that it may have at most
}

// Error names the path, the mode it has and the mode it must have.
func (e *PermissionError) Error() string {
	return fmt.Sprintf("identity: other users can get at %s: its mode is %04o and must be %04o", e.Path, e.Mode, e.Want)
}

// Hint returns the command that mends the mode.
func (e *PermissionError) Hint() string { return fmt.Sprintf("run: chmod %o %q", e.Want, e.Path) }

// Unwrap returns fs.ErrPermission, so that errors.Is finds it.
func (e *PermissionError) Unwrap() error { return fs.ErrPermission }

// FromSeeds makes the identity of two 32-byte secrets: an Ed25519 seed (RFC
// 8032 section 5.1.5) and an X25519 private key (RFC 7748 section 5). It is for
// test vectors and for Open. It errs only if the platform's cryptography
// refuses the keys.
func FromSeeds(sign, wg [32]byte) (*Identity, error) {
	key, err := ecdh.X25519().NewPrivateKey(wg[:])
	if err != nil {
		return nil, fmt.Errorf("identity: wireguard key: %w", err)
	}
	return &Identity{sign: ed25519.NewKeyFromSeed(sign[:]), wg: key}, nil
}

// Open loads the identity from identity.key in dir. If there is none it
// generates one and stores it, durably before Open returns; dir is made as
// well, with mode 0700. If two processes do so at once, both get the same
// identity.
//
// As ssh does, Open refuses a directory or file that other users can get at,
// with a *PermissionError. Windows has no such modes, so nothing is checked
// there: the access list that dir inherits must keep others out. Other errors
// are ErrKeyFile for a damaged file, which Open leaves as it is, and those of
// the file system.
func Open(dir string) (*Identity, error) {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return nil, fmt.Errorf("identity: make directory: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	if err := checkMode(dir, info, dirMode); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, KeyFile)
	id, err := load(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return id, err
	}
	if id, err = Generate(); err != nil {
		return nil, err
	}
	switch err := store(path, id, os.Link); {
	case errors.Is(err, fs.ErrExist): // another process was faster
		return load(path)
	case err != nil:
		return nil, fmt.Errorf("identity: store key file: %w", err)
	}
	return id, nil
}

// checkMode refuses a file with permission bits that want lacks.
func checkMode(path string, info fs.FileInfo, want fs.FileMode) error {
	if mode := info.Mode().Perm(); runtime.GOOS != "windows" && mode&^want != 0 {
		return &PermissionError{Path: path, Mode: mode, Want: want}
	}
	return nil
}

// load reads and checks the key file.
func load(path string) (*Identity, error) {
	// Looked at before it is opened, as opening a pipe would wait for a writer.
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s", ErrKeyFile, path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("identity: open key file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("identity: open key file: %w", err)
	}
	if err := checkMode(path, info, fileMode); err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, fmt.Errorf("identity: read key file: %w", err)
	}
	id, err := parseKeyFile(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, path)
	}
	return id, nil
}

// store writes the key file unless there is one, for which it returns
// fs.ErrExist. The file appears whole or not at all: it is written under
// another name, then linked, which unlike renaming fails if the name is taken.
func store(path string, id *Identity, link func(oldname, newname string) error) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, KeyFile+".*.tmp") // mode 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	if err := writeSynced(f, id); err != nil {
		return err
	}
	err = link(f.Name(), path)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		// No hard links here (FAT, Android). A crash in the middle of this leaves
		// a file that load refuses.
		var direct *os.File
		if direct, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode); err == nil {
			if err = writeSynced(direct, id); err != nil {
				err = errors.Join(err, os.Remove(path))
			}
		}
	}
	if err != nil {
		return err
	}
	return durable.Dir(dir).SyncDir()
}

// writeSynced writes the key file to f and closes it.
func writeSynced(f *os.File, id *Identity) error {
	_, err := f.Write(id.keyFile())
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// The lines of a key file, version 1.
const (
	keyFileHead    = "# The secret keys of this kith device. Whoever has this file is this device."
	keyFileVersion = "kith identity 1"
)

// keyFile returns the contents of the key file. The check line is the start of
// SHA-256("kith/1 identity key" || both secrets) in hexadecimal: a key with a
// flipped bit would otherwise be another, working device.
func (i *Identity) keyFile() []byte {
	seed, wg := i.sign.Seed(), i.wg.Bytes()
	return fmt.Appendf(nil, "%s\n%s\ned25519 %x\nx25519 %x\ncheck %x\n",
		keyFileHead, keyFileVersion, seed, wg, keyCheck(seed, wg))
}

func keyCheck(seed, wg []byte) []byte {
	h := sha256.New()
	h.Write([]byte("kith/1 identity key"))
	h.Write(seed)
	h.Write(wg)
	return h.Sum(nil)[:checkSize]
}

// parseKeyFile is the reverse of keyFile. Line ends may be CRLF and the last
// may be missing, as editors and copying do that; comments may differ.
func parseKeyFile(raw []byte) (*Identity, error) {
	if len(raw) > maxKeyFile {
		return nil, fmt.Errorf("%w (it is too long)", ErrKeyFile)
	}
	var lines []string
	for line := range strings.Lines(string(raw)) {
		if line = strings.TrimRight(line, "\r\n"); line != "" && line[0] != '#' {
			lines = append(lines, line)
		}
	}
	if len(lines) > 0 && lines[0] != keyFileVersion && strings.HasPrefix(lines[0], "kith identity ") {
		return nil, errors.New("identity: the key file is of another version of kith: update kith")
	}
	if len(lines) != 4 || lines[0] != keyFileVersion {
		return nil, fmt.Errorf("%w (it has not the lines it must have)", ErrKeyFile)
	}
	seed, ok1 := keyLine(lines[1], "ed25519 ", seedSize)
	wg, ok2 := keyLine(lines[2], "x25519 ", seedSize)
	check, ok3 := keyLine(lines[3], "check ", checkSize)
	if !ok1 || !ok2 || !ok3 || subtle.ConstantTimeCompare(check, keyCheck(seed, wg)) != 1 {
		return nil, fmt.Errorf("%w (its checksum does not fit)", ErrKeyFile)
	}
	return FromSeeds([32]byte(seed), [32]byte(wg))
}

// keyLine decodes the hexadecimal digits after the name in a line.
func keyLine(line, name string, size int) ([]byte, bool) {
	text, ok := strings.CutPrefix(line, name)
	if !ok {
		return nil, false
	}
	value, err := hex.DecodeString(text)
	return value, err == nil && len(value) == size
}
