package chatui

import (
	"io"
	"reflect"
	"sync"
	"time"
	"unsafe"

	tea "charm.land/bubbletea/v2"
)

// Bubbletea looks 60 times a second whether there is something to draw, also when
// nothing happens for hours. That is 0.6 % of a core (measured) and a processor that
// never sleeps. It has no option for that, so its ticker is stopped from here when
// nothing has happened for a while, and started again before anything is drawn.
const (
	frame      = time.Second / 60
	quietAfter = 400 * time.Millisecond
)

// quiet stops the ticker of a program while nothing happens.
type quiet struct {
	mu      sync.Mutex
	ticker  *time.Ticker // nil: not there yet, or this bubbletea has another
	timer   *time.Timer
	last    time.Time // when something happened, or was drawn
	writing int       // what is drawn is on its way
	armed   bool
}

// find takes the ticker out of a program, which has it once it runs. A bubbletea that
// keeps it elsewhere goes on ticking; the tests notice.
func (q *quiet) find(p *tea.Program) {
	if q.ticker != nil || p == nil {
		return
	}
	f := reflect.ValueOf(p).Elem().FieldByName("ticker")
	if f.IsValid() && f.Type() == reflect.TypeFor[*time.Ticker]() {
		q.ticker = *(**time.Ticker)(unsafe.Pointer(f.UnsafeAddr()))
	}
}

// stir lets the ticker run: something is to be drawn. It is called by the program's own
// goroutine, which also makes the ticker.
func (q *quiet) stir(p *tea.Program) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.find(p); q.ticker == nil {
		return
	}
	q.last = time.Now()
	if q.armed {
		return
	}
	q.armed = true
	q.ticker.Reset(frame)
	if q.timer == nil {
		q.timer = time.AfterFunc(quietAfter, q.settle)
		return
	}
	q.timer.Reset(quietAfter)
}

// settle stops the ticker, unless something has happened or is still being drawn.
func (q *quiet) settle() {
	q.mu.Lock()
	defer q.mu.Unlock()
	left := quietAfter - time.Since(q.last)
	if q.writing > 0 {
		left = quietAfter
	}
	if left > 0 {
		q.timer.Reset(left)
		return
	}
	q.armed = false
	q.ticker.Stop()
}

// end stops the timer for good.
func (q *quiet) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.timer != nil {
		q.timer.Stop()
	}
}

// writes counts what is being written: a slow terminal keeps the ticker running.
func (q *quiet) writes(by int) {
	q.mu.Lock()
	q.writing += by
	q.last = time.Now()
	q.mu.Unlock()
}

// output is where is drawn, in the kind that it has: a terminal stays one.
func (q *quiet) output(w io.Writer) io.Writer {
	if f, ok := w.(file); ok {
		return quietFile{f, q}
	}
	return quietWriter{w, q}
}

// A file is what bubbletea may take for a terminal.
type file interface {
	io.ReadWriteCloser
	Fd() uintptr
}

type quietFile struct {
	file
	q *quiet
}

func (f quietFile) Write(p []byte) (int, error) {
	f.q.writes(1)
	defer f.q.writes(-1)
	return f.file.Write(p)
}

type quietWriter struct {
	io.Writer
	q *quiet
}

func (w quietWriter) Write(p []byte) (int, error) {
	w.q.writes(1)
	defer w.q.writes(-1)
	return w.Writer.Write(p)
}
