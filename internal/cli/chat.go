package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/internal/control"
)

func (e *env) chatCommand() *cobra.Command {
	var (
		asJSON bool
		wait   time.Duration
		stay   bool
		via    string
	)
	cmd := &cobra.Command{
		Use:   "chat DEVICE",
		Short: "Exchange lines of text with a device",
		Long: `Exchange lines of text with a device. Each line of standard input is sent; each
line that comes is printed, those first that came while nobody read. A line counts
as sent when the other device has it.

On a terminal it ends with Ctrl-D. When standard input is not a terminal it ends
at the end of the input, unless --stay is given.

With --via multicast lines go by multicast of this network segment alone, with no
connection between the two: also where the network lets no unicast through. Devices
that are not on the segment are not reached. Lines that come are shown whichever way
they took.
` + exitHelp,
		Example: "  kith chat laptop\n  echo done | kith chat laptop\n  kith chat --via multicast laptop",
		Args:    exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch via {
			case "tunnel":
				via = ""
			case kith.ViaMulticast:
				if !cmd.Flags().Changed("wait") {
					wait = multicastWait
				}
			default:
				return usage(fmt.Sprintf("--via takes tunnel or multicast, not %q", via), "kith chat --help")
			}
			return e.chat(cmd.Context(), control.Request{Op: control.OpChat, Device: args[0], Wait: wait, Via: via}, asJSON, stay)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object per line, sent and received")
	cmd.Flags().BoolVar(&stay, "stay", false, "go on receiving at the end of the input, until interrupted")
	cmd.Flags().DurationVar(&wait, "wait", 15*time.Second, "how `long` to wait for the device when sending; 10s by multicast, unless given")
	cmd.Flags().StringVar(&via, "via", "tunnel", "the `way` that lines are sent: tunnel or multicast")
	return cmd
}

// multicastWait is how long a line by multicast may take to be acknowledged. It is
// one network segment: what is there answers in milliseconds, or after some losses.
const multicastWait = 10 * time.Second

func (e *env) chat(ctx context.Context, req control.Request, asJSON, stay bool) error {
	call, end, err := e.call(ctx, req)
	if err != nil {
		return err
	}
	defer end()
	first, err := call.Next()
	if err != nil {
		return err
	}
	name := first.Device.Name
	if e.onTerminal() {
		fmt.Fprintf(e.err, "Chat with %s. Ctrl-D ends it.\n", name)
	}
	answered := make(chan error) // one per line that was sent
	var wg sync.WaitGroup
	defer wg.Wait()
	defer call.Close()
	wg.Go(func() {
		defer close(answered)
		for e.chatReply(call, name, asJSON, answered) {
		}
	})
	return e.sendLines(ctx, call, answered, stay)
}

// chatReply shows one reply and reports whether another may come.
func (e *env) chatReply(call *control.Call, name string, asJSON bool, answered chan<- error) bool {
	r, err := call.Next()
	var refused *control.Error
	switch {
	case errors.As(err, &refused):
		answered <- refused
	case err != nil:
		return false
	case r.Done:
		return false
	case r.Chat == nil:
	case asJSON:
		_ = e.printJSON(r.Chat)
		if r.Chat.Mine {
			answered <- nil
		}
	case r.Chat.Mine:
		answered <- nil
	default:
		fmt.Fprintf(e.out, "%s %s: %s\n", r.Chat.Time.Local().Format("15:04"), name, r.Chat.Text)
	}
	return true
}

func (e *env) sendLines(ctx context.Context, call *control.Call, answered <-chan error, stay bool) error {
	in := newLines(e.in)
	var last error
	for {
		text, err := in.next(ctx)
		switch {
		case errors.Is(err, io.EOF) && stay:
			<-ctx.Done()
			return last
		case errors.Is(err, io.EOF):
			if err := call.Send(control.Input{Cancel: true}); err != nil {
				return err
			}
			for range answered { // until all that waited has been shown
			}
			return last
		case err != nil:
			return nil //nolint:nilerr // interrupted: the ordinary end
		}
		if err := call.Send(control.Input{Text: text}); err != nil {
			return err
		}
		err, ok := <-answered
		if !ok {
			return errors.New("the daemon ended the chat")
		}
		last = err
		if err != nil && e.onTerminal() { // a person can try again
			fmt.Fprintf(e.err, "not sent: %v\n", err)
			last = nil
		} else if err != nil {
			return err
		}
	}
}
