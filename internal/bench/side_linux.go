package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// sideCommand is the first argument of a process that is one end.
const sideCommand = "side"

const (
	sideServer = "server"
	sideClient = "client"
	sideHub    = "hub"
)

const (
	writeSize = 128 << 10 // bytes
	readSize  = 256 << 10 // bytes
)

// A sideConfig is told to a process that is one end.
type sideConfig struct {
	Side    string
	Way     string
	Streams int
	Hub     string // its address, for the way through its relay
	Profile string // file for a CPU profile; "" for none
}

// A mark is what an end has counted so far.
type mark struct {
	Bytes float64 // received
	CPU   float64 // seconds, user and system
	At    float64 // monotonic clock, seconds
	Hub   string  // address, of a hub
	// HubCPU is set where marks of several ends are put together, in seconds.
	HubCPU float64 `json:"-"`
}

// runSide is one end. It says that it is ready, answers each line of in with its
// counters, and ends with in.
func runSide(args []string, in io.Reader, out io.Writer) error {
	if len(args) != 1 {
		return errors.New("bench: an end needs its configuration")
	}
	var cfg sideConfig
	if err := json.Unmarshal([]byte(args[0]), &cfg); err != nil {
		return fmt.Errorf("bench: configuration: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var received atomic.Int64
	start := time.Now()
	address := ""
	if cfg.Side == sideHub {
		h, err := openHub(ctx)
		if err != nil {
			return err
		}
		defer h.Close()
		address = h.Address().Text()
	} else if err := serveOrLoad(ctx, cfg, &received); err != nil {
		return err
	}
	enc := json.NewEncoder(out)
	say := func() error {
		return enc.Encode(mark{Bytes: float64(received.Load()), CPU: cpuSeconds(), At: time.Since(start).Seconds(), Hub: address})
	}
	if err := say(); err != nil {
		return err
	}
	profiling := false
	for lines := bufio.NewScanner(in); lines.Scan(); {
		if cfg.Profile != "" && !profiling { // from the first mark on: warm
			f, err := os.Create(cfg.Profile)
			if err != nil {
				return err
			}
			defer f.Close()
			if err := pprof.StartCPUProfile(f); err != nil {
				return err
			}
			defer pprof.StopCPUProfile()
			profiling = true
		}
		if err := say(); err != nil {
			return err
		}
	}
	return nil
}

func cpuSeconds() float64 {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return float64(r.Utime.Nano()+r.Stime.Nano()) / 1e9
}

// serveOrLoad makes the way and puts the load on it; what it starts ends with
// the process.
func serveOrLoad(ctx context.Context, cfg sideConfig, received *atomic.Int64) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if cfg.Side == sideServer {
		ln, err := listen(ctx, cfg)
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go sink(c, received)
			}
		}()
		return nil
	}
	dial, err := dialer(ctx, cfg)
	if err != nil {
		return err
	}
	conns := make([]net.Conn, cfg.Streams)
	for i := range conns {
		if conns[i], err = dial(ctx); err != nil {
			return err
		}
		if err := greet(conns[i]); err != nil {
			return err
		}
	}
	var begin sync.WaitGroup
	for _, c := range conns {
		begin.Add(1)
		go func() {
			begin.Done()
			block := make([]byte, writeSize)
			for {
				if _, err := c.Write(block); err != nil {
					return // the other end has gone: the run is over
				}
			}
		}()
	}
	begin.Wait()
	return nil
}

// greet proves that the stream works in both directions.
func greet(c net.Conn) error {
	var b [1]byte
	if _, err := c.Write(b[:]); err != nil {
		return fmt.Errorf("bench: first byte: %w", err)
	}
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return fmt.Errorf("bench: first answer: %w", err)
	}
	return nil
}

func sink(c net.Conn, received *atomic.Int64) {
	defer c.Close()
	var b [1]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return
	}
	if _, err := c.Write(b[:]); err != nil {
		return
	}
	buf := make([]byte, readSize)
	for {
		n, err := c.Read(buf)
		received.Add(int64(n))
		if err != nil {
			return
		}
	}
}
