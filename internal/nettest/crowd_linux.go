package nettest

// Crowd makes a public host with n IPv4 addresses, at most 250, each in a /24 of its
// own, as if they were many hosts; see [Host.Addrs].
func (i *Internet) Crowd(name string, n int) *Host {
	i.lab.t.Helper()
	if n > 250 {
		i.lab.t.Fatalf("a crowd of %d is too large", n)
	}
	h := i.lab.Host(name)
	_, k, far, port := i.uplink(h)
	h.at = &place{ifi: "eth0", port: port}
	for c := range n {
		a := v4(k, c, 2)
		i.publicV4(h, far, a)
		h.at.addrs = append(h.at.addrs, a)
	}
	return h
}
