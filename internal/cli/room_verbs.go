package cli

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/internal/control"
)

func (e *env) roomShowCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "show ROOM", Short: "Show who is in a room, and who asks to be let in", Args: exactArgs(1),
		Long: "Show who is in a room, who asks to be let in, and what this device shares with it.\nA member is called NAME@ROOM in other commands: kith ping, send and forward.\n" + exitHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := e.room(cmd.Context(), control.RoomRequest{Verb: control.RoomShow, Room: args[0]})
			if err != nil {
				return err
			}
			if asJSON {
				return e.printJSON(r.Room)
			}
			return e.showRoom(*r.Room)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	return cmd
}

func (e *env) showRoom(r kith.Room) error {
	fmt.Fprintf(e.out, "room %s, id %s, admits: %s\n", r.Name, r.ID.String()[:8], r.Mode)
	w := tabwriter.NewWriter(e.out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "#\tMEMBER\tID\tADDRESS\tSTATE")
	for _, m := range r.Members {
		state := "away"
		switch {
		case m.Self:
			state = "this device"
		case m.Direct:
			state = "connected"
		case m.Online:
			state = "by way of others"
		}
		if m.Host {
			state += ", host"
		}
		if m.Paired {
			state += ", paired"
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", m.Number, m.Name, m.ID.Short(), m.Addr, state)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, g := range r.Waiting {
		fmt.Fprintf(e.out, "%q (%s) asks to be let in: kith room approve %s %s\n", g.Name, g.ID.Short(), r.Name, g.ID.Short())
	}
	if ports := portsOf(r.TCP, r.UDP); ports != "" {
		fmt.Fprintln(e.out, "shared with the room from this device:", ports)
	}
	if len(r.Banned) > 0 {
		fmt.Fprintln(e.out, "banned:", strings.Join(shortened(r.Banned), ", "))
	}
	return nil
}

func portsOf(tcp, udp []uint16) string {
	var out []string
	for _, p := range tcp {
		out = append(out, control.Port{Network: "tcp", Number: p}.String())
	}
	for _, p := range udp {
		out = append(out, control.Port{Network: "udp", Number: p}.String())
	}
	return strings.Join(out, ", ")
}

func shortened(ids []string) []string {
	out := make([]string, 0, len(ids))
	for _, id := range ids {
		out = append(out, id[:min(len(id), 8)])
	}
	return out
}

// roomVerbs are the commands that change a room and say so in one line.
func (e *env) roomVerbs() []*cobra.Command {
	verb := func(use, short, long, done string, args int, make func(args []string) (control.RoomRequest, error)) *cobra.Command {
		cmd := &cobra.Command{Use: use, Short: short, Args: exactArgs(args), Long: long + "\n" + exitHelp}
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			q, err := make(args)
			if err != nil {
				return err
			}
			q.Off, _ = cmd.Flags().GetBool("off") // false for those that have no such flag
			r, err := e.room(cmd.Context(), q)
			if err != nil {
				return err
			}
			if q.Off {
				_, err = fmt.Fprintf(e.out, "Taken back in room %s.\n", r.Room.Name)
				return err
			}
			fmt.Fprintf(e.out, done+"\n", r.Room.Name)
			if q.Verb == control.RoomLeave && !r.Told {
				fmt.Fprintln(e.err, "No host of it is connected: it lists this device until a host puts it out.")
			}
			return nil
		}
		return cmd
	}
	of := func(v string) func([]string) (control.RoomRequest, error) {
		return func(args []string) (control.RoomRequest, error) {
			q := control.RoomRequest{Verb: v, Room: args[0]}
			if len(args) > 1 {
				q.Member, q.Name, q.Mode = args[1], args[1], args[1]
			}
			return q, nil
		}
	}
	off := func(cmd *cobra.Command, what string) *cobra.Command {
		cmd.Flags().Bool("off", false, what)
		return cmd
	}
	return []*cobra.Command{
		verb("approve ROOM DEVICE", "Let a device in that asks", "Let a device in that asks to be let into a room, by its name or the start of its ID.", "It is in the room %s.", 2, of(control.RoomApprove)),
		verb("decline ROOM DEVICE", "Do not let a device in that asks", "Decline a device that asks to be let into a room; it is not asked about again for ten minutes.", "It is not let into the room %s.", 2, of(control.RoomDecline)),
		verb("kick ROOM MEMBER", "Put a member out of a room", "Put a member out of a room, at once on all members. It may ask to be let in again; a\nroom that admitted whoever has the code asks you about each from then on. A host can\ndo this.", "It is out of the room %s.", 2, of(control.RoomKick)),
		off(verb("ban ROOM MEMBER", "Put a member out of a room for good", "Put a member out of a room and refuse its device from then on. With --off, by the\nstart of its ID, it may ask again.", "It is banned from the room %s.", 2, of(control.RoomBan)), "let it ask again"),
		verb("leave ROOM", "Leave a room", "Leave a room, or forget one that is closed. The founder can only close it.", "This device is not in the room %s any more.", 1, of(control.RoomLeave)),
		verb("close ROOM", "End a room for all its members", "End a room for all its members. Only a host can.", "The room %s is closed.", 1, of(control.RoomClose)),
		verb("rename ROOM NAME", "Give a room another name", "Give a room another name, on all its members. A host can do this.", "The room is called %s.", 2, of(control.RoomRename)),
		verb("admit ROOM WHOM", "Say whom a room lets in", "Say whom a room lets in from now on: approve, password, list or open.", "The room %s has changed whom it lets in.", 2, of(control.RoomAdmit)),
		off(verb("host ROOM MEMBER", "Make a member a host, too", "Make a member a host, too: it lets others in and puts members out, also while this\ndevice is away. Only the founder names hosts, for 90 days at a time.", "It is a host of the room %s.", 2, of(control.RoomHost)), "take it back"),
		off(verb("share ROOM PORT[/udp]", "Let the members of a room reach a port of this machine", "Let every member of a room reach a port of this machine's localhost, such as a web\nserver: they run kith forward 8080 NAME@ROOM:PORT.", "Every member of the room %s may reach it.", 2,
			func(args []string) (control.RoomRequest, error) {
				number, network, named := strings.Cut(args[1], "/")
				if !named {
					network = "tcp"
				}
				port, err := parsePort(number)
				if err == nil && network != "tcp" && network != "udp" {
					err = usage(fmt.Sprintf("%q is not a port", args[1]), "a port is a number from 1 to 65535; 53/udp is one of UDP")
				}
				return control.RoomRequest{Verb: control.RoomShare, Room: args[0], Port: control.Port{Network: network, Number: port}}, err
			}), "share it no longer"),
	}
}

// roomEvent says in one line what happened in a room.
func roomEvent(ev kith.Event) string {
	r := ev.Room
	switch ev.Kind {
	case kith.EventRoomAsked:
		line := fmt.Sprintf("room %s: %q asks to be let in", r.Name, ev.Detail)
		if ev.Subject != "" {
			line += fmt.Sprintf(": kith room approve %s %s", r.Name, shortened([]string{ev.Subject})[0])
		}
		return line
	case kith.EventRoomGuess:
		return fmt.Sprintf("room %s: %s", r.Name, ev.Detail)
	case kith.EventRoomLeft:
		return fmt.Sprintf("room %s: this device is not in it any more: %s", r.Name, ev.Detail)
	}
	online := 0
	for _, m := range r.Members {
		if m.Online {
			online++
		}
	}
	return fmt.Sprintf("room %s: %d members, %d online", r.Name, len(r.Members), online)
}
