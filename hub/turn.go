package hub

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // the REST scheme of TURN says so
	"encoding/base64"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pion/logging"
	"github.com/pion/stun/v4"
	"github.com/pion/turn/v5"
)

const (
	turnRealm   = "kith"
	maxTURNUser = 128                // bytes of a user's name with its expiry
	clockSlack  = 7 * 24 * time.Hour // for a client whose clock is behind: its credentials look expired
	turnFirst   = 10 * time.Second   // for a TCP client to get an allocation
	turnIdle    = 11 * time.Minute   // between two packets of one that has it; permissions last 5
)

// turnServer is the relay (RFC 8656), over UDP, TCP and TLS.
type turnServer struct {
	srv    *turn.Server
	secret []byte
	quota  *quota
	relays *relays
	udp    [2]*turnPackets
	ln     *handoff
	gone   []byte // see goneHint
	// logins bounds requests over UDP, where the sender may be forged, tcpLogins
	// those over TCP, hints what unknown senders of data are told.
	logins, tcpLogins, hints *sources
	m                        *meters
	log                      *slog.Logger
	wg                       sync.WaitGroup // TCP clients

	mu  sync.Mutex
	tcp map[netip.AddrPort]*turnConn
}

func newTURN(cfg Config, m *meters, log *slog.Logger, secret []byte, socks *sockets, ip [2]netip.Addr) (*turnServer, error) {
	t := &turnServer{
		secret: secret, m: m, log: log, ln: newHandoff(socks.tcp.Addr()), tcp: make(map[netip.AddrPort]*turnConn),
		gone: goneHint(), logins: newSources(loginRate, loginBurst), tcpLogins: newSources(loginRate, loginBurst), hints: newSources(bindingRate, bindingBurst),
		quota: &quota{
			max: cfg.MaxAllocations, perClient: cfg.AllocationsPerClient, perIP: cfg.AllocationsPerIP, rate: float64(cfg.Bandwidth),
			users: make(map[string]*user), ips: make(map[netip.Addr]int), holds: make(map[string]*hold),
		},
	}
	t.relays = newRelays(cfg, m, t.quota, socks, ip)
	sc := turn.ServerConfig{
		Realm: turnRealm, AuthHandler: t.auth, QuotaHandler: t.admit, LoggerFactory: quietTURN{},
		ChannelBindTimeout: cfg.channelLife, PermissionTimeout: cfg.permissionLife,
		ListenerConfigs: []turn.ListenerConfig{{Listener: t.ln, RelayAddressGenerator: t.relays, PermissionHandler: t.permit}},
		EventHandler: turn.EventHandler{
			OnAuth: t.onAuth, OnAllocationCreated: t.created, OnAllocationDeleted: t.deleted,
			OnAllocationError: func(src, _ net.Addr, _, _ string) { t.failed(src) },
			OnPermissionCreated: func(src, _ net.Addr, _, _, _ string, _ net.Addr, ip net.IP) {
				t.tell(src, func(a *allocation) { a.permit(ip) })
			},
			OnPermissionDeleted: func(src, _ net.Addr, _, _, _ string, _ net.Addr, ip net.IP) {
				t.tell(src, func(a *allocation) { a.forbid(ip) })
			},
			OnChannelCreated: func(src, _ net.Addr, _, _, _ string, _, peer net.Addr, n uint16) {
				t.tell(src, func(a *allocation) { a.bind(n, peer) })
			},
			OnChannelDeleted: func(src, _ net.Addr, _, _, _ string, _, _ net.Addr, n uint16) {
				t.tell(src, func(a *allocation) { a.unbind(n) })
			},
		},
	}
	for _, u := range socks.main() {
		p, err := newTURNPackets(t, u)
		if err != nil {
			return nil, err
		}
		t.udp[familyOf(u.local.Addr())] = p
		sc.PacketConnConfigs = append(sc.PacketConnConfigs,
			turn.PacketConnConfig{PacketConn: p, RelayAddressGenerator: t.relays, PermissionHandler: t.permit})
	}
	var err error
	t.srv, err = turn.NewServer(sc)
	return t, err
}

// turnPassword is the password of a user of time-limited credentials, as coturn
// and others compute it with use-auth-secret.
func turnPassword(secret []byte, user string) string {
	mac := hmac.New(sha1.New, secret)
	mac.Write([]byte(user))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// clientName returns the client of a user "<unix expiry>:<client>", if the
// credential is good now. Clients make their credentials themselves, so that the
// expiry is worth what their clock is: one that is days behind makes them in the
// past, one that is ahead far in the future, and both must be relayed. Whoever can
// make credentials can make them again, so that neither opens the hub to anybody.
func clientName(name string, now time.Time) (string, bool) {
	stamp, client, ok := strings.Cut(name, ":")
	if !ok || client == "" || len(name) > maxTURNUser || strings.HasPrefix(stamp, "+") {
		return "", false
	}
	unix, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil || unix <= now.Add(-clockSlack).Unix() {
		return "", false
	}
	return client, true
}

// auth gives the key of a user. The library compares in constant time.
func (t *turnServer) auth(ra *turn.RequestAttributes) (string, []byte, bool) {
	client, ok := clientName(ra.Username, time.Now())
	if !ok || ra.Realm != turnRealm {
		t.m.authBad.Inc()
		return "", nil, false
	}
	key := turn.GenerateAuthKey(ra.Username, turnRealm, turnPassword(t.secret, ra.Username))
	if w := t.way(ra.SrcAddr); w != nil {
		w.question().sign(key)
	}
	return client, key, true
}

func (t *turnServer) onAuth(src, _ net.Addr, _, _, _, method string, good bool) {
	if !good {
		t.m.authBad.Inc()
		return
	}
	if w := t.way(src); w != nil {
		w.question().prove()
	}
	if method == stun.MethodAllocate.String() {
		t.m.authOK.Inc()
	}
}

// admit holds a place for an allocation that is about to be made.
func (t *turnServer) admit(client, _ string, src net.Addr) bool {
	if why := t.quota.hold(client, src); why != "" {
		t.m.drop(why)
		return false
	}
	return true
}

func (t *turnServer) created(src, _ net.Addr, _, client, _ string, relay net.Addr, _ int) {
	conn := t.relays.conn(relay)
	a := newAllocation(t.quota.commit(src), conn)
	ap := addrOf(src)
	if _, udp := src.(*net.UDPAddr); !udp {
		if c := t.conn(ap); c != nil {
			c.given(a)
		}
	} else if p := t.udp[familyOf(ap.Addr())]; p != nil {
		joinReads(conn.UDPConn)
		p.remember(ap, a)
		conn.alloc = a // nothing was read yet
	}
	t.log.Debug("relay allocated", "client", src, "name", client)
}

// tell has f note what the library did to an allocation.
func (t *turnServer) tell(src net.Addr, f func(*allocation)) {
	if w := t.way(src); w != nil {
		if a := w.allocation(addrOf(src)); a != nil {
			f(a)
		}
	}
}

// permit decides whether a client may exchange packets with an address.
func (t *turnServer) permit(src net.Addr, ip net.IP) bool {
	full := false
	if addr, ok := netip.AddrFromSlice(ip); ok {
		t.tell(src, func(a *allocation) { full = a.full(addr.Unmap()) })
	}
	if full {
		t.m.drop("permissions")
		return false
	}
	return t.relays.permit(src, ip)
}

func (t *turnServer) deleted(src, _ net.Addr, _, client, _ string) {
	t.quota.release(src)
	ap := addrOf(src)
	if _, udp := src.(*net.UDPAddr); udp {
		if p := t.udp[familyOf(ap.Addr())]; p != nil {
			p.forget(ap)
		}
	} else if c := t.conn(ap); c != nil {
		c.given(nil)
	}
	t.log.Debug("relay released", "client", src, "name", client)
}

func (t *turnServer) conn(ap netip.AddrPort) *turnConn {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.tcp[ap]
}

// accept takes a TCP client.
func (t *turnServer) accept(conn net.Conn) {
	c := &turnConn{Conn: conn, t: t, key: addrOf(conn.RemoteAddr())}
	t.mu.Lock()
	t.tcp[c.key] = c
	t.mu.Unlock()
	t.wg.Add(1)
	_ = c.SetReadDeadline(time.Now().Add(turnFirst))
	t.ln.offer(c)
}

// close ends all allocations, tells their clients, and waits.
func (t *turnServer) close(closeConns func()) error {
	var err error
	if t.srv != nil {
		err = t.srv.Close()
	}
	_ = t.ln.Close()
	closeConns()
	t.wg.Wait()
	t.relays.wg.Wait()
	return err
}

// quietTURN keeps the library from logging addresses to standard error.
type quietTURN struct{}

func (quietTURN) NewLogger(string) logging.LeveledLogger { return quietTURN{} }
func (quietTURN) Trace(string)                           {}
func (quietTURN) Tracef(string, ...any)                  {}
func (quietTURN) Debug(string)                           {}
func (quietTURN) Debugf(string, ...any)                  {}
func (quietTURN) Info(string)                            {}
func (quietTURN) Infof(string, ...any)                   {}
func (quietTURN) Warn(string)                            {}
func (quietTURN) Warnf(string, ...any)                   {}
func (quietTURN) Error(string)                           {}
func (quietTURN) Errorf(string, ...any)                  {}
