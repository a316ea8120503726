// Package tunnel is a user-mode WireGuard interface with a network stack behind
// it: it dials and listens like package net, needs no root and no TUN device.
//
//	net.Conn ── gVisor TCP ── nic (this package) ── wireguard-go device ── conn.Bind
//
// The nic hands whole batches between the stack and WireGuard: the stack makes
// TCP segments of up to 64 KiB, which are split to packets only in the buffers
// that WireGuard encrypts, and received packets are merged again before the stack
// sees them. Per-packet work is what makes other user-mode tunnels slow.
//
// Addresses: each device has one, identity.DeviceID.Addr, and may send from no
// other (WireGuard's allowed IPs). TCP checksums are neither computed nor checked:
// every packet here has been authenticated by WireGuard, and both ends are this
// package.
package tunnel
