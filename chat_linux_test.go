package kith_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kithproject/kith/internal/nettest"
)

// A chatter is a member who writes lines while its daemon is killed again and again.
type chatter struct {
	*station
	mu    sync.Mutex // held while the daemon starts
	next  int        // the line that is to be written
	total *atomic.Int64
}

// text is the n-th line of a member.
func (c *chatter) text(n int) string { return fmt.Sprintf("%s-%06d", c.host.Name, n) }

// revive starts the daemon again after a kill.
func (c *chatter) revive(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.up.Kill()
	c.up.Wait(ctx)
	c.daemon(ctx)
}

// chat runs kith chat with an input. It errs as the command does, but for lines that are
// kept and wait for others.
func (c *chatter) chat(ctx context.Context, input string, args ...string) (string, error) {
	cmd := c.host.Command(ctx, c.kith, c.args(append([]string{"chat", "--wait", "1ms"}, args...)...)...)
	cmd.Stdin = strings.NewReader(input)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 5 {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("%w: %s", err, errs.String())
	}
	return out.String(), err
}

// write writes the member's lines up to most, in batches. When the daemon was killed
// meanwhile it looks how many of a batch are kept, as a person would.
func (c *chatter) write(ctx context.Context, most int) error {
	for c.next < most {
		if err := c.writeSome(ctx, most); err != nil {
			return err
		}
	}
	return nil
}

func (c *chatter) writeSome(ctx context.Context, most int) error {
	const batch = 10
	var lines strings.Builder
	upTo := min(c.next+batch, most)
	for n := c.next; n < upTo; n++ {
		lines.WriteString(c.text(n) + "\n")
	}
	from := c.next
	defer func() { c.total.Add(int64(c.next - from)) }()
	if _, err := c.chat(ctx, lines.String(), "friends"); err == nil {
		c.next = upTo
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for ; c.next < upTo; c.next++ {
		kept, err := c.has(ctx, c.text(c.next))
		if err != nil {
			return err
		}
		if !kept {
			break
		}
	}
	return nil
}

// has reports whether a line is kept here. It asks until the daemon answers.
func (c *chatter) has(ctx context.Context, text string) (bool, error) {
	for {
		c.mu.Lock() //nolint:staticcheck // until the daemon is up
		c.mu.Unlock()
		out, err := c.chat(ctx, "", "--search", text, "friends")
		if err == nil {
			return strings.Contains(out, text), nil
		}
		if ctx.Err() != nil {
			return false, fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

// lines is the conversation as a member has it.
func (c *chatter) lines(ctx context.Context, n int) (out []string) {
	for line := range strings.Lines(c.run(ctx, "chat", "--json", "--history", strconv.Itoa(n), "friends")) {
		var ev struct{ Text string }
		if json.Unmarshal([]byte(line), &ev) == nil && ev.Text != "" {
			out = append(out, ev.Text)
		}
	}
	return out
}

// storm is how much TestNetworkChat does.
type storm struct{ lines, kills, moves int }

// TestNetworkChat has the members of a room behind NATs write at the same time, while their
// daemons are killed and two of them move to other networks: every line is there exactly
// once and in order, and in the same order on every side. KITH_CHAT_STORM=LINES,KILLS,MOVES
// makes it longer.
func TestNetworkChat(t *testing.T) {
	work, limit := storm{lines: 900, kills: 12, moves: 2}, netTimeout
	if text := os.Getenv("KITH_CHAT_STORM"); text != "" {
		if _, err := fmt.Sscanf(text, "%d,%d,%d", &work.lines, &work.kills, &work.moves); err != nil {
			t.Fatal(err)
		}
		limit = 2 * time.Minute
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	l := newRoomLab(ctx, t, nettest.NATEasy, nettest.NATHard)
	l.open(ctx, t)
	var all []*chatter
	var total atomic.Int64 // lines that are written
	for _, s := range append([]*station{l.host}, l.members...) {
		all = append(all, &chatter{station: s, total: &total})
	}
	for _, c := range all {
		c.untilRoom(ctx, t, "all there", everybody(len(all)))
	}
	each := (work.lines + len(all) - 1) / len(all)
	var wg sync.WaitGroup
	for _, c := range all {
		wg.Go(func() {
			if err := c.write(ctx, each); err != nil {
				t.Errorf("%s: %v", c.host.Name, err)
			}
		})
	}
	homes := []*nettest.Site{l.inet.Site("cafe", nettest.NATEasy), l.inet.Site("train", nettest.NATHard)}
	start, steps := time.Now(), work.kills+work.moves
	for k := range steps {
		for total.Load() < int64(each*len(all)*k/steps) { // spread over the writing
			select {
			case <-time.After(5 * time.Millisecond):
			case <-ctx.Done():
				t.Fatalf("%d lines are written, after %d kills and moves", total.Load(), k)
			}
		}
		c := all[rand.IntN(len(all))]
		if k%(work.kills/max(1, work.moves)+1) == 1 {
			c = all[1+k%2]
			homes[k%2].Move(c.host)
			continue
		}
		c.revive(ctx)
	}
	t.Logf("%d kills and %d moves in %v", work.kills, work.moves, time.Since(start).Round(time.Millisecond))
	wg.Wait()
	want := each * len(all)
	var first []string
	for _, c := range all {
		got := c.untilLines(ctx, t, want)
		count, place := make(map[string]int), make(map[string]int)
		for i, text := range got {
			count[text]++
			place[text] = i
		}
		for _, author := range all {
			at := -1
			for n := range each {
				i := place[author.text(n)]
				if i <= at || count[author.text(n)] != 1 {
					t.Fatalf("%s has line %q %d times, at %d after %d", c.host.Name, author.text(n), count[author.text(n)], i, at)
				}
				at = i
			}
		}
		if first == nil {
			first = got
		} else if !slices.Equal(first, got) {
			t.Errorf("%s and %s have other orders", all[0].host.Name, c.host.Name)
		}
	}
}

// untilLines waits until a member has as many lines as there are.
func (c *chatter) untilLines(ctx context.Context, t *testing.T, want int) []string {
	t.Helper()
	start := time.Now()
	for {
		got := c.lines(ctx, 2*want)
		if len(got) >= want {
			t.Logf("%s has all %d lines %v after the last was written", c.host.Name, len(got), time.Since(start).Round(time.Millisecond))
			return got
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%s wrote %d lines and has %d of %d, the last %q", c.host.Name, c.next, len(got), want, got[max(0, len(got)-3):])
		}
	}
}
