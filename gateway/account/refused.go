package account

import (
	"errors"
	"fmt"
	"time"
)

// What Identify refuses with.
var (
	ErrUnknownKey   = errors.New("unknown key")                       // none, unknown, expired, disabled or revoked
	ErrNoKey        = fmt.Errorf("no key: %w", ErrUnknownKey)         // nothing that could be a key was sent
	ErrIPNotAllowed = errors.New("the key is not for this address")   // known, used from elsewhere
	ErrUnavailable  = errors.New("the store of keys does not answer") // so the key may be good or not
)

// KeyState says how a key that the gateway knows stands.
type KeyState string

// The states of a key. All but the first two are those of a KeyError.
const (
	KeyActive       KeyState = "active"
	KeyReplaced     KeyState = "replaced" // still good, beside its successor
	KeyExpired      KeyState = "expired"
	KeyDisabled     KeyState = "disabled" // its user, project or department is disabled
	KeyRevoked      KeyState = "revoked"
	KeyWrongAddress KeyState = "elsewhere" // it is good, but not from the caller's address
)

// KeyError says why a key that the gateway knows is refused. Only who holds the whole
// text of a key, 256 random bits, meets it, so it tells nothing to those who guess.
// It is an ErrIPNotAllowed where the address is at fault, else an ErrUnknownKey.
type KeyError struct {
	State KeyState
	Time  time.Time // when it expired, was disabled or revoked; zero: for an address
	Key   string    // the key's name
	KeyID string    // empty for a key of the configuration file
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
