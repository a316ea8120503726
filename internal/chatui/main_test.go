package chatui

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// demoEnv makes the test binary the chat itself, with a fake backend: what the tests
// with a real terminal start.
const demoEnv = "KITH_CHATUI_DEMO"

func TestMain(m *testing.M) {
	if mode := os.Getenv(demoEnv); mode != "" {
		os.Exit(runDemo(mode))
	}
	goleak.VerifyTestMain(m)
}

func runDemo(mode string) int {
	f := demo()
	var b Backend = echoing{f}
	switch mode {
	case "panic":
		b = panicking{f}
	case "update":
		b = failing{f}
	case "long":
		for i := range 5000 {
			f.add("c1", "aa11", fmt.Sprintf("old line %d", i))
		}
	}
	err := Run(context.Background(), b, Options{Zone: time.UTC})
	fmt.Println("left:", err)
	if err != nil {
		return 1
	}
	return 0
}

// echoing answers what is sent, and tells the events of the demo.
type echoing struct{ *fake }

func (e echoing) Events(ctx context.Context) (<-chan Event, error) {
	ch, err := e.fake.Events(ctx)
	for _, ev := range e.say() {
		e.tell(ev)
	}
	return ch, err
}

func (e echoing) Send(ctx context.Context, conv, text string) (Message, error) {
	m, err := e.fake.Send(ctx, conv, text)
	if err != nil {
		return m, err
	}
	m = e.mark(m, StateDelivered, 1, 0)
	e.tell(Event{Kind: EventMessage, Message: &m})
	if rest, ok := strings.CutPrefix(text, "echo "); ok {
		r := e.add(conv, "aa11", rest)
		e.tell(Event{Kind: EventMessage, Message: &r})
		e.tell(e.unread(conv))
	}
	if text == "pair" {
		e.tell(Event{Kind: EventNotice, Notice: &Notice{
			Time: began.Add(24 * time.Hour), Text: "a new pairing on desk: tablet", Action: &Action{ID: "undo1", Label: "undo the pairing"},
		}})
	}
	return m, nil
}

type panicking struct{ *fake }

func (panicking) Send(context.Context, string, string) (Message, error) { panic("on purpose") }

// failing gives the model what it has no plan for.
type failing struct{ *fake }

func (failing) Convs(context.Context) ([]Conv, error) { return nil, wrong{} }

type wrong struct{}

func (wrong) Error() string { panic("an error that panics") }
