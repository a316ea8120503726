package waku

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// filter makes one request of 12/WAKU2-FILTER. It errs with errRefused where the
// node says no.
func (u *uplink) filter(ctx context.Context, l *link, kind uint64, pubsub string, topics []string) error {
	r := filterRequest{id: requestID(), kind: kind, pubsub: pubsub, topics: topics}
	answer, err := u.request(ctx, l, protoSubscribe, r.append(nil), maxEnvelope)
	if err != nil {
		return err
	}
	got, err := parseResponse(answer)
	if err != nil {
		return err
	}
	if !got.ok() {
		return refusal("filter", got)
	}
	return nil
}

// useful says that the connection has carried a message.
func (u *uplink) useful() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.did = true
}

// ping asks whether the node is there and has our subscriptions.
func (u *uplink) ping(ctx context.Context, l *link, subscribed bool) (forgot bool, err error) {
	err = u.filter(ctx, l, filterPing, "", nil)
	if errors.Is(err, errRefused) {
		return subscribed, nil
	}
	return false, err
}

// fetch asks the node for what it keeps of some topics, newest first: by all in
// one, and one by one if there is more than fits. The times in the messages play
// no part, since ours and theirs may be wrong.
func (u *uplink) fetch(ctx context.Context, l *link, pubsub string, topics []string) error {
	more, err := u.pages(ctx, l, pubsub, topics, 1)
	for _, t := range topics {
		if err != nil || !more {
			break
		}
		_, err = u.pages(ctx, l, pubsub, []string{t}, maxPages)
	}
	if errors.Is(err, errNotSupported) || errors.Is(err, errRefused) || errors.Is(err, errTooLarge) {
		u.log.Debug("store not read", "err", err)
		return nil // a node without store is still of use
	}
	return err
}

func (u *uplink) pages(ctx context.Context, l *link, pubsub string, topics []string, most int) (more bool, err error) {
	r := storeRequest{includeData: true, pubsub: pubsub, topics: topics, limit: pageSize}
	for page := 0; page < most; page++ {
		r.id = requestID()
		answer, err := u.request(ctx, l, protoStore, r.append(nil), storeLimit)
		if errors.Is(err, errTooLarge) && r.limit > smallPage {
			r.limit, page = smallPage, page-1 // somebody stores large ones here
			continue
		}
		if err != nil {
			return false, err
		}
		got, err := parseStoreResponse(answer)
		if err != nil {
			return false, err
		}
		if !got.ok() {
			return false, refusal("store", &got.response)
		}
		for _, item := range slices.Backward(got.items) { // oldest first
			if item.msg != nil && slices.Contains(topics, item.msg.contentTopic) {
				u.o.arrived(u, pubsub, item.msg, true)
			}
		}
		if got.cursor == nil || len(got.items) == 0 {
			return false, nil
		}
		r.cursor = got.cursor
	}
	return true, nil
}

// pushed takes the messages of a stream of filter-push. Some nodes open one for
// each, some keep one open.
func (u *uplink) pushed(_ *link, s *stream) {
	for {
		b, err := readDelimited(s.r, maxEnvelope)
		if err != nil {
			if errors.Is(err, errTooLarge) {
				s.Reset()
			}
			return
		}
		pubsub, m, err := parseFilterPush(b)
		if err != nil {
			s.Reset()
			return
		}
		if want, err := u.net.pubsub(m.contentTopic); err == nil && (pubsub == "" || pubsub == want) && u.o.wants(m.contentTopic) {
			u.useful()
			u.o.arrived(u, want, m, false)
		}
		s.extend(0)
	}
}

// send pushes a message, whose encoding is given, by the version of lightpush
// that the node speaks. It errs with errRefused where the node says no.
func (u *uplink) send(ctx context.Context, l *link, pubsub string, msg []byte) error {
	u.useful() // also if it ends the connection
	r := pushRequest{id: requestID(), pubsub: pubsub, msg: msg}
	parse := parseResponse
	answer, err := u.request(ctx, l, protoPush3, r.append3(nil), maxEnvelope)
	if errors.Is(err, errNotSupported) {
		parse = parsePushResponse2
		answer, err = u.request(ctx, l, protoPush2, r.append2(nil), maxEnvelope)
	}
	if err != nil {
		return err
	}
	got, err := parse(answer)
	switch {
	case err != nil:
		return err
	case !got.ok():
		return refusal("lightpush", got)
	}
	return nil
}

// refusal turns an answer that is no success into an error.
func refusal(what string, r *response) error {
	words := strings.ToLower(r.desc)
	if r.status == statusNoProof || strings.Contains(words, "rln") || strings.Contains(words, "rate limit proof") {
		return fmt.Errorf("%w: %w", errRefused, ErrProof)
	}
	return fmt.Errorf("%w: %s: status %d %q", errRefused, what, r.status, r.desc[:min(len(r.desc), 120)])
}
