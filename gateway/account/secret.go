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
	maxKey    = 512              // bytes that are hashed of a key that the file names
	maxHeader = maxKey + 64      // of an Authorization header that is looked at
)

// hash is the SHA-256 under which a key is known.
type hash [sha256.Size]byte

// print is the part of a hash that is kept of all keys: of a million, two share
// theirs with a chance of 1 in 30 million, and then the store decides.
func (h hash) fingerprint() uint64 { return binary.BigEndian.Uint64(h[:8]) }

// NewSecret makes the text of a key, tg- and 256 random bits in base 62, which is
// all that opens the gateway: it is shown once and only its SHA-256 is kept.
func NewSecret() string {
	var b [32]byte
	rand.Read(b[:]) // never returns an error
	digits := new(big.Int).SetBytes(b[:]).Text(62)
	return prefix + strings.Repeat("0", secretLen-len(prefix)-len(digits)) + digits
}

// wellFormed reports whether a text could be a key of NewSecret.
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

// bearer is the key in an Authorization header; empty where there is none or one
// that is too long to be any. A huge header costs nothing.
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
