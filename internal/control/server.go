package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/app/chat"
	"github.com/kithproject/kith/app/expose"
	"github.com/kithproject/kith/app/files"
	"github.com/kithproject/kith/app/forward"
	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/doctor"
	"github.com/kithproject/kith/hub/hubaddr"
	"github.com/kithproject/kith/registry"
)

// A Server answers requests with a node and its apps. Close ends it.
type Server struct {
	node     *kith.Node
	chat     *chat.Service
	files    *files.Service
	forwards *forwards
	expose   *expose.Service
	post     *post
	ends     ends
	book     *fileBook
	offering atomic.Int64 // to how many members OpOfferFile offers at the moment

	inboxDir string

	log    *slog.Logger
	ctx    context.Context //nolint:containedctx // ends all requests; Close cancels it
	cancel context.CancelFunc
	stop   chan struct{} // closed when a client asks the daemon to end
	once   sync.Once

	mu     sync.Mutex // guards closed and orders wg.Go before Close's wait
	closed bool
	inter  *openInterface // nil: none; guarded by mu
	wg     sync.WaitGroup
}

// maxClients is how many requests run at once; a program that leaks
// connections must not take the daemon down.
const maxClients = 256

// defaultWait is how long a request waits for a device, unless it says so.
const defaultWait = 15 * time.Second

// NewServer returns a server for a node, which it does not close. It takes chat and
// offers of files from other devices from now on; files that are taken go to inbox, a
// folder. It errs if a port is taken.
func NewServer(node *kith.Node, inbox string, log *slog.Logger) (*Server, error) {
	s := &Server{node: node, log: log, stop: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.openOffers()
	s.openMail()
	if err := s.openChat(); err != nil {
		s.cancel()
		s.wg.Wait()
		return nil, errors.Join(err, s.post.close())
	}
	if err := s.openFiles(inbox); err != nil {
		s.cancel()
		s.wg.Wait()
		return nil, errors.Join(err, s.post.close(), s.chat.Close())
	}
	err := s.openExpose()
	if err == nil {
		s.forwards, err = newForwards(s)
	}
	if err != nil {
		s.cancel()
		s.wg.Wait()
		return nil, errors.Join(err, s.post.close(), s.closeExpose(), s.files.Close(), s.chat.Close())
	}
	s.carryMail()
	s.wg.Go(s.watchRights)
	s.wg.Go(s.watchChat)
	node.HandleNotes(s.takeChatNote)
	return s, nil
}

// Close ends all requests, removes the interface, and waits for them. It errs if the
// chat's listener cannot be closed, or names cannot be taken back.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	err := s.closeInterface()
	s.wg.Wait()
	s.node.HandleNotes(nil)
	return errors.Join(err, s.post.close(), s.forwards.set.Close(), s.closeExpose(), s.files.Close(), s.chat.Close())
}

// Stopped is closed when a client has asked the daemon to end.
func (s *Server) Stopped() <-chan struct{} { return s.stop }

// Listen makes the daemon's socket. A socket file that a killed daemon left is
// replaced: the caller holds the directory's lock. It errs if the socket cannot
// be made.
func Listen(dir string) (net.Listener, error) {
	path, err := SocketPath(dir)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("control: replace the old socket: %w", err)
	}
	ln, err := net.Listen("unix", path) //nolint:noctx // a Unix socket is made without waiting
	if err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, fmt.Errorf("control: %w", err)
	}
	return ln, nil
}

// Serve takes requests from ln until Close; it closes ln. It returns nil after
// Close, and the listener's error otherwise.
func (s *Server) Serve(ln net.Listener) error {
	defer context.AfterFunc(s.ctx, func() { ln.Close() })()
	slots := make(chan struct{}, maxClients)
	for {
		conn, err := ln.Accept()
		if err != nil {
			if s.ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("control: %w", err)
		}
		select {
		case slots <- struct{}{}:
		case <-s.ctx.Done():
			conn.Close()
			return nil
		}
		if !s.run(conn, func() { <-slots }) {
			conn.Close()
		}
	}
}

// take serves one connection; it reports false after Close.
func (s *Server) take(conn net.Conn) bool { return s.run(conn, func() {}) }

func (s *Server) run(conn net.Conn, done func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Go(func() {
		defer done()
		defer conn.Close()
		defer context.AfterFunc(s.ctx, func() { conn.Close() })()
		s.serve(conn)
	})
	return true
}

func (s *Server) serve(conn net.Conn) {
	st := newStream(conn)
	var req Request
	if err := st.receive(&req); err != nil {
		return
	}
	reply, err := s.answer(st, req)
	if errors.Is(err, errTaken) {
		return
	}
	if err != nil {
		reply = Reply{Error: explain(err)}
	}
	reply.Done = true
	if err := st.send(reply); err != nil {
		s.log.Debug("reply not sent", "op", req.Op, "err", err)
	}
	if req.Op == OpStop {
		s.once.Do(func() { close(s.stop) })
	}
}

// errTaken says that the connection was used for something else than a reply.
var errTaken = errors.New("control: connection taken over")

func (s *Server) answer(st *stream, req Request) (Reply, error) {
	wait := req.Wait
	if wait <= 0 {
		wait = defaultWait
	}
	ctx, cancel := context.WithTimeout(s.ctx, wait)
	defer cancel()
	switch req.Op {
	case OpVersion:
		return Reply{Text: kith.Version}, nil
	case OpStatus:
		status := s.node.Status()
		return Reply{Status: &status, Interface: s.theInterface(), Mail: s.mailStatus(ctx)}, nil
	case OpRename:
		return s.withDevice(req, func() error { return s.node.Rename(req.Device, req.Name) })
	case OpUseHub:
		a, err := hubaddr.Parse(req.Hub)
		if err != nil {
			return Reply{}, err
		}
		defer s.post.rehub()
		return Reply{}, s.node.UseHub(a)
	case OpRights:
		if req.Change == nil {
			return Reply{}, &Error{Kind: KindUsage, Text: "nothing is to be changed"}
		}
		if req.Change.Blocked && !req.Change.Take {
			s.dismiss(ctx, req.Device, endBlocked)
		}
		d, err := s.node.SetRights(req.Device, req.Change.apply)
		s.files.Recheck(d.ID.String()) // an event of it may be lost
		s.expose.Recheck()
		return Reply{Device: &d}, err
	case OpUnpair:
		return s.unpair(ctx, req)
	case OpPing:
		r, err := s.node.Ping(ctx, req.Device)
		return Reply{Ping: &r}, err
	case OpAsk:
		return Reply{}, s.ask(ctx, req)
	case OpDial:
		return Reply{}, s.dial(ctx, st, req)
	case OpOffer, OpJoin:
		return s.pair(st, req)
	case OpChat:
		return s.converse(st, req, wait)
	case OpConvs:
		return s.listConvs()
	case OpSay:
		return s.say(ctx, req)
	case OpHistory, OpSearch, OpRead, OpForget:
		return s.lines(st, req)
	case OpForward:
		return s.forward(st, req)
	case OpForwards:
		return Reply{Forwards: s.forwards.list(forward.Forward)}, nil
	case OpUnforward:
		return Reply{}, s.forwards.remove(req.Address, notForwarded(req.Address))
	case OpExpose:
		return s.exposeHere(st, req, wait)
	case OpExposed:
		return Reply{Forwards: s.forwards.list(forward.Expose), Hosted: s.hosted()}, nil
	case OpUnexpose:
		return s.unexpose(req)
	case OpProxy:
		return s.proxy(st, req)
	case OpSend:
		return s.sendFiles(st, req)
	case OpOfferFile:
		return s.offerFile(ctx, req)
	case OpGet:
		return s.getFiles(st, req)
	case OpList:
		return s.listFiles(ctx, req)
	case OpInbox:
		return s.inbox(), nil
	case OpWatch:
		return s.watchInbox(st)
	case OpAccept, OpDecline:
		return s.decide(req)
	case OpRooms, OpRoomMake, OpRoom:
		return s.rooms(ctx, req)
	case OpRoomJoin:
		return s.joinRoom(st, req)
	case OpDoctor:
		return s.doctor(st, req)
	case OpNearby:
		return s.nearby(st)
	case OpWaiting:
		return s.waiting(st)
	case OpEvents:
		return s.follow(st)
	case OpIntroduce, OpIntroductions, OpIntroAccept, OpIntroDecline, OpIntroForget, OpOwn, OpVerify, OpRecent, OpUndo:
		return s.kin(ctx, st, req)
	case OpStop: // carried out after the reply, in serve
		return Reply{}, nil
	}
	return Reply{}, &Error{Kind: KindUsage, Text: fmt.Sprintf("the daemon does not know %q", req.Op), Hint: "it may be of another version: restart it with kith down and kith up"}
}

func (s *Server) withDevice(req Request, change func() error) (Reply, error) {
	d, err := s.node.Device(req.Device)
	if err != nil {
		return Reply{}, err
	}
	if err := change(); err != nil {
		return Reply{}, err
	}
	if now, err := s.node.Device(d.ID.String()); err == nil {
		d = now
	}
	return Reply{Device: &d}, nil
}

func (s *Server) unpair(ctx context.Context, req Request) (Reply, error) {
	d, err := s.node.Device(req.Device)
	if err != nil {
		return Reply{}, err
	}
	return s.unpairDevice(ctx, d, req)
}

func (s *Server) ask(ctx context.Context, req Request) error {
	conn, err := s.node.Dial(ctx, "tcp", net.JoinHostPort(req.Device, strconv.Itoa(forward.RightsPort)))
	if err != nil {
		return err
	}
	protocol := cmp.Or(forward.Protocol(req.Network), forward.TCP)
	err = forward.AskFor(conn, protocol, req.Port)
	if errors.Is(err, forward.ErrDenied) {
		port := Port{string(protocol), req.Port}
		return &Error{
			Kind: KindDenied, Text: fmt.Sprintf("%s does not allow this device to reach its port %s", req.Device, port),
			Hint: fmt.Sprintf("on %s run: kith allow %s %s (kith devices there shows it if this device has another name)", req.Device, s.node.Name(), port),
		}
	}
	return err
}

func (s *Server) dial(ctx context.Context, st *stream, req Request) error {
	far, err := s.node.Dial(ctx, "tcp", net.JoinHostPort(req.Device, strconv.Itoa(int(req.Port))))
	if err != nil {
		return err
	}
	if err := st.send(Reply{Done: true}); err != nil {
		far.Close()
		return errTaken
	}
	forward.Splice(s.ctx, st.raw(), far)
	return errTaken
}

// inputs reads what the client says until the connection ends.
func inputs(ctx context.Context, st *stream) <-chan Input {
	ch := make(chan Input)
	go func() { // ends with the connection, which the request's end closes
		defer close(ch)
		for {
			var in Input
			if st.receive(&in) != nil {
				return
			}
			select {
			case ch <- in:
			case <-ctx.Done():
				return
			}
		}
	}()
	return ch
}

// whileThere returns a context that ends with the client's connection, for a request that
// takes no input.
func whileThere(ctx context.Context, st *stream) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	in := inputs(ctx, st)
	go func() { // ends with the connection or ctx
		for range in {
		}
		cancel()
	}()
	return ctx, cancel
}

func (s *Server) follow(st *stream) (Reply, error) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	in := inputs(ctx, st)
	events, stop := s.node.Events()
	defer stop()
	for {
		select {
		case ev, ok := <-events:
			if !ok {
				return Reply{}, nil
			}
			if st.send(Reply{Event: &ev}) != nil {
				return Reply{}, errTaken
			}
		case _, ok := <-in:
			if !ok {
				return Reply{}, errTaken
			}
		case <-s.ctx.Done():
			return Reply{}, nil
		}
	}
}

// suspecting adds what is most likely in the way, and what to do about it.
func suspecting(e *Error, cause doctor.Result) *Error {
	if cause.Cause != "" {
		e.Text, e.Hint = e.Text+"; most likely: "+cause.Cause, cause.Fix
	}
	return e
}

// explain turns an error into what a person can act on.
func explain(err error) *Error {
	var (
		done         *Error
		notConnected *kith.NotConnectedError
		noAnswer     *kith.NoAnswerError
		pair         *kith.PairError
		parse        *code.ParseError
		ambiguous    *registry.AmbiguousError
		ended        *registry.EndedError
		blocked      *kith.BlockedError
	)
	if e := explainRoom(err); e != nil {
		return e
	}
	switch {
	case errors.As(err, &done):
		return done
	case errors.As(err, &blocked):
		return &Error{Kind: KindRefused, Text: blocked.Device.Name + " is blocked on this device", Hint: "to end that: kith unblock " + doctor.Word(blocked.Device.Name)}
	case errors.Is(err, files.ErrDeclined):
		return &Error{Kind: KindRefused, Text: "the other side declined", Hint: ""}
	case errors.Is(err, files.ErrWithdrawn):
		return &Error{Kind: KindDenied, Text: plain(err), Hint: "what has arrived is kept; the same command goes on once it is allowed again"}
	case errors.Is(err, files.ErrCancelled):
		return &Error{Kind: KindRefused, Text: plain(err), Hint: "what has arrived is kept; the same command goes on"}
	case errors.Is(err, files.ErrDiskFull), errors.Is(err, files.ErrLimit), errors.Is(err, files.ErrBusy):
		return &Error{Kind: KindOther, Text: plain(err)}
	case errors.Is(err, files.ErrNotShared):
		return &Error{Kind: KindDenied, Text: "the other device does not share this", Hint: "kith get DEVICE: lists what it shares; on it: kith share FOLDER THIS-DEVICE"}
	case errors.Is(err, registry.ErrShare):
		return &Error{Kind: KindUsage, Text: err.Error(), Hint: "choose another name with --as"}
	case errors.Is(err, chat.ErrNoConv), errors.Is(err, chat.ErrNotKept):
		return &Error{Kind: KindNotFound, Text: err.Error()}
	case errors.As(err, &notConnected):
		return suspecting(&Error{Kind: KindNotConnected, Text: notConnected.Device.Name + " is not connected: " + notConnected.Device.Looking,
			Hint: "is kith up running there? kith doctor " + doctor.Word(notConnected.Device.Name) + " finds out what is in the way"}, notConnected.Cause)
	case errors.Is(err, files.ErrNoConnection):
		return &Error{Kind: KindNotConnected, Text: plain(files.ErrNoConnection), Hint: "is kith up running there? The same command goes on where it stopped"}
	case errors.As(err, &noAnswer):
		return &Error{Kind: KindNotConnected, Text: noAnswer.Error(),
			Hint: "is kith up running there, on this network segment? The line may have arrived all the same"}
	case errors.As(err, &pair):
		return explainPair(pair)
	case errors.As(err, &parse):
		return &Error{Kind: KindUsage, Text: parse.Error(), Hint: parse.Hint}
	case errors.As(err, &ambiguous):
		return &Error{Kind: KindUsage, Text: ambiguous.Error(), Hint: "name it in full, or give more of its ID"}
	case errors.As(err, &ended):
		return &Error{Kind: KindNotFound, Text: err.Error(), Hint: "pair the two devices again: kith pair, and kith join on the other one"}
	case errors.Is(err, registry.ErrNotFound):
		return &Error{Kind: KindNotFound, Text: err.Error(), Hint: "kith devices lists the paired devices"}
	case errors.Is(err, forward.ErrDenied):
		return &Error{Kind: KindDenied, Text: err.Error()}
	case errors.Is(err, forward.ErrClosed):
		return &Error{Kind: KindNotFound, Text: err.Error()}
	}
	return &Error{Kind: KindOther, Text: err.Error()}
}
