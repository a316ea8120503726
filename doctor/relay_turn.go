package doctor

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/kithproject/kith/link/relay"
)

const (
	turnPatience = 7 * time.Second        // of one way to a server
	echoPause    = 200 * time.Millisecond // between packets, at least
	echoTries    = 6                      // packets each way, a count
)

type bindResult struct {
	a   stunAnswer
	err error
}

// bind asks a server for a STUN answer over UDP: once in a run.
func (s server) bind(ctx context.Context, env *Env) (stunAnswer, error) {
	r := once(env, "udp "+s.Name, func() bindResult {
		all, _ := Fact[[]sighting](env, factSeen)
		for _, x := range all {
			if x.Server.Name == hostPort(s.Host, s.Port) {
				return bindResult{a: x.stunAnswer}
			}
		}
		if silent, asked := Fact[[]stunServer](env, factSilent); asked && s.Hub && len(silent) > 0 {
			return bindResult{err: errNoAnswer} // address.discovery has waited for it
		}
		addrs, err := resolve(ctx, env, s.Host)
		if err != nil || len(addrs) == 0 {
			return bindResult{err: errors.Join(errNoAnswer, err)}
		}
		results := make(chan bindResult, 2)
		asked := 0
		for _, network := range []string{"udp4", "udp6"} {
			i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is4() == (network == "udp4") })
			if i < 0 {
				continue
			}
			asked++
			go func() {
				sock, err := openSTUN(env, network)
				if err != nil {
					results <- bindResult{err: err}
					return
				}
				defer sock.close()
				a, err := sock.ask(ctx, netip.AddrPortFrom(addrs[i], s.Port), stunPatience)
				results <- bindResult{a, err}
			}()
		}
		best := bindResult{err: errNoAnswer}
		for range asked {
			if r := <-results; r.err == nil {
				best = r
			}
		}
		return best
	})
	return r.a, r.err
}

// A login is what came of asking a server for an allocation, by one transport.
type login struct {
	way  string // udp, tcp or tls
	cfg  relay.Config
	err  error
	at   netip.AddrPort // relayed
	took time.Duration
}

// logins asks a server over each of its transports that work: once in a run.
func (s server) logins(ctx context.Context, env *Env) []login {
	return once(env, "logins "+s.Name, func() []login {
		results := make(chan login, len(s.ways))
		asked := 0
		for i, cfg := range s.ways {
			if !s.works(ctx, env, s.names[i]) {
				continue
			}
			asked++
			go func() { results <- allocate(ctx, env, s.names[i], cfg) }()
		}
		var out []login
		for range asked {
			out = append(out, <-results)
		}
		slices.SortFunc(out, func(a, b login) int { return slices.Index(s.names, a.way) - slices.Index(s.names, b.way) })
		return out
	})
}

// works reports whether a transport reaches the server, so that it is not waited for in vain.
func (s server) works(ctx context.Context, env *Env, way string) bool {
	switch way {
	case "udp":
		_, err := s.bind(ctx, env)
		return err == nil
	case "tls":
		return probeTCP(ctx, env, s.Host, s.Port, s.TLS).proved()
	}
	return probeTCP(ctx, env, s.Host, s.Port, s.TLS).connected()
}

func allocate(ctx context.Context, env *Env, way string, cfg relay.Config) login {
	ctx, cancel := context.WithTimeout(ctx, turnPatience)
	defer cancel()
	l := login{way: way, cfg: cfg}
	if l.err = env.Pacer.Wait(ctx, map[string]int{"udp": 6, "tcp": 10, "tls": 18}[way]); l.err != nil {
		return l
	}
	start := time.Now()
	r, err := relay.Dial(ctx, cfg)
	l.took, l.err = time.Since(start), err
	if err == nil {
		l.at = r.Addr()
		_ = r.Close() // which gives it back
	}
	return l
}

func checkRelayAuth(ctx context.Context, env *Env, name string) Answer {
	s, ok := serverNamed(env, name)
	if !ok {
		return Unclear("the address of the relay cannot be read")
	}
	all := s.logins(ctx, env)
	if len(all) == 0 {
		return Unclear("it is not reached")
	}
	var lines []string
	taken, finding := false, ""
	for _, l := range all {
		lines = append(lines, "over "+l.way+": "+l.words())
		switch {
		case l.err == nil, errors.Is(l.err, relay.ErrQuota), errors.Is(l.err, relay.ErrFull):
			taken = true
		case errors.Is(l.err, relay.ErrCredentials):
			finding = "refused"
		case errors.Is(l.err, relay.ErrUnreachable), ctx.Err() != nil:
		default:
			if _, said := errors.AsType[*relay.ServerError](l.err); said {
				taken = true // it knows us, and has another reason
			} else if finding == "" {
				finding = "other"
			}
		}
	}
	switch {
	case taken:
		return OK(lines...)
	case finding == "refused" && s.Hub:
		return Fails("refused", lines...).With(fmt.Sprintf("The %s refuses the secret in the address that this device has of it.", s.title()), anewFix)
	case finding == "refused":
		return Fails("refused", lines...).With(fmt.Sprintf("The %s refuses the user, password or secret that this device has for it.", s.title()), "")
	case finding != "":
		return Fails(finding, lines...)
	}
	return Unclear(lines...)
}

// words says what came of a login. Errors of package relay never hold secrets.
func (l login) words() string {
	if l.err != nil {
		return l.err.Error()
	}
	return fmt.Sprintf("the relayed address %s, after %d ms", l.at, l.took.Milliseconds())
}

func checkRelayAllocate(ctx context.Context, env *Env, name string) Answer {
	s, _ := serverNamed(env, name)
	all := s.logins(ctx, env)
	var lines []string
	finding := ""
	for _, l := range all {
		lines = append(lines, "over "+l.way+": "+l.words())
		_, said := errors.AsType[*relay.ServerError](l.err)
		switch {
		case l.err == nil:
			return OK(lines...)
		case errors.Is(l.err, relay.ErrQuota):
			finding = "quota"
		case errors.Is(l.err, relay.ErrFull) && finding == "":
			finding = "full"
		case said && finding == "":
			finding = "refused"
		}
	}
	switch {
	case finding == "":
		return Unclear(lines...)
	case finding != "refused":
		if own := s.ownAllocation(ctx, env); own != "" {
			return OK(append(lines, own)...)
		}
	}
	a := Fails(finding, lines...)
	switch finding {
	case "quota":
		a = a.With(fmt.Sprintf("The quota of this device's user at the %s is used up.", s.title()), "")
	case "full":
		a = a.With(fmt.Sprintf("The %s is full.", s.title()), "")
	}
	return a
}

// ownAllocation says what this device itself has of a server that gives no more; "" if nothing.
func (s server) ownAllocation(ctx context.Context, env *Env) string {
	var held []string
	if env.Relaying != nil {
		held = env.Relaying()
	}
	for _, o := range relays(env) {
		if o.Host != s.Host || o.ways[0].User != s.ways[0].User || !bytes.Equal(o.ways[0].Secret, s.ways[0].Secret) {
			continue
		}
		if o.Hub && slices.Contains(held, o.Host) || !o.Hub && slices.Contains(held, o.ways[0].URL) {
			return "kith has an address there already, which counts"
		}
		if o.Name != s.Name && slices.ContainsFunc(o.logins(ctx, env), func(l login) bool { return l.err == nil }) {
			return "this very run had an address there over " + o.Name + ", which counts"
		}
	}
	return ""
}

// checkRelayEcho sends packets through an allocation, from a socket of this device and back.
// If none passes, perhaps because this network lets no UDP out, another allocation is the
// other end.
func checkRelayEcho(ctx context.Context, env *Env, name string) Answer {
	s, _ := serverNamed(env, name)
	var ok []login
	for _, l := range s.logins(ctx, env) {
		if l.err == nil {
			ok = append(ok, l)
		}
	}
	if len(ok) == 0 {
		return Unclear("there is no allocation")
	}
	got := make(chan relayed, 16)
	patience := ok[0].patience()
	first, err := openRelay(ctx, env, ok[0], got)
	if err != nil {
		return Unclear("there was an allocation, but there is no second one: " + err.Error())
	}
	defer first.Close()
	var lines []string
	if there, back := echoSocket(ctx, env, first, got, patience); there && back {
		return OK("over " + ok[0].way + ": packets from a socket of this device came through " + first.Addr().String() + ", and back")
	} else if there {
		lines = append(lines, "packets came through "+first.Addr().String()+", but none back")
	} else {
		lines = append(lines, "no packet of a socket of this device came through "+first.Addr().String())
	}
	other := make(chan relayed, 16)
	second, err := openRelay(ctx, env, ok[len(ok)-1], other)
	if err != nil {
		return Unclear(append(lines, "a second allocation: "+err.Error())...)
	}
	defer second.Close()
	if echoBetween(ctx, env, first, second, got, other, max(patience, ok[len(ok)-1].patience())) {
		return OK(append(lines, "packets between two allocations came through")...)
	}
	lines = append(lines, "no packet between two allocations came through")
	if scope(first.Addr().Addr()) != scopePublic || ctx.Err() != nil {
		return Unclear(append(lines, "a relay may refuse private addresses")...)
	}
	return Fails("silent", lines...).With(fmt.Sprintf("The %s gives this device an address, but passes no packets on.", s.title()), "")
}

// relayed is a packet that came through an allocation.
type relayed struct {
	from netip.AddrPort
	text string
}

func openRelay(ctx context.Context, env *Env, l login, got chan<- relayed) (*relay.Relay, error) {
	if err := env.Pacer.Wait(ctx, 10); err != nil {
		return nil, err
	}
	cfg := l.cfg
	cfg.Receive = func(from netip.AddrPort, packet []byte) {
		select {
		case got <- relayed{from, string(packet)}:
		default:
		}
	}
	ctx, cancel := context.WithTimeout(ctx, turnPatience)
	defer cancel()
	return relay.Dial(ctx, cfg)
}

// echoSocket sends from a socket to the allocation, and from there back.
func echoSocket(ctx context.Context, env *Env, r *relay.Relay, got <-chan relayed, patience time.Duration) (there, back bool) {
	seen := seenBy(env, r.Addr().Addr().Is4())
	if len(seen) == 0 {
		return false, false
	}
	sock, err := openSTUN(env, networkOf(r.Addr()))
	if err != nil {
		return false, false
	}
	defer sock.close()
	text := rand.Text()
	// A permission is for a whole address.
	if r.Send(nil, netip.AddrPortFrom(seen[0].Mapped.Addr(), sock.local.Port())) != nil {
		return false, false
	}
	var from netip.AddrPort
	there = repeatedly(ctx, patience, func() {
		_ = sock.send(ctx, []byte(text), r.Addr())
	}, func() bool {
		select {
		case p := <-got:
			from = p.from
			return p.text == text
		default:
			return false
		}
	})
	if !there {
		return false, false
	}
	text = rand.Text()
	back = repeatedly(ctx, patience, func() {
		if env.Pacer.Wait(ctx, 1) == nil {
			_ = r.Send([][]byte{[]byte(text)}, from)
		}
	}, func() bool {
		select {
		case p := <-sock.plain:
			return string(p.data) == text
		default:
			return false
		}
	})
	return there, back
}

// echoBetween sends between two allocations, both ways.
func echoBetween(ctx context.Context, env *Env, a, b *relay.Relay, gotA, gotB <-chan relayed, patience time.Duration) bool {
	text := rand.Text()
	var heard [2]bool
	return repeatedly(ctx, patience, func() {
		if env.Pacer.Wait(ctx, 2) == nil {
			_ = a.Send([][]byte{[]byte(text)}, b.Addr())
			_ = b.Send([][]byte{[]byte(text)}, a.Addr())
		}
	}, func() bool {
		for i, c := range []<-chan relayed{gotA, gotB} {
			select {
			case p := <-c:
				heard[i] = heard[i] || p.text == text
			default:
			}
		}
		return heard[0] && heard[1]
	})
}

// patience is how long a packet through the allocation is waited for: four round trips, as a
// login takes two at least.
func (l login) patience() time.Duration { return max(echoTries*echoPause, 2*l.took) }

// repeatedly sends, a few times, until arrived reports true or patience ends.
func repeatedly(ctx context.Context, patience time.Duration, send func(), arrived func() bool) bool {
	const looks = 10 // for each packet, a count
	tick := time.NewTicker(patience / (echoTries * looks))
	defer tick.Stop()
	for range echoTries {
		send()
		for range looks {
			select {
			case <-ctx.Done():
				return false
			case <-tick.C:
			}
			if arrived() {
				return true
			}
		}
	}
	return false
}
