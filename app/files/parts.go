package files

import (
	"errors"
	"io/fs"
	"os"
)

// partKey names the journal of a path.
func partKey(path string) string { return stageKey(path, [16]byte{}) }

// openPart opens the journal and the file of an entry, or makes both. Without make
// it returns nil if there is nothing that fits.
func (s *stage) openPart(e *entry, staged string, sum Sum, make bool) (*part, error) {
	key := partKey(e.path)
	p := &part{entry: *e, staged: staged, key: key, sum: sum}
	dirName, name := split(staged)
	d := dirs{tree: s.tree}
	defer d.close()
	if p.load(s, &d, dirName, name) {
		return p, nil
	}
	if !make {
		return nil, nil
	}
	dir, err := d.get(dirName)
	if err != nil {
		return nil, err
	}
	// The old file first: a journal beside it would count what is not there.
	if err := dir.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if p.jour, err = create(s.parts, key, os.O_RDWR, 0o600); err != nil {
		return nil, err
	}
	if p.file, err = create(dir, name, os.O_RDWR, 0o600); err != nil {
		p.jour.Close()
		return nil, err
	}
	if e.kind == kindFile {
		err = p.file.Truncate(e.size)
	}
	if err == nil {
		err = putJournalHead(p.jour, e, sum)
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// suspect reports whether chunks of a part may have been lost with the power: its
// journal was not written since the machine is up again.
func (s *stage) suspect(p *part) bool {
	if s.since.IsZero() {
		return false
	}
	fi, err := p.jour.Stat()
	return err != nil || fi.ModTime().Before(s.since)
}

// load opens what an earlier run left of the same entry.
func (p *part) load(s *stage, d *dirs, dirName, name string) bool {
	jour, err := s.parts.OpenFile(p.key, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	p.jour = jour
	head := make([]byte, journalHead)
	n, _ := jour.ReadAt(head, 0)
	e, sum, err := parseJournalHead(head[:n])
	if err != nil || e != p.entry || sum != p.sum {
		jour.Close()
		return false
	}
	dir, err := d.get(dirName)
	if err == nil {
		p.file, err = dir.OpenFile(name, os.O_RDWR, 0)
	}
	if err != nil {
		jour.Close()
		return false
	}
	chunks := e.chunks()
	if e.kind == kindStream {
		chunks = maxSize / chunkSize
	}
	fi, err := p.file.Stat()
	if err == nil && fi.Mode().IsRegular() && (e.kind == kindStream || fi.Size() == e.size) {
		p.have, err = loadStates(jour, chunks)
		if err == nil {
			p.bytes = min(p.have.set*chunkSize, max(e.size, fi.Size()))
			return true
		}
	}
	p.close()
	return false
}
