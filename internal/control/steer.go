package control

import (
	"context"
	"time"

	"github.com/kithproject/kith/app/files"
)

const (
	steerEvery = 250 * time.Millisecond
	// steerSure is how long both ways must carry before the tunnel's is let go.
	steerSure = time.Second
	// lossy is the share of lost packets from which one stream of the tunnel cannot fill
	// a path, and manyStreams how many share it then.
	lossy       = 0.001
	manyStreams = 32
)

// startLanes are with which streams a transfer begins: at once through the tunnel, and
// directly, if that is possible, as soon as that stands.
func startLanes(string) []files.Lane {
	return append(files.Lanes(files.LaneTunnel, 1), files.Lanes(files.LaneDirect, 1)...)
}

// A steering chooses the streams of one transfer by what has been measured. It has no
// clock and no I/O.
type steering struct {
	streams int           // of the tunnel
	both    time.Duration // for how long all that are wanted have carried
}

func newSteering() *steering { return &steering{streams: 1} }

// next takes what is known after one more step: how many streams carry data, and the
// share of packets that the tunnel loses, less than 0 if nobody knows. It returns other
// lanes to have, or nil for no change.
func (s *steering) next(carrying int, loss float64, step time.Duration) []files.Lane {
	switch {
	case s.streams == 0 && carrying == 0: // the direct way has gone
		s.both, s.streams = 0, 1
		return startLanes("")
	case s.streams == 0:
		return nil
	case carrying <= s.streams: // there is no direct way
		s.both = 0
		if loss > lossy && s.streams < manyStreams {
			s.streams = manyStreams
			return append(files.Lanes(files.LaneTunnel, s.streams), files.Lanes(files.LaneDirect, 1)...)
		}
		return nil
	}
	// The direct way alone is as fast, and costs less than both.
	if s.both += step; s.both < steerSure {
		return nil
	}
	s.streams = 0
	return files.Lanes(files.LaneDirect, 1)
}

// steer chooses a transfer's streams until ctx ends.
func (s *Server) steer(ctx context.Context, device string, t *files.Transfer) {
	tick := time.NewTicker(steerEvery)
	defer tick.Stop()
	st := newSteering()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		loss := -1.0
		if d, err := s.node.Device(device); err == nil && d.Traffic != nil {
			loss = max(d.Traffic.LossIn, d.Traffic.LossOut)
		}
		if lanes := st.next(t.Progress().Lanes, loss, steerEvery); lanes != nil {
			t.SetLanes(lanes)
		}
	}
}
