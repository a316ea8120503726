// Package code makes and reads the one-time code that two devices share to
// pair. A Code is a secret in one of three forms, which Parse tells apart by
// itself:
//
//	words    12 words of the BIP39 English list       128 bits
//	QR/URI   KITH:1/<base32> or kith:1#<base64url>    128 bits, and how to reach and check the offerer
//	number   20 digits, 5 groups of 4                  63 bits, stretched with Argon2id
//
// The device that offers makes a Code with New and shows Words and QR (two
// encodings of one secret) or Number; the other device reads it with Parse.
// From Keys both get the same topic to meet on, the same frame key and the same
// preshared key for the pairing handshake:
//
//	offer, err := code.New(code.MethodWords, code.Options{Now: time.Now()})
//	...
//	fmt.Println(offer.Words())
//
//	typed, err := code.Parse(line, time.Now())
//	...
//	keys, err := typed.Keys(time.Now())
//
// Code.QR, RenderTerminal and WritePNG draw the URI as a QR code; package
// code/scan reads one from a picture.
//
// A code is never pairing by itself: what its Keys open, package pairing
// proves. A Code and its Keys print as "redacted", and no Error method repeats
// what was typed.
//
// # URI layout
//
// The bytes behind "KITH:1/" (RFC 4648 base32, no padding, any case) or
// "kith:1#" (base64url, no padding) are items of tag, length and value, a byte
// each for tag and length, tags in ascending order:
//
//	01  secret     16 bytes, required
//	02  expiry     4 bytes, seconds since 1970 UTC, big-endian
//	03  commit     16 bytes, identity.DeviceID.Commitment of the offerer
//	04  endpoints  up to 4 of: family (4 or 6), IP (4 or 16 bytes), port (big-endian)
//	05  hint       1 to 64 bytes of printable ASCII; may be repeated, up to 4
//
// Other tags below 0x80 are ignored, so that a later version can add to a code;
// a tag of 0x80 or more that is not known here makes the code unreadable.
// Endpoints are those of a local network only (see LocalEndpoint), so that a
// forged code cannot make a device knock at a host of somebody else's choice.
// A web link is never a code: whatever opens links would see the secret.
//
// # Keys
//
// All forms end in a 32-byte code key ck, from which HKDF (internal/wire)
// expands Topic (20 bytes of "topic"), Frame ("frame") and PSK ("psk"):
//
//	words, QR  ck = HKDF-Extract(salt "kith/1 code/strong", the 16 bytes)
//	number     ck = Argon2id(the 20 digits, salt "kith/1 code/number <utc-day>", t=3, m=64 MiB, p=1)
//
// where utc-day is the decimal number of days since 1970-01-01. The day is in
// the salt so that a table of all numbers is worth one day only; a joiner uses
// its own day, an offerer the days around its own as well.
package code
