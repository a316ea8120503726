// Package control is how commands talk to the node that holds the state
// directory: over the daemon's unix socket, or, without a daemon, over a pipe to
// a node that the command itself opened. Both ends are the same program.
//
// Every connection carries one request. Client and server exchange JSON objects,
// one a line, each at most MaxLine bytes: first a Request, then Replies, of which
// the last has Done set or an Error. While a request runs, the client may send
// Inputs. After an accepted "dial" the connection becomes the stream itself.
//
// The socket lies in the state directory (mode 0700) with mode 0600: whoever can
// open it is this user.
package control

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/app/chat"
	"github.com/kithproject/kith/app/files"
	"github.com/kithproject/kith/doctor"
)

const (
	// MaxLine is the longest line of the protocol, in bytes.
	MaxLine = 1 << 20
	// maxSocketPath is how long a unix socket's path may be on every system, in
	// bytes (sun_path of BSD and macOS).
	maxSocketPath = 103
)

// The operations of a Request.
const (
	OpStatus    = "status"
	OpRename    = "rename"
	OpUnpair    = "unpair"
	OpRights    = "rights" // change what a device may do here
	OpPing      = "ping"
	OpOffer     = "offer"
	OpJoin      = "join"
	OpDial      = "dial"
	OpAsk       = "ask"        // may this device reach a port of the other?
	OpChat      = "chat"       // one conversation or all: what was not shown, and what happens; Inputs are lines
	OpConvs     = "convs"      // all conversations
	OpSay       = "say"        // a line
	OpHistory   = "history"    // Count lines before Line, or the last
	OpSearch    = "search"     // the last Count lines with Text
	OpRead      = "read"       // all up to Line has been shown
	OpForget    = "forget"     // a conversation
	OpSend      = "send"       // files to a device, until they are there
	OpOfferFile = "offer-file" // files in a conversation, whether or not the client stays
	OpGet       = "get"        // files of a folder that a device shares, until they are here
	OpList      = "list"       // such a folder's names
	OpInbox     = "inbox"      // offers that wait, and transfers under way
	OpAccept    = "accept"     // an offer
	OpDecline   = "decline"    // an offer, or a transfer that goes on
	OpWatch     = "watch"      // the inbox, until the client goes
	OpForward   = "forward"    // a port of this machine to one of a device, until the client goes or for good
	OpForwards  = "forwards"   // which there are
	OpUnforward = "unforward"
	OpExpose    = "expose"  // a service of this machine at a port of a device, until the client goes or for good
	OpExposed   = "exposed" // which there are, and which ports here other devices have
	OpUnexpose  = "unexpose"
	OpProxy     = "proxy" // SOCKS5 and HTTP at a port of this machine, until the client goes
	OpUseHub    = "use-hub"
	OpNearby    = "nearby"    // who is in pairing mode on the LAN, until the client goes
	OpWaiting   = "announce"  // this device waits to be given a code, until the client goes
	OpRooms     = "rooms"     // which this device is in
	OpRoomMake  = "room-make" // found one
	OpRoomJoin  = "room-join" // one, by its Code
	OpRoom      = "room"      // show or change one
	OpDoctor    = "doctor"    // what is in the way: each result as it is known, then the report
	OpEvents    = "events"
	OpStop      = "stop"
	OpVersion   = "version"
)

// A Request says what the client wants. Fields that an operation does not name
// stay empty.
type Request struct {
	Op       string        `json:"op"`
	Device   string        `json:"device,omitempty"`   // name or start of an ID; what is of chat: of a room, too
	Name     string        `json:"name,omitempty"`     // rename
	Port     uint16        `json:"port,omitempty"`     // allow, deny, ask, dial: a TCP port number
	Method   string        `json:"method,omitempty"`   // offer: words, qr, number
	Code     string        `json:"code,omitempty"`     // join; never in a log
	Yes      bool          `json:"yes,omitempty"`      // offer, join: accept without asking
	Lifetime time.Duration `json:"lifetime,omitempty"` // offer, nanoseconds
	Offline  bool          `json:"offline,omitempty"`  // offer, join: notes are carried by hand
	Hub      string        `json:"hub,omitempty"`      // use-hub: its whole address; never in a log
	Hidden   bool          `json:"hidden,omitempty"`   // offer, join: not announced on the LAN
	Change   *Change       `json:"change,omitempty"`   // rights
	Via      string        `json:"via,omitempty"`      // chat: a medium of Node.NoteVia; empty: the tunnel
	Wait     time.Duration `json:"wait,omitempty"`     // how long to wait for the device, nanoseconds

	Doctor *DoctorRequest `json:"doctor,omitempty"` // doctor
	Room   *RoomRequest   `json:"room,omitempty"`   // room, room-make, room-join
	Text   string         `json:"text,omitempty"`   // say: the line; search: what for
	Line   *chat.Message  `json:"line,omitempty"`   // history, read
	Count  int            `json:"count,omitempty"`  // history, search: how many lines
	Events bool           `json:"events,omitempty"` // chat: ChatEvents in place of Chats
	Peek   bool           `json:"peek,omitempty"`   // chat: what is sent does not count as shown

	Endpoints []netip.AddrPort `json:"endpoints,omitempty"` // offer, join: where the other device may be

	Network string `json:"network,omitempty"` // forward, expose, ask: tcp or udp
	Address string `json:"address,omitempty"` // forward, proxy: host:port of this machine; unforward: that and /tcp or /udp; expose: host:port of the service
	Keep    bool   `json:"keep,omitempty"`    // forward, expose: through restarts
	Public  bool   `json:"public,omitempty"`  // proxy: also where others than this machine can reach it

	Paths     []string `json:"paths,omitempty"`     // send: absolute
	Stream    bool     `json:"stream,omitempty"`    // send: the Inputs' data, as a file called Name
	Path      string   `json:"path,omitempty"`      // get, list: SHARE/below
	Dir       string   `json:"dir,omitempty"`       // get, accept: where to; absolute
	Overwrite bool     `json:"overwrite,omitempty"` // get, accept
	Number    uint64   `json:"number,omitempty"`    // accept, decline: number of the offer or transfer
	Offer     string   `json:"offer,omitempty"`     // accept, decline: its ID, of Device, in place of a number

	Kin *KinRequest `json:"kin,omitempty"` // introductions, own devices, new pairs
}

// A Change is what becomes of a device's rights: what is named is given or taken.
type Change struct {
	Take    bool        `json:"take,omitempty"`
	Ports   []Port      `json:"ports,omitempty"`
	Listen  []Port      `json:"listen,omitempty"`  // to listen on ports here; number 0 is any
	Files   bool        `json:"files,omitempty"`   // to have its files taken without asking
	Share   *kith.Share `json:"share,omitempty"`   // a folder; taking needs no path
	Blocked bool        `json:"blocked,omitempty"` // to give this is to block
}

// A Port is one of this machine's localhost.
type Port struct {
	Network string `json:"network"` // tcp or udp
	Number  uint16 `json:"number"`  // port number; kith.AnyPort where that can be
}

// String is the number, or "any", and the network if that is not TCP.
func (p Port) String() string {
	number := "any"
	if p.Number != kith.AnyPort {
		number = strconv.Itoa(int(p.Number))
	}
	if p.Network == "udp" {
		return number + "/udp"
	}
	return number
}

// apply changes rights. It errs if something that is to be taken is not there, or a
// share cannot be given.
func (c *Change) apply(r *kith.Rights) error {
	for _, p := range c.Ports {
		if c.Take {
			r.Deny(p.Network, p.Number)
		} else {
			r.Allow(p.Network, p.Number)
		}
	}
	for _, p := range c.Listen {
		if !c.Take {
			r.AllowListen(p.Network, p.Number)
			continue
		}
		r.DenyListen(p.Network, p.Number)
		if r.AllowsListen(p.Network, p.Number) { // by another right
			each := Port{Network: p.Network}
			return &Error{Kind: KindUsage, Text: "it may listen on any port, and so on port " + p.String(), Hint: "to take that back: kith deny DEVICE listen:" + each.String()}
		}
	}
	if c.Files {
		r.Files = !c.Take
	}
	if c.Blocked {
		r.Blocked = !c.Take
	}
	switch {
	case c.Share == nil:
		return nil
	case !c.Take:
		return r.AddShare(*c.Share)
	case !r.RemoveShare(c.Share.Name):
		return &Error{Kind: KindNotFound, Text: fmt.Sprintf("no folder is shared with it as %q", c.Share.Name), Hint: "kith rights lists them"}
	}
	return nil
}

// An Input is what the client says while a request runs.
type Input struct {
	Accept *string `json:"accept,omitempty"` // offer, join: the check digits, or ""
	Cancel bool    `json:"cancel,omitempty"`
	Text   string  `json:"text,omitempty"` // chat: a line to send
	To     string  `json:"to,omitempty"`   // chat: to which conversation, if it is another
	Note   string  `json:"note,omitempty"` // offer, join: a note of the other device
	Data   []byte  `json:"data,omitempty"` // send: a piece of the stream
	End    bool    `json:"end,omitempty"`  // send: the stream is whole
}

// A Reply is one answer.
type Reply struct {
	Error  *Error           `json:"error,omitempty"`
	Done   bool             `json:"done,omitempty"`
	Status *kith.Status     `json:"status,omitempty"`
	Device *kith.Device     `json:"device,omitempty"`
	Ping   *kith.PingResult `json:"ping,omitempty"`
	Told   bool             `json:"told,omitempty"` // unpair: the other side confirmed; leaving a room: a host did
	Offer  *Offer           `json:"offer,omitempty"`
	Pair   *PairStep        `json:"pair,omitempty"`
	Chat   *chat.Message    `json:"chat,omitempty"`
	Event  *kith.Event      `json:"event,omitempty"`
	Note   *Note            `json:"note,omitempty"`
	Text   string           `json:"text,omitempty"`

	Conv      *chat.Conv     `json:"conv,omitempty"`       // chat, history, search, forget: which
	Convs     []chat.Conv    `json:"convs,omitempty"`      // convs, chat: all of them
	ChatEvent *chat.Event    `json:"chat_event,omitempty"` // chat
	Lines     []chat.Message `json:"lines,omitempty"`      // history, search: some of them
	Kept      int            `json:"kept,omitempty"`       // chat, at the end: how many of the lines are only here
	NoMail    string         `json:"no_mail,omitempty"`    // chat, at the end: why who keeps mail did not take them

	Files []FileState `json:"files,omitempty"` // chat, history, search: of files in the lines, and that have changed

	Transfer  *Transfer      `json:"transfer,omitempty"`
	Sent      *Sent          `json:"sent,omitempty"` // send, to a room: how it ended with one member
	Delivery  *Delivery      `json:"delivery,omitempty"`
	Forwards  []Forward      `json:"forwards,omitempty"`
	Hosted    []Hosted       `json:"hosted,omitempty"`
	Offers    []FileOffer    `json:"offers,omitzero"`
	Transfers []Transfer     `json:"transfers,omitzero"`
	Ended     *Ended         `json:"ended,omitempty"`
	Listed    []files.Listed `json:"listed,omitempty"`

	Interface *Interface `json:"interface,omitempty"` // status: of kith up --tun

	Room   *kith.Room  `json:"room,omitempty"`
	Rooms  []kith.Room `json:"rooms,omitzero"`
	Invite *RoomInvite `json:"invite,omitempty"`
	Step   string      `json:"step,omitempty"` // room-join: what happens on the way
	Mail   *Mail       `json:"mail,omitempty"` // status: of letters

	Nearby []kith.NearbyDevice `json:"nearby,omitempty"` // nearby: all of them

	Check  *doctor.Result `json:"check,omitempty"`  // doctor: one, also while it is pending
	Report *doctor.Report `json:"report,omitempty"` // doctor, at the end
	Names  []doctor.Name  `json:"names,omitempty"`  // doctor, where these alone are wanted

	Kin *KinReply `json:"kin,omitempty"` // introductions, own devices, new pairs
}

// A Note is to be carried to the other device.
type Note struct {
	Text string   `json:"text"` // a block of text
	QR   []string `json:"qr"`   // the same as texts of QR codes
	Last bool     `json:"last"` // no other is expected from the other device
}

// An Offer is a code to show.
type Offer struct {
	Words  string    `json:"words,omitempty"`
	Number string    `json:"number,omitempty"`
	URI    string    `json:"uri,omitempty"`
	Expiry time.Time `json:"expiry"`
}

// A PairStep is a step of a pairing.
type PairStep struct {
	Kind    string   `json:"kind"` // media, contact, check, wrong-check, wrong-note, second-device, prepared, paired, failed
	Check   string   `json:"check,omitempty"`
	Choices []string `json:"choices,omitempty"`
	Ask     bool     `json:"ask,omitempty"`
	Name    string   `json:"name,omitempty"`
	OS      string   `json:"os,omitempty"`
	ID      string   `json:"id,omitempty"`
	Reason  string   `json:"reason,omitempty"`

	Media []kith.RendezvousStatus `json:"media,omitempty"` // how they do by now
}

// A Kind of Error decides the command's exit status.
type Kind string

// The kinds of errors.
const (
	KindOther        Kind = "error"
	KindUsage        Kind = "usage"
	KindNotFound     Kind = "not-found"     // no such device, code expired or used, nobody there
	KindRefused      Kind = "refused"       // wrong code, wrong check, the other side said no
	KindNotConnected Kind = "not-connected" // no path to the device
	KindDenied       Kind = "denied"        // the other device has not allowed it
	KindSystem       Kind = "system"        // this system cannot do it, or not for this user
)

// An Error is an error that crosses the socket.
type Error struct {
	Kind Kind   `json:"kind"`
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
}

func (e *Error) Error() string { return e.Text }

// ErrNoDaemon reports that no daemon serves a state directory.
var ErrNoDaemon = errors.New("control: no daemon is running")

// ErrEnded reports a daemon that ended while a request was under way.
var ErrEnded = errors.New("kith up has ended while it worked on this")

// SocketPath returns the path of the socket of a state directory. It errs if
// the path is too long for a unix socket.
func SocketPath(dir string) (string, error) {
	path := filepath.Join(dir, "kith.sock")
	if len(path) > maxSocketPath {
		return "", fmt.Errorf("control: the path of the daemon's socket is longer than %d bytes: choose a shorter --home than %s", maxSocketPath, dir)
	}
	return path, nil
}

// A stream sends and receives JSON lines on a connection.
type stream struct {
	conn net.Conn
	in   *bufio.Reader
	out  *json.Encoder
}

func newStream(conn net.Conn) *stream {
	return &stream{conn: conn, in: bufio.NewReaderSize(conn, 4096), out: json.NewEncoder(conn)}
}

func (s *stream) send(v any) error { return s.out.Encode(v) }

// receive reads one line of at most MaxLine bytes into v.
func (s *stream) receive(v any) error {
	var line []byte
	for {
		part, err := s.in.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > MaxLine {
			return fmt.Errorf("control: line over %d bytes", MaxLine)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
	if err := json.Unmarshal(line, v); err != nil {
		return fmt.Errorf("control: %w", err)
	}
	return nil
}

// raw returns the connection as a plain stream, with what was read ahead first.
func (s *stream) raw() net.Conn {
	if s.in.Buffered() == 0 {
		return s.conn
	}
	return &buffered{Conn: s.conn, in: s.in}
}

// buffered is a connection of which some bytes have been read already.
type buffered struct {
	net.Conn
	in *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.in.Read(p) }

// CloseWrite ends the sending side alone, where the connection can.
func (b *buffered) CloseWrite() error {
	if h, ok := b.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return b.Close()
}

var _ io.ReadWriteCloser = (*buffered)(nil)
