package relay

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // what the protocol asks for (time-limited credentials)
	"encoding/base64"
	"strconv"
	"sync"
	"time"

	"github.com/pion/stun/v4"
)

// credentialLife is for how long time-limited credentials are made. Half a day
// forgives clocks that are wrong by hours; a server may also refuse what lies too far
// ahead. A kith hub forgives days.
const credentialLife = 12 * time.Hour

// longLife is the same for a server that refuses those: its clock may be ahead of
// ours, and theirs have ended before they were made.
const longLife = 7 * 24 * time.Hour

// auth is what the server knows us by (RFC 8489 section 9.2). Its methods are
// safe for concurrent use.
type auth struct {
	secret []byte        // of time-limited credentials; nil: user and password are given
	id     string        // their random part
	life   time.Duration // that they are given

	mu             sync.Mutex // guards the fields below
	user, password string
	end            time.Time // of time-limited ones
	realm          stun.Realm
	nonce          stun.Nonce
	key            stun.MessageIntegrity // nil until the server has named its realm
}

func newAuth(cfg Config, now time.Time, life time.Duration) *auth {
	a := &auth{secret: cfg.Secret, user: cfg.User, password: cfg.Password, life: life}
	if len(cfg.Secret) > 0 {
		a.id = rand.Text()
		a.renew(now)
	}
	return a
}

// renew makes new time-limited credentials, if they are of that kind.
func (a *auth) renew(now time.Time) bool {
	if len(a.secret) == 0 {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.end = now.Add(a.life)
	a.user, a.password = timeLimited(a.secret, a.id, a.end)
	a.keyLocked()
	return true
}

// old reports whether time-limited credentials have lived for half of their time.
func (a *auth) old(now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	// Long ones may end at any time: the server's clock is not ours.
	return len(a.secret) > 0 && (a.life == longLife || now.After(a.end.Add(-credentialLife/2)))
}

// timeLimited makes the credentials of coturn's use-auth-secret and of
// draft-uberti-behave-turn-rest: the end is the user's name, so that the server
// can check it, and what the name hashes to is the password.
func timeLimited(secret []byte, id string, end time.Time) (user, password string) {
	user = strconv.FormatInt(end.Unix(), 10) + ":" + id
	mac := hmac.New(sha1.New, secret)
	mac.Write([]byte(user)) // it never fails
	return user, base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// challenge takes the realm and nonce of a 401 or 438. It reports whether there
// was a nonce.
func (a *auth) challenge(m *stun.Message) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	var nonce stun.Nonce
	if nonce.GetFrom(m) != nil || len(nonce) == 0 {
		return false
	}
	a.nonce = append(stun.Nonce(nil), nonce...)
	var realm stun.Realm
	if realm.GetFrom(m) == nil && len(realm) > 0 && string(realm) != string(a.realm) {
		a.realm = append(stun.Realm(nil), realm...)
		a.key = nil
	}
	if a.key == nil {
		a.keyLocked()
	}
	return true
}

func (a *auth) keyLocked() {
	if len(a.realm) > 0 {
		a.key = stun.NewLongTermIntegrity(a.user, string(a.realm), a.password)
	}
}

// sign returns what makes a request ours, in the order it has to stand in the
// message, and the key that the answer has to be made with; nil before there
// was a challenge.
func (a *auth) sign() ([]stun.Setter, stun.MessageIntegrity) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.key == nil {
		return nil, nil
	}
	return []stun.Setter{stun.NewUsername(a.user), a.realm, a.nonce, a.key}, a.key
}
