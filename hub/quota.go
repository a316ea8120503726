package hub

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

const minBandwidthBurst = 64 << 10 // bytes, so that a low rate still passes bursts of packets

// user is one client name at the relay.
type user struct {
	name  string
	rate  float64 // bytes a second, 0 for no limit
	count int     // allocations, guarded by quota.mu

	mu       sync.Mutex // guards the buckets
	up, down bucket     // to peers, to the client
}

// spend takes n bytes of a bucket.
func (u *user) spend(b *bucket, n int) bool {
	if u == nil || u.rate <= 0 {
		return true
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return b.take(time.Now(), float64(n), u.rate, max(u.rate, minBandwidthBurst))
}

// deliver decides whether a packet goes to the client, and counts it if it is
// relayed data: ChannelData, or a Data indication (RFC 8656 section 18.2).
func (u *user) deliver(p []byte, m *meters) bool {
	data := len(p) >= 4 && (p[0] >= channelFirst && p[0] <= channelLast || p[0] == 0x00 && p[1] == 0x17)
	if u == nil || !data {
		return true
	}
	if !u.spend(&u.down, len(p)) {
		m.drop("bandwidth")
		return false
	}
	m.toClient.Add(len(p))
	return true
}

// quota bounds allocations: in all, by client name, and by address.
type quota struct {
	max, perClient, perIP int
	rate                  float64

	mu    sync.Mutex // guards the fields below
	n     int
	users map[string]*user
	ips   map[netip.Addr]int
	holds map[string]*hold // by the client's address
}

// hold is an allocation, or the place of one that is being made.
type hold struct {
	user    *user
	ip      netip.Addr
	pending bool
}

func holdKey(src net.Addr) string { return src.Network() + " " + src.String() }

// hold takes a place, or returns why there is none.
func (q *quota) hold(client string, src net.Addr) string {
	key, ip := holdKey(src), ipKey(addrOf(src).Addr())
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.holds[key] != nil {
		return "alloc_twice" // the library has asked about it already
	}
	u := q.users[client]
	switch {
	case q.n >= q.max:
		return "alloc_full"
	case q.ips[ip] >= q.perIP:
		return "alloc_per_ip"
	case u != nil && u.count >= q.perClient:
		return "alloc_per_client"
	}
	if u == nil {
		u = &user{name: client, rate: q.rate}
		q.users[client] = u
	}
	u.count++
	q.ips[ip]++
	q.n++
	q.holds[key] = &hold{user: u, ip: ip, pending: true}
	return ""
}

// commit turns a place into an allocation.
func (q *quota) commit(src net.Addr) *user {
	q.mu.Lock()
	defer q.mu.Unlock()
	h := q.holds[holdKey(src)]
	if h == nil {
		return nil
	}
	h.pending = false
	return h.user
}

// cancel gives the place of an allocation back that was not made.
func (q *quota) cancel(src net.Addr) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if key := holdKey(src); q.holds[key] != nil && q.holds[key].pending {
		q.drop(key)
	}
}

// release gives the place of an allocation back that ended.
func (q *quota) release(src net.Addr) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.drop(holdKey(src))
}

func (q *quota) drop(key string) {
	h := q.holds[key]
	if h == nil {
		return
	}
	delete(q.holds, key)
	q.n--
	if q.ips[h.ip]--; q.ips[h.ip] <= 0 {
		delete(q.ips, h.ip)
	}
	if h.user.count--; h.user.count <= 0 {
		delete(q.users, h.user.name)
	}
}

// client returns the user of a name that has a place.
func (q *quota) client(name string) *user {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.users[name]
}

func (q *quota) total() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.n
}
