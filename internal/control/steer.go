package control

import (
	"context"
	"math"
	"time"

	"github.com/kithproject/kith/app/files"
)

const (
	steerEvery = 100 * time.Millisecond
	// steerSure is how long both ways must carry before the tunnel's is let go.
	steerSure = 200 * time.Millisecond
	// lossy is the share of lost packets from which one stream of the tunnel does not
	// fill a path.
	lossy = 0.0005
	// maxStreams of the tunnel share a path, and enough for fillRate, in bits per
	// second, if no fewer are needed for that.
	maxStreams = 96
	fillRate   = 500e6
)

// startLanes are with which streams a transfer begins: at once through the tunnel, and
// directly, if that is possible, as soon as that stands.
func startLanes(string) []files.Lane {
	return append(files.Lanes(files.LaneTunnel, 1), files.Lanes(files.LaneDirect, 1)...)
}

// streamsFor is how many streams of the tunnel fill a path that loses a share of packets,
// with a round trip: each carries what Mathis, Semke, Mahdavi and Ott found (The
// macroscopic behavior of the TCP congestion avoidance algorithm, 1997).
func streamsFor(loss float64, roundTrip time.Duration) int {
	if loss < lossy || roundTrip <= 0 {
		return 1
	}
	const segment, constant = 8 * 1328, 1.22 // bits; for losses one by one
	each := segment / roundTrip.Seconds() * constant / math.Sqrt(loss)
	return int(min(max(1, math.Ceil(fillRate/each)), maxStreams))
}

// A condition is what is known of a transfer's ways at one moment.
type condition struct {
	carrying  int           // how many streams carry data
	loss      float64       // share of packets that the tunnel loses; negative: not known
	roundTrip time.Duration // of the tunnel; 0: not known
}

// A steering chooses the streams of one transfer by what has been measured. It has no
// clock and no I/O.
type steering struct {
	streams int           // of the tunnel
	both    time.Duration // for how long all that are wanted have carried
}

func newSteering() *steering { return &steering{streams: 1} }

// next takes what is known after one more step. It returns other lanes to have, or nil
// for no change.
func (s *steering) next(c condition, step time.Duration) []files.Lane {
	switch {
	case s.streams == 0 && c.carrying == 0: // the direct way has gone
		s.both, s.streams = 0, 1
		return startLanes("")
	case s.streams == 0:
		return nil
	case c.carrying <= s.streams: // there is no direct way
		s.both = 0
		want := streamsFor(c.loss, c.roundTrip)
		// Few more or less make no difference, and each change takes time.
		if c.loss < 0 || want < 2*s.streams && want > s.streams/4 {
			return nil
		}
		s.streams = want
		return append(files.Lanes(files.LaneTunnel, s.streams), files.Lanes(files.LaneDirect, 1)...)
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
		c := condition{carrying: t.Progress().Lanes, loss: -1}
		if d, err := s.node.Device(device); err == nil && d.Traffic != nil && d.Path != nil {
			c.loss, c.roundTrip = max(d.Traffic.LossIn, d.Traffic.LossOut), d.Path.RTT
		}
		if lanes := st.next(c, steerEvery); lanes != nil {
			t.SetLanes(lanes)
		}
	}
}
