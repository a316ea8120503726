package chatui

import (
	"maps"
	"math"
	"slices"
	"strings"
)

// Bounds of what is held of a conversation; the rest is asked for when it is looked at.
const (
	pageLines = 200  // lines that are asked for at once, and more the further it goes back
	mostPage  = 1000 // lines that are asked for at once at most
	mostLines = 4000 // lines held while the last are looked at; above, half goes
	mostInput = 100  // own inputs remembered
)

// An item is one entry of the message pane.
type item struct {
	key
	m    Message
	text string // clean
	name string // clean, of the author
}

// A place is a row of the pane: of an item, the row that begins at a byte of its text;
// below 0 are rows before the text.
type place struct {
	key
	off int
}

// A conversation is one Conv with what is held and written of it.
type conversation struct {
	conv    Conv
	name    string            // clean
	names   map[string]string // of members, clean, by id
	widest  int               // cells of the widest name
	items   []item            // in order
	first   bool              // the last lines were asked for
	loaded  bool              // and are here
	loading bool              // lines are on their way
	whole   bool              // there is nothing before items
	follow  bool              // the pane shows the end
	top     place             // else: its first row
	fresh   key               // where the lines begin that were new when it was opened
	marked  bool              // fresh is set
	seen    key               // Backend.Read was called for it
	ed      editor
	past    []string // own inputs, oldest first
	pastAt  int      // which of them is shown; len(past) is none
	pastNow string   // what was being written before
	outbox  []string // what is being sent, in order
	sending bool     // the first of outbox is
	hidden  bool     // the first of outbox has come as an event
	failed  string   // why the first of outbox was not sent
	locals  int      // lines made here
	offers  []string // files of others, as they came: their numbers
}

func newConversation(c cleaner, v Conv) *conversation {
	k := &conversation{follow: true}
	k.update(c, v)
	return k
}

// update takes what the backend says about a conversation.
func (k *conversation) update(c cleaner, v Conv) {
	k.conv, k.name = v, c.name(v.Name)
	k.conv.Members = slices.Clone(v.Members)
	before := k.names
	k.names, k.widest = make(map[string]string), 2
	taken := map[string]int{"me": 2}
	for _, m := range v.Members {
		taken[strings.ToLower(c.name(m.Name))]++
	}
	for _, m := range v.Members {
		k.names[m.ID] = c.name(m.Name)
		if taken[strings.ToLower(k.names[m.ID])] > 1 { // looks like another, or like this device
			k.names[m.ID] += "~" + short(c, m.ID)
		}
	}
	for _, n := range k.names {
		k.widest = max(k.widest, c.width(n))
	}
	if !maps.Equal(before, k.names) {
		k.reclean(c)
	}
}

// reclean is for when names have changed, or how text is to be cleaned.
func (k *conversation) reclean(c cleaner) {
	for i := range k.items {
		k.clean(c, &k.items[i])
	}
}

func (k *conversation) clean(c cleaner, it *item) {
	it.text = c.text(it.m.Text)
	if f := it.m.File; it.m.Kind == KindFile && f != nil {
		it.text = "file " + c.file(f.Name)
		if f.Size >= 0 {
			it.text += " (" + bytesText(f.Size) + ")"
		}
		if !it.m.Mine && !slices.Contains(k.offers, f.Offer) && len(k.offers) < mostLines {
			k.offers = append(k.offers, f.Offer)
		}
	}
	if it.local > 0 {
		return
	}
	switch n, ok := k.names[it.m.Author]; {
	case it.m.Mine:
		it.name = "me"
	case ok:
		it.name = n
	case it.m.Name != "": // a member no more: never taken for one
		it.name = c.name(it.m.Name) + "~" + short(c, it.m.Author)
	default:
		it.name = "~" + short(c, it.m.Author)
	}
	k.widest = max(k.widest, c.width(it.name))
}

// short is the beginning of an id.
func short(c cleaner, id string) string { return c.name(id[:min(len(id), 4)]) }

// find is where an item with a key is, or would be.
func (k *conversation) find(at key) (int, bool) {
	if n := len(k.items); n == 0 || k.items[n-1].compare(at) < 0 {
		return n, false
	}
	return slices.BinarySearchFunc(k.items, at, func(it item, at key) int { return it.compare(at) })
}

// put takes a line and reports whether it is one that was not there.
func (k *conversation) put(c cleaner, m Message) bool {
	it := item{key: m.key(), m: m}
	k.clean(c, &it)
	i, have := k.find(it.key)
	switch {
	case have:
		it.m.Late = it.m.Late || k.items[i].m.Late
		k.items[i] = it
	case i == 0 && len(k.items) > 0 && !k.whole && k.loaded:
		return true // it comes with the history that it is part of
	default:
		k.items = slices.Insert(k.items, i, it)
	}
	return !have
}

// page takes a page of history; whole is that there is nothing before it.
func (k *conversation) page(c cleaner, lines []Message, whole bool) {
	k.whole = whole || k.whole
	old := k.items
	k.items = make([]item, 0, len(lines)+len(old))
	for _, m := range lines {
		it := item{key: m.key(), m: m}
		k.clean(c, &it)
		k.items = append(k.items, it)
	}
	k.items = append(k.items, old...)
	if !k.loaded { // what was said here before anything was loaded belongs to the end
		last := key{}
		for _, it := range k.items {
			if it.lamport != math.MaxUint64 && it.lamport >= last.lamport {
				last = it.key
			}
		}
		for i := range k.items {
			if k.items[i].lamport == math.MaxUint64 {
				k.items[i].lamport = last.lamport
			}
		}
	}
	order := func(a, b item) int { return a.compare(b.key) }
	joint := min(len(lines)+1, len(k.items)) // old is in order: only what is new is looked at
	if !k.loaded || !slices.IsSortedFunc(k.items[:joint], order) || joint > 1 && k.items[joint-1].key == k.items[joint-2].key {
		slices.SortStableFunc(k.items, order)
		k.items = slices.CompactFunc(k.items, func(a, b item) bool { return a.key == b.key })
	}
	k.loaded = true
}

// say adds a line that this device says itself.
func (k *conversation) say(c cleaner, n Notice) {
	k.locals++
	at := key{lamport: math.MaxUint64, local: k.locals}
	if k.loaded {
		at.lamport = 0
		if l := len(k.items); l > 0 {
			at.lamport = k.items[l-1].lamport
		}
	}
	it := item{key: at, m: Message{Text: n.Text, Time: n.Time}, text: c.text(n.Text)}
	i, _ := k.find(at)
	k.items = slices.Insert(k.items, i, it)
}

// trim forgets old lines, which can be asked for again.
func (k *conversation) trim() {
	if k.follow && len(k.items) > mostLines {
		k.items = slices.Clone(k.items[len(k.items)-mostLines/2:])
		k.whole = false
	}
}

// oldest is the first line that the backend knows.
func (k *conversation) oldest() *Message {
	for i := range k.items {
		if k.items[i].local == 0 {
			return &k.items[i].m
		}
	}
	return nil
}

// newest is the last line that another device wrote.
func (k *conversation) newest() *item {
	for i := len(k.items) - 1; i >= 0; i-- {
		if it := &k.items[i]; it.local == 0 && !it.m.Mine {
			return it
		}
	}
	return nil
}

// markFresh remembers where the lines begin that were not seen.
func (k *conversation) markFresh() {
	k.marked = false
	for i, left := len(k.items)-1, k.conv.Unread; i >= 0 && left > 0; i-- {
		if it := k.items[i]; it.local == 0 && !it.m.Mine {
			left--
			k.fresh, k.marked = it.key, true
		}
	}
}

// online says how many others are connected.
func (k *conversation) online() int {
	n := 0
	for _, m := range k.conv.Members {
		if m.Online {
			n++
		}
	}
	return n
}

// presence takes that a device came or went.
func (k *conversation) presence(device string, online bool) {
	for i := range k.conv.Members {
		if k.conv.Members[i].ID == device {
			k.conv.Members[i].Online = online
		}
	}
}

// remember keeps an own input for Up.
func (k *conversation) remember(text string) {
	if n := len(k.past); text != "" && (n == 0 || k.past[n-1] != text) {
		k.past = append(k.past, text)
		if len(k.past) > mostInput {
			k.past = k.past[1:]
		}
	}
	k.pastAt, k.pastNow = len(k.past), ""
}

// recall shows an earlier or later own input.
func (k *conversation) recall(step int) {
	to := k.pastAt + step
	if to < 0 || to > len(k.past) {
		return
	}
	if k.pastAt == len(k.past) {
		k.pastNow = k.ed.text
	}
	k.pastAt = to
	if to == len(k.past) {
		k.ed.set(k.pastNow)
		return
	}
	k.ed.set(k.past[to])
}

// takeBack gives what was not sent back to the input.
func (k *conversation) takeBack() {
	lines := k.outbox
	if k.ed.text != "" {
		lines = append(lines, k.ed.text)
	}
	k.ed.set(strings.Join(lines, "\n"))
	k.outbox, k.failed = nil, ""
}
