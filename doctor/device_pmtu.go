package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"time"
)

const (
	deviceFullSize = 1432 // bytes of a full datagram of the tunnel
	deviceSureSize = 548  // bytes that pass everywhere (RFC 8489 section 6.1)
	maxSized       = 3    // servers that are tried, a count
	sizeWait       = 600 * time.Millisecond
	// A loss of half of all packets must not look like a hole: nine in a row are one in 500.
	sizeFirst, sizeMore, sizeTries = 2, 7, 4
)

// linkMTUs are packet sizes, in bytes, that links are known to have.
var linkMTUs = []int{1280, 1300, 1350, 1400, 1420, 1440, 1450} //nolint:gochecknoglobals // a table

func (d *device) pmtuCheck() Check {
	return Check{
		Code: "device.pmtu", Asks: "Do datagrams of full size arrive?", Needs: []Code{"device.outside"}, Limit: 9 * time.Second,
		Findings: []Finding{
			{
				ID: "hole", Severity: Limit, Cause: "Large packets vanish on the way while small ones arrive, and no router says why (an MTU black hole).",
				// A device that was never heard is more likely off than behind the hole.
				Explains: []string{"relays.tls/failed", "meeting.broker/mute", "meeting.echo/second", "peers.heard/gone", "peers.path/mtu"},
				Fix:      "Lower the MTU of the router's or the VPN's connection, or have the firewall let ICMP messages of the kind fragmentation needed pass.",
			},
		},
		Run: d.runPMTU,
	}
}

// smallerPackets is the fix of a hole that packets of a size in bytes do not fall into: one
// at this device, which needs nobody else, where its command is known.
func smallerPackets(env *Env, size int) string {
	i, _, ok := env.outward()
	if runtime.GOOS != "linux" || !ok {
		return ""
	}
	return fmt.Sprintf("Lower the MTU of the router's or the VPN's connection to %d, or of this device alone (as root: ip link set dev %s mtu %d), or have the firewall let ICMP messages of the kind fragmentation needed pass.", size, i.Name, size)
}

// A deviceSized is what came of datagrams of a size to a server.
type deviceSized int

const (
	sizeVanished deviceSized = iota
	sizeArrived
	sizeTold // somebody said that it is too large, which is as it should be
)

func (d *device) runPMTU(ctx context.Context, env *Env, _ string) Answer {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type seen struct {
		hub bool
		a   Answer
	}
	out := make(chan seen, maxSized)
	n := 0
	for _, t := range targets(env) {
		if !t.UDP || n == maxSized {
			continue
		}
		n++
		go func() {
			addrs, err := resolve(ctx, env, t.Host)
			if err != nil || len(addrs) == 0 {
				out <- seen{a: Unclear(t.Host + " has no address")}
				return
			}
			if addrs = deviceEach(addrs, d.routed); len(addrs) == 0 {
				out <- seen{a: Unclear("this network has no way to " + t.Host)}
				return
			}
			out <- seen{t.Hub, d.sizes(ctx, env, netip.AddrPortFrom(addrs[0], t.Port))}
		}()
	}
	if n == 0 {
		return Unclear("no server that answers STUN is known to try")
	}
	holes := 0
	answer := Unclear()
	for range n {
		s := <-out
		switch {
		case answer.State == Yes:
		case s.a.State == Yes:
			answer = s.a
			cancel()
		case s.a.State == No:
			// A hub answers large requests; of others not one alone is believed.
			if holes++; s.hub || holes > 1 {
				answer.State, answer.Finding, answer.Cause, answer.Fix = No, s.a.Finding, s.a.Cause, s.a.Fix
			}
			fallthrough
		default:
			answer.Evidence = append(answer.Evidence, s.a.Evidence...)
		}
	}
	return answer
}

// sizes looks at which sizes pass to a server and back.
func (d *device) sizes(ctx context.Context, env *Env, to netip.AddrPort) Answer {
	headers := 28
	if to.Addr().Is6() {
		headers = 48
	}
	full := deviceFullSize
	if i, _, ok := env.outward(); ok && i.MTU > 0 {
		full = min(full, i.MTU-headers) &^ 3
	}
	var big, more, small deviceAnswer
	var wg sync.WaitGroup
	wg.Go(func() { big = d.sendSize(ctx, env, to, full, sizeFirst) })
	wg.Go(func() { small = d.sendSize(ctx, env, to, deviceSureSize, sizeTries) })
	wg.Wait()
	if errors.Is(big.Err, errors.ErrUnsupported) {
		return Unclear("this system does not keep datagrams of programs whole, so that nothing shows which sizes pass")
	}
	if big.Data == nil && big.MTU == 0 {
		if small.Data == nil {
			return Unclear(fmt.Sprintf("%s does not answer", to))
		}
		passed := make([]bool, len(linkMTUs))
		for i, mtu := range linkMTUs {
			if size := mtu - headers; size < full {
				wg.Go(func() { passed[i] = d.sendSize(ctx, env, to, size, sizeTries).Data != nil })
			}
		}
		wg.Go(func() { more = d.sendSize(ctx, env, to, full, sizeMore) })
		wg.Wait()
		if more.Data == nil && more.MTU == 0 {
			largest := 0
			for i, ok := range passed {
				if ok {
					largest = linkMTUs[i]
				}
			}
			line := fmt.Sprintf("to %s and back packets of %d bytes vanish", to, full+headers)
			if largest == 0 || ctx.Err() != nil { // it may be the server that takes no more
				return Unclear(line, fmt.Sprintf("those of %d bytes pass", deviceSureSize+headers))
			}
			return Fails("hole", line, fmt.Sprintf("those of %d bytes pass", largest)).With(
				fmt.Sprintf("Packets of more than %d bytes vanish on the way while smaller ones arrive, and no router says why (an MTU black hole).", largest), smallerPackets(env, largest))
		}
		big = more
	}
	if big.MTU > 0 {
		return OK(fmt.Sprintf("on the way to %s packets of at most %d bytes pass, and senders are told so", to, big.MTU))
	}
	return OK(fmt.Sprintf("packets of %d bytes arrive at %s, and as large ones come back", full+headers, to))
}

// sendSize sends STUN requests of a size in bytes of UDP payload, and wants as much back.
func (d *device) sendSize(ctx context.Context, env *Env, to netip.AddrPort, size, tries int) deviceAnswer {
	req, fits := deviceBinding(size)
	return d.ask(ctx, env, to, req, deviceAsk{tries: tries, wait: sizeWait, whole: true, fits: fits})
}
