// Package punch plans and carries out hole punching where plain punching fails:
// against NATs whose mapping depends on the destination ("hard", once called
// symmetric). Such a NAT gives a socket another public port towards each peer,
// so the port a STUN server saw is of no use, and the port that counts has to be
// guessed.
//
// # How it is done
//
// One side hard: the hard side (Opener) opens many sockets and sends from each
// one packet to the peer's known address. Its NAT now has as many public ports
// that let the peer in. The other side (Prober) sends from its one known socket
// to port after port of the hard side's public address until one is hit: the
// birthday paradox. The packet that comes in tells the opener the winning socket
// ([Pool.Keep]); its answer tells the prober the port.
//
// Both sides hard: each packet to a new port makes a new mapping on both sides,
// so both ports have to be guessed at once. That works if both can be narrowed
// down: ports that go one after another, or a small port block.
//
// # The parts
//
//	Sample    → Classify → Behaviour      what STUN showed; travels to the peer
//	Behaviour → Decide   → Plan           who does what, and how likely it works
//	Plan      → Attempt  → Shot, Shot...  what to send now; Ports, Pacer
//	Gate, Backoff                         one attempt at a time, ever more rarely
//	Run, Pool                             the only parts with a clock and sockets
//
// Both sides need each other's Behaviour, and to begin at the same moment; to
// tell them is the caller's part, and so is what a packet means: nothing here
// looks into one.
//
// # Chances
//
// How likely s open ports of S possible ones are hit by n probes without
// repeats ([Chance]), with S = 64512 (1024 to 65535), and how long n probes take
// at 492 per second:
//
//	probes        64     174     256     512     978    1024    2048
//	seconds     0.13    0.35    0.52    1.04    1.99    2.08    4.16
//	 64 ports    6 %    16 %    22 %    40 %    62 %    64 %    87 %
//	128 ports   12 %    29 %    40 %    64 %    86 %    87 %    98 %
//	256 ports   22 %    50 %    64 %    87 %    98 %    98 %  99.97 %
//
// So with 256 sockets on the hard side: half of all attempts succeed within
// 0.36 s, 98 % within 2 s. This counts from when all 256 are open; opening
// them at the same pace takes 0.52 s, and when both begin at once half succeed
// within 0.65 s. One round trip comes on top, and each lost packet is one probe
// less.
//
// In a port block (S = 512), 64 sockets and 32 probes suffice for 99 %.
//
// Both sides hard, M flows (pairs of own and peer's port) each, S and T possible
// ports: the expected hits are M*M/(S*T), the chance 1-exp(-hits). A sequence
// counts as about 16 ports if nobody else uses the NAT, since each new flow also
// moves it on:
//
//	both sequential, M = 256                          98 %
//	one sequential, one block of 512, M = 256         39 %
//	two blocks of 512, M = 256                        22 %
//	two blocks of 1024, M = 256                        6 %
//	random against random, M = 2048                  0.1 %   (not tried)
//
// Sequences are aimed at with some lead: up to 20 ports that others take on each
// side in between do no harm. Sample again right before such an attempt.
//
// More flows would raise the odds, but each is a mapping, and a subscriber with
// 512 ports needs them for other things: an attempt makes at most 256 mappings,
// and takes at most half of a block.
//
// # Manners
//
// To a router many packets to many ports look like an attack, and small ones
// have small tables. So a node sends at most [Rate] packets per second, an
// attempt ends after [AttemptTime] or [AttemptProbes] packets, there is one at a
// time on a node ([Gate]), and after a failure the next one waits for ten
// seconds, then longer, up to ten minutes ([Backoff]). Probes only go to the
// address in the peer's sealed Behaviour; a peer that lies there can have us
// send some 2048 small packets to a stranger, at the pace of the back-off. The
// first packet of each socket may get a low TTL (hop limit): it opens our NAT
// and dies before the peer's, which then has no reason to answer, to block us,
// or to take the port for something else.
package punch
