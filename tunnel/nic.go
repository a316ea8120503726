package tunnel

import (
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const (
	nicID = 1
	// queueSize is how many packets of the stack wait for WireGuard, in number; each may
	// be a 64 KiB segment. When more would wait, connections gather larger ones instead:
	// with 8 of them that saves a tenth of the CPU time.
	queueSize = 16
	// gsoMax is the largest TCP segment that the stack may hand over, in bytes.
	gsoMax = 65535
	// gsoSegments is how many packets a segment is split to, in number: as many
	// datagrams of DefaultMTU as the kernel takes in one go. Then no odd packet is
	// left over, which would end a run of equal ones.
	gsoSegments = 45
	// maxBuffer is up to where TCP buffers grow, in bytes: enough for 300 Mbit/s
	// over 100 ms.
	maxBuffer     = 4 << 20
	defaultBuffer = 1 << 20
)

// A nic is the wire between the network stack and WireGuard: a LinkEndpoint to
// the one, a tun.Device to the other.
type nic struct {
	mtu     int
	stack   *stack.Stack
	queue   chan *stack.PacketBuffer // from the stack to WireGuard
	closed  chan struct{}
	once    sync.Once
	events  chan tun.Event
	mergers sync.Pool // of *merging
	words   lastWords
	hearing hearing
	back    func(netip.Addr) // called when a silent peer is heard; set before the first packet

	mu         sync.RWMutex // guards dispatcher
	dispatcher stack.NetworkDispatcher

	pending *stack.PacketBuffer // did not fit the last Read; used by Read alone
}

var (
	_ stack.LinkEndpoint = (*nic)(nil)
	_ stack.GSOEndpoint  = (*nic)(nil)
	_ tun.Device         = device{}
)

func newNIC(addr netip.Addr, mtu int) (*nic, error) {
	n := &nic{mtu: mtu, queue: make(chan *stack.PacketBuffer, queueSize), closed: make(chan struct{}), events: make(chan tun.Event)}
	n.back = func(netip.Addr) {}
	n.mergers.New = func() any { return new(merging) }
	n.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol6},
		HandleLocal:        true,
	})
	if err := tuneTCP(n.stack); err != nil {
		return nil, err
	}
	if err := n.stack.CreateNIC(nicID, n); err != nil {
		return nil, fmt.Errorf("tunnel: create interface: %v", err)
	}
	pa := tcpip.ProtocolAddress{Protocol: ipv6.ProtocolNumber, AddressWithPrefix: tcpip.AddrFrom16(addr.As16()).WithPrefix()}
	if err := n.stack.AddProtocolAddress(nicID, pa, stack.AddressProperties{}); err != nil {
		return nil, fmt.Errorf("tunnel: set address: %v", err)
	}
	n.stack.AddRoute(tcpip.Route{Destination: header.IPv6EmptySubnet, NIC: nicID})
	return n, nil
}

const (
	// maxRTO bounds the wait between two retransmissions: when a path is back after
	// an absence, connections go on that soon.
	maxRTO = 2 * time.Second
	// absence is how long a connection outlives a peer that does not answer.
	absence = 15 * time.Minute
	// timeWait is how long the ports of a connection that ended stay taken: no packet
	// is on its way for longer, and WireGuard drops copies.
	timeWait = 4 * time.Second
	// congestionControl is NewReno (RFC 6582), since the stack's CUBIC recovers worse
	// from its own losses: over 20 ms and 300 Mbit/s one stream carries 260 Mbit/s with
	// the one and 90 with the other, 32 streams at 1 % loss 240 and 150. On a LAN and
	// over 200 ms they are alike.
	congestionControl = tcpip.CongestionControlOption("reno")
)

func tuneTCP(s *stack.Stack) error {
	sack := tcpip.TCPSACKEnabled(true)
	// RACK, the stack's default, does not go with segments of many packets: it takes
	// what it calls lost for still on the way, and so repairs one packet a timeout.
	recovery := tcpip.TCPRecovery(0)
	cc := congestionControl
	rx := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: defaultBuffer, Max: maxBuffer}
	tx := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: defaultBuffer, Max: maxBuffer}
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	wait := tcpip.TCPTimeWaitTimeoutOption(timeWait)
	rto, retries := tcpip.TCPMaxRTOOption(maxRTO), tcpip.TCPMaxRetriesOption(absence/maxRTO)
	for _, opt := range []tcpip.SettableTransportProtocolOption{&sack, &recovery, &cc, &rx, &tx, &moderate, &rto, &retries, &wait} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, opt); err != nil {
			return fmt.Errorf("tunnel: tune TCP: %v", err)
		}
	}
	return nil
}

// The LinkEndpoint, as the stack sees it.

func (n *nic) MTU() uint32                          { return uint32(n.mtu) }
func (n *nic) SetMTU(uint32)                        {}
func (n *nic) MaxHeaderLength() uint16              { return 0 }
func (n *nic) LinkAddress() tcpip.LinkAddress       { return "" }
func (n *nic) SetLinkAddress(tcpip.LinkAddress)     {}
func (n *nic) Wait()                                {}
func (n *nic) AddHeader(*stack.PacketBuffer)        {}
func (n *nic) SetOnCloseAction(func())              {}
func (n *nic) SupportedGSO() stack.SupportedGSO     { return stack.HostGSOSupported }
func (n *nic) ParseHeader(*stack.PacketBuffer) bool { return true }

// GSOMaxSize counts the headers of all layers at their longest, and the stack
// stays one byte below.
func (n *nic) GSOMaxSize() uint32 {
	const timestamps = 12 // bytes of TCP options, in every segment
	mss := n.mtu - header.IPv6MinimumSize - header.TCPMinimumSize - timestamps
	return uint32(min(gsoMax, gsoSegments*mss+header.TCPTotalHeaderMaximumSize+1))
}

func (n *nic) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }

func (n *nic) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload | stack.CapabilityTXChecksumOffload
}

func (n *nic) Attach(d stack.NetworkDispatcher) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dispatcher = d
}

func (n *nic) IsAttached() bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.dispatcher != nil
}

// Close ends both sides; packets on their way are dropped.
func (n *nic) Close() {
	n.once.Do(func() {
		close(n.closed)
		close(n.events)
	})
}

// WritePackets queues packets for WireGuard. It waits while the queue is full:
// TCP then fills larger segments.
func (n *nic) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	sent := 0
	for _, p := range list.AsSlice() {
		p.IncRef()
		select {
		case n.queue <- p:
			sent++
		case <-n.closed:
			p.DecRef()
			return sent, &tcpip.ErrClosedForSend{}
		}
	}
	return sent, nil
}

// drain drops what nobody will read.
func (n *nic) drain() {
	if n.pending != nil {
		n.pending.DecRef()
		n.pending = nil
	}
	for {
		select {
		case p := <-n.queue:
			p.DecRef()
		default:
			return
		}
	}
}

// device is the nic as WireGuard sees it.
type device struct{ *nic }

func (d device) File() *os.File           { return nil }
func (d device) MTU() (int, error)        { return d.mtu, nil }
func (d device) Name() (string, error)    { return "kith", nil }
func (d device) Events() <-chan tun.Event { return d.events }
func (d device) BatchSize() int           { return conn.IdealBatchSize / 2 }

func (d device) Close() error {
	d.nic.Close()
	return nil
}

// Read fills bufs from offset on with packets of the stack, split to the MTU. It
// returns os.ErrClosed after Close.
func (d device) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	p := d.pending
	d.pending = nil
	if p == nil {
		select {
		case p = <-d.queue:
		case <-d.closed:
			return 0, os.ErrClosed
		}
	}
	count := 0
	for {
		k := segments(p)
		if count+k > len(bufs) {
			if count == 0 {
				p.DecRef()
				return 0, tun.ErrTooManySegments
			}
			d.pending = p
			return count, nil
		}
		split(p, bufs[count:count+k], sizes[count:count+k], offset)
		p.DecRef()
		if p := bufs[count][offset : offset+sizes[count]]; k == 1 && isWord(p) {
			d.words.note(time.Now(), p)
		}
		count += k
		if count == len(bufs) {
			return count, nil
		}
		select {
		case p = <-d.queue:
		default:
			return count, nil
		}
	}
}

// merging is what one Write needs.
type merging struct {
	merger
	packets [][]byte
}

// Write gives decrypted packets to the stack, those of one flow merged.
func (d device) Write(bufs [][]byte, offset int) (int, error) {
	d.mu.RLock()
	dispatcher := d.dispatcher
	d.mu.RUnlock()
	if dispatcher == nil {
		return 0, os.ErrClosed
	}
	m := d.mergers.Get().(*merging)
	m.packets = m.packets[:0]
	for _, b := range bufs {
		m.packets = append(m.packets, b[offset:])
	}
	// WireGuard hands over packets of one peer at a time.
	if p := m.packets[0]; len(p) >= ipHeader && p[0]>>4 == header.IPv6Version {
		if from := netip.AddrFrom16([16]byte(p[ipSource:])); d.hearing.heard(time.Now(), from) {
			d.back(from)
		}
	}
	for _, r := range m.plan(m.packets) {
		view := buffer.NewView(r.size)
		view.Grow(r.size)
		m.join(view.AsSlice()[:0], m.packets, r)
		p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: payloadOf(view, r)})
		p.RXChecksumValidated = true // by WireGuard
		dispatcher.DeliverNetworkPacket(header.IPv6ProtocolNumber, p)
		p.DecRef()
	}
	clear(m.packets)
	d.mergers.Put(m)
	return len(bufs), nil
}

// payloadOf returns the packet in view, headers and data of a merged one in views
// of their own: the stack keeps several references to a packet, and whenever it
// looks at a header then it copies the whole view that the header is in.
func payloadOf(view *buffer.View, r run) buffer.Buffer {
	if r.first == r.last {
		return buffer.MakeWithView(view)
	}
	b := buffer.MakeWithData(view.AsSlice()[:r.headers])
	view.TrimFront(r.headers)
	if err := b.Append(view); err != nil {
		panic(err)
	}
	return b
}
