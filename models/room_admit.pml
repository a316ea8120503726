/* Admission to a room over a lossy, copying, reordering, replaying medium, with kill -9 of host and joiner at every step.
   Network = sets of messages ever sent (never shrink): j3[s] and j4[s] of handshake s may be delivered 0..n times, in any order.
   A handshake is named by the order in which it began: the host has answered its j1 before the joiner can send its j3.
   Durable: member, chain (host), in, mine (joiner). RAM: open[], latest, cur.
   VARIANT 0 = kith; 1 = the host tells before it stores; 2 = a request of an earlier handshake is taken after a later one. */
#ifndef VARIANT
#define VARIANT 0
#endif
#define S 3                       /* handshakes: 1..S */
bool j3[4], j4[4];                /* the network */
bool member; byte chain;          /* host's disk: the member, and the handshake whose keys it holds */
bool open[4]; byte latest;        /* host's RAM */
bool in; byte mine;               /* joiner's disk */
byte cur;                         /* joiner's RAM: its handshake; 0 = none */
byte began;
byte crashes = 2;
bool told[4];                     /* host's RAM: stored, to be told */

/* the joiner begins a handshake: at first, after a crash, or after long silence */
active proctype Begin() { do
  :: atomic { !in && began < S -> began++; cur = began; open[began] = true }
  od }
active proctype Ask() { do
  :: atomic { !in && cur != 0 && !j3[cur] -> j3[cur] = true }
  od }
active proctype Learn() { do
  :: atomic { !in && cur != 0 && j4[cur] -> in = true; mine = cur }
  od }
proctype Host(byte s) { do
#if VARIANT == 1
  :: atomic { open[s] && j3[s] && !told[s] && s >= latest -> j4[s] = true; told[s] = true }
  :: atomic { told[s] && (!member || chain < s) -> member = true; chain = s; latest = s }
#else
#if VARIANT == 2
  :: atomic { open[s] && j3[s] && !told[s] -> member = true; chain = s; latest = s; told[s] = true }
#else
  :: atomic { open[s] && j3[s] && !told[s] && s >= latest -> member = true; chain = s; latest = s; told[s] = true }
#endif
  :: atomic { told[s] && !j4[s] -> j4[s] = true }
#endif
  od }
active proctype Crash() { do
  :: atomic { crashes > 0 -> crashes--;
       open[1] = false; open[2] = false; open[3] = false;
       told[1] = false; told[2] = false; told[3] = false; latest = 0 }        /* the host's RAM is gone */
  :: atomic { crashes > 0 && !in -> crashes--; cur = 0 }                      /* the joiner's */
  :: break
  od }
init { atomic { run Host(1); run Host(2); run Host(3) } }

/* R1: who believes to be in is in, durably; and both hold the keys of one handshake */
ltl safe { [] (in -> member) }
ltl keys { [] (in -> chain == mine) }
/* with a handshake that no crash interrupts, the joiner gets in: the last one, if the host's RAM has it still */
ltl live { <> (in || began == S && (cur == 0 || !open[cur])) }
