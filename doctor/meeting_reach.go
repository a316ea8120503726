package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/rendezvous"
	"github.com/kithproject/kith/rendezvous/dht"
	"github.com/kithproject/kith/rendezvous/mqtt"
	"github.com/kithproject/kith/rendezvous/waku"
)

const (
	tcpCost  = 4                       // packets of a connection
	staleFor = 2500 * time.Millisecond // that a driver may need to notice that a connection is dead
	// leastSilence is how long a server must be silent before that says something: the system
	// repeats a lost request after one second, and then after two more.
	leastSilence = 3500 * time.Millisecond
	slowReply    = 700 * time.Millisecond // of a handshake: then a server that says nothing may just be far away
)

// A meetingPlace is a server that devices meet at, in the words of findings: those of the table, or
// those of a Result, which name it.
type meetingPlace struct {
	who     string // "the broker", "the hub hub.example"
	kind    string // what it is to speak as
	command string // that sets it
	trust   string // what can be done about a certificate, before "or find out who answers"
}

func anyBroker() meetingPlace {
	return meetingPlace{"the broker", "a broker", "kith config mqtt", "Name its authority with kith config mqtt --ca"}
}

func anyNode() meetingPlace {
	return meetingPlace{"the Waku node", "a Waku node", "kith config waku", "Correct its address with kith config waku"}
}

// place says in words what a medium meets at.
func (m Medium) place() meetingPlace {
	var s meetingPlace
	name := plain(m.Name)
	if len(m.Servers) > 0 {
		name = plain(m.Servers[0])
	}
	switch {
	case !m.Hub.IsZero():
		s = meetingPlace{"the hub " + plain(m.Hub.Host), "a hub", "kith config hub", "Give the hub's address anew with kith config hub"}
	case m.Exchange.Name() == wakuDriver:
		s = anyNode()
		s.who += " " + name
	default:
		s = anyBroker()
		s.who += " " + name
	}
	return s
}

// findings are what can be wrong with a server that is reached over TCP.
func (s meetingPlace) findings() []Finding {
	return []Finding{
		{
			ID: "refused", Severity: Limit, Cause: "The host of " + s.who + " is there, but nothing takes connections at its port.",
			Fix: "Start " + s.who + ", or correct its address with " + s.command + ".",
		},
		{
			ID: "silent", Severity: Limit, Cause: "The host of " + s.who + " does not answer.",
			Fix: "See whether it is up and whether a firewall lets its port through, or use another one with " + s.command + ".",
		},
		{
			ID: "name", Severity: Limit, Cause: "The name of the host of " + s.who + " is not found.",
			Fix: "Correct the name with " + s.command + ", or see whether it still exists.",
		},
		{
			ID: "mute", Severity: Limit, Cause: "Something takes connections at the port of " + s.who + ", but does not speak as " + s.kind + ".",
			Fix: "Correct the address with " + s.command + ", or see what runs there.",
		},
		{
			ID: "expired", Severity: Limit, Cause: "The certificate of " + s.who + " has expired.",
			Fix: "Have whoever runs it renew its certificate, and see whether the clock of this device is right.",
		},
		{
			ID: "early", Severity: Limit, Cause: "The certificate of " + s.who + " is not valid yet by the clock of this device.",
			Fix: "Set the clock of this device, or have whoever runs the server see to its certificate.",
		},
		{
			ID: "untrusted", Severity: Limit, Cause: "The certificate of " + s.who + " is not one that this device trusts for that name.",
			Fix: s.trust + ", or find out who answers in its place.",
		},
		{
			ID: "credentials", Severity: Limit, Cause: capital(s.who) + " refuses the user or the password.",
			Fix: "Set the right ones with " + s.command + ".",
		},
		{
			ID: "version", Severity: Limit, Cause: capital(s.who) + " does not speak MQTT 5.",
			Fix: "Use a broker that does, or a hub.",
		},
		{
			ID: "pin", Severity: Limit, Cause: "What answers at the address of " + s.who + " has another key.",
			Fix: "Give its address anew as it shows it itself, with " + s.command + ", or find out who answers in its place.",
		},
		{ID: "inspected", Severity: Limit, Cause: inspectedBy(s.who), Fix: inspectedFix},
		{
			ID: "cluster", Severity: Limit, Cause: capital(s.who) + " is of another network: its cluster is not the one that is set.",
			Fix: "Give the cluster of its network with " + s.command + " --cluster, or the address of another node.",
		},
		{
			ID: "proof", Severity: Limit, Cause: capital(s.who) + " takes messages only with a paid membership (RLN), which kith does not have.",
			Fix: "Use a node of a network without, such as a hub's, with " + s.command + ".",
		},
		{
			ID: "service", Severity: Limit, Cause: capital(s.who) + " offers neither filter nor light push, which clients need.",
			Fix: "Use a node that does, with " + s.command + ".",
		},
	}
}

// fails answers with a finding, in words that name the server.
func (s meetingPlace) fails(id string, evidence []string) Answer {
	all := s.findings()
	i := slices.IndexFunc(all, func(f Finding) bool { return f.ID == id })
	return Fails(id, evidence...).With(all[i].Cause, all[i].Fix)
}

func capital(text string) string { return strings.ToUpper(text[:1]) + text[1:] }

// without leaves some findings out.
func without(all []Finding, ids ...string) []Finding {
	return slices.DeleteFunc(all, func(f Finding) bool { return slices.Contains(ids, f.ID) })
}

func brokerFindings() []Finding {
	return without(anyBroker().findings(), "cluster", "proof", "service")
}

func wakuFindings() []Finding {
	return without(anyNode().findings(), "credentials", "version", "pin", "inspected")
}

func dhtFindings() []Finding {
	return []Finding{
		{
			ID: "silent", Severity: Limit, Cause: "None of the first nodes of the DHT answers.",
			Fix: "Give nodes that are up with kith config dht bootstrap, such as a hub, or see whether a firewall blocks UDP.",
		},
		{
			ID: "names", Severity: Limit, Cause: "The names of the DHT's first nodes are not found.",
			Fix: "Give other nodes, or addresses, with kith config dht bootstrap.",
		},
		{
			ID: "none", Severity: Limit, Cause: "No first node of the DHT is known.",
			Fix: "Give some with kith config dht bootstrap, or switch it off with kith config rendezvous dht off.",
		},
	}
}

// errorKind is the finding that an error of a driver certainly is, or "".
func errorKind(err error) string {
	var cert x509.CertificateInvalidError
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var verify *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	switch {
	case errors.Is(err, mqtt.ErrCredentials):
		return "credentials"
	case errors.Is(err, mqtt.ErrVersion):
		return "version"
	case errors.Is(err, waku.ErrCluster):
		return "cluster"
	case errors.Is(err, waku.ErrProof):
		return "proof"
	case errors.Is(err, waku.ErrService):
		return "service"
	case errors.Is(err, hubaddr.ErrPin):
		return pinFinding(err)
	case errors.As(err, &cert) && cert.Reason == x509.Expired && cert.Cert != nil && time.Now().Before(cert.Cert.NotBefore):
		return "early"
	case errors.As(err, &cert) && cert.Reason == x509.Expired:
		return "expired"
	case errors.As(err, &authority), errors.As(err, &host), errors.As(err, &verify):
		return "untrusted"
	case errors.As(err, &record):
		return "mute"
	}
	return ""
}

// wayOf is the finding that an error on the way to a server is, or "".
func wayOf(err error) string {
	var name *net.DNSError
	var timeout net.Error
	switch {
	case errors.As(err, &name) && name.IsNotFound:
		return "name"
	case errors.As(err, &name):
		return "" // nobody says whether there is such a name
	case deviceRefused(err):
		return "refused"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout(), deviceUnreachable(err):
		return "silent"
	}
	return ""
}

// reach says whether a medium can carry something, and if not why.
func reach(ctx context.Context, env *Env, subject string) Answer {
	m, ok := env.medium(subject)
	if !ok {
		return Unclear("the medium is gone")
	}
	x := m.Exchange
	if c, ok := x.(rendezvous.Checker); ok && !env.Quick {
		c.Check()
	}
	var servers []string
	if driver := x.Name(); driver == brokerDriver || driver == wakuDriver {
		servers = m.Servers
		// One that has lost its server tries again after half a minute at most, and says till
		// then what was in the way the last time.
		h := x.Health()
		failed := !h.Ready && (errorKind(h.Err) != "" || wayOf(h.Err) != "")
		if failed && !env.Quick && m.Fresh != nil && env.Pacer.Wait(ctx, openCost) == nil {
			if other, _ := m.fresh(); other != nil {
				defer other.Close()
				x = other
			}
		}
	}
	shakes := shakeAll(ctx, env, servers)
	h := settled(ctx, x, shakes)
	evidence := []string{plain(h.Detail)}
	if h.Err != nil && !strings.Contains(h.Err.Error(), h.Detail) {
		evidence = append(evidence, plain(h.Err.Error()))
	} else if h.Err != nil {
		evidence = []string{plain(h.Err.Error())}
	}
	done := shakes.wait(h.Ready)
	for _, s := range done {
		evidence = append(evidence, s.String())
	}
	if h.Ready {
		return OK(evidence...)
	}
	return m.explain(h.Err, done, evidence)
}

// explain says why a medium is not ready.
func (m Medium) explain(err error, done []shake, evidence []string) Answer {
	switch m.Exchange.Name() {
	case dhtDriver:
		return dhtAnswer(err, evidence)
	case brokerDriver, wakuDriver:
		return m.place().answer(err, done, evidence)
	}
	return Fails("down", evidence...)
}

func dhtAnswer(err error, evidence []string) Answer {
	switch {
	case errors.Is(err, dht.ErrSilent):
		return Fails("silent", evidence...)
	case errors.Is(err, dht.ErrNames):
		return Fails("names", evidence...)
	case errors.Is(err, dht.ErrNoNodes):
		return Fails("none", evidence...)
	}
	return Unclear(evidence...)
}

// answer says what a server's silence comes from.
func (s meetingPlace) answer(err error, done []shake, evidence []string) Answer {
	if kind := errorKind(err); kind != "" {
		return s.fails(kind, evidence)
	}
	way, quick := "", false
	for _, one := range done {
		if one.err == nil {
			quick = quick || one.took < slowReply
			way = "mute"
		} else if way == "" {
			way = wayOf(one.err)
		}
	}
	if len(done) == 0 { // the driver alone can say
		way = wayOf(err)
	}
	if way == "" || way == "mute" && !quick {
		return Unclear(append(evidence, "it may be there, but far away or busy")...)
	}
	return s.fails(way, evidence)
}

// settled waits until the medium is ready for certain, or has a reason that waiting does
// not mend, or time is up.
func settled(ctx context.Context, x rendezvous.Exchange, shakes *shakes) rendezvous.Health {
	ctx, cancel := context.WithTimeout(ctx, time.Until(deadline(ctx, reachLimit))-closePatience)
	defer cancel()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for start := time.Now(); ; {
		h := x.Health()
		late := time.Since(start) > staleFor
		if h.Ready && (late || shakes.proven()) || !h.Ready && (errorKind(h.Err) != "" || shakes.hopeless()) {
			return h
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return x.Health()
		}
	}
}

// deadline is when ctx ends, or in a while.
func deadline(ctx context.Context, otherwise time.Duration) time.Time {
	if at, ok := ctx.Deadline(); ok {
		return at
	}
	return time.Now().Add(otherwise)
}

// A shake is a TCP handshake with a server.
type shake struct {
	server string
	took   time.Duration
	err    error
}

func (s shake) String() string {
	if s.err != nil {
		return fmt.Sprintf("TCP to %s: %s", s.server, plain(s.err.Error()))
	}
	return fmt.Sprintf("TCP to %s: answered in %v", s.server, s.took.Round(10*time.Microsecond))
}

// shakes are the handshakes with the servers of a medium, side by side.
type shakes struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	count  int

	mu   sync.Mutex // guards done
	done []shake
}

func shakeAll(ctx context.Context, env *Env, servers []string) *shakes {
	s := &shakes{count: len(servers)}
	ctx, s.cancel = context.WithDeadline(ctx, deadline(ctx, reachLimit).Add(-closePatience/2))
	for _, server := range servers {
		s.wg.Go(func() {
			if env.Pacer.Wait(ctx, tcpCost) != nil {
				return
			}
			start := time.Now()
			var d net.Dialer
			conn, err := d.DialContext(ctx, "tcp", server)
			took := time.Since(start)
			if err == nil {
				_ = conn.Close()
			} else if errors.Is(ctx.Err(), context.Canceled) || took < leastSilence && os.IsTimeout(err) {
				return // it is not needed any more, or was not waited for
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.done = append(s.done, shake{server, took, err})
		})
	}
	return s
}

// proven reports that a server was reached just now, or that there is none to try.
func (s *shakes) proven() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count == 0 || slices.ContainsFunc(s.done, func(one shake) bool { return one.err == nil })
}

// hopeless reports that no server can be reached, for reasons that stay.
func (s *shakes) hopeless() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range s.done {
		if one.err == nil || wayOf(one.err) == "" {
			return false
		}
	}
	return s.count > 0 && len(s.done) == s.count
}

// wait returns the handshakes that are through; with enough it waits only a moment for
// the others.
func (s *shakes) wait(enough bool) []shake {
	if enough {
		timer := time.AfterFunc(slowReply, s.cancel)
		defer timer.Stop()
	}
	s.wg.Wait()
	s.cancel()
	return s.done
}
