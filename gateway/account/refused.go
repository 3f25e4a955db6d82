package account

import (
	"errors"
	"fmt"
	"time"
)

// Errors of Identify.
var (
	ErrUnknownKey   = errors.New("unknown key")                       // missing, unknown, expired, disabled or revoked
	ErrNoKey        = fmt.Errorf("no key: %w", ErrUnknownKey)         // nothing that could be a key was sent
	ErrIPNotAllowed = errors.New("the key is not for this address")   // known, used from another address
	ErrUnavailable  = errors.New("the store of keys does not answer") // the key may be valid or not
)

// KeyState is the state of a key that the gateway knows.
type KeyState string

// The states of a key. All but the first two are those of a KeyError.
const (
	KeyActive       KeyState = "active"
	KeyReplaced     KeyState = "replaced" // still valid, beside its successor
	KeyExpired      KeyState = "expired"
	KeyDisabled     KeyState = "disabled" // its user, project or department is disabled
	KeyRevoked      KeyState = "revoked"
	KeyWrongAddress KeyState = "elsewhere" // valid, but not from the caller's address
)

// KeyError reports that a key that the gateway knows is refused. Only the holder of its
// whole text, 256 random bits, sees it, so it reveals nothing to those who guess. It wraps
// ErrIPNotAllowed for a wrong address, else ErrUnknownKey.
type KeyError struct {
	State KeyState
	Time  time.Time // time at which it expired, was disabled or revoked; zero for a wrong address
	Key   string    // name of the key
	KeyID string    // ULID of the key; empty for a key of the configuration file
	User  string
}

func (e *KeyError) Error() string {
	state := string(e.State)
	if e.State == KeyWrongAddress {
		state = "not for this address"
	}
	name := e.Key
	if e.KeyID != "" {
		name += " (id " + e.KeyID + ")"
	}
	text := "the key " + name + " is " + state
	if !e.Time.IsZero() {
		text += " since " + e.Time.UTC().Format(time.RFC3339)
	}
	return text
}

// Unwrap returns the kind of refusal.
func (e *KeyError) Unwrap() error {
	if e.State == KeyWrongAddress {
		return ErrIPNotAllowed
	}
	return ErrUnknownKey
}
