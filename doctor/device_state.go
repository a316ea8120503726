package doctor

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/kithproject/kith/identity"
)

const (
	lowSpace         = 16 << 20 // bytes
	probeSpace       = 64 << 10 // bytes that are written to see whether there is room
	maxDeviceEntries = 10_000   // of a state directory that are looked at
)

func (d *device) stateCheck() Check {
	return Check{
		Code: "device.state", Asks: "Is the state directory sound, and can it be written?", Quick: true,
		Findings: []Finding{
			{ID: "full", Severity: Fault, Cause: "The disk of the state directory is full, so that nothing can be saved.", Fix: "Free some space on that disk, and start kith again."},
			{ID: "unwritable", Severity: Fault, Cause: "The state directory cannot be written by this user.", Fix: "Give it back to this user (chown), or choose another one with --home."},
			{ID: "exposed", Severity: Fault, Cause: "Other users of this computer can get at the keys, so kith does not use them.", Fix: "Take their rights away: chmod 700 for the directory, chmod 600 for the key file."},
			{ID: "locked", Severity: Fault, Cause: "Another kith process holds the state directory and is not the one that was asked.", Fix: "End that process, or choose another directory with --home."},
			{ID: "unusable", Severity: Fault, Cause: "The state directory cannot be used.", Fix: "Choose another one with --home, or restore it from a backup."},
			{ID: "unopened", Severity: Fault, Cause: "Kith cannot start with these settings.", Fix: "Change the setting that the evidence names (kith config)."},
			{ID: "damaged", Severity: Limit, Cause: "Records in the state directory were damaged and set aside, so that some pairs may be missing.", Fix: "Check the disk, pair again with devices that are missing in kith status, and then delete the files that were set aside."},
			{ID: "low", Severity: Limit, Cause: "The disk of the state directory is nearly full.", Fix: "Free some space on that disk before nothing can be saved any more."},
		},
		Run: d.runState,
	}
}

func (d *device) runState(_ context.Context, env *Env, _ string) Answer {
	if env.Dir == "" {
		return Unclear("no state directory is known")
	}
	info, err := os.Stat(env.Dir)
	switch {
	case errors.Is(err, fs.ErrNotExist) && env.OpenErr == nil:
		return OK(env.Dir + " will be made when it is needed")
	case err != nil:
		return Fails("unusable", err.Error())
	case !info.IsDir():
		return Fails("unusable", env.Dir+" is not a directory")
	}
	if a, bad := deviceExposed(env.Dir, info, 0o700); bad {
		return a
	}
	key := filepath.Join(env.Dir, identity.KeyFile)
	if info, err := os.Stat(key); err == nil {
		if a, bad := deviceExposed(key, info, 0o600); bad {
			return a
		}
	}
	free, freeErr := d.free(env.Dir)
	evidence := []string{env.Dir}
	if freeErr == nil {
		evidence = append(evidence, fmt.Sprintf("%d MiB are free", free>>20))
	}
	switch err := d.write(env.Dir); {
	case err == nil:
	case deviceFull(err):
		return Fails("full", append(evidence, err.Error())...).With(fmt.Sprintf("The disk of the state directory %s is full, so that nothing can be saved.", env.Dir), "")
	case errors.Is(err, fs.ErrPermission), deviceForbidden(err):
		return Fails("unwritable", append(evidence, err.Error())...)
	default:
		return Fails("unusable", append(evidence, err.Error())...)
	}
	if lock := filepath.Join(env.Dir, "lock"); env.OpenErr != nil && d.locked(lock) {
		return Fails("locked", append(evidence, d.holder(lock)...)...)
	}
	if why := env.OpenErr; why != nil && !deviceTaken(why) && (env.Port == 0 || !deviceTaken(d.bind(env.Port, false))) {
		id := "unopened"
		if _, disk := errors.AsType[*fs.PathError](why); disk || errors.Is(why, identity.ErrKeyFile) {
			id = "unusable"
		}
		return Fails(id, append(evidence, plain(why.Error()))...)
	}
	if bad := deviceSetAside(env.Dir); len(bad) > 0 {
		names := make([]string, len(bad))
		for i, path := range bad {
			rel, _ := filepath.Rel(env.Dir, path) // it is below
			names[i] = plain(rel)
		}
		return Fails("damaged", append(evidence, bad...)...).With("", fmt.Sprintf(
			"Check the disk, pair again with devices that are missing in kith status, and then delete what was set aside in %s: %s.", env.Dir, strings.Join(names, ", ")))
	}
	if freeErr == nil && free < lowSpace {
		return Fails("low", evidence...)
	}
	return OK(evidence...)
}

// deviceExposed says which rights others have that they may not have.
func deviceExposed(path string, info fs.FileInfo, most fs.FileMode) (Answer, bool) {
	mode := info.Mode().Perm()
	if runtime.GOOS == "windows" || mode&^most == 0 {
		return Answer{}, false
	}
	return Fails("exposed", fmt.Sprintf("%s has mode %04o", path, mode)).With("", fmt.Sprintf("Take the rights of others away: chmod %o %q.", most, path)), true
}

// deviceSetAside lists files that could not be read and were kept under another name.
func deviceSetAside(dir string) (out []string) {
	n := 0
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if n++; n > maxDeviceEntries || len(out) == 10 {
			return fs.SkipAll
		}
		if err == nil && !e.IsDir() && strings.Contains(e.Name(), ".corrupt-") {
			out = append(out, path)
		}
		return nil
	})
	return out
}

// deviceWrite writes, syncs and removes a file.
func deviceWrite(dir string) error {
	f, err := os.CreateTemp(dir, "doctor-*.tmp")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	data := make([]byte, probeSpace) // random, as some file systems keep zeros for nothing
	_, _ = rand.Read(data)           // never fails
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// holder says which process holds a lock, where the system tells.
func (d *device) holder(lock string) []string {
	raw, err := d.read("/proc/locks")
	if err != nil {
		return nil
	}
	pid := parseLocks(raw, deviceInode(lock))
	if pid == "" {
		return nil
	}
	name, _ := d.read("/proc/" + pid + "/comm")
	return []string{strings.TrimSpace(fmt.Sprintf("process %s %s holds %s", pid, plain(string(name)), lock))}
}

// parseLocks finds in a /proc/locks the process that has locked a file.
func parseLocks(raw []byte, inode uint64) string {
	want := fmt.Sprintf(":%d", inode)
	for line := range bytes.Lines(raw) {
		// 1: FLOCK  ADVISORY  WRITE 4711 08:01:131 0 EOF
		f := strings.Fields(string(line))
		if len(f) == 8 && f[1] == "FLOCK" && strings.HasSuffix(f[5], want) && strings.Trim(f[4], "0123456789") == "" {
			return f[4]
		}
	}
	return ""
}
