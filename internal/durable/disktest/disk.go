// Package disktest is a disk in memory that fails, or loses power, at a chosen step.
package disktest

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"slices"

	"github.com/kithproject/kith/internal/durable"
)

var (
	// ErrPower is the error of each step after the power went.
	ErrPower = errors.New("the power is gone")
	// ErrFault is the error of the step at which the disk fails.
	ErrFault = errors.New("no space left")
)

// inode is a file's content, in memory and on the platter.
type inode struct{ data, synced []byte }

// A Disk is one directory of files. What was not synced when the power goes is lost, or
// not: see After. It is not safe for concurrent use.
type Disk struct {
	left    int // steps until the power goes; below 0: never
	failing int // steps until one fails; below -1: none does
	steps   int
	dir     map[string]*inode
	durable map[string]*inode // the directory as it was synced last
}

var _ durable.Files = (*Disk)(nil)

// New returns an empty disk without faults.
func New() *Disk {
	return &Disk{left: -1, failing: -2, dir: make(map[string]*inode), durable: make(map[string]*inode)}
}

// Cut has the power go after so many more steps, a count.
func (d *Disk) Cut(steps int) { d.left = steps }

// Fail has the step after so many more fail, a count, and none after it.
func (d *Disk) Fail(steps int) { d.failing = steps }

// Steps returns how many there were, a count.
func (d *Disk) Steps() int { return d.steps }

func (d *Disk) step() error {
	if d.left == 0 {
		return ErrPower
	}
	d.steps++
	d.left--
	d.failing--
	if d.failing == -1 {
		return ErrFault
	}
	return nil
}

// After returns the disk as it may be once power is back: with all names or those that were
// synced, and of each file what was written or what was synced.
func (d *Disk) After(names, data bool) *Disk {
	dir := d.durable
	if names {
		dir = d.dir
	}
	out := New()
	for name, f := range dir {
		content := bytes.Clone(f.synced)
		if data {
			content = bytes.Clone(f.data)
		}
		out.dir[name] = &inode{content, content}
	}
	out.durable = maps.Clone(out.dir)
	return out
}

// List returns all files, by name. The error is always nil.
func (d *Disk) List() ([]durable.File, error) {
	var out []durable.File
	for _, name := range slices.Sorted(maps.Keys(d.dir)) {
		out = append(out, durable.File{Name: name, Size: int64(len(d.dir[name].data))})
	}
	return out, nil
}

// Read returns a file, or the error fs.ErrNotExist.
func (d *Disk) Read(name string, limit int64) ([]byte, error) {
	f := d.dir[name]
	if f == nil {
		return nil, fs.ErrNotExist
	}
	return bytes.Clone(f.data[:min(int64(len(f.data)), limit)]), nil
}

// WriteSync is three steps: a name, half of the bytes, all of them synced. It errs as the
// step does that fails.
func (d *Disk) WriteSync(name string, data []byte) error {
	if err := d.step(); err != nil {
		return err
	}
	f := new(inode)
	d.dir[name] = f
	f.data = bytes.Clone(data[:len(data)/2])
	if err := d.step(); err != nil {
		return err
	}
	f.data = bytes.Clone(data)
	if err := d.step(); err != nil {
		return err
	}
	f.synced = f.data
	return nil
}

// Rename is a step, and errs as that.
func (d *Disk) Rename(from, to string) error {
	if err := d.step(); err != nil {
		return err
	}
	d.dir[to] = d.dir[from]
	delete(d.dir, from)
	return nil
}

// Remove is a step, and errs as that.
func (d *Disk) Remove(name string) error {
	if err := d.step(); err != nil {
		return err
	}
	delete(d.dir, name)
	return nil
}

// SyncDir is a step, and errs as that.
func (d *Disk) SyncDir() error {
	if err := d.step(); err != nil {
		return err
	}
	d.durable = maps.Clone(d.dir)
	return nil
}
