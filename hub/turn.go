package hub

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // the REST scheme of TURN says so
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pion/logging"
	"github.com/pion/turn/v5"
)

const (
	turnRealm     = "kith"
	maxTURNUser   = 128              // bytes of a user's name with its expiry
	credentialMax = 24 * time.Hour   // how far ahead an expiry may be
	clockSlack    = time.Hour        // for a client whose clock is ahead
	turnFirst     = 10 * time.Second // for a TCP client to get an allocation
	turnIdle      = 11 * time.Minute // between two packets of one that has it; permissions last 5
)

// turnServer is the relay (RFC 8656), over UDP, TCP and TLS.
type turnServer struct {
	srv    *turn.Server
	secret []byte
	quota  *quota
	relays *relays
	udp    [2]*turnPackets
	ln     *handoff
	m      *meters
	log    *slog.Logger
	wg     sync.WaitGroup // TCP clients

	mu  sync.Mutex
	tcp map[netip.AddrPort]*turnConn
}

func newTURN(cfg Config, m *meters, log *slog.Logger, secret []byte, socks *sockets, ip [2]netip.Addr) (*turnServer, error) {
	t := &turnServer{
		secret: secret, m: m, log: log, ln: newHandoff(socks.tcp.Addr()), tcp: make(map[netip.AddrPort]*turnConn),
		quota: &quota{
			max: cfg.MaxAllocations, perClient: cfg.AllocationsPerClient, perIP: cfg.AllocationsPerIP, rate: float64(cfg.Bandwidth),
			users: make(map[string]*user), ips: make(map[netip.Addr]int), holds: make(map[string]*hold),
		},
	}
	t.relays = newRelays(cfg, m, t.quota, socks, ip)
	sc := turn.ServerConfig{
		Realm: turnRealm, AuthHandler: t.auth, QuotaHandler: t.admit, LoggerFactory: quietTURN{},
		ListenerConfigs: []turn.ListenerConfig{{Listener: t.ln, RelayAddressGenerator: t.relays, PermissionHandler: t.relays.permit}},
		EventHandler: turn.EventHandler{
			OnAuth: t.onAuth, OnAllocationCreated: t.created, OnAllocationDeleted: t.deleted,
			OnAllocationError: func(src, _ net.Addr, _, _ string) { t.quota.cancel(src) },
		},
	}
	for _, u := range socks.main() {
		p := newTURNPackets(u)
		t.udp[familyOf(u.local.Addr())] = p
		sc.PacketConnConfigs = append(sc.PacketConnConfigs,
			turn.PacketConnConfig{PacketConn: p, RelayAddressGenerator: t.relays, PermissionHandler: t.relays.permit})
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
// credential is good now.
func clientName(name string, now time.Time) (string, bool) {
	stamp, client, ok := strings.Cut(name, ":")
	if !ok || client == "" || len(name) > maxTURNUser || strings.HasPrefix(stamp, "+") {
		return "", false
	}
	unix, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil || unix <= now.Unix() || unix > now.Add(credentialMax+clockSlack).Unix() {
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
	return client, turn.GenerateAuthKey(ra.Username, turnRealm, turnPassword(t.secret, ra.Username)), true
}

func (t *turnServer) onAuth(_, _ net.Addr, _, _, _, method string, good bool) {
	switch {
	case !good:
		t.m.authBad.Inc()
	case method == "Allocate":
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

func (t *turnServer) created(src, _ net.Addr, _, client, _ string, _ net.Addr, _ int) {
	u := t.quota.commit(src)
	ap := addrOf(src)
	if _, udp := src.(*net.UDPAddr); udp {
		if p := t.udp[familyOf(ap.Addr())]; p != nil {
			p.remember(ap, u)
		}
	} else if c := t.conn(ap); c != nil {
		c.allocated(u)
	}
	t.log.Debug("relay allocated", "client", src, "name", client)
}

func (t *turnServer) deleted(src, _ net.Addr, _, client, _ string) {
	t.quota.release(src)
	ap := addrOf(src)
	if _, udp := src.(*net.UDPAddr); udp {
		if p := t.udp[familyOf(ap.Addr())]; p != nil {
			p.forget(ap)
		}
	} else if c := t.conn(ap); c != nil {
		c.allocated(nil)
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

// close ends all allocations and waits.
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

var errFrame = errors.New("hub: not a TURN frame")

// turnConn is a TCP client of the relay. It reads whole frames of a sane length,
// as the library must not see others: a length that wraps around in its 16 bits
// would keep it busy for ever.
type turnConn struct {
	net.Conn
	t    *turnServer
	key  netip.AddrPort
	once sync.Once

	head   [4]byte // of the frame being read
	off, n int     // what of head is still to be returned
	left   int     // bytes of the frame after head

	mu   sync.Mutex // guards user
	user *user      // nil without an allocation
}

// frameLength returns the length of the frame that begins with head (RFC 8656
// section 12.5 and RFC 8489 section 5).
func frameLength(head [4]byte) (int, bool) {
	n := int(binary.BigEndian.Uint16(head[2:]))
	switch {
	case head[0] < 0x40: // STUN
		if n%4 != 0 {
			return 0, false
		}
		n += stunHeader
	case head[0] >= channelFirst && head[0] <= channelLast: // padded to four bytes
		n = 4 + (n+3)&^3
	default:
		return 0, false
	}
	return n, n < maxDatagram
}

// Read returns bytes of one frame.
func (c *turnConn) Read(p []byte) (int, error) {
	if c.off == c.n && c.left == 0 {
		if c.userOf() != nil {
			_ = c.Conn.SetReadDeadline(time.Now().Add(turnIdle))
		}
		if _, err := io.ReadFull(c.Conn, c.head[:]); err != nil {
			return 0, err
		}
		length, ok := frameLength(c.head)
		if !ok {
			c.t.m.drop("frame")
			return 0, errFrame
		}
		c.off, c.n, c.left = 0, len(c.head), length-len(c.head)
	}
	if c.off < c.n {
		n := copy(p, c.head[c.off:c.n])
		c.off += n
		return n, nil
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// Write sends to the client; relayed data beyond its bandwidth is dropped.
func (c *turnConn) Write(p []byte) (int, error) {
	if !c.userOf().deliver(p, c.t.m) {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *turnConn) userOf() *user {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.user
}

// allocated notes that an allocation was made, or with nil that it ended.
func (c *turnConn) allocated(u *user) {
	c.mu.Lock()
	c.user = u
	c.mu.Unlock()
	if u == nil {
		_ = c.Conn.SetReadDeadline(time.Now().Add(turnFirst))
	}
}

// Close closes the connection.
func (c *turnConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.t.mu.Lock()
		if c.t.tcp[c.key] == c {
			delete(c.t.tcp, c.key)
		}
		c.t.mu.Unlock()
		c.t.wg.Done()
	})
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
