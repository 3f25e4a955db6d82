package channel

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
)

// maxAnswer bounds the head and the body of an answer, in bytes each.
const maxAnswer = 64 << 10

// request is one HTTP request and the check of its answer.
type request struct {
	url    string
	header map[string]string
	body   []byte
	// check returns the complaint of a 2xx answer, or "" if it accepts the message. ok is
	// false if the answer does neither.
	check func(answer []byte) (complaint string, ok bool)
}

// post sends the alert as an HTTP request and checks the answer.
func (ch *Channel) post(ctx context.Context, a Alert) *Error {
	l := ch.request(a)
	var written atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteRequest: func(w httptrace.WroteRequestInfo) { written.Store(w.Err == nil) },
	})
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, l.url, bytes.NewReader(l.body))
	if err != nil {
		return &Error{Text: "the URL makes no request"}
	}
	// With GetBody the client itself may send the request twice.
	r.GetBody = nil
	r.Header.Set("Content-Type", "application/json; charset=utf-8")
	r.Header.Set("User-Agent", "tidegate")
	for name, value := range l.header {
		r.Header[http.CanonicalHeaderKey(name)] = []string{value}
	}
	response, err := ch.client.Do(r)
	if err != nil {
		return &Error{Text: explain(ctx, err), Unsure: written.Load()}
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	status := response.StatusCode
	switch {
	case status >= 300 && status < 400:
		return &Error{Status: status, Text: fmt.Sprintf("answered %d, a redirect, which is not followed: give the URL that it leads to", status)}
	case status < 200 || status > 299:
		return &Error{Status: status, Text: statusError(status, answer), Unsure: status == http.StatusBadGateway || status == http.StatusGatewayTimeout}
	}
	complaint, ok := l.check(answer)
	switch {
	case complaint != "":
		return &Error{Status: status, Text: complaint}
	case !ok && err != nil:
		return &Error{Status: status, Text: "the answer broke off: " + explain(ctx, err), Unsure: true}
	case !ok:
		return &Error{Status: status, Text: fmt.Sprintf("answered %d with something that is not its kind of answer: %s", status, quote(answer)), Unsure: true}
	}
	return nil
}

// statusError returns the text for an HTTP status that is an error, with the beginning of
// the answer.
func statusError(status int, answer []byte) string {
	text := fmt.Sprintf("answered %d", status)
	if name := http.StatusText(status); name != "" {
		text += " " + name
	}
	if len(answer) > 0 {
		text += ": " + quote(answer)
	}
	return text
}

// quote returns the beginning of an answer on one line.
func quote(answer []byte) string { return clip(sanitize(string(answer)), 200) }

// explain returns the text for an error of the client, without the URL that it begins
// with.
func explain(ctx context.Context, err error) string {
	var urlErr *url.Error
	if errors.As(err, &urlErr) {
		err = urlErr.Err
	}
	var dns *net.DNSError
	switch {
	case errors.Is(err, errPrivate):
		return errPrivate.Error()
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return "no answer in time"
	case errors.As(err, &dns):
		return "the name of its server does not resolve"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection was closed before an answer"
	}
	return strings.TrimSpace(sanitize(err.Error()))
}

// anyAnswer accepts every 2xx answer.
func anyAnswer([]byte) (string, bool) { return "", true }

// codeIn returns a check of answers such as {"code": 0, "message": "..."}, with the
// vendor's names of the two fields.
func codeIn(code, message string) func([]byte) (string, bool) {
	return func(answer []byte) (string, bool) {
		var fields map[string]json.RawMessage
		var n json.Number
		if json.Unmarshal(answer, &fields) != nil || json.Unmarshal(fields[code], &n) != nil || n == "" {
			return "", false
		}
		if n == "0" {
			return "", true
		}
		var text string
		_ = json.Unmarshal(fields[message], &text) // a message that is no string is left out
		return strings.TrimSuffix(fmt.Sprintf("answered %s %s: %s", code, n, clip(sanitize(text), 200)), ": "), true
	}
}
