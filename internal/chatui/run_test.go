package chatui

import (
	"context"
	"errors"
	"io"
	"os"
	"reflect"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
)

// blocked is a backend whose Events never come and whose Convs never answer.
type blocked struct{ *fake }

func (blocked) Convs(ctx context.Context) ([]Conv, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func pipe(t *testing.T) (*os.File, *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close(); _ = w.Close() })
	return r, w
}

func TestRun(t *testing.T) {
	for name, tc := range map[string]struct {
		backend Backend
		keys    string
		cancel  bool
	}{
		"leaves":                    {demo(), "\x03", false},
		"the context ends":          {demo(), "", true},
		"nothing answers":           {blocked{demo()}, "\x03", false},
		"the context ends, nothing": {blocked{demo()}, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			in, keys := pipe(t)
			out := io.Discard
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() {
				ended <- Run(ctx, tc.backend, Options{In: in, Out: out, Env: []string{"TERM=xterm", "LANG=C"}, Zone: time.UTC})
			}()
			// Without a terminal there is no size: bubbletea draws nothing until
			// it is told one, so what is awaited is the end.
			if tc.cancel {
				cancel()
			}
			if _, err := io.WriteString(keys, tc.keys); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-ended:
				if tc.cancel != errors.Is(err, context.Canceled) || !tc.cancel && err != nil {
					t.Errorf("ended with %v", err)
				}
			case <-time.After(30 * time.Second):
				t.Fatal("it does not end")
			}
		})
	}
}

func TestCrashes(t *testing.T) {
	for name, b := range map[string]Backend{"in an update": failing{demo()}, "in a command": crashing{demo()}} {
		in, _ := pipe(t)
		err := Run(t.Context(), b, Options{In: in, Out: io.Discard, Env: []string{"TERM=xterm"}})
		var crash *Crash
		if !errors.As(err, &crash) || len(crash.Stack) == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	p := &program{quiet: &quiet{}} // without a model
	p.tea = tea.NewProgram(p, tea.WithInput(nil), tea.WithOutput(io.Discard))
	if p.View(); p.crash.first == nil {
		t.Error("a view that fails is not caught")
	}
	p.tea.Kill()
}

type crashing struct{ *fake }

func (crashing) Events(context.Context) (<-chan Event, error) { panic("on purpose") }

// TestQuietFindsTheTicker notices a bubbletea that keeps its ticker elsewhere, also
// where no terminal is at hand to measure.
func TestQuietFindsTheTicker(t *testing.T) {
	p := tea.NewProgram(&program{}, tea.WithInput(nil), tea.WithOutput(io.Discard))
	defer p.Kill()
	f, ok := reflect.TypeOf(p).Elem().FieldByName("ticker")
	if !ok || f.Type != reflect.TypeFor[*time.Ticker]() {
		t.Error("bubbletea's ticker is not where it was: the chat wakes up 60 times a second")
	}
}
