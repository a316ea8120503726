package chat

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"golang.org/x/crypto/chacha20poly1305"
)

// A conversation at rest is one file, CONV.chat: the magic and then records
//
//	length u32 || nonce 24 || XChaCha20-Poly1305(key, nonce, ad = magic || conv || offset u64, items)
//
// where length is that of what follows, and offset is the record's place in the file, so
// that records cannot change places. An item is type u8 || length u16 || body. A record
// that does not open ends the file: what is from there on is cut off.
const (
	vaultMagic = "kith chat 1\n"
	vaultExt   = ".chat"
	newExt     = ".new"     // a file that is being written anew
	damagedExt = ".damaged" // what was cut off, if it was more than a record

	maxPlain   = 32 << 10 // bytes of items in a record that is written
	recordHead = 4
	overhead   = chacha20poly1305.NonceSizeX + chacha20poly1305.Overhead
	maxRecord  = maxPlain + 3 + 1<<16 + overhead // bytes of a record that is read
	itemHead   = 1 + 2
)

// errStale reports an offset of before the file was written anew.
var errStale = errors.New("chat: the file has been written anew")

// A vault is one conversation's file. One goroutine writes at a time; any may read.
type vault struct {
	disk disk
	name string
	conv ConvID
	aead cipher.AEAD

	mu     sync.Mutex // guards the fields below, and the file against being replaced; taken before Service.mu
	gen    int        // how often it was written anew
	size   int64      // bytes of it that are good
	cached int64      // offset of the record in plain; 0: none
	plain  []byte
}

func newVault(d disk, key [32]byte, conv ConvID) (*vault, error) {
	aead, err := chacha20poly1305.NewX(key[:])
	if err != nil {
		return nil, fmt.Errorf("chat: %w", err)
	}
	return &vault{disk: d, name: conv.String() + vaultExt, conv: conv, aead: aead}, nil
}

func (v *vault) ad(off int64) []byte {
	b := append([]byte(vaultMagic), v.conv[:]...)
	return binary.BigEndian.AppendUint64(b, uint64(off))
}

// load calls each with every item, and with the offset of its record and its place
// there. It cuts off what is not good. It errs if the disk does.
func (v *vault) load(each func(off int64, at int, kind byte, body []byte)) (cut int64, err error) {
	if err := v.disk.Remove(v.name + newExt); err != nil {
		return 0, fmt.Errorf("chat: %w", err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.gen++
	v.size, v.cached, v.plain = 0, 0, nil
	r := &window{read: func(p []byte, off int64) (int, error) { return v.disk.ReadAt(v.name, p, off) }}
	head, err := r.bytes(0, len(vaultMagic))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("chat: %w", err)
	}
	if !bytes.Equal(head, []byte(vaultMagic)) {
		return v.cut(r, 0)
	}
	off := int64(len(vaultMagic))
	for {
		plain, next, err := v.record(r, off)
		if err != nil {
			return 0, err
		}
		if plain == nil || !walk(plain, func(int, byte, []byte) {}) {
			return v.cut(r, off)
		}
		walk(plain, func(at int, kind byte, body []byte) { each(off, at, kind, body) })
		off = next
		v.size = off
	}
}

// cut ends the file at off. What was there is kept aside, after what is there already, if
// it was more than a record that was not finished.
func (v *vault) cut(r *window, off int64) (int64, error) {
	v.size = off
	total, err := r.end(off)
	if err != nil {
		return 0, fmt.Errorf("chat: %w", err)
	}
	if total-off <= maxRecord {
		return total - off, nil // the next write cuts it
	}
	aside := &window{read: func(p []byte, off int64) (int, error) { return v.disk.ReadAt(v.name+damagedExt, p, off) }}
	to, err := aside.end(0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("chat: %w", err)
	}
	for at := off; at < total; {
		p, err := r.bytes(at, 64<<10)
		if err == nil {
			err = v.disk.WriteAt(v.name+damagedExt, p, to+at-off, at+int64(len(p)) >= total)
		}
		if err != nil {
			return 0, fmt.Errorf("chat: keep a damaged file aside: %w", err)
		}
		at += int64(len(p))
	}
	if err := v.disk.WriteAt(v.name, nil, off, true); err != nil { // so that it is kept aside once
		return 0, fmt.Errorf("chat: %w", err)
	}
	return total - off, nil
}

// record returns the items of the record at off; nil if there is no good one.
func (v *vault) record(r *window, off int64) (plain []byte, next int64, err error) {
	head, err := r.bytes(off, recordHead)
	if err != nil || len(head) < recordHead {
		return nil, 0, err
	}
	size := int(binary.BigEndian.Uint32(head))
	if size < overhead || size > maxRecord {
		return nil, 0, nil
	}
	sealed, err := r.bytes(off+recordHead, size)
	if err != nil || len(sealed) < size {
		return nil, 0, err
	}
	const n = chacha20poly1305.NonceSizeX
	plain, err = v.aead.Open(nil, sealed[:n], sealed[n:], v.ad(off))
	if err != nil {
		return nil, 0, nil //nolint:nilerr // damaged, or of another key
	}
	return plain, off + recordHead + int64(size), nil
}

// walk calls each with every item of a record, and reports whether all fit.
func walk(plain []byte, each func(at int, kind byte, body []byte)) bool {
	for at := 0; at < len(plain); {
		if len(plain)-at < itemHead {
			return false
		}
		size := int(binary.BigEndian.Uint16(plain[at+1:]))
		if len(plain)-at-itemHead < size {
			return false
		}
		each(at, plain[at], plain[at+itemHead:at+itemHead+size])
		at += itemHead + size
	}
	return true
}

// An item is what is kept at once.
type item struct {
	kind byte
	body []byte
}

func (i item) appendTo(b []byte) []byte {
	b = append(b, i.kind)
	b = binary.BigEndian.AppendUint16(b, uint16(len(i.body)))
	return append(b, i.body...)
}

// A place is where an item is.
type place struct {
	off int64
	at  uint32
}

// seal makes records of items, to be written at off.
func (v *vault) seal(items []item, off int64) (out []byte, places []place, err error) {
	base := off
	flush := func(plain []byte) error {
		if len(plain) == 0 {
			return nil
		}
		at := base + int64(len(out))
		out = binary.BigEndian.AppendUint32(out, uint32(len(plain)+overhead))
		nonce := make([]byte, chacha20poly1305.NonceSizeX)
		if _, err := rand.Read(nonce); err != nil {
			return fmt.Errorf("chat: %w", err)
		}
		out = append(out, nonce...)
		out = v.aead.Seal(out, nonce, plain, v.ad(at))
		return nil
	}
	var plain []byte
	for _, i := range items {
		if len(plain) > 0 && len(plain)+itemHead+len(i.body) > maxPlain {
			if err := flush(plain); err != nil {
				return nil, nil, err
			}
			plain = plain[:0]
		}
		places = append(places, place{base + int64(len(out)), uint32(len(plain))})
		plain = i.appendTo(plain)
	}
	if err := flush(plain); err != nil {
		return nil, nil, err
	}
	return out, places, nil
}

// write appends items durably and says where they are. It errs if the disk does, and
// then nothing has been appended.
func (v *vault) write(items []item, sync bool) ([]place, error) {
	v.mu.Lock()
	off := v.size
	v.mu.Unlock()
	head := []byte(nil)
	if off == 0 {
		head = []byte(vaultMagic)
	}
	out, places, err := v.seal(items, off+int64(len(head)))
	if err != nil {
		return nil, err
	}
	out = append(head, out...)
	if err := v.disk.WriteAt(v.name, out, off, sync); err != nil {
		return nil, fmt.Errorf("chat: keep: %w", err)
	}
	v.mu.Lock()
	v.size = off + int64(len(out))
	v.mu.Unlock()
	return places, nil
}

// rewrite replaces the file by one with the items that next returns, a part at a time,
// until none. each learns their places, and done the file's generation before anybody
// reads it. It errs if the disk does; the file is then this one or that.
func (v *vault) rewrite(next func() ([]item, error), each func([]item, []place), done func(gen int)) error {
	tmp := v.name + newExt
	out := []byte(vaultMagic)
	off := int64(0)
	for {
		items, err := next()
		if err != nil {
			return err
		}
		sealed, places, err := v.seal(items, off+int64(len(out)))
		if err != nil {
			return err
		}
		each(items, places)
		out = append(out, sealed...)
		if err := v.disk.WriteAt(tmp, out, off, len(items) == 0); err != nil {
			return fmt.Errorf("chat: write anew: %w", err)
		}
		off += int64(len(out))
		out = nil
		if len(items) == 0 {
			break
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.disk.Rename(tmp, v.name); err != nil {
		return fmt.Errorf("chat: write anew: %w", err)
	}
	v.gen++
	v.size = off
	v.cached, v.plain = 0, nil
	done(v.gen)
	return nil
}

// read returns the item at a place of a generation of the file. It errs with errStale
// for another generation, and if the disk does or the file is damaged.
func (v *vault) read(gen int, p place) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if gen != v.gen {
		return nil, errStale
	}
	if v.cached != p.off || v.plain == nil {
		r := &window{read: func(b []byte, off int64) (int, error) { return v.disk.ReadAt(v.name, b, off) }, size: maxPlain + recordHead + overhead}
		plain, _, err := v.record(r, p.off)
		if err != nil {
			return nil, fmt.Errorf("chat: %w", err)
		}
		if plain == nil {
			return nil, fmt.Errorf("chat: %s is damaged", v.name)
		}
		v.cached, v.plain = p.off, plain
	}
	at := int(p.at)
	if len(v.plain)-at < itemHead {
		return nil, fmt.Errorf("chat: %s is damaged", v.name)
	}
	end := at + itemHead + int(binary.BigEndian.Uint16(v.plain[at+1:]))
	if end > len(v.plain) {
		return nil, fmt.Errorf("chat: %s is damaged", v.name)
	}
	return v.plain[at+itemHead : end], nil // records are never changed
}

// release lets go of memory.
func (v *vault) release() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.cached, v.plain = 0, nil
}

// A window reads a file in larger parts.
type window struct {
	read func(p []byte, off int64) (int, error)
	size int // bytes; 0: 1 MiB
	off  int64
	buf  []byte
}

// bytes returns n bytes at off, or fewer at the end of the file. They are good until
// the next call.
func (w *window) bytes(off int64, n int) ([]byte, error) {
	if off < w.off || off+int64(n) > w.off+int64(len(w.buf)) {
		size := w.size
		if size == 0 {
			size = 1 << 20
		}
		buf := make([]byte, max(size, n))
		got, err := w.read(buf, off)
		if err != nil {
			return nil, err
		}
		w.off, w.buf = off, buf[:got]
	}
	b := w.buf[off-w.off:]
	return b[:min(n, len(b))], nil
}

// end returns where the file ends, which is at off or later.
func (w *window) end(off int64) (int64, error) {
	for {
		p, err := w.bytes(off, 64<<10)
		if err != nil {
			return 0, err
		}
		if off += int64(len(p)); len(p) < 64<<10 {
			return off, nil
		}
	}
}

// length returns how many bytes the file has.
func (v *vault) length() int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.size
}

// generation says which file a place is of.
func (v *vault) generation() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.gen
}
