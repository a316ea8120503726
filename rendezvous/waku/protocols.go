package waku

import (
	"google.golang.org/protobuf/encoding/protowire"
)

// The protocols, by the names that libp2p selects them with.
const (
	protoSubscribe = "/vac/waku/filter-subscribe/2.0.0-beta1"
	protoFilter    = "/vac/waku/filter-push/2.0.0-beta1"
	protoPush2     = "/vac/waku/lightpush/2.0.0-beta1"
	protoPush3     = "/vac/waku/lightpush/3.0.0"
	protoStore     = "/vac/waku/store-query/3.0.0"
	protoMetadata  = "/vac/waku/metadata/1.0.0"
	protoIdentify  = "/ipfs/id/1.0.0"
	protoIDPush    = "/ipfs/id/push/1.0.0"
	protoPing      = "/ipfs/ping/1.0.0"
)

// What a filter request asks for.
const (
	filterPing           = 0
	filterSubscribe      = 1
	filterUnsubscribe    = 2
	filterUnsubscribeAll = 3
)

// Status codes of the answers.
const (
	statusOK          = 200
	statusBad         = 400
	statusNotFound    = 404
	statusTooLarge    = 413
	statusUnsupported = 421
	statusTooMany     = 429
	statusUnavailable = 503
	statusNoProof     = 504
)

// A filterRequest is a FilterSubscribeRequest (12/WAKU2-FILTER).
type filterRequest struct {
	id     string
	kind   uint64
	pubsub string
	topics []string
}

func (r *filterRequest) append(b []byte) []byte {
	b = appendText(b, 1, r.id)
	if r.kind != 0 {
		b = appendNumber(b, 2, r.kind)
	}
	b = appendText(b, 10, r.pubsub)
	for _, t := range r.topics {
		b = appendData(b, 11, []byte(t))
	}
	return b
}

func parseFilterRequest(b []byte) (*filterRequest, error) {
	r := new(filterRequest)
	return r, each(b, func(num protowire.Number, number uint64, data []byte) error {
		switch num {
		case 1:
			return text(&r.id, data, maxText)
		case 2:
			r.kind = number
		case 10:
			return text(&r.pubsub, data, maxTopic)
		case 11:
			return appendTopic(&r.topics, data)
		}
		return nil
	})
}

func appendTopic(dst *[]string, data []byte) error {
	if len(data) > maxTopic || len(*dst) >= maxList {
		return errTooLarge
	}
	*dst = append(*dst, string(data))
	return nil
}

// A response is a FilterSubscribeResponse, a LightPushResponse (version 3) or the
// frame of a StoreQueryResponse: they have the same first fields.
type response struct {
	id     string
	status uint64
	desc   string
	peers  uint64 // relay_peer_count of lightpush
}

func (r *response) append(b []byte) []byte {
	b = appendText(b, 1, r.id)
	b = appendNumber(b, 10, r.status)
	return appendText(b, 11, r.desc)
}

func (r *response) field(num protowire.Number, number uint64, data []byte) error {
	switch num {
	case 1:
		return text(&r.id, data, maxText)
	case 10:
		r.status = number
	case 11:
		r.desc = string(data[:min(len(data), maxText)])
	case 12:
		r.peers = number
	}
	return nil
}

func parseResponse(b []byte) (*response, error) {
	r := new(response)
	return r, each(b, r.field)
}

func (r *response) ok() bool { return r.status >= 200 && r.status < 300 }

// appendFilterPush encodes a MessagePush.
func appendFilterPush(b []byte, pubsub string, m *message) []byte {
	return appendText(appendData(b, 1, m.append(nil)), 2, pubsub)
}

func parseFilterPush(b []byte) (pubsub string, m *message, err error) {
	err = each(b, func(num protowire.Number, _ uint64, data []byte) (err error) {
		switch num {
		case 1:
			m, err = parseMessage(data)
		case 2:
			err = text(&pubsub, data, maxTopic)
		}
		return err
	})
	if err == nil && m == nil {
		err = errMalformed
	}
	return pubsub, m, err
}

// A pushRequest is what both versions of lightpush ask for. The message is kept
// as bytes, to be encoded once.
type pushRequest struct {
	id     string
	pubsub string
	msg    []byte // an encoded WakuMessage; nil: not there
}

// append3 encodes a LightPushRequest, append2 a PushRPC.
func (r *pushRequest) append3(b []byte) []byte {
	return appendData(appendText(appendText(b, 1, r.id), 20, r.pubsub), 21, r.msg)
}

func (r *pushRequest) append2(b []byte) []byte {
	return appendData(appendText(b, 1, r.id), 2, appendData(appendText(nil, 1, r.pubsub), 2, r.msg))
}

func parsePush3(b []byte) (*pushRequest, error) {
	r := new(pushRequest)
	return r, each(b, func(num protowire.Number, _ uint64, data []byte) error {
		switch num {
		case 1:
			return text(&r.id, data, maxText)
		case 20:
			return text(&r.pubsub, data, maxTopic)
		case 21:
			r.msg = data
		}
		return nil
	})
}

func parsePush2(b []byte) (*pushRequest, error) {
	r := new(pushRequest)
	return r, each(b, func(num protowire.Number, _ uint64, data []byte) error {
		switch num {
		case 1:
			return text(&r.id, data, maxText)
		case 2:
			return each(data, func(num protowire.Number, _ uint64, data []byte) error {
				switch num {
				case 1:
					return text(&r.pubsub, data, maxTopic)
				case 2:
					r.msg = data
				}
				return nil
			})
		}
		return nil
	})
}

// appendPushResponse3 encodes a LightPushResponse.
func appendPushResponse3(b []byte, r *response) []byte {
	b = r.append(b)
	if r.ok() {
		b = appendNumber(b, 12, r.peers)
	}
	return b
}

// appendPushResponse2 encodes a PushRPC with a response.
func appendPushResponse2(b []byte, r *response) []byte {
	info := r.desc
	if r.ok() && info == "" {
		info = "OK"
	}
	return appendData(appendText(b, 1, r.id), 3, appendText(appendBool(nil, 1, r.ok()), 2, info))
}

// parsePushResponse2 gives a response of version 2 the form of version 3.
func parsePushResponse2(b []byte) (*response, error) {
	r := &response{status: statusBad}
	return r, each(b, func(num protowire.Number, _ uint64, data []byte) error {
		switch num {
		case 1:
			return text(&r.id, data, maxText)
		case 3:
			return each(data, func(num protowire.Number, number uint64, data []byte) error {
				switch {
				case num == 1 && number != 0:
					r.status = statusOK
				case num == 2:
					r.desc = string(data[:min(len(data), maxText)])
				}
				return nil
			})
		}
		return nil
	})
}

// A storeRequest is a StoreQueryRequest (13/WAKU2-STORE).
type storeRequest struct {
	id          string
	includeData bool
	pubsub      string
	topics      []string
	start, end  int64 // Unix nanoseconds; meaningful if hasStart, hasEnd
	hasStart    bool
	hasEnd      bool
	hashes      []hash
	cursor      []byte
	forward     bool
	limit       uint64
}

func (r *storeRequest) append(b []byte) []byte {
	b = appendBool(appendText(b, 1, r.id), 2, r.includeData)
	b = appendText(b, 10, r.pubsub)
	for _, t := range r.topics {
		b = appendData(b, 11, []byte(t))
	}
	if r.hasStart {
		b = appendNumber(b, 12, protowire.EncodeZigZag(r.start))
	}
	if r.hasEnd {
		b = appendNumber(b, 13, protowire.EncodeZigZag(r.end))
	}
	for _, h := range r.hashes {
		b = appendData(b, 20, h[:])
	}
	if r.cursor != nil {
		b = appendData(b, 51, r.cursor)
	}
	b = appendBool(b, 52, r.forward)
	if r.limit > 0 {
		b = appendNumber(b, 53, r.limit)
	}
	return b
}

func parseStoreRequest(b []byte) (*storeRequest, error) {
	r := new(storeRequest)
	return r, each(b, func(num protowire.Number, number uint64, data []byte) error {
		switch num {
		case 1:
			return text(&r.id, data, maxText)
		case 2:
			r.includeData = number != 0
		case 10:
			return text(&r.pubsub, data, maxTopic)
		case 11:
			return appendTopic(&r.topics, data)
		case 12:
			r.start, r.hasStart = protowire.DecodeZigZag(number), true
		case 13:
			r.end, r.hasEnd = protowire.DecodeZigZag(number), true
		case 20:
			if len(data) != len(hash{}) || len(r.hashes) >= maxList {
				return errMalformed
			}
			r.hashes = append(r.hashes, hash(data))
		case 51:
			if len(data) > 0 {
				r.cursor = data
			}
		case 52:
			r.forward = number != 0
		case 53:
			r.limit = number
		}
		return nil
	})
}

// A storeItem is a WakuMessageKeyValue.
type storeItem struct {
	hash   hash
	pubsub string
	msg    *message // nil: only the hash was asked for
}

// A storeResponse is a StoreQueryResponse.
type storeResponse struct {
	response
	items  []storeItem
	cursor []byte // nil: there are no more
}

// appendStoreItem encodes one item of a response. msg is an encoded WakuMessage.
func appendStoreItem(b []byte, h hash, pubsub string, msg []byte) []byte {
	kv := appendData(nil, 1, h[:])
	if msg != nil {
		kv = appendText(appendData(kv, 2, msg), 3, pubsub)
	}
	return appendData(b, 20, kv)
}

func parseStoreResponse(b []byte) (*storeResponse, error) {
	r := new(storeResponse)
	return r, each(b, func(num protowire.Number, number uint64, data []byte) error {
		switch num {
		case 20:
			if len(r.items) >= maxList {
				return errTooLarge
			}
			item, err := parseStoreItem(data)
			r.items = append(r.items, item)
			return err
		case 51:
			if len(data) > 0 {
				r.cursor = data
			}
		case 12: // of lightpush
		default:
			return r.field(num, number, data)
		}
		return nil
	})
}

func parseStoreItem(b []byte) (item storeItem, err error) {
	err = each(b, func(num protowire.Number, _ uint64, data []byte) (err error) {
		switch num {
		case 1:
			if len(data) != len(hash{}) {
				return errMalformed
			}
			item.hash = hash(data)
		case 2:
			item.msg, err = parseMessage(data)
		case 3:
			err = text(&item.pubsub, data, maxTopic)
		}
		return err
	})
	return item, err
}

// A metadata is a WakuMetadataRequest or a WakuMetadataResponse (66/WAKU2-METADATA).
type metadata struct {
	cluster    uint64
	hasCluster bool
	shards     []uint16
}

func (m *metadata) append(b []byte) []byte {
	if m.hasCluster {
		b = appendNumber(b, 1, m.cluster)
	}
	for _, s := range m.shards { // not packed: some clients do not read that
		b = appendNumber(b, 2, uint64(s))
	}
	return b
}

func parseMetadata(b []byte) (*metadata, error) {
	m := new(metadata)
	add := func(v uint64) error {
		if len(m.shards) >= maxShards {
			return errTooLarge
		}
		m.shards = append(m.shards, uint16(v))
		return nil
	}
	return m, each(b, func(num protowire.Number, number uint64, data []byte) error {
		switch {
		case num == 1:
			m.cluster, m.hasCluster = number, true
		case num == 2 && data == nil:
			return add(number)
		case num == 2: // packed
			for len(data) > 0 {
				v, n := protowire.ConsumeVarint(data)
				if n < 0 {
					return errMalformed
				}
				if err := add(v); err != nil {
					return err
				}
				data = data[n:]
			}
		}
		return nil
	})
}
