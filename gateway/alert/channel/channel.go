// Package channel writes quota alerts and sends them: to a signed webhook, to group
// robots of DingTalk, WeCom and Feishu, to Slack, and by e-mail.
//
// It sends one message to one target once and says what became of it. When to send,
// what was sent already and when to try again is its caller's. It knows nobody of the
// house.
//
// Text that users choose (names of users, projects, quotas) is written so that it is
// text in every channel: it mentions nobody, links to nothing, and ends no line, JSON
// string or mail header. An address that is not on the public internet is refused when
// it is dialed, after its name is resolved, unless the channel allows it. No error
// holds a token, a secret or a password.
package channel

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Severity is how bad it is.
type Severity int

// What a quota's thresholds mean to who is told.
const (
	Warning Severity = iota // there is time to do something
	Severe                  // it is about to be used up
	Blocked                 // requests are refused until it resets
)

func (s Severity) String() string {
	switch s {
	case Warning:
		return "warning"
	case Severe:
		return "severe"
	case Blocked:
		return "blocked"
	}
	return fmt.Sprintf("severity %d", int(s))
}

// MarshalText writes warning, severe or blocked.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads warning, severe or blocked. Of anything else it makes a severity
// that Validate refuses, since that knows the place.
func (s *Severity) UnmarshalText(text []byte) error {
	*s = -1
	for _, known := range []Severity{Warning, Severe, Blocked} {
		if string(text) == known.String() {
			*s = known
		}
	}
	return nil
}

// Alert is what there is to tell: somebody has used so much of a quota.
type Alert struct {
	ID       string // the same at each attempt, so that a receiver can drop repetitions
	Quota    string // its name
	Scope    string // what it counts for: user, project, "user,model", ...
	Subject  string // whose count it is: a name, or several as Per has them; empty for global
	Unit     string // units or tokens
	Percent  int    // the threshold that was crossed
	Severity Severity
	Used     int64     // in Unit, maybe more than Limit
	Limit    int64     // in Unit
	ResetsAt time.Time // the end of the period, told in this time's zone
	Time     time.Time // when the crossing was seen
	Test     bool      // nothing happened, somebody tries the channel
}

// Target is one place where an alert goes: a channel, and for e-mail one of its
// recipients, so that one who is refused neither keeps the others from being told nor
// has them told twice.
type Target struct {
	Channel   string
	Recipient string // empty but for e-mail
}

// Error says why a message was not, or maybe not, delivered.
type Error struct {
	Status int    // of HTTP or SMTP; 0: there was no answer
	Text   string // for people; holds no secret
	// Unsure is set where the message may have arrived all the same: it was sent whole,
	// and no answer said what became of it. Sending it again may tell it twice.
	Unsure bool
}

func (e *Error) Error() string {
	if e.Unsure {
		return e.Text + " (it may have arrived)"
	}
	return e.Text
}

// Channel sends to one entry of the configuration. It is safe for concurrent use and
// keeps no connection.
type Channel struct {
	config Config
	client *http.Client // of all but e-mail
	dialer dialer
	now    func() time.Time
	pacer  pacer
}

// Name is the channel's in the configuration.
func (ch *Channel) Name() string { return ch.config.Name }

// Type is one of Types.
func (ch *Channel) Type() string { return ch.config.Type }

// Tells reports whether alerts of this severity go to the channel.
func (ch *Channel) Accepts(s Severity) bool { return s >= ch.config.Min }

// Targets are the recipients that Send takes: an e-mail channel's addresses, else one
// that is empty.
func (ch *Channel) Targets() []string {
	if ch.config.Type == Email {
		return slices.Clone(ch.config.To)
	}
	return []string{""}
}

// Send sends an alert to one of Targets, once, in at most a minute; that is long on
// purpose, since an answer that is not waited for leaves open whether the message
// arrived. Where a vendor takes only so many messages in a minute it waits for its turn
// within that minute. It returns an *Error.
func (ch *Channel) Send(ctx context.Context, target string, a Alert) error {
	if !slices.Contains(ch.Targets(), target) {
		return &Error{Text: fmt.Sprintf("channel %s has no target %q", ch.config.Name, target)}
	}
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	var failed *Error
	switch {
	case !ch.pacer.wait(ctx):
		failed = &Error{Text: "its turn did not come in time: the vendor takes only so many messages a minute"}
	case ch.config.Type == Email:
		failed = ch.mail(ctx, target, a)
	default:
		failed = ch.post(ctx, a)
	}
	if failed == nil {
		return nil
	}
	failed.Text = clip(ch.redact(failed.Text), maxErrorText)
	return failed
}

// hide takes the channel's secrets out of a text, which may be what a vendor answered.
func (ch *Channel) redact(text string) string {
	for _, secret := range ch.config.secrets() {
		text = strings.ReplaceAll(text, secret, "***")
	}
	return text
}

const (
	sendTimeout  = 60 * time.Second // of one Send
	maxErrorText = 500              // bytes
)
