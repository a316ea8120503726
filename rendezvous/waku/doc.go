package waku

import (
	_ "github.com/libp2p/go-libp2p/p2p/host/blank"
	_ "github.com/libp2p/go-libp2p/p2p/host/eventbus"
	_ "github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	_ "github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	_ "github.com/libp2p/go-libp2p/p2p/net/swarm"
	_ "github.com/libp2p/go-libp2p/p2p/net/upgrader"
	_ "github.com/libp2p/go-libp2p/p2p/protocol/identify"
	_ "github.com/libp2p/go-libp2p/p2p/security/noise"
	_ "github.com/libp2p/go-libp2p/p2p/transport/tcp"
	_ "github.com/libp2p/go-libp2p/p2p/transport/websocket"
	_ "google.golang.org/protobuf/encoding/protowire"
)
