// Package channel formats quota alerts and sends them: to a signed webhook, to group robots
// of DingTalk, WeCom and Feishu, to Slack, and by e-mail.
//
// It sends one message to one target once and returns the result. The caller decides when
// to send, and remembers which messages are sent and when to retry. The package imports no
// other of this module.
//
// Text that users choose (names of users, projects, quotas) is escaped for every channel:
// it mentions nobody, links to nothing, and ends no line, JSON string or mail header. A
// private address is refused when it is dialed, after its name is resolved, unless the
// channel allows it. No error contains a token, a secret or a password.
package channel

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Severity is the urgency of an alert.
type Severity int

// The severities.
const (
	Warning Severity = iota // there is time to act
	Severe                  // the quota is about to be used up
	Blocked                 // requests are rejected until the quota resets
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

// UnmarshalText reads warning, severe or blocked. Any other text gives a severity that
// Validate rejects, since that knows the place.
func (s *Severity) UnmarshalText(text []byte) error {
	*s = -1
	for _, known := range []Severity{Warning, Severe, Blocked} {
		if string(text) == known.String() {
			*s = known
		}
	}
	return nil
}

// Alert reports that a subject has used a share of a quota.
type Alert struct {
	ID       string // id, the same at each attempt, so that a receiver can drop repetitions
	Quota    string // name of the quota
	Scope    string // what the quota counts by: user, project, "user,model", ...
	Subject  string // name that is counted, or several in the order of Scope; empty for global
	Unit     string // units or tokens
	Percent  int    // crossed threshold
	Severity Severity
	Used     int64     // use in Unit, possibly more than Limit
	Limit    int64     // limit in Unit
	ResetsAt time.Time // end of the period, in the time zone that messages show
	Time     time.Time // time of the crossing
	Test     bool      // set for a test of the channel without a crossing
}

// Target is one destination of an alert: a channel, and for e-mail one of its recipients.
// So a recipient that is refused does not keep the others from their message, nor repeat
// it to them.
type Target struct {
	Channel   string
	Recipient string // address for e-mail, else empty
}

// Error reports that a message was not delivered, or possibly not.
type Error struct {
	Status int    // HTTP or SMTP status; 0 without an answer
	Text   string // text for people, without secrets
	// Unsure is set if the message may have arrived: it was sent whole, and no answer
	// reported its fate. A repetition may arrive twice.
	Unsure bool
}

func (e *Error) Error() string {
	if e.Unsure {
		return e.Text + " (it may have arrived)"
	}
	return e.Text
}

// Channel sends alerts to one entry of the configuration. It is safe for concurrent use
// and keeps no connection.
type Channel struct {
	config Config
	client *http.Client // nil for e-mail
	dialer dialer
	now    func() time.Time
	pacer  pacer
}

// Name returns the channel's name in the configuration.
func (ch *Channel) Name() string { return ch.config.Name }

// Type returns one of Types.
func (ch *Channel) Type() string { return ch.config.Type }

// Accepts reports whether the channel wants alerts of a severity.
func (ch *Channel) Accepts(s Severity) bool { return s >= ch.config.Min }

// Targets returns the recipients that Send accepts: the addresses of an e-mail channel,
// else one empty text.
func (ch *Channel) Targets() []string {
	if ch.config.Type == Email {
		return slices.Clone(ch.config.To)
	}
	return []string{""}
}

// Send sends an alert to one of Targets, once, within a minute. That is long on purpose:
// an answer that nobody waits for leaves open whether the message arrived. If the vendor
// limits the number of messages a minute, Send waits for its turn within that minute. It
// returns an *Error.
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

// redact removes the channel's secrets from a text, which may come from a vendor.
func (ch *Channel) redact(text string) string {
	for _, secret := range ch.config.secrets() {
		text = strings.ReplaceAll(text, secret, "***")
	}
	return text
}

// Bounds of Send.
const (
	sendTimeout  = 60 * time.Second // for one Send
	maxErrorText = 500              // bytes
)
