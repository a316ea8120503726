package chatui

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"
)

// Options say how and where to show. The zero value is standard input and output.
type Options struct {
	In    io.Reader      // nil is standard input
	Out   io.Writer      // nil is standard output
	Env   []string       // nil is the environment of the process
	Start string         // id of the conversation that is shown first; empty is the first
	Zone  *time.Location // nil is local time
	// NoColor is that colours are not wanted; so does NO_COLOR. Bold and reverse
	// stay, unless TERM is dumb.
	NoColor bool
	// ASCII is that the terminal shows no other characters; so does a locale
	// without UTF-8. It is about the program's own signs.
	ASCII bool
}

// newModel makes the model for options.
func newModel(b Backend, o Options, run func(func(context.Context) tea.Msg) tea.Cmd) *model {
	env := func(name string) string {
		value := ""
		for _, e := range o.Env {
			if v, ok := strings.CutPrefix(e, name+"="); ok {
				value = v
			}
		}
		return value
	}
	dumb := env("TERM") == "dumb"
	if o.Zone == nil {
		o.Zone = time.Local
	}
	return &model{
		s: newSigns(o.ASCII || dumb || !utf8Locale(env), !dumb, !o.NoColor && env("NO_COLOR") == ""),
		w: 80, h: 24, start: o.Start, zone: o.Zone,
		moved: make(map[string]Transfer), status: make(map[string]Status), wraps: make(map[wrapKey][]span),
		commands: commands{backend: b, run: run},
	}
}

// utf8Locale reports whether the environment says that the terminal shows UTF-8. One
// that says nothing does: so it is where there are no locales.
func utf8Locale(env func(string) string) bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := strings.ToLower(env(name)); v != "" {
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return true
}

// A program is the model as bubbletea runs it.
type program struct {
	*model
	quiet *quiet
	tea   *tea.Program
}

func (p *program) Init() tea.Cmd { return p.init() }

func (p *program) View() tea.View { return p.view() }

func (p *program) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	p.quiet.stir(p.tea)
	if r, ok := msg.(tea.ModeReportMsg); ok && r.Mode == ansi.ModeUnicodeCore {
		on := r.Value == ansi.ModeReset || r.Value == ansi.ModeSet || r.Value == ansi.ModePermanentlySet
		msg = joinedMsg(on)
	}
	return p, p.update(msg)
}

// Run shows the chat until the user leaves (nil), or the context ends. It returns when
// the terminal is as it was and everything that it started has ended. It errs when the
// terminal cannot be used, when the context ends, or after a failure of the program
// itself.
func Run(ctx context.Context, b Backend, o Options) error {
	if o.In == nil {
		o.In = os.Stdin
	}
	if o.Out == nil {
		o.Out = os.Stdout
	}
	if o.Env == nil {
		o.Env = os.Environ()
	}
	inner, cancel := context.WithCancel(ctx)
	calls := &calls{}
	defer calls.wait()
	defer cancel()
	run := func(f func(context.Context) tea.Msg) tea.Cmd {
		return func() tea.Msg {
			if !calls.begin() {
				return nil
			}
			defer calls.running.Done()
			return f(inner)
		}
	}
	p := &program{model: newModel(b, o, run), quiet: &quiet{}}
	defer p.quiet.end()
	p.tea = tea.NewProgram(p,
		tea.WithContext(inner), tea.WithInput(o.In), tea.WithOutput(p.quiet.output(o.Out)),
		tea.WithEnvironment(o.Env), tea.WithoutSignalHandler())
	switch _, err := p.tea.Run(); {
	case ctx.Err() != nil:
		return fmt.Errorf("chatui: %w", ctx.Err())
	case errors.Is(err, tea.ErrProgramPanic):
		return errors.New("chatui: a failure of the program; the terminal was restored")
	case err != nil:
		return fmt.Errorf("chatui: use the terminal: %w", err)
	}
	return nil
}

// calls are the commands that run. None begins after the program has ended.
type calls struct {
	mu      sync.Mutex
	ended   bool
	running sync.WaitGroup
}

func (c *calls) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return false
	}
	c.running.Add(1)
	return true
}

func (c *calls) wait() {
	c.mu.Lock()
	c.ended = true
	c.mu.Unlock()
	c.running.Wait()
}
