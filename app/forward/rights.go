package forward

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"
)

// RightsPort is the tunnel port, as a TCP port number, on which a device
// answers whether the asker may reach a port of its localhost. A refused
// connection alone cannot tell "not allowed" from "nothing listens".
//
// The asker sends the port in decimal, "/udp" if it is one of UDP, and a newline;
// the answer is one word and a newline: "allowed", "denied" or "closed" (allowed,
// but nothing listens; of UDP nobody can tell).
const RightsPort = 27492

var (
	// ErrDenied reports a port that the other device has not allowed.
	ErrDenied = errors.New("forward: the other device has not allowed this port")
	// ErrClosed reports an allowed port on which nothing listens.
	ErrClosed = errors.New("forward: nothing listens on this port of the other device")
)

const (
	rightsTimeout = 5 * time.Second
	maxAsks       = 16 // answered at once; more wait
	maxAnswer     = 16 // bytes
)

// Ask asks over conn, which it closes, whether a TCP port may be reached. It errs
// with ErrDenied, ErrClosed, or the connection's error.
func Ask(conn net.Conn, port uint16) error { return AskFor(conn, TCP, port) }

// AskFor asks over conn, which it closes, whether a port may be reached. It errs
// with ErrDenied, ErrClosed, or the connection's error, as it does for UDP if the
// other device runs a version that knows TCP alone.
func AskFor(conn net.Conn, protocol Protocol, port uint16) error {
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(rightsTimeout)); err != nil {
		return fmt.Errorf("forward: ask for port %d: %w", port, err)
	}
	suffix := ""
	if protocol != TCP {
		suffix = "/" + string(protocol)
	}
	if _, err := fmt.Fprintf(conn, "%d%s\n", port, suffix); err != nil {
		return fmt.Errorf("forward: ask for port %d: %w", port, err)
	}
	answer, err := bufio.NewReader(io.LimitReader(conn, maxAnswer)).ReadString('\n')
	if err != nil {
		return fmt.Errorf("forward: ask for port %d: %w", port, err)
	}
	switch strings.TrimSpace(answer) {
	case "allowed":
		return nil
	case "denied":
		return ErrDenied
	case "closed":
		return ErrClosed
	}
	return fmt.Errorf("forward: ask for port %d: answer not understood", port)
}

// ServeRights answers as ServeRightsFor does, and denies each port of UDP.
func ServeRights(ctx context.Context, ln net.Listener, allowed func(from netip.Addr, port uint16) bool) {
	ServeRightsFor(ctx, ln, func(from netip.Addr, protocol Protocol, port uint16) bool {
		return protocol == TCP && allowed(from, port)
	})
}

// ServeRightsFor answers askers from ln until ln is closed; allowed decides by the
// asker's tunnel address. It closes what is open when ctx ends, and returns
// when all askers have been answered.
func ServeRightsFor(ctx context.Context, ln net.Listener, allowed func(from netip.Addr, protocol Protocol, port uint16) bool) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxAsks)
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			conn.Close()
			return
		}
		wg.Go(func() {
			defer func() { <-slots }()
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			answer(ctx, conn, allowed)
		})
	}
}

func answer(ctx context.Context, conn net.Conn, allowed func(netip.Addr, Protocol, uint16) bool) {
	defer conn.Close()
	if conn.SetDeadline(time.Now().Add(rightsTimeout)) != nil {
		return
	}
	line, err := bufio.NewReader(io.LimitReader(conn, maxAnswer)).ReadString('\n')
	if err != nil {
		return
	}
	protocol, port, err := parseAsk(line)
	from, err2 := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil || err2 != nil {
		return
	}
	word := "denied"
	if allowed(from.Addr(), protocol, port) {
		word = "allowed"
		if protocol == TCP && !listens(ctx, port) {
			word = "closed"
		}
	}
	_, _ = io.WriteString(conn, word+"\n")
}

// listens reports whether a TCP port of this machine's localhost is open.
func listens(ctx context.Context, port uint16) bool {
	local, err := DialLocal(ctx, port)
	if err != nil {
		return false
	}
	local.Close()
	return true
}

// parseAsk reads the asker's line. It errs if it is none.
func parseAsk(line string) (Protocol, uint16, error) {
	digits, protocol := strings.TrimSpace(line), TCP
	if before, is := strings.CutSuffix(digits, "/"+string(UDP)); is {
		digits, protocol = before, UDP
	}
	port, err := strconv.ParseUint(digits, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("forward: not a question for a port: %w", err)
	}
	return protocol, uint16(port), nil
}
