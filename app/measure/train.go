package measure

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// A trip is one datagram's way there and back.
type trip struct {
	sent, back time.Time     // by the caller's clock; zero if it was not sent, did not come
	there      time.Duration // since the first one came there, by the service's clock
}

// train sends numbered datagrams and looks at what comes back.
func (c *caller) train(ctx context.Context, res *Result) error {
	conn, err := c.dial(ctx, "udp")
	if err != nil {
		return err
	}
	var reading sync.WaitGroup
	defer reading.Wait()
	defer conn.Close()
	echoes := make(chan echo, trainCount)
	reading.Go(func() { c.echoes(conn, echoes) })
	var all [trainCount]trip
	got := 0
	take := func(e echo) {
		if t := &all[e.number]; t.back.IsZero() && !t.sent.IsZero() {
			t.back, t.there = e.at, e.there
			got++
		}
	}
	ticker := time.NewTicker(trainGap)
	defer ticker.Stop()
	for i := 0; i < trainCount; {
		select {
		case <-ticker.C:
			all[i].sent = time.Now()
			_, _ = conn.Write(datagram(c.id, i, 0)) // lost like any datagram
			i++
		case e := <-echoes:
			take(e)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for got < trainCount {
		wait := min(max(4*median(trips(all[:])), 500*time.Millisecond), trainWait)
		if got == 0 {
			wait = trainWait
		}
		timer := time.NewTimer(time.Until(all[trainCount-1].sent.Add(wait)))
		select {
		case e := <-echoes:
			timer.Stop()
			take(e)
			continue
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		break
	}
	if _, err := c.control.Write([]byte{askCount}); err != nil {
		return err
	}
	var raw [4]byte
	if _, err := io.ReadFull(c.control, raw[:]); err != nil {
		return err
	}
	there := int(min(binary.BigEndian.Uint32(raw[:]), trainCount))
	if there < got {
		return ErrTalk
	}
	res.LossOut = 1 - float64(there)/trainCount
	if there > 0 {
		res.LossIn = 1 - float64(got)/float64(there)
	}
	res.times(all[:])
	return nil
}

// times sets what the datagrams' times say.
func (res *Result) times(all []trip) {
	res.RTT = median(trips(all))
	var out, in []time.Duration // each but for the difference of the clocks
	var start time.Time
	for _, t := range all {
		if t.back.IsZero() {
			continue
		}
		if start.IsZero() {
			start = t.sent
		}
		out = append(out, t.there-t.sent.Sub(start))
		in = append(in, t.back.Sub(start)-t.there)
	}
	if len(out) == 0 {
		return
	}
	res.JitterOut, res.JitterIn = jitter(out), jitter(in)
	best := (slices.Min(out) + slices.Min(in)) / 2
	res.LatencyOut = best + median(out) - slices.Min(out)
	res.LatencyIn = best + median(in) - slices.Min(in)
}

func trips(all []trip) (out []time.Duration) {
	for _, t := range all {
		if !t.back.IsZero() {
			out = append(out, t.back.Sub(t.sent))
		}
	}
	return out
}

// median is the middle one, 0 of none.
func median(all []time.Duration) time.Duration {
	if len(all) == 0 {
		return 0
	}
	all = slices.Sorted(slices.Values(all))
	return all[len(all)/2]
}

// jitter is the mean difference between one and the next.
func jitter(all []time.Duration) time.Duration {
	if len(all) < 2 {
		return 0
	}
	var sum time.Duration
	for i := 1; i < len(all); i++ {
		sum += (all[i] - all[i-1]).Abs()
	}
	return sum / time.Duration(len(all)-1)
}

type echo struct {
	number int
	there  time.Duration
	at     time.Time
}

// echoes reads what comes back until the association is closed.
func (c *caller) echoes(conn net.Conn, to chan<- echo) {
	buf := make([]byte, trainSize+1)
	for {
		n, err := conn.Read(buf)
		if err != nil { // closed, or nobody listens there
			return
		}
		number, there, ok := readDatagram(buf[:n], c.id)
		if !ok {
			continue
		}
		select {
		case to <- echo{number, there, time.Now()}:
		default:
		}
	}
}

// datagram returns a datagram of a measurement.
func datagram(id [8]byte, number int, there time.Duration) []byte {
	raw := make([]byte, trainSize)
	copy(raw, id[:])
	binary.BigEndian.PutUint32(raw[8:], uint32(number)) //nolint:gosec // below trainCount
	binary.BigEndian.PutUint64(raw[12:], uint64(there)) //nolint:gosec // not negative
	return raw
}

// readDatagram returns the number and the time of a datagram of a measurement.
func readDatagram(raw []byte, id [8]byte) (number int, there time.Duration, ok bool) {
	if len(raw) != trainSize || [8]byte(raw[:8]) != id {
		return 0, 0, false
	}
	n, at := binary.BigEndian.Uint32(raw[8:]), binary.BigEndian.Uint64(raw[12:])
	return int(n), time.Duration(at), n < trainCount && at <= uint64(sessionTime) //nolint:gosec // compared
}
