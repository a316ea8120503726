package signaling

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"
)

const (
	// MaxQuestion is the longest body of a question and of an answer, in bytes.
	MaxQuestion = 900

	// Answers is the bit of Presence.Capabilities that says: this device answers questions.
	Answers uint64 = 1 << 0

	questionGap = time.Second // least time between two questions that are taken
)

// ErrQuestionSize reports a question or an answer that is empty or over MaxQuestion.
var ErrQuestionSize = errors.New("signaling: a question and an answer are 1 to 900 bytes")

// questions is the part of the core that carries questions, one at a time each way.
type questions struct {
	last uint64       // number of the newest question of ours
	out  *outQuestion // which is not answered yet; nil: none

	taken  uint64    // number of the other run's newest question that was taken
	at     time.Time // when that was, of whatever run
	answer []byte    // to it; nil: there is none yet
	said   time.Time // when an answer was sent last
	stale  time.Time // when an unproved question was answered last
}

// An outQuestion is a question on its way.
type outQuestion struct {
	outNote
	answer []byte // set before done is closed
}

// An Asked is a question of the other device.
type Asked struct {
	Body   []byte
	boot   BootID
	number uint64
}

// ask begins to send a question in place of any earlier one.
func (c *core) ask(now time.Time, body []byte) *outQuestion {
	c.questions.last++
	q := &outQuestion{outNote: outNote{id: c.questions.last, body: slices.Clone(body), wait: firstWait, at: now, done: make(chan struct{})}}
	c.questions.out = q
	return q
}

// dropQuestion gives a question up. What says where this device is, is said again:
// a medium that keeps one message has kept the question.
func (c *core) dropQuestion(now time.Time, q *outQuestion) {
	if c.questions.out == q {
		c.questions.out = nil
	}
	c.wake(now)
}

// question is the next message with the question that is on its way.
func (c *core) question() message {
	return c.outgoing(frameQuestion, &c.questions.out.outNote)
}

// answer is the message with the answer to the question that was taken last, or, if
// number is 0, the one that tells a run of the other side who runs here.
func (c *core) answer(to BootID, number uint64) message {
	c.counter++
	m := message{typ: frameAnswer, boot: c.self, counter: c.counter, echo: to, note: number}
	if number != 0 {
		m.body = c.questions.answer
	}
	return m
}

// receiveQuestion takes a question.
func (c *core) receiveQuestion(now time.Time, m message) outcome {
	q := &c.questions
	if m.echo != c.self {
		// As with a note: the answer proves who runs here, and changes nothing.
		if m.stored || now.Sub(q.stale).Abs() < staleGap {
			return outcome{}
		}
		q.stale = now
		return outcome{tell: m.boot}
	}
	if !c.proved(m) {
		return outcome{}
	}
	switch {
	case m.note < q.taken:
		return outcome{}
	case m.note == q.taken: // the answer was lost, or is not there yet
		return outcome{again: q.answer != nil && now.Sub(q.said).Abs() >= answerGap}
	case now.Sub(q.at).Abs() < questionGap:
		return outcome{}
	}
	return outcome{asked: &Asked{Body: m.body, boot: m.boot, number: m.note}}
}

// questionTaken notes that somebody looks for an answer.
func (c *core) questionTaken(now time.Time, a Asked) {
	c.questions.taken, c.questions.at, c.questions.answer = a.number, now, nil
}

// answered takes the answer to a question that was taken; false: nobody waits for it.
func (c *core) answerReady(a Asked, body []byte) bool {
	q := &c.questions
	if a.boot != c.peer || a.number != q.taken || q.answer != nil {
		return false
	}
	q.answer = slices.Clone(body)
	return true
}

// receiveAnswer takes an answer.
func (c *core) receiveAnswer(now time.Time, m message) outcome {
	if m.echo != c.self || !c.proved(m) {
		return outcome{}
	}
	q := c.questions.out
	switch {
	case q == nil:
	case m.note == q.id:
		c.questions.out = nil
		q.answer = m.body
		close(q.done)
	case q.echo != c.peer: // it went to a run that is over or was not known
		q.at = now
	}
	return outcome{}
}

// Ask sends a question to the other device on all media: at once, and again after
// 250 ms, each time 1.6 times as long up to 5 s, until its answer has come, which Ask
// returns. Questions of one Channel go one after the other. The other device takes one
// a second; one that takes none (Presence.Capabilities has no Answers) is silent.
//
// It errs with ErrQuestionSize, with net.ErrClosed after Close, and with the context's
// error if no answer came; the other device may have taken the question then.
func (c *Channel) Ask(ctx context.Context, body []byte) ([]byte, error) {
	if len(body) == 0 || len(body) > MaxQuestion {
		return nil, ErrQuestionSize
	}
	select {
	case c.asking <- struct{}{}:
		defer func() { <-c.asking }()
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.done:
		return nil, fmt.Errorf("signaling: ask: %w", net.ErrClosed)
	}
	started := make(chan *outQuestion, 1)
	c.call(func(now time.Time) { started <- c.core.ask(now, body) })
	var q *outQuestion
	select {
	case q = <-started:
	case <-c.done:
		return nil, fmt.Errorf("signaling: ask: %w", net.ErrClosed)
	}
	defer c.call(func(now time.Time) { c.core.dropQuestion(now, q) })
	select {
	case <-q.done:
		return q.answer, nil
	case <-c.done:
		return nil, fmt.Errorf("signaling: ask: %w", net.ErrClosed)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Answer answers a question that Config.TakeQuestion took. An answer to a question that
// is not the newest, or of a run that is over, goes nowhere. It errs with ErrQuestionSize.
func (c *Channel) Answer(a Asked, body []byte) error {
	if len(body) == 0 || len(body) > MaxQuestion {
		return ErrQuestionSize
	}
	c.call(func(now time.Time) {
		if c.core.answerReady(a, body) {
			c.say(now, a.boot, a.number)
		}
	})
	return nil
}

// say sends an answer.
func (c *Channel) say(now time.Time, to BootID, number uint64) {
	c.core.questions.said = now
	c.send(c.core.answer(to, number))
}

// takeQuestion carries out what a question leads to. A channel that takes none is
// silent, as those of before there were questions are.
func (c *Channel) takeQuestion(now time.Time, o outcome) {
	if c.cfg.TakeQuestion == nil {
		return
	}
	switch {
	case o.tell != (BootID{}):
		c.send(c.core.answer(o.tell, 0))
	case o.again:
		c.say(now, c.core.peer, c.core.questions.taken)
	case o.asked != nil && c.cfg.TakeQuestion(*o.asked):
		c.core.questionTaken(now, *o.asked)
	}
}
