package account

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"math/big"
	"strings"
)

const (
	prefix    = "tg-"
	secretLen = len(prefix) + 43 // 62^43 is just above 2^256
	maxKey    = 512              // longest text of a key of the configuration, in bytes
	maxHeader = maxKey + 64      // longest Authorization header that is parsed, in bytes
)

// hash is the SHA-256 of a key's text, under which the key is known.
type hash [sha256.Size]byte

// fingerprint returns the part of a hash that is kept of all keys. Of a million keys, two
// share theirs with a chance of 1 in 30 million. Then the store decides.
func (h hash) fingerprint() uint64 { return binary.BigEndian.Uint64(h[:8]) }

// NewSecret returns a new text of a key: tg- and 256 random bits in base 62. It is all
// that opens the gateway, so it is shown once and only its SHA-256 is kept.
func NewSecret() string {
	var b [32]byte
	rand.Read(b[:]) // never returns an error
	digits := new(big.Int).SetBytes(b[:]).Text(62)
	return prefix + strings.Repeat("0", secretLen-len(prefix)-len(digits)) + digits
}

// wellFormed reports whether a text has the form of NewSecret.
func wellFormed(key string) bool {
	if len(key) != secretLen || !strings.HasPrefix(key, prefix) {
		return false
	}
	for i := len(prefix); i < len(key); i++ {
		c := key[i]
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

// bearer returns the key of an Authorization header, or "" if it has none or is too long.
// A huge header costs nothing.
func bearer(authorization string) string {
	if len(authorization) > maxHeader {
		return ""
	}
	scheme, key, _ := strings.Cut(authorization, " ")
	key = strings.TrimSpace(key)
	if !strings.EqualFold(scheme, "Bearer") || len(key) > maxKey {
		return ""
	}
	return key
}
