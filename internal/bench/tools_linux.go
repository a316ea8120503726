package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// toolCommand is the first argument of a process that does one thing in a namespace.
const toolCommand = "tool"

// A toolConfig is told to such a process.
type toolConfig struct {
	Tool    string
	Address string        // to listen on or to connect to
	File    string        // to read or write
	URL     string        // to get
	Conns   int           // how many at once
	For     time.Duration // how long
	Fresh   bool          // a connection for each request
}

// A toolResult is the one line that it prints when it is done.
type toolResult struct {
	Bytes   float64
	Seconds float64
	CPU     float64 // seconds, user and system
	P50     float64 // of requests, in seconds
	P99     float64 // of requests, in seconds
	Count   int     // of requests
}

// The tools.
const (
	toolTake  = "take"  // receive one file over TLS
	toolGive  = "give"  // send one file over TLS
	toolServe = "serve" // a web server of large and small things
	toolLoad  = "load"  // download from it, as much as possible
	toolAsk   = "ask"   // small requests to it
	toolTar   = "tar"   // a folder into a connection
	toolUntar = "untar" // a folder out of one
)

// readyLine is what a tool that listens prints first.
const readyLine = "ready"

func runTool(args []string, out io.Writer) error {
	if len(args) != 1 {
		return errors.New("bench: a tool needs its configuration")
	}
	var cfg toolConfig
	if err := json.Unmarshal([]byte(args[0]), &cfg); err != nil {
		return fmt.Errorf("bench: configuration: %w", err)
	}
	tool, ok := map[string]func(toolConfig, io.Writer) (toolResult, error){
		toolTake: take, toolGive: give, toolServe: serve, toolLoad: load, toolAsk: ask, toolTar: tarTo, toolUntar: untar,
	}[cfg.Tool]
	if !ok {
		return fmt.Errorf("bench: no tool %q", cfg.Tool)
	}
	start := time.Now()
	r, err := tool(cfg, out)
	if err != nil {
		return err
	}
	if r.Seconds == 0 {
		r.Seconds = time.Since(start).Seconds()
	}
	r.CPU = cpuSeconds()
	return json.NewEncoder(out).Encode(r)
}

func take(cfg toolConfig, out io.Writer) (r toolResult, err error) {
	c, err := certificate()
	if err != nil {
		return r, err
	}
	ln, err := tls.Listen("tcp", cfg.Address, c)
	if err != nil {
		return r, err
	}
	defer ln.Close()
	fmt.Fprintln(out, readyLine)
	conn, err := ln.Accept()
	if err != nil {
		return r, err
	}
	defer conn.Close()
	f, err := os.Create(cfg.File)
	if err != nil {
		return r, err
	}
	defer f.Close()
	n, err := io.Copy(f, conn)
	if err != nil {
		return r, err
	}
	_, err = conn.Write([]byte{1})
	return toolResult{Bytes: float64(n)}, err
}

func give(cfg toolConfig, _ io.Writer) (r toolResult, err error) {
	conn, err := tls.Dial("tcp", cfg.Address, &tls.Config{
		InsecureSkipVerify: true, //nolint:gosec // only its speed matters here
		MinVersion:         tls.VersionTLS13,
	})
	if err != nil {
		return r, err
	}
	defer conn.Close()
	f, err := os.Open(cfg.File)
	if err != nil {
		return r, err
	}
	defer f.Close()
	n, err := io.Copy(conn, f)
	if err != nil {
		return r, err
	}
	if err := conn.CloseWrite(); err != nil {
		return r, err
	}
	_, err = io.ReadFull(conn, make([]byte, 1))
	return toolResult{Bytes: float64(n)}, err
}

// serve answers /N with N bytes until it is killed.
func serve(cfg toolConfig, out io.Writer) (toolResult, error) {
	ln, err := net.Listen("tcp", cfg.Address)
	if err != nil {
		return toolResult{}, err
	}
	fmt.Fprintln(out, readyLine)
	block := make([]byte, writeSize)
	return toolResult{}, http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { //nolint:gosec // ends with the measurement
		left, err := strconv.ParseInt(r.URL.Path[1:], 10, 64)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Length", strconv.FormatInt(left, 10))
		for left > 0 {
			n, err := w.Write(block[:min(left, int64(len(block)))])
			if err != nil {
				return
			}
			left -= int64(n)
		}
	}))
}

func get(ctx context.Context, c *http.Client, url string, buf []byte, count *atomic.Int64) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("bench: %s", resp.Status)
	}
	for {
		n, err := resp.Body.Read(buf)
		count.Add(int64(n))
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// load downloads over cfg.Conns connections, and counts what comes in cfg.For after
// half a second.
func load(cfg toolConfig, _ io.Writer) (r toolResult, err error) {
	const warm = 500 * time.Millisecond
	ctx, cancel := context.WithTimeout(context.Background(), warm+cfg.For)
	defer cancel()
	var count atomic.Int64
	var wg sync.WaitGroup
	for range cfg.Conns {
		wg.Go(func() {
			c := &http.Client{Transport: &http.Transport{ReadBufferSize: readSize}}
			buf := make([]byte, readSize)
			for ctx.Err() == nil {
				if err := get(ctx, c, cfg.URL, buf, &count); err != nil && ctx.Err() == nil {
					fmt.Fprintln(os.Stderr, err)
					return
				}
			}
		})
	}
	if err := wait(ctx, warm); err != nil {
		return r, err
	}
	before, at := count.Load(), time.Now()
	<-ctx.Done()
	r = toolResult{Bytes: float64(count.Load() - before), Seconds: time.Since(at).Seconds()}
	wg.Wait()
	return r, nil
}

// ask makes small requests over cfg.Conns connections at once for cfg.For.
func ask(cfg toolConfig, _ io.Writer) (r toolResult, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), cfg.For+10*time.Second)
	defer cancel()
	var mu sync.Mutex // guards took and failed
	var took []time.Duration
	var failed error
	var wg sync.WaitGroup
	until := time.Now().Add(cfg.For)
	for range cfg.Conns {
		wg.Go(func() {
			c := &http.Client{Transport: &http.Transport{DisableKeepAlives: cfg.Fresh}}
			buf := make([]byte, 4096)
			var n atomic.Int64
			for first := true; time.Now().Before(until); first = false {
				start := time.Now()
				err := get(ctx, c, cfg.URL, buf, &n)
				d := time.Since(start)
				mu.Lock()
				if err != nil {
					failed = err
				} else if !first { // the connections begin all at once
					took = append(took, d)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if failed != nil || len(took) == 0 {
		return r, fmt.Errorf("bench: requests: %w", failed)
	}
	slices.Sort(took)
	return toolResult{P50: took[len(took)/2].Seconds(), P99: took[len(took)*99/100].Seconds(), Count: len(took)}, nil
}

// pipeTar runs tar between a connection and a folder, as tar | nc does.
func pipeTar(conn *net.TCPConn, args ...string) error {
	cmd := exec.Command("tar", args...) //nolint:noctx // the connection ends it
	f, err := conn.File()
	if err != nil {
		return err
	}
	defer f.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = f, f, os.Stderr
	return cmd.Run()
}

func untar(cfg toolConfig, out io.Writer) (r toolResult, err error) {
	ln, err := net.Listen("tcp", cfg.Address)
	if err != nil {
		return r, err
	}
	defer ln.Close()
	fmt.Fprintln(out, readyLine)
	conn, err := ln.Accept()
	if err != nil {
		return r, err
	}
	defer conn.Close()
	return r, pipeTar(conn.(*net.TCPConn), "-x", "-C", cfg.File)
}

// tarTo returns when the other side has closed, so that all is there.
func tarTo(cfg toolConfig, _ io.Writer) (r toolResult, err error) {
	conn, err := net.Dial("tcp", cfg.Address)
	if err != nil {
		return r, err
	}
	defer conn.Close()
	if err := pipeTar(conn.(*net.TCPConn), "-c", "-C", filepath.Dir(cfg.File), filepath.Base(cfg.File)); err != nil {
		return r, err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return r, err
	}
	_, err = io.Copy(io.Discard, conn)
	return r, err
}
