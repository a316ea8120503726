/* Two hosts of one room change its roster at once; every roster ever signed may reach everybody, at any time, in any order, or never.
   A roster is (epoch, version, signer, who is gone). X is kicked by host 0 (the founder), Y by host 1 (if KICKS == 2).
   Each host also admits others, which raises the version only. Node 2 is a member, which signs nothing.
   VARIANT 0 = kith: the higher epoch wins, then the version, then the founder; a host merges what it learns.
   A member takes no roster in which somebody is back whom it knows to be gone, and waits for the merged one.
   VARIANT 1 = the higher version wins, whatever the epoch. VARIANT 2 = no merge: the loser takes over the winner.
   VARIANT 3 = a member takes whatever beats what it has. */
#ifndef VARIANT
#define VARIANT 0
#endif
#ifndef KICKS
#define KICKS 1
#endif
#ifndef ADMITS
#define ADMITS 2
#endif
#ifndef MAX
#define MAX 9
#endif
byte epoch[MAX], version[MAX], signer[MAX]; bool goneX[MAX], goneY[MAX];
byte n = 1;                       /* roster 0 is the one all begin with */
byte at[3];                       /* the roster that each of the three has */
bool knowsX[2], knowsY[2];        /* that the host has seen the kick */
byte admits[2] = ADMITS;
bool kickedX, kickedY;
bool bad;                         /* R3 is broken */
bool lost;                        /* the member had a roster without X (or Y) and took one with it */

#if VARIANT == 1
#define beats(i,j) (version[i] > version[j] || (version[i] == version[j] && signer[i] < signer[j]))
#else
#define beats(i,j) (epoch[i] > epoch[j] || (epoch[i] == epoch[j] && (version[i] > version[j] || (version[i] == version[j] && signer[i] < signer[j]))))
#endif

inline sign(h, e, v, gx, gy) {
  epoch[n] = e; version[n] = v; signer[n] = h; goneX[n] = gx; goneY[n] = gy;
  bad = bad || (knowsX[h] && !(gx)) || (knowsY[h] && !(gy));
  at[h] = n; n++
}
proctype Change(byte h) { do
  :: atomic { admits[h] > 0 && n < MAX -> admits[h]--; sign(h, epoch[at[h]], version[at[h]]+1, goneX[at[h]], goneY[at[h]]) }
  :: atomic { h == 0 && !kickedX && n < MAX -> kickedX = true; knowsX[0] = true; sign(0, epoch[at[0]]+1, version[at[0]]+1, true, goneY[at[0]]) }
#if KICKS == 2
  :: atomic { h == 1 && !kickedY && n < MAX -> kickedY = true; knowsY[1] = true; sign(1, epoch[at[1]]+1, version[at[1]]+1, goneX[at[1]], true) }
#endif
  :: break
  od }

/* roster i reaches host h: the winner is taken over, with what the loser has done besides */
proctype ToHost(byte h; byte i) { byte w; byte l; do
  :: atomic { i < n && at[h] != i && (beats(i, at[h]) || (goneX[i] && !goneX[at[h]]) || (goneY[i] && !goneY[at[h]])) && n < MAX ->
       if :: beats(i, at[h]) -> w = i; l = at[h] :: else -> w = at[h]; l = i fi;
       knowsX[h] = knowsX[h] || goneX[i]; knowsY[h] = knowsY[h] || goneY[i];
#if VARIANT == 2
       at[h] = w
#else
       if :: (goneX[l] && !goneX[w]) || (goneY[l] && !goneY[w]) ->
               if :: version[l] > version[w] -> sign(h, epoch[w]+1, version[l]+1, goneX[l] || goneX[w], goneY[l] || goneY[w])
                  :: else -> sign(h, epoch[w]+1, version[w]+1, goneX[l] || goneX[w], goneY[l] || goneY[w]) fi
          :: else -> at[h] = w fi
#endif
     ; w = 0; l = 0 }
  od }
#if VARIANT == 3 || VARIANT == 1
#define back(i) false
#else
#define back(i) ((goneX[at[2]] && !goneX[i]) || (goneY[at[2]] && !goneY[i]))
#endif
proctype ToMember(byte i) { do
  :: atomic { i < n && beats(i, at[2]) && !back(i) -> lost = lost || (goneX[at[2]] && !goneX[i]) || (goneY[at[2]] && !goneY[i]); at[2] = i }
  od }
init { byte k; atomic {
  run Change(0); run Change(1);
  k = 0; do :: k < MAX -> run ToHost(0, k); run ToHost(1, k); run ToMember(k); k++ :: else -> break od } }

/* R3: no host that knows of a kick signs a roster with the one that was kicked */
ltl kept { [] !bad }
/* a member that has seen a kick takes no roster again with the one that was kicked */
ltl gone { [] !lost }
/* whatever the two hosts did at once, in the end all have one roster, and whoever was kicked is in none (if MAX sufficed) */
ltl settles { <> [] (n == MAX || (at[0] == at[1] && at[1] == at[2] && (kickedX -> goneX[at[2]]) && (kickedY -> goneY[at[2]]))) }
