package doctor

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"

	"github.com/kithproject/kith/hub/hubaddr"
)

const (
	// Devices find each other by the day (UTC), a day more or less; a wrong hour or so
	// only troubles servers whose certificates or passwords end.
	clockWrong = 20 * time.Hour
	clockOff   = 5 * time.Minute
	ntpSize    = 48 // bytes
)

// DefaultNTP returns the servers of network time for Env.NTP where the user names none.
func DefaultNTP() []string { return []string{"time.cloudflare.com", "ptbtime1.ptb.de"} }

func (d *device) clockCheck() Check {
	return Check{
		Code: "device.clock", Asks: "Is this device's clock right?", Needs: []Code{"device.gateway"}, Limit: 10 * time.Second, Quick: true,
		Findings: []Finding{
			{
				ID: "wrong", Severity: Fault, Cause: "This device's clock is wrong by 20 hours or more, so that it looks for others at the wrong places.",
				Fix:      "Set the clock and the time zone, and have the system set it by itself (timedatectl set-ntp true).",
				Explains: []string{"relays.tls/early", "relays.tls/expired", "relays.auth/refused", "meeting.broker/early", "meeting.broker/expired", "peers.clock", "peers.candidates/tunnel"},
			},
			{
				ID: "off", Severity: Limit, Cause: "This device's clock is wrong by minutes or hours, so that servers may refuse it.",
				Fix:      "Set the clock, and have the system set it by itself (timedatectl set-ntp true).",
				Explains: []string{"relays.tls/early", "relays.tls/expired", "relays.auth/refused", "meeting.broker/early", "meeting.broker/expired", "peers.clock", "peers.candidates/tunnel"},
			},
		},
		Run: d.runClock,
	}
}

func (d *device) runClock(ctx context.Context, env *Env, _ string) Answer {
	type told struct {
		who string
		off time.Duration
		err error
	}
	var evidence []string
	var best *told
	// compare asks all at once; one that agrees is enough.
	compare := func(ways []func() told) {
		out := make(chan told, len(ways))
		for _, way := range ways {
			go func() { out <- way() }()
		}
		for range ways {
			t := <-out
			if t.err != nil {
				evidence = append(evidence, t.who+" does not tell the time")
				continue
			}
			evidence = append(evidence, fmt.Sprintf("by %s this clock is %s", t.who, deviceAhead(t.off)))
			if best == nil || t.off.Abs() < best.off.Abs() {
				best = &t
			}
		}
	}
	var hubs, others []func() told
	for _, h := range env.Hubs[:min(len(env.Hubs), maxTargets)] {
		hubs = append(hubs, func() told {
			t := d.hubTime(ctx, env, h)
			return told{"the hub " + h.Host, t.off, t.err}
		})
	}
	for _, s := range env.NTP[:min(len(env.NTP), maxTargets)] {
		others = append(others, func() told {
			off, err := d.ntp(ctx, env, s)
			return told{s, off, err}
		})
	}
	if compare(hubs); best == nil && env.Strangers {
		compare(others)
	}
	if len(evidence) == 0 {
		return Unclear("no clock is known to compare with")
	}
	switch {
	case best == nil:
		return Unclear(evidence...)
	case best.off.Abs() > clockWrong:
		return Fails("wrong", evidence...).With(fmt.Sprintf("This device's clock is %s, so that it looks for others at the wrong places.", deviceAhead(best.off)), "")
	case best.off.Abs() > clockOff:
		return Fails("off", evidence...).With(fmt.Sprintf("This device's clock is %s, so that servers may refuse it.", deviceAhead(best.off)), "")
	}
	return OK(evidence...)
}

func deviceAhead(off time.Duration) string {
	word := "ahead"
	if off < 0 {
		word, off = "behind", -off
	}
	switch {
	case off < 2*time.Second:
		return "right"
	case off < 2*time.Hour:
		return off.Round(time.Second).String() + " " + word
	case off < 72*time.Hour:
		return fmt.Sprintf("%.0f hours %s", off.Hours(), word)
	}
	return fmt.Sprintf("%.0f days %s", off.Hours()/24, word)
}

// A hubClock is what a hub says of this clock.
type hubClock struct {
	off time.Duration // what this one is ahead
	err error
}

// hubTime asks a hub for the time, once in a run.
func (d *device) hubTime(ctx context.Context, env *Env, h hubaddr.Address) hubClock {
	return once(env, "device.hubTime "+net.JoinHostPort(h.Host, strconv.Itoa(int(h.Port))), func() hubClock {
		at, err := d.askHubTime(ctx, env, h)
		// The header has whole seconds: on average half of one has passed.
		return hubClock{env.now().Sub(at.Add(500 * time.Millisecond)), err}
	})
}

// askHubTime asks over TLS with the hub's key: nobody else can answer.
func (d *device) askHubTime(ctx context.Context, env *Env, h hubaddr.Address) (at time.Time, err error) {
	if err := env.Pacer.Wait(ctx, 12); err != nil {
		return at, err
	}
	ctx, cancel := context.WithTimeout(ctx, 4*time.Second)
	defer cancel()
	page := url.URL{Scheme: "https", Host: net.JoinHostPort(h.Host, strconv.Itoa(int(h.Port))), Path: "/healthz"}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, page.String(), nil)
	if err != nil {
		return at, err
	}
	transport := &http.Transport{Proxy: nil, DisableKeepAlives: true, TLSClientConfig: h.TLSConfig(), MaxResponseHeaderBytes: 16 << 10}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return at, err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<10))
	at, err = http.ParseTime(resp.Header.Get("Date"))
	return at, err
}

// ntp asks a server of network time how far this clock is ahead (RFC 5905 section 8).
func (d *device) ntp(ctx context.Context, env *Env, server string) (time.Duration, error) {
	host, port, err := splitHostPort(server, d.ntpPort)
	if err != nil {
		return 0, err
	}
	addrs, err := resolve(ctx, env, host)
	if err != nil {
		return 0, err
	}
	if len(addrs) == 0 {
		return 0, fmt.Errorf("doctor: %s has no address", plain(host))
	}
	req := make([]byte, ntpSize)
	req[0] = 4<<3 | 3          // version 4, client
	_, _ = rand.Read(req[40:]) // never fails; a server returns it as it is
	var answer ntpTime
	for _, a := range addrs[:min(2, len(addrs))] {
		r := d.ask(ctx, env, netip.AddrPortFrom(a, port), req, deviceAsk{tries: 2, wait: time.Second, fits: func(b []byte) bool {
			t, ok := parseNTP(b, [8]byte(req[40:]))
			if ok {
				answer = t
			}
			return ok
		}})
		if r.Data != nil {
			// Half of the way there and back, less the time at the server, is as exact as needed.
			return env.now().Sub(answer.sent.Add((r.RTT - answer.sent.Sub(answer.received)) / 2)), nil
		}
	}
	return 0, fmt.Errorf("doctor: %s does not answer", plain(host))
}

type ntpTime struct{ received, sent time.Time }

// parseNTP reads an answer to a request with a transmit timestamp.
func parseNTP(b []byte, asked [8]byte) (t ntpTime, ok bool) {
	if len(b) < ntpSize || b[0]&7 != 4 || b[0]>>6 == 3 || b[1] == 0 || b[1] > 15 || [8]byte(b[24:32]) != asked {
		return t, false
	}
	t = ntpTime{ntpStamp(b[32:]), ntpStamp(b[40:])}
	return t, !t.sent.Before(t.received) && t.sent.Sub(t.received) < time.Minute
}

// ntpStamp reads seconds since 1900, or from 2036 on since then.
func ntpStamp(b []byte) time.Time {
	const to1970, era = 2208988800, 1 << 32
	s := int64(binary.BigEndian.Uint32(b))
	if s < era/2 {
		s += era
	}
	return time.Unix(s-to1970, int64(binary.BigEndian.Uint32(b[4:]))*1e9>>32)
}
