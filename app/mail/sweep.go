package mail

// sweep removes what is too old. The age of a blob that came in this run is told by the
// time that has passed since, whatever the clock does; if the clock was set meanwhile, the
// blob's time is set with it. The age of others is what the clock says, in dueSweeps
// sweeps in a row; those from its future stay for as long as the store runs until they
// would be too old.
func (s *Store) sweep() {
	wall, ran := s.cfg.Now().UnixMilli(), s.ran()
	keep := s.cfg.Keep.Milliseconds()
	type late struct {
		e  *entry
		at int64
	}
	var old []*entry
	var wrong []late
	future := 0
	s.mu.Lock()
	for _, box := range s.boxes {
		for _, e := range box {
			if e.came > 0 {
				age := (ran - e.came).Milliseconds()
				if at := max(wall-age, 0); age > keep {
					old = append(old, e)
				} else if at-e.at > clockSet || e.at-at > clockSet {
					wrong = append(wrong, late{e, at})
				}
				continue
			}
			switch {
			case e.at > wall:
				e.due = 0
				future++
				if e.future++; int64(e.future)*sweepEvery.Milliseconds() > keep {
					old = append(old, e)
				}
			case wall-e.at <= keep:
				e.due = 0
			default:
				if e.due++; e.due >= dueSweeps {
					old = append(old, e)
				}
			}
		}
	}
	s.mu.Unlock()
	expired := 0
	for _, e := range old {
		if s.stopping() {
			return
		}
		if s.remove(e) {
			expired++
		}
	}
	for _, w := range wrong {
		if s.stopping() {
			return
		}
		s.restamp(w.e, w.at)
	}
	if expired > 0 {
		s.mu.Lock()
		s.stats.Expired += uint64(expired)
		s.mu.Unlock()
		s.cfg.Logger.Info("old letters removed", "letters", expired)
	}
	if future > 0 {
		s.cfg.Logger.Warn("letters are from the future: the clock was set back", "letters", future)
	}
}

func (s *Store) stopping() bool {
	select {
	case <-s.stop:
		return true
	default:
		return false
	}
}

// restamp sets when a blob came, also on the disk.
func (s *Store) restamp(e *entry, to int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.boxes[e.box][e.id] != e {
		return
	}
	was, at := e.fileName(), e.at
	e.at = to
	if err := s.disk.Rename(was, e.fileName()); err != nil {
		s.cfg.Logger.Error("letter not renamed", "err", unnamed(err))
		e.at = at
	}
}

// watch adds boxes to a watcher, or returns ErrBusy if there are too many. It reports
// whether something is in one of them.
func (s *Store) watch(w *watcher, boxes []Box) (waiting bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, box := range boxes {
		waiting = waiting || len(s.boxes[box]) > 0
		if _, there := w.boxes[box]; there {
			continue
		}
		if s.watched >= maxWatches || len(w.boxes) >= maxWatch {
			return waiting, ErrBusy
		}
		w.boxes[box] = struct{}{}
		if s.watches[box] == nil {
			s.watches[box] = make(map[*watcher]struct{})
		}
		s.watches[box][w] = struct{}{}
		s.watched++
	}
	return waiting, nil
}

// unwatch takes all boxes from a watcher.
func (s *Store) unwatch(w *watcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for box := range w.boxes {
		delete(s.watches[box], w)
		if len(s.watches[box]) == 0 {
			delete(s.watches, box)
		}
		s.watched--
	}
	clear(w.boxes)
}
