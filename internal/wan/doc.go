// Package wan is a long way between two network namespaces of Linux: with delay, loss, a
// rate and a queue that drops what does not fit, since not every kernel has netem.
// Measurements and tests put it where a veth pair would be.
//
// Each end is a TUN interface in its namespace. A packet that goes in on one side comes
// out on the other when its time has come, in order. Packets are those of the wire:
// the kernel segments what it was given in one piece before it hands it over.
package wan
