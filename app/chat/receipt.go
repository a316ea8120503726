package chat

import (
	"encoding/binary"

	"github.com/kithproject/kith/identity"
	"github.com/kithproject/kith/internal/wire"
)

// A receipt is what a member of a room has of one author's logs, signed by it, so that
// others can tell the author. It is
//
//	conv 16 || by 32 || author 32 || stamp u64 || of logs: log 8 || delivered u64 || read u64 || signature 64
//
// where a higher stamp is newer.
type receipt struct {
	conv       ConvID
	by, author identity.DeviceID
	stamp      uint64
	logs       []logMark
	raw        []byte
}

type logMark struct {
	log             LogID
	delivered, read uint64
}

const (
	receiptHead = 16 + 2*identity.IDSize + 8
	receiptStep = 8 + 2*8
	// maxReceipt is how many logs a receipt is about, the newest that are known.
	maxReceipt = 256
)

func newReceipt(s Signer, conv ConvID, author identity.DeviceID, stamp uint64, logs []logMark) receipt {
	r := receipt{conv: conv, by: s.ID(), author: author, stamp: stamp, logs: logs[max(0, len(logs)-maxReceipt):]}
	b := append([]byte(nil), conv[:]...)
	b = append(b, r.by[:]...)
	b = append(b, author[:]...)
	b = binary.BigEndian.AppendUint64(b, stamp)
	for _, l := range r.logs {
		b = append(b, l.log[:]...)
		b = binary.BigEndian.AppendUint64(b, l.delivered)
		b = binary.BigEndian.AppendUint64(b, l.read)
	}
	r.raw = append(b, s.Sign(receiptSigned(b))...)
	return r
}

func receiptSigned(b []byte) []byte { return append([]byte(wire.Label("chat receipt")), b...) }

// decodeReceipt returns a receipt, whoever signed it: see genuine.
func decodeReceipt(raw []byte) (receipt, error) {
	n := len(raw) - receiptHead - 64
	if n < 0 || n%receiptStep != 0 || n/receiptStep > maxReceipt {
		return receipt{}, errFrame
	}
	r := receipt{raw: raw}
	b := raw[copy(r.conv[:], raw):]
	b = b[copy(r.by[:], b):]
	b = b[copy(r.author[:], b):]
	r.stamp = binary.BigEndian.Uint64(b)
	for b = b[8 : 8+n]; len(b) > 0; b = b[receiptStep:] {
		m := logMark{LogID(b[:8]), binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])}
		if m.delivered > maxSeq || m.read > m.delivered {
			return receipt{}, errFrame
		}
		r.logs = append(r.logs, m)
	}
	return r, nil
}

// genuine reports whether the member has signed it.
func (r *receipt) genuine() bool {
	return r.by.Verify(receiptSigned(r.raw[:len(r.raw)-64]), r.raw[len(r.raw)-64:])
}

// receipts appends receipts of others for the other side, and for those who are not
// there.
func (l *link) receipts(buf []byte, sh *shared) []byte {
	sh.receipts = false
	c := sh.c
	for author := range c.ids {
		k := receiptKey{l.s.self, author}
		old := c.kept[k]
		if author == l.s.self || author == l.id || old != nil && !c.stale[author] || l.s.linkTo(author) != nil {
			continue
		}
		delete(c.stale, author)
		stamp := uint64(max(l.s.cfg.Now().UnixMilli(), 0))
		if old != nil {
			stamp = max(stamp, old.stamp+1)
		}
		if marks := c.book.marks(author); len(marks) > 0 {
			r := newReceipt(l.s.cfg.Self, c.id, author, stamp, marks)
			c.keepReceipt(&r)
		}
	}
	for k, r := range c.kept {
		if k.by == l.id || r.stamp <= sh.stamps[k] || k.author != l.id && l.s.linkTo(k.author) != nil {
			continue
		}
		sh.stamps[k] = r.stamp
		buf = appendFrame(buf, frameReceipt, r.raw)
	}
	return buf
}

// marks are what is here of an author's logs.
func (b *book) marks(author identity.DeviceID) []logMark {
	var out []logMark
	for _, log := range b.list {
		if log.author == author && log.last > 0 {
			out = append(out, logMark{log.log, log.last, min(log.read, log.last)})
		}
	}
	return out
}

// keepReceipt takes a receipt that is genuine, if it is news. s.mu is held.
func (c *convo) keepReceipt(r *receipt) bool {
	k := receiptKey{r.by, r.author}
	if old := c.kept[k]; old != nil && old.stamp >= r.stamp {
		return false
	}
	if c.kept == nil {
		c.kept = make(map[receiptKey]*receipt)
	}
	c.kept[k] = r
	return true
}

// takeReceipt takes what a member of a room has, by itself or by another.
func (l *link) takeReceipt(r *receipt) error {
	sh, err := l.sharedWith(r.conv)
	if sh == nil || err != nil {
		return err
	}
	s, c := l.s, sh.c
	s.mu.Lock()
	k := receiptKey{r.by, r.author}
	old := c.kept[k]
	fresh := c.conv.Room && r.by != s.self && c.ids[r.by] && (r.author == s.self || c.ids[r.author]) && (old == nil || old.stamp < r.stamp)
	s.mu.Unlock()
	if !fresh {
		return nil
	}
	if !r.genuine() {
		return errHostile
	}
	s.mu.Lock()
	c.keepReceipt(r)
	if r.author != s.self {
		for _, o := range s.links() {
			if os := o.shared[r.conv]; os != nil && o != l {
				os.receipts = true
				o.soon()
			}
		}
		s.mu.Unlock()
		return nil
	}
	s.mu.Unlock()
	var claims []claim
	for _, m := range r.logs {
		claims = append(claims, claim{logKey{s.self, m.log}, m.delivered, m.read})
	}
	s.takeClaims(c, r.by, claims)
	return nil
}
