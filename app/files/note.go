package files

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// A Problem says why a file, folder or symlink did not arrive as it was.
type Problem uint8

// Problems of one name of a transfer.
const (
	ProblemSpecial Problem = iota + 1 // a device, pipe or socket
	ProblemLink                       // a symlink that leads out of what is sent, or cannot be made there
	ProblemChanged                    // the file changed while it was sent
	ProblemRead                       // the sender could not read it
	ProblemWrite                      // the receiver could not write it
	ProblemName                       // a path that is too long or too deep
	ProblemTwice                      // a name that came twice
	ProblemVerify                     // the digest of the whole file was wrong, twice
	ProblemRenamed                    // the receiver had to change a name
)

// String says it in words.
func (p Problem) String() string {
	switch p {
	case ProblemSpecial:
		return "is not a file, folder or symlink; skipped"
	case ProblemLink:
		return "is a symlink that leads out of what is sent; skipped"
	case ProblemChanged:
		return "changed while it was sent; send it again"
	case ProblemRead:
		return "could not be read"
	case ProblemWrite:
		return "could not be written there"
	case ProblemName:
		return "has a path that is too long; skipped"
	case ProblemTwice:
		return "has the name of another; skipped"
	case ProblemVerify:
		return "was not the same there as here; send it again"
	case ProblemRenamed:
		return "got another name, as not every system can hold its own"
	}
	return "had an unknown problem"
}

// A Note is about one name of a transfer. Detail is the system's own message, if
// there is one.
type Note struct {
	Path    string
	Problem Problem
	Detail  string
}

// String is the note as one line, safe to be shown.
func (n Note) String() string {
	if n.Detail == "" {
		return ShowName(n.Path) + " " + n.Problem.String()
	}
	return ShowName(n.Path) + " " + n.Problem.String() + ": " + ShowName(n.Detail)
}

// maxNotes is how many notes a transfer keeps; more are only counted.
const maxNotes = 200

// detail is the system's message without the path, which the note has.
func detail(err error) string { return plainError(err).Error() }

// plainError takes the path away from an error of package os.
func plainError(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	var l *os.LinkError
	if errors.As(err, &l) {
		return l.Err
	}
	return err
}

// Errors of a transfer that a caller can tell apart.
var (
	// ErrDeclined reports that the other side said no.
	ErrDeclined = errors.New("files: the other device declined")
	// ErrDiskFull reports that the receiver has no space. What arrived is kept:
	// sending again goes on where it stopped.
	ErrDiskFull = errors.New("files: the disk of the receiver is full; make room there and send again, it goes on where it stopped")
	// ErrLimit reports more files or bytes than were offered or are allowed.
	ErrLimit = errors.New("files: more than the receiver allows")
	// ErrWithdrawn reports that a right to the transfer was withdrawn while it ran.
	ErrWithdrawn = errors.New("files: the other device has withdrawn the right to this")
	// ErrCancelled reports that the transfer was ended by a person on the other side.
	ErrCancelled = errors.New("files: cancelled by the other device")
	// ErrBusy reports that the other device has too many offers waiting already.
	ErrBusy = errors.New("files: too many offers wait at the other device already")
	// ErrNotShared reports a path that the other device does not share.
	ErrNotShared = errors.New("files: the other device does not share this")
	// ErrNoConnection reports that there was no connection for as long as was to be waited.
	ErrNoConnection = errors.New("files: no connection to the other device")
	// ErrProtocol reports a peer that breaks the protocol.
	ErrProtocol = errors.New("files: the other device does not keep to the protocol")
)

// A reason is an error that goes over the wire.
type reason uint8

const (
	reasonNone reason = iota
	reasonDeclined
	reasonDiskFull
	reasonLimit
	reasonCancelled
	reasonBusy
	reasonNotShared
	reasonProtocol
	reasonFailed
	reasonWithdrawn
)

func reasons() map[reason]error {
	return map[reason]error{
		reasonDeclined: ErrDeclined, reasonDiskFull: ErrDiskFull, reasonLimit: ErrLimit, reasonCancelled: ErrCancelled,
		reasonWithdrawn: ErrWithdrawn, reasonBusy: ErrBusy, reasonNotShared: ErrNotShared, reasonProtocol: ErrProtocol,
	}
}

func reasonOf(err error) reason {
	for r, e := range reasons() {
		if errors.Is(err, e) {
			return r
		}
	}
	return reasonFailed
}

// A hereError is one of reasons that has its cause on this device: it is told to the
// other one as what it wraps, and here in its own words.
type hereError struct {
	err  error
	text string
}

func (e *hereError) Error() string { return e.text }
func (e *hereError) Unwrap() error { return e.err }

func cancelledHere() error {
	return &hereError{ErrCancelled, "files: cancelled on this device"}
}

func withdrawnHere() error {
	return &hereError{ErrWithdrawn, "files: the right to this was withdrawn on this device"}
}

// A remoteError is a final answer of the other side: trying again does not help.
type remoteError struct {
	reason reason
	text   string
}

func (e *remoteError) Error() string {
	if err := reasons()[e.reason]; err != nil {
		if e.text == "" {
			return err.Error()
		}
		return err.Error() + ": " + ShowName(e.text)
	}
	return fmt.Sprintf("files: the other device: %s", ShowName(e.text))
}

func (e *remoteError) Unwrap() error { return reasons()[e.reason] }
