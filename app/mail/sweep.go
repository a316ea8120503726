package mail

// sweep removes what is too old. A blob from the future, where the clock was, is as old
// as this moment from now on.
func (s *Store) sweep() {
	now := s.cfg.Now().Unix()
	oldest := now - int64(s.cfg.Keep.Seconds())
	var old, future []*entry
	s.mu.Lock()
	for _, box := range s.boxes {
		for _, e := range box {
			switch {
			case e.at > now:
				future = append(future, e)
				e.due = 0
			case e.at >= oldest:
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
	for _, e := range future {
		if s.stopping() {
			return
		}
		s.restamp(e, now)
	}
	if expired > 0 {
		s.mu.Lock()
		s.stats.Expired += uint64(expired)
		s.mu.Unlock()
		s.cfg.Logger.Info("old letters removed", "letters", expired)
	}
	if len(future) > 0 {
		s.cfg.Logger.Warn("letters are from the future: the clock was set back", "letters", len(future))
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

// restamp makes a blob as old as now, also on the disk.
func (s *Store) restamp(e *entry, now int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.boxes[e.box][e.id] != e {
		return
	}
	was, at := e.fileName(), e.at
	e.at = now
	if err := s.disk.Rename(was, e.fileName()); err != nil {
		s.cfg.Logger.Error("letter not renamed", "err", err)
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
