package cli

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kithproject/kith/doctor"
)

// A screen is a terminal as far as the live list uses one.
type screen struct {
	t      *testing.T
	width  int
	height int

	mu    sync.Mutex
	lines []string
	at    int // the line of the cursor, which is always at its begin
	most  int // lines that were in use at once
}

var up = regexp.MustCompile("^\x1b\\[(\\d+)A")

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rest := string(p)
	for rest != "" {
		text, after, _ := strings.Cut(rest, "\n")
		switch {
		case strings.HasPrefix(rest, "\r"):
			rest = rest[1:]
		case strings.HasPrefix(rest, "\x1b[J"):
			s.lines, rest = s.lines[:min(s.at, len(s.lines))], rest[3:]
		case up.MatchString(rest):
			m := up.FindStringSubmatch(rest)
			n, err := strconv.Atoi(m[1])
			if err != nil || n > s.at {
				s.t.Errorf("up %s lines from line %d", m[1], s.at)
				return len(p), nil
			}
			s.at, rest = s.at-n, rest[len(m[0]):]
		default:
			line, ok := strings.CutSuffix(text, "\x1b[K")
			if !ok || strings.ContainsAny(line, "\x1b\r") || len([]rune(line)) >= s.width {
				s.t.Errorf("line %q", text)
			}
			if s.at == len(s.lines) {
				s.lines = append(s.lines, "")
			}
			s.lines[s.at] = line
			s.at++
			s.most = max(s.most, len(s.lines)+1)
			rest = after
		}
	}
	return len(p), nil
}

func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.lines, "\n")
}

// TestLive: the list says from the first moment on that something is under way and how
// long that may take, folds what has ended, names what is wrong as it is found, and
// leaves nothing behind.
func TestLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &screen{t: t, width: 80, height: 24}
		l := startLive(s, s.width, s.height, false)
		want := func(text string) {
			t.Helper()
			synctest.Wait()
			if got := s.text(); got != text {
				t.Errorf("the screen shows\n%s\nwant\n%s", got, text)
			}
		}
		want("looking, 28 s at most")
		time.Sleep(3 * time.Second)
		want("looking, 25 s at most")
		end := []doctor.Result{
			yes("device.state", "x"), yes("device.dns"), no("nat.double", "", doctor.Note), without("nat.lifetime", doctor.Yes, ""),
			no("relays.tcp", "at\x1b[2Jtic", doctor.Fault, "refused"),
		}
		for _, r := range end {
			r.State, r.Severity = doctor.Pending, 0
			l.take(r)
		}
		l.take(end[0])
		want(`This device       1 ok, 1 under way
NAT               0 ok, 2 under way
Relays            0 ok, 1 under way

looking, 25 s at most: device.dns, nat.double, nat.lifetime and 1 more`)
		l.take(end[4])
		l.take(end[1])
		l.take(end[2])
		want(`This device       2 ok
NAT               0 ok, 1 note, 1 under way
Relays            0 ok, 1 fault
  fault  relays.tcp at[2Jtic  It is bad at relays.tcp.

looking, 25 s at most: nat.lifetime`)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := s.text(); !strings.HasSuffix(got, "looking, 15 s at most: nat.lifetime") {
			t.Errorf("after ten seconds: %s", got)
		}
		l.take(end[3])
		want(`This device       2 ok
NAT               1 ok, 1 note
Relays            0 ok, 1 fault
  fault  relays.tcp at[2Jtic  It is bad at relays.tcp.

putting it together`)
		l.end()
		want("")
		l.take(end[0]) // too late
		l.end()
		want("")
	})
}

// TestLiveFits: the list has no more lines than the terminal, whatever is found, and on
// what is no terminal it is not there.
func TestLiveFits(t *testing.T) {
	for _, height := range []int{3, 8, 12} {
		synctest.Test(t, func(t *testing.T) {
			s := &screen{t: t, width: 40, height: height}
			l := startLive(s, s.width, s.height, true)
			for _, g := range doctor.Groups() {
				for i := range 5 {
					r := no(doctor.Code(fmt.Sprintf("%s.check%d", g, i)), strings.Repeat("ä", 60), doctor.Fault)
					if i == 0 {
						r.State = doctor.Pending
					}
					l.take(r)
				}
			}
			synctest.Wait()
			if s.most > height {
				t.Errorf("%d lines of %d", s.most, height)
			}
			if got := s.text(); !strings.Contains(got, "looking, ") {
				t.Errorf("%s", got)
			}
			l.end()
		})
	}
	var b bytes.Buffer
	l := newLive(&b, false)
	l.take(yes("device.state"))
	l.end()
	if b.Len() > 0 {
		t.Errorf("%q", b.String())
	}
}
