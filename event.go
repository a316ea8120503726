package kith

import (
	"sync"
	"time"
)

// An EventKind says what happened.
type EventKind string

// The kinds of events.
const (
	EventConnected    EventKind = "connected"    // a WireGuard handshake completed
	EventDisconnected EventKind = "disconnected" // no path is left, or the device said goodbye
	EventPath         EventKind = "path"         // the connection moved to another path
	EventPaired       EventKind = "paired"       // a pairing became active on this side
	EventUnpaired     EventKind = "unpaired"     // the pair ended, here or there
	EventRefused      EventKind = "refused"      // a connection to a port that is not allowed
	EventOffer        EventKind = "offer"        // files are offered, and wait for a person
	EventReceived     EventKind = "received"     // files have come, or a part of them
	EventRights       EventKind = "rights"       // what the device may do here has changed
	EventIntroduced   EventKind = "introduced"   // the device introduces another one, or that is over
	EventNewPair      EventKind = "new-pair"     // the device, an own one, has a new pair, or such a pair is over
	EventUndone       EventKind = "undone"       // the pair was ended since an own device asked for it
	EventListening    EventKind = "listening"    // the device begins or ceases to listen on a port of this machine
	EventRoom         EventKind = "room"         // who is in a room, or what it is called, has changed
	EventRoomAsked    EventKind = "room-asked"   // a device asks to be let into a room; Detail is its name
	EventRoomGuess    EventKind = "room-guess"   // somebody tried a wrong password
	EventRoomLeft     EventKind = "room-left"    // this device is not in a room any more; Detail says why
)

// An Event is one change that a person may want to see.
type Event struct {
	Time   time.Time `json:"time"`
	Kind   EventKind `json:"event"`
	Device Device    `json:"device,omitzero"`
	Room   *Room     `json:"room,omitempty"` // with the kinds that begin with room
	// Subject names what waits for the user's answer: with EventRoomAsked the ID of the
	// device that asks, with EventNewPair that of the pair (NewPair), with EventOffer and
	// EventIntroduced a number. "" is nothing.
	Subject string `json:"subject,omitempty"`
	Detail  string `json:"detail,omitempty"` // one line for a person
}

// eventQueue is how many events a slow subscriber may lag behind; later ones
// are lost to it, as a subscriber must never hold up the node.
const eventQueue = 64

// events hands each event to every subscriber.
type events struct {
	mu     sync.Mutex
	subs   map[chan Event]struct{}
	closed bool
}

// subscribe returns a channel of events from now on, and what ends it.
func (e *events) subscribe() (<-chan Event, func()) {
	ch := make(chan Event, eventQueue)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		close(ch)
		return ch, func() {}
	}
	if e.subs == nil {
		e.subs = make(map[chan Event]struct{})
	}
	e.subs[ch] = struct{}{}
	return ch, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if _, ok := e.subs[ch]; ok {
			delete(e.subs, ch)
			close(ch)
		}
	}
}

func (e *events) publish(ev Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for ch := range e.subs {
		select {
		case ch <- ev:
		default:
		}
	}
}

func (e *events) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	for ch := range e.subs {
		delete(e.subs, ch)
		close(ch)
	}
}

// tell publishes an event about a device.
func (n *Node) tell(kind EventKind, d Device, detail string) {
	n.events.publish(Event{Time: time.Now(), Kind: kind, Device: d, Detail: detail})
}

// Publish gives an event of an app to all that follow Events.
func (n *Node) Publish(ev Event) { n.events.publish(ev) }
