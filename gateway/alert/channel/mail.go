package channel

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"net"
	"net/mail"
	"net/textproto"
	"strconv"
	"strings"
	"time"

	gomail "github.com/wneessen/go-mail"
)

// mail sends the alert to one recipient over a connection of its own. The message is
// delivered when the server has accepted its end. Later failures change nothing.
func (ch *Channel) mail(ctx context.Context, recipient string, a Alert) *Error {
	message, err := ch.compose(recipient, a)
	if err != nil {
		return &Error{Text: sanitize(err.Error())}
	}
	// The library uses the context for dialing only, and leaves a connection open
	// that fails before the first message. Both are handled here.
	var conn net.Conn
	dial := func(dialing context.Context, network, address string) (net.Conn, error) {
		raw, err := ch.dialer.DialContext(dialing, network, address)
		if err != nil {
			return nil, err
		}
		context.AfterFunc(ctx, func() { raw.Close() }) // Send cancels its context at the end
		conn = raw
		if ch.config.TLS == ImplicitTLS {
			secure := tls.Client(raw, ch.mailTLS())
			conn = secure
			return secure, secure.HandshakeContext(dialing)
		}
		return raw, nil
	}
	client, err := ch.mailer(dial)
	if err != nil {
		return &Error{Text: sanitize(err.Error())}
	}
	session, err := client.DialToSMTPClientWithContext(ctx)
	if err == nil {
		err = client.SendWithSMTPClient(session, message)
		_ = conn.SetDeadline(time.Now().Add(quitTimeout))
		_ = session.Quit() // its answer does not matter
	}
	if message.IsDelivered() {
		return nil
	}
	return mailError(ctx, err)
}

// quitTimeout bounds the end of a session.
const quitTimeout = 2 * time.Second

// mailTLS returns the TLS settings for the server.
func (ch *Channel) mailTLS() *tls.Config {
	tc := ch.dialer.tls.Clone()
	tc.ServerName, _, _ = net.SplitHostPort(ch.config.Server)
	return tc
}

// mailer returns a client for one message.
func (ch *Channel) mailer(dial gomail.DialContextFunc) (*gomail.Client, error) {
	c := ch.config
	host, port, _ := net.SplitHostPort(c.Server)
	n, _ := strconv.Atoi(port)
	options := []gomail.Option{
		gomail.WithPort(n), gomail.WithTimeout(sendTimeout), gomail.WithDialContextFunc(dial),
		gomail.WithTLSConfig(ch.mailTLS()), gomail.WithoutNoop(), gomail.WithoutRset(),
	}
	switch c.TLS {
	case StartTLS:
		options = append(options, gomail.WithTLSPolicy(gomail.TLSMandatory))
	case ImplicitTLS:
		options = append(options, gomail.WithSSL())
	default:
		options = append(options, gomail.WithTLSPolicy(gomail.NoTLS))
	}
	if c.Username != "" {
		options = append(options, gomail.WithUsername(c.Username), gomail.WithPassword(c.Password), gomail.WithOpportunisticSMTPAuth(
			gomail.SMTPAuthSCRAMSHA256, gomail.SMTPAuthSCRAMSHA1, gomail.SMTPAuthPlain, gomail.SMTPAuthLogin))
	}
	return gomail.NewClient(host, options...)
}

// compose returns the message. Its Message-ID is the same at each attempt, and differs by
// recipient, so that a mailbox can drop a repetition. Auto-Submitted keeps programs from
// answering it (RFC 3834).
func (ch *Channel) compose(recipient string, a Alert) (*gomail.Msg, error) {
	words := Format(a, ch.config.Language, ch.now(), escapeHeader)
	m := gomail.NewMsg(gomail.WithNoDefaultUserAgent())
	if err := errors.Join(m.From(ch.config.From), m.To(recipient)); err != nil {
		return nil, err
	}
	sender, err := mail.ParseAddress(ch.config.From)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(a.ID + "\x00" + recipient))
	m.SetMessageIDWithValue(hex.EncodeToString(sum[:16]) + sender.Address[strings.LastIndexByte(sender.Address, '@'):])
	m.SetDateWithValue(ch.now())
	m.Subject(words.Title)
	m.SetGenHeader("Auto-Submitted", "auto-generated")
	m.SetGenHeader("X-Tidegate-Delivery", token(a.ID))
	m.SetBodyString(gomail.TypeTextPlain, words.Title+"\n\n"+strings.Join(words.Lines, "\n")+"\n")
	return m, nil
}

// mailError returns the Error for a message that was not accepted. Only one that was sent
// whole and got no reply may have arrived.
func mailError(ctx context.Context, err error) *Error {
	var reply *textproto.Error
	var sending *gomail.SendError
	switch {
	case errors.As(err, &sending):
		text, _, _ := strings.Cut(sending.Error(), ", affected ")
		text = unquote(text)
		if ctx.Err() != nil {
			text = explain(ctx, err)
		}
		silent := sending.ErrorCode() == 0
		return &Error{Status: sending.ErrorCode(), Text: text, Unsure: silent && sending.Reason == gomail.ErrSMTPDataClose}
	case errors.As(err, &reply):
		return &Error{Status: reply.Code, Text: unquote(err.Error())}
	}
	return &Error{Text: explain(ctx, err)}
}

// unquote returns a text without the quotes of its end, which is the server's reply.
func unquote(text string) string {
	if i := strings.IndexByte(text, '"'); i >= 0 {
		if reply, err := strconv.Unquote(text[i:]); err == nil {
			text = text[:i] + reply
		}
	}
	return sanitize(text)
}
