package channel

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// request returns the alert as the channel's vendor expects it, signed now.
func (ch *Channel) request(a Alert) request {
	c, now := ch.config, ch.now()
	switch c.Type {
	case DingTalk:
		return dingtalk(c, a, now)
	case WeCom:
		return wecom(c, a, now)
	case Feishu:
		return feishu(c, a, now)
	case Slack:
		return slack(c, a, now)
	}
	return webhook(c, a, now)
}

// notice is the body of a webhook. Its times are RFC 3339, in whole seconds.
type notice struct {
	ID       string   `json:"id"`   // id, the same at each attempt
	Test     bool     `json:"test"` // set for a test of the channel
	Severity Severity `json:"severity"`
	Percent  int      `json:"percent"` // crossed threshold
	Quota    string   `json:"quota"`
	Scope    string   `json:"per"`
	Subject  string   `json:"who"`
	Unit     string   `json:"unit"`
	Used     int64    `json:"used"`
	Limit    int64    `json:"limit"`
	ResetsAt string   `json:"resets_at"`
	Time     string   `json:"at"`
	Title    string   `json:"title"` // title for people, in the channel's language
	Text     string   `json:"text"`
}

// webhook returns the request of our own format: a notice in JSON. The signature covers
// the time and the bytes of the body, so neither can be changed and an old request does
// not pass for a new one. The delivery header holds the alert's id, so that a receiver can
// drop a repetition.
func webhook(c Config, a Alert, now time.Time) request {
	m := Format(a, c.Language, now, withoutLinks)
	body := encode(notice{
		a.ID, a.Test, a.Severity, a.Percent, a.Quota, a.Scope, a.Subject, a.Unit, a.Used, a.Limit,
		a.ResetsAt.Format(time.RFC3339), a.Time.Format(time.RFC3339), m.Title, m.Text(),
	})
	timestamp := strconv.FormatInt(now.Unix(), 10)
	mac := sign(c.Secret, timestamp+"."+string(body))
	return request{url: c.URL, body: body, check: anyAnswer, header: map[string]string{
		"X-Tidegate-Timestamp": timestamp,
		"X-Tidegate-Signature": "sha256=" + hex.EncodeToString(mac),
		"X-Tidegate-Delivery":  token(a.ID),
	}}
}

// dingtalk returns a custom robot's markdown message. The signature is an HMAC over the
// time in milliseconds, a line feed and the secret, with the secret as the key, in Base64,
// in the query beside the time. See
// https://open.dingtalk.com/document/robots/custom-robot-access and
// https://open.dingtalk.com/document/robots/customize-robot-security-settings
func dingtalk(c Config, a Alert, now time.Time) request {
	m := Format(a, c.Language, now, withoutMarkup)
	target := c.URL
	if c.Secret != "" {
		timestamp := strconv.FormatInt(now.UnixMilli(), 10)
		mac := base64.StdEncoding.EncodeToString(sign(c.Secret, timestamp+"\n"+c.Secret))
		separator := "?"
		if strings.Contains(target, "?") {
			separator = "&"
		}
		target += separator + "timestamp=" + timestamp + "&sign=" + url.QueryEscape(mac)
	}
	return request{url: target, check: codeIn("errcode", "errmsg"), body: encode(map[string]any{
		"msgtype": "markdown",
		"markdown": map[string]any{
			"title": m.Title,
			"text":  "#### " + m.Title + "\n\n- " + strings.Join(m.Lines, "\n- "),
		},
		"at": map[string]any{"isAtAll": false},
	})}
}

// wecom returns a group robot's markdown message, of at most 4096 bytes. The key in the
// URL is its only authentication. See
// https://developer.work.weixin.qq.com/document/path/91770
func wecom(c Config, a Alert, now time.Time) request {
	m := Format(a, c.Language, now, withoutMarkup)
	return request{url: c.URL, check: codeIn("errcode", "errmsg"), body: encode(map[string]any{
		"msgtype":  "markdown",
		"markdown": map[string]any{"content": "#### " + m.Title + "\n> " + strings.Join(m.Lines, "\n> ")},
	})}
}

// feishu returns a custom bot's card, entirely in plain_text, which has no markup. The
// signature is an HMAC over nothing, with the time in seconds, a line feed and the secret
// as the key, in Base64, in the body beside the time. See
// https://open.feishu.cn/document/client-docs/bot-v3/add-custom-bot
func feishu(c Config, a Alert, now time.Time) request {
	m := Format(a, c.Language, now, withoutLinks)
	color := map[Severity]string{Warning: "yellow", Severe: "orange", Blocked: "red"}[a.Severity]
	if a.Test {
		color = "blue"
	}
	plain := func(text string) map[string]any { return map[string]any{"tag": "plain_text", "content": text} }
	body := map[string]any{
		"msg_type": "interactive",
		"card": map[string]any{
			"config":   map[string]any{"wide_screen_mode": true},
			"header":   map[string]any{"title": plain(m.Title), "template": color},
			"elements": []any{map[string]any{"tag": "div", "text": plain(strings.Join(m.Lines, "\n"))}},
		},
	}
	if c.Secret != "" {
		timestamp := strconv.FormatInt(now.Unix(), 10)
		body["timestamp"] = timestamp
		body["sign"] = base64.StdEncoding.EncodeToString(sign(timestamp+"\n"+c.Secret, ""))
	}
	return request{url: c.URL, check: codeIn("code", "msg"), body: encode(body)}
}

// slack returns an incoming webhook's message: blocks, and the text that notifications
// show. With verbatim, only explicit links and mentions become such. See
// https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks and
// https://docs.slack.dev/reference/block-kit/composition-objects/text-object
func slack(c Config, a Alert, now time.Time) request {
	m := Format(a, c.Language, now, escapeSlack)
	section := func(text string) map[string]any {
		return map[string]any{"type": "section", "text": map[string]any{"type": "mrkdwn", "verbatim": true, "text": text}}
	}
	verdict := func(answer []byte) (string, bool) { return "", strings.TrimSpace(string(answer)) == "ok" }
	return request{url: c.URL, check: verdict, body: encode(map[string]any{
		"text":   m.Title,
		"blocks": []any{section("*" + m.Title + "*"), section(strings.Join(m.Lines, "\n"))},
	})}
}

// sign returns the HMAC-SHA256 (RFC 2104).
func sign(key, message string) []byte {
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write([]byte(message))
	return mac.Sum(nil)
}

// encode returns the JSON of a value that always marshals.
func encode(v any) []byte {
	body, _ := json.Marshal(v)
	return body
}

// token returns an id that fits a header: the id itself, or its digest if it has odd
// characters.
func token(id string) string {
	invalid := func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`<>@"\`, r) }
	if id != "" && len(id) <= 128 && !strings.ContainsFunc(id, invalid) {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return hex.EncodeToString(sum[:16])
}
