package chatui

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime/debug"
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
	// without UTF-8, and the console of Linux, whose font lacks them. It is about the
	// program's own signs.
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
		s: newSigns(o.ASCII || dumb || env("TERM") == "linux" || !utf8Locale(env), !dumb, !o.NoColor && env("NO_COLOR") == ""),
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
	crash crash
	last  tea.View
}

func (p *program) Init() tea.Cmd { return p.init() }

func (p *program) View() (v tea.View) {
	defer func() {
		if r := recover(); r != nil {
			p.crash.caught(r)
			v = p.last
			go p.tea.Quit() // this is the loop that takes it; it ends with the loop
		}
	}()
	p.last = p.view()
	return p.last
}

func (p *program) Update(msg tea.Msg) (same tea.Model, cmd tea.Cmd) {
	defer func() {
		if r := recover(); r != nil {
			p.crash.caught(r)
			same, cmd = p, tea.Quit
		}
	}()
	p.quiet.stir(p.tea)
	if r, ok := msg.(tea.ModeReportMsg); ok && r.Mode == ansi.ModeUnicodeCore {
		on := r.Value == ansi.ModeReset || r.Value == ansi.ModeSet || r.Value == ansi.ModePermanentlySet
		msg = joinedMsg(on)
	}
	return p, p.update(msg)
}

// A Crash is the error of Run when the program itself, or the Backend, has panicked.
type Crash struct {
	Value any    // of the panic
	Stack []byte // where it was
}

func (c *Crash) Error() string {
	return fmt.Sprintf("chatui: a failure of the program: %v", c.Value)
}

// crash keeps the first panic: the terminal is restored as at any other end.
type crash struct {
	mu    sync.Mutex
	first *Crash
}

func (c *crash) caught(value any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first == nil {
		c.first = &Crash{value, debug.Stack()}
	}
}

// Run shows the chat until the user leaves (nil), or the context ends. It returns when
// the terminal is as it was and everything that it started has ended. It errs when the
// terminal cannot be used, when the context ends, or with a *Crash after a failure of
// the program itself.
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
	p := &program{quiet: &quiet{}}
	defer p.quiet.end()
	p.model = newModel(b, o, func(f func(context.Context) tea.Msg) tea.Cmd {
		return func() (msg tea.Msg) {
			if !calls.begin() {
				return nil
			}
			defer calls.running.Done()
			defer func() {
				if r := recover(); r != nil {
					p.crash.caught(r)
					msg = tea.QuitMsg{}
				}
			}()
			return f(inner)
		}
	})
	p.tea = tea.NewProgram(p, tea.WithInput(o.In), tea.WithOutput(p.quiet.output(o.Out)),
		tea.WithEnvironment(o.Env), tea.WithoutSignalHandler())
	// Bubbletea's own way to end with a context leaves its reader of the input behind.
	defer context.AfterFunc(ctx, p.tea.Quit)()
	_, err := p.tea.Run()
	p.crash.mu.Lock()
	defer p.crash.mu.Unlock()
	switch {
	case p.crash.first != nil:
		return p.crash.first
	case ctx.Err() != nil:
		return fmt.Errorf("chatui: %w", ctx.Err())
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
