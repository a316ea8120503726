package link_test

import (
	"fmt"
	"net/netip"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/link"
	"github.com/kithproject/kith/signaling"
)

// A Socket is given to the WireGuard device as its conn.Bind, a Link as the
// endpoint of a peer. What the peer says of itself goes to SetRemote.
func ExampleSocket_NewLink() {
	socket := link.NewSocket(link.SocketConfig{Port: 41641})
	peer, err := socket.NewLink(link.Config{
		Peer: identity.DeviceID{1},
		Keys: func(int64) (send, receive [32]byte, err error) {
			return [32]byte{1}, [32]byte{2}, nil // from the pair's chain
		},
		Events: func(ev link.Event) { fmt.Println(ev.Kind, ev.Path) },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer peer.Close()
	peer.SetRemote([]signaling.Candidate{{Kind: signaling.Host, Addr: netip.MustParseAddrPort("192.0.2.7:41641")}})
	_, ok := peer.Path()
	fmt.Println("path:", ok) // the socket is not even open
	// Output: path: false
}
