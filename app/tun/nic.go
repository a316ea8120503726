package tun

import (
	"fmt"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

const (
	nicID = 1
	// defaultBuffer and maxBuffer are sizes of TCP buffers, in bytes: the other end is
	// this machine's kernel.
	defaultBuffer = 1 << 20
	maxBuffer     = 4 << 20
)

// openStack makes the TCP that ends the kernel's connections: for every address, as
// the devices'.
func (t *Tun) openStack() error {
	mtu := t.cfg.Device.MTU()
	if mtu < header.IPv6MinimumMTU || mtu > maxPacket {
		return fmt.Errorf("tun: an MTU of %d bytes is not between %d and %d", mtu, header.IPv6MinimumMTU, maxPacket)
	}
	t.nic = &nic{mtu: uint32(mtu), t: t}
	t.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})
	if err := t.tune(); err != nil {
		t.stack.Close()
		return err
	}
	t.forwarder = tcp.NewForwarder(t.stack, defaultBuffer, t.cfg.MaxConns, t.requested)
	t.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, t.unclaimed)
	return nil
}

func (t *Tun) tune() error {
	sack, cc := tcpip.TCPSACKEnabled(true), tcpip.CongestionControlOption("cubic")
	rx := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: defaultBuffer, Max: maxBuffer}
	tx := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: defaultBuffer, Max: maxBuffer}
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	// No packet is late on the way to the kernel, and it takes a port again at once.
	wait := tcpip.TCPTimeWaitTimeoutOption(time.Millisecond)
	for _, opt := range []tcpip.SettableTransportProtocolOption{&sack, &cc, &rx, &tx, &moderate, &wait} {
		if err := t.stack.SetTransportProtocolOption(tcp.ProtocolNumber, opt); err != nil {
			return fmt.Errorf("tun: tune TCP: %v", err)
		}
	}
	if err := t.stack.CreateNIC(nicID, t.nic); err != nil {
		return fmt.Errorf("tun: create interface: %v", err)
	}
	if err := t.stack.SetPromiscuousMode(nicID, true); err != nil {
		return fmt.Errorf("tun: take all addresses: %v", err)
	}
	if err := t.stack.SetSpoofing(nicID, true); err != nil {
		return fmt.Errorf("tun: answer for all addresses: %v", err)
	}
	t.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv6EmptySubnet, NIC: nicID}})
	return nil
}

// A nic is the wire between the stack and the interface.
type nic struct {
	mtu uint32
	t   *Tun

	mu         sync.RWMutex // guards dispatcher
	dispatcher stack.NetworkDispatcher
}

var _ stack.LinkEndpoint = (*nic)(nil)

func (n *nic) MTU() uint32                             { return n.mtu }
func (n *nic) SetMTU(uint32)                           {}
func (n *nic) MaxHeaderLength() uint16                 { return 0 }
func (n *nic) LinkAddress() tcpip.LinkAddress          { return "" }
func (n *nic) SetLinkAddress(tcpip.LinkAddress)        {}
func (n *nic) Wait()                                   {}
func (n *nic) Close()                                  {}
func (n *nic) AddHeader(*stack.PacketBuffer)           {}
func (n *nic) SetOnCloseAction(func())                 {}
func (n *nic) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (n *nic) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }

// Capabilities: what goes to and comes from the kernel has not been anywhere.
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

// WritePackets writes packets to the interface, which never waits.
func (n *nic) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	packets := list.AsSlice()
	for _, p := range packets {
		if p.Size() > maxPacket {
			continue // it cannot be: the MTU is less
		}
		partial := p.TransportProtocolNumber == header.TCPProtocolNumber
		n.t.write(partial, func(b []byte) int {
			size := 0
			views, skip := p.AsViewList()
			for v := views.Front(); v != nil; v = v.Next() {
				s := v.AsSlice()
				cut := min(skip, len(s))
				skip -= cut
				size += copy(b[size:], s[cut:])
			}
			if partial {
				ip := header.IPv6(b[:size])
				header.TCP(ip[ipHeader:]).SetChecksum(header.PseudoHeaderChecksum(
					header.TCPProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), uint16(size-ipHeader)))
			}
			return size
		})
	}
	return len(packets), nil
}

// deliver gives the stack a copy of a packet that has headers bytes of headers. Those
// are in a view of their own: the stack keeps several references to a packet, and
// whenever it looks at a header then it copies the whole view that the header is in.
func (n *nic) deliver(raw []byte, headers int) {
	n.mu.RLock()
	dispatcher := n.dispatcher
	n.mu.RUnlock()
	if dispatcher == nil {
		return
	}
	headers = min(headers, len(raw))
	b := buffer.MakeWithData(raw[:headers])
	if len(raw) > headers {
		view := buffer.NewViewWithData(raw[headers:])
		if err := b.Append(view); err != nil {
			panic(err)
		}
	}
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: b})
	p.RXChecksumValidated = true
	defer p.DecRef()
	dispatcher.DeliverNetworkPacket(header.IPv6ProtocolNumber, p)
}
