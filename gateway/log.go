package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidegate/gateway/account"
	"tidegate/gateway/openai"
	"tidegate/gateway/refusal"
)

// log writes one line about a request and its outcome. No prompt, no answer and no key is
// ever in it, which is why an error's text is not where it may quote one. Lines that a
// caller without a good key can cause are sampled; the metrics count them all.
func (g *Gateway) log(c *call, took time.Duration, err error) {
	out, q := &c.outcome, &c.request
	level := slog.LevelInfo
	if out.status >= 500 {
		level = slog.LevelWarn
	}
	if !g.Log.Enabled(context.Background(), level) {
		return
	}
	skipped, sampled, ok := g.sampled(c, err)
	if !ok {
		return
	}
	attrs := make([]slog.Attr, 0, 30)
	attrs = append(attrs, slog.String("id", c.id), slog.String("route", c.route), slog.Int("status", out.status),
		slog.Duration("took", took), slog.String("from", c.clientAddr().String()))
	if sampled {
		attrs = append(attrs, slog.Int("unlogged", skipped))
	}
	if c.route == routeOther {
		attrs = append(attrs, slog.String("method", refusal.Clip(c.r.Method)), slog.String("path", loggablePath(c.r.URL.Path)))
	}
	if c.caller.User != "" {
		attrs = append(attrs, slog.String("user", c.caller.User), slog.String("key", c.caller.Key))
	}
	if c.caller.KeyID != "" {
		attrs = append(attrs, slog.String("key_id", c.caller.KeyID))
	}
	if id := c.tracing.traceID(); id != "" {
		attrs = append(attrs, slog.String("trace_id", id))
	}
	if q.model != nil {
		attrs = append(attrs, slog.String("model", q.model.Name), slog.String("served", c.served()),
			slog.Bool("stream", q.Wish.Stream), slog.String("level", out.level.String()), slog.String("reason", out.reason), slog.String("backend", out.backend),
			slog.Int("input", out.usage.Input), slog.Int("cached", out.usage.Cached), slog.Int("output", out.usage.Output),
			slog.Int("reasoning", out.usage.Reasoning))
		if out.estimated {
			attrs = append(attrs, slog.Bool("estimated", true))
		}
	} else if q.Wish.Model != "" {
		attrs = append(attrs, slog.String("asked", loggableName(q.Wish.Model)))
	}
	if c.permit != nil && c.permit.Wait > 0 {
		attrs = append(attrs, slog.Duration("queued", c.permit.Wait))
	}
	if !out.firstToken.IsZero() {
		attrs = append(attrs, slog.Duration("ttft", out.firstToken.Sub(c.began)))
	}
	if text := c.r.Header.Get("X-Stainless-Retry-Count"); text != "" {
		if retry, err := strconv.Atoi(text); err == nil && retry > 0 {
			attrs = append(attrs, slog.Int("client_retry", retry))
		}
	}
	g.Log.LogAttrs(context.Background(), level, "request", append(attrs, c.fault(err)...)...)
}

// sampled reports whether the line of a request may be written; for a request of the
// kinds that strangers can send in any number also how many lines were left out since
// the last one. Each kind has its own share of lines, so that guesses hide no key that
// has expired.
func (g *Gateway) sampled(c *call, err error) (skipped int, sampled, ok bool) {
	switch {
	case c.caller.User == "" && errors.As(err, new(*account.KeyError)):
		skipped, ok = g.badKeys.take(time.Now())
		return skipped, true, ok
	case c.route == routeOther:
		skipped, ok = g.lost.take(time.Now())
		return skipped, true, ok
	case c.caller.User == "" && (c.outcome.status == http.StatusUnauthorized || c.outcome.status == http.StatusTooManyRequests):
		skipped, ok = g.keyless.take(time.Now())
		return skipped, true, ok
	case c.caller.User == "":
		skipped, ok = g.unchecked.take(time.Now())
		return skipped, true, ok
	}
	return 0, false, true
}

// fault returns what the line says of an error: what the caller was told, and why.
func (c *call) fault(err error) (attrs []slog.Attr) {
	if err == nil {
		return nil
	}
	if known := (*account.KeyError)(nil); errors.As(err, &known) { // else nobody knows whose key it was
		attrs = append(attrs, slog.String("key_state", string(known.State)))
		if c.caller.User == "" {
			attrs = append(attrs, slog.String("user", known.User), slog.String("key", known.Key), slog.String("key_id", known.KeyID))
		}
	}
	for _, field := range []struct{ name, value string }{
		{"code", string(c.outcome.code)}, {"param", c.loggedParam()}, {"rule", c.outcome.rule}, {"error", loggable(err)},
	} {
		if field.value != "" {
			attrs = append(attrs, slog.String(field.name, field.value))
		}
	}
	return attrs
}

// loggable returns the text of an error without what it quotes of the caller or a
// server; empty: the code says enough.
func loggable(err error) string {
	if err == nil {
		return "" // before the targets below are allocated
	}
	var (
		r       *refusal.Refusal
		request *openai.Error
		stream  *openai.StreamError
	)
	switch {
	case errors.As(err, &request):
		return unquoted(request.Message)
	case errors.As(err, &stream):
		return fmt.Sprintf("error in an answer of status 200: status %d", stream.Status)
	case errors.As(err, &r):
		switch r.Code {
		case refusal.UnknownURL, refusal.MethodNotAllowed:
			return "" // the fields method and path say more
		case refusal.InvalidRequest, refusal.ModelNotFound, refusal.ModelNotAllowed, refusal.UnsupportedEncoding:
			return unquoted(err.Error())
		}
	}
	return err.Error()
}

// unquoted returns a message of the gateway without what it quotes: from the first
// quotation mark or backtick to the last, since the quoted text may have some as well.
// A quotation that was cut off has no end.
func unquoted(message string) string {
	const marks = "\"`"
	begin, end := strings.IndexAny(message, marks), strings.LastIndexAny(message, marks)
	switch {
	case begin < 0:
	case begin == end:
		message = message[:begin] + "…"
	default:
		message = message[:begin] + "…" + message[end+1:]
	}
	return refusal.Clip(message)
}

// Bounds of what a caller names, in bytes.
const (
	maxLoggedName  = 100
	maxLoggedParam = 64
	maxLoggedRun   = 31 // letters and digits in a row
)

// loggedParam returns the parameter at fault as the line names it: of a body for a model
// only where it is a member that the gateway knows, since callers and servers may put any
// text in a member's place.
func (c *call) loggedParam() string {
	param := loggableParam(c.outcome.param)
	if param == "" || c.route == "/v1/usage" || c.route == "/quota/status" || strings.HasPrefix(c.route, "/admin/") {
		return param
	}
	root := param
	if end := strings.IndexAny(param, ".["); end >= 0 {
		root = param[:end]
	}
	if !slices.ContainsFunc(openai.Members(), func(m openai.Member) bool { return m.Name == root }) {
		return ""
	}
	return param
}

// loggableParam returns the name of a parameter; empty where it is none of the API's
// form, since a caller may put any text there.
func loggableParam(param string) string {
	if len(param) > maxLoggedParam || !nameLike(param, "_.[]-") {
		return ""
	}
	return param
}

// loggablePath returns a path with each of its parts as the caller wrote it, or … where a
// part looks like no word of a route: it may be a key, or a text.
func loggablePath(path string) string {
	parts := strings.Split(refusal.Clip(path), "/")
	for i, part := range parts {
		if len(part) > maxLoggedRun || !nameLike(part, "_.:-") || secretLike(part) {
			parts[i] = "…"
		}
	}
	return strings.Join(parts, "/")
}

// secretLike reports whether a word begins as keys do.
func secretLike(word string) bool {
	return strings.HasPrefix(word, "tg-") || strings.HasPrefix(word, "sk-")
}

// loggableName returns a model's name as the caller wrote it, or its length where it
// looks like no model's name: it may be a key or a part of a prompt.
func loggableName(name string) string {
	run, longest := 0, 0 // of letters and digits, of which secrets are made
	for i := range len(name) {
		if run++; strings.IndexByte(nameMarks, name[i]) >= 0 {
			run = 0
		}
		longest = max(longest, run)
	}
	if len(name) > maxLoggedName || longest > maxLoggedRun || !nameLike(name, nameMarks) || secretLike(name) {
		return fmt.Sprintf("(%d bytes that are no model's name)", len(name))
	}
	return name
}

// nameMarks are the characters beside letters and digits in the names of models.
const nameMarks = "_.:/@+-"

// nameLike reports whether a text has only letters, digits and some other characters.
func nameLike(text, marks string) bool {
	for i := range len(text) {
		c := text[i]
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && strings.IndexByte(marks, c) < 0 {
			return false
		}
	}
	return true
}
