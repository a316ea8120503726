package chatui

import "strings"

// helpText is what F1 shows: commands come before it.
const helpText = `Keys
  Enter           send; each line of a paste is a message
  Alt-Enter       another line
  Up, Down        what you wrote before
  PgUp, PgDn      scroll; also the mouse wheel
  Home, End       oldest, newest (in an empty input)
  Tab             next conversation with something new
  Ctrl-N, Ctrl-P  next and previous conversation
  Alt-1 to Alt-9  that conversation
  Ctrl-F          search; Up and Down go through what is found
  Alt-A, Alt-D    take or decline the first offered file
  Alt-U           do what the notice above the input offers
  Alt-M           mouse scrolls, or selects text
  Ctrl-R          load everything again
  Ctrl-Z          suspend; Ctrl-C leaves

Marks of your lines
  -   kept on this device, until somebody takes it
  >   handed on, not known to have arrived
  2/5 arrived at 2 of 5
  DELIVERED   arrived at all
  READ  read by all

In the first column
  ~   came late, and stands where it belongs
  --  said by this device: nobody else can write there`

// helpRows returns exactly so many rows of the help.
func (m *model) helpRows(width, height int) []string {
	var all []string
	add := func(text string) {
		body := strings.TrimLeft(text, " ")
		lead := len(text) - len(body)
		for _, s := range m.c.wrap(text, width-1, max(width-1-lead-2, 1)) {
			t := text[s.from:s.to]
			if s.from > 0 {
				t = strings.Repeat(" ", lead+2) + t
			}
			all = append(all, m.c.cut(" "+t, width))
		}
	}
	add("Commands")
	for _, s := range slashes {
		add("  " + m.c.fit("/"+s.name+" "+s.args, 16) + s.what)
	}
	add("")
	text := strings.NewReplacer("DELIVERED", m.c.fit(m.s.delivered, 2), "READ", m.c.fit(m.s.read, 2)).Replace(helpText)
	for line := range strings.SplitSeq(text, "\n") {
		add(line)
	}
	m.helpTop = max(min(m.helpTop, len(all)-height), 0)
	all = all[min(m.helpTop, len(all)):]
	out := make([]string, height)
	copy(out, all)
	return out
}
