// Package nettest builds networks for tests from Linux network namespaces: hosts,
// switches, routers, firewalls and recordings, on one machine and without
// touching its own network.
//
// It needs root and the commands ip, bridge (both iproute2) and nft. Where they are missing a test is
// skipped with the reason, unless KITH_REQUIRE_NETTEST=1 asks for a failure.
//
//	lab := nettest.New(t)
//	lan := lab.Bridge("lan")
//	a := lab.Host("a").Attach(lan, "10.0.0.1/24")
//	b := lab.Host("b").Attach(lan, "10.0.0.2/24")
//	a.Command(ctx, "ping", "-c1", "10.0.0.2")
//
// An [Internet] has servers, and homes behind routers of each kind of [NAT]:
//
//	in := lab.Internet()
//	server := in.Server("server")       // server.Addrs(): two IPv4 addresses, one IPv6
//	home := in.Site("home", nettest.NATHard)
//	laptop := home.Host("laptop")
//	home.Reboot(true)                   // a new public address, and no mapping
//	in.Site("cafe", nettest.NATUDPBlocked).Move(laptop)
//	in.Delay(20*time.Millisecond)       // each way, from everywhere to everywhere
//
// And it breaks them in one way each:
//
//	home.LAN.DropMulticast()
//	home.LetOut("tcp dport 443")        // of what leaves the LAN
//	home.Hole(1400)                     // for larger packets
//	home.Portal(look)                   // a page to log in at
//	laptop.Unplug(true)                 // the cable
//	laptop.VPN("tun0", "10.8.0.2/24")   // whose server is silent
package nettest
