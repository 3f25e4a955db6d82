package channel

import (
	"bytes"
	"encoding/json"
	"io"
	"math"
	"mime"
	"mime/quotedprintable"
	"net/mail"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func identity(s string) string { return s }

func TestWords(t *testing.T) {
	change := func(f func(*Alert)) Alert {
		a := sample()
		f(&a)
		return a
	}
	for name, c := range map[string]struct {
		alert    Alert
		language string
		want     string
	}{
		"warning": {sample(), English, `Tidegate warning: user alice has used 80% of quota daily

Who: user alice
Quota: daily
Used: 812,345 of 1,000,000 units (81%)
Resets: 2026-01-03 00:00 (UTC+08:00) (in 12 h 56 min)
What to do: Slow down, or ask an administrator for more: when all is used, requests are refused until the quota resets.`},
		"severe, a pair, days": {change(func(a *Alert) {
			a.Severity, a.Percent, a.Scope, a.Subject, a.Unit, a.Used = Severe, 95, "user,model", "alice, Qwen3-1.7B", "tokens", 999_999
			a.ResetsAt = time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC)
		}), English, `Tidegate severe: user and model alice, Qwen3-1.7B has used 95% of quota daily

Who: user and model alice, Qwen3-1.7B
Quota: daily
Used: 999,999 of 1,000,000 tokens (99%)
Resets: 2026-02-01 00:00 (UTC+00:00) (in 29 d 20 h)
What to do: Stop what can wait, or ask an administrator for more now: when all is used, requests are refused until the quota resets.`},
		"blocked, global, late": {change(func(a *Alert) {
			a.Severity, a.Percent, a.Scope, a.Subject, a.Used = Blocked, 100, "global", "", 1_000_000
			a.ResetsAt = noon()
		}), English, `Tidegate blocked: everybody together has used 100% of quota daily

Who: everybody together
Quota: daily
Used: 1,000,000 of 1,000,000 units (100%)
Resets: 2026-01-02 03:04 (UTC+00:00) (has begun anew since)
What to do: Requests are refused with 403 insufficient_quota until the quota resets. Wait, or ask an administrator for more.`},
		"test": {change(func(a *Alert) { a.Test = true; a.ResetsAt = noon().Add(time.Second) }), English, `[test] Tidegate warning: user alice has used 80% of quota daily

This is a test of the channel. Nothing has happened, nothing is to be done.
Who: user alice
Quota: daily
Used: 812,345 of 1,000,000 units (81%)
Resets: 2026-01-02 03:04 (UTC+00:00) (in 1 min)
What to do: Slow down, or ask an administrator for more: when all is used, requests are refused until the quota resets.`},
		"Chinese, severe, a pair, test": {change(func(a *Alert) {
			a.Severity, a.Percent, a.Scope, a.Subject, a.Unit, a.Test = Severe, 95, "user,model", "alice, Qwen3", "tokens", true
		}), Chinese, `[测试] Tidegate 严重：用户和模型 alice, Qwen3 已使用配额 daily 的 95%

这是一条测试消息：没有发生任何事情，无需处理。
对象：用户和模型 alice, Qwen3
配额：daily
已用：812,345 / 1,000,000 tokens（81%）
重置时间：2026-01-03 00:00 (UTC+08:00)（12小时56分钟后）
处理建议：请停止不紧急的任务，或立即向管理员申请更多配额；用尽后请求将被拒绝，直至配额重置。`},
		"Chinese, blocked, global, late": {change(func(a *Alert) {
			a.Severity, a.Percent, a.Scope, a.Subject = Blocked, 100, "global", ""
			a.ResetsAt = noon().Add(-time.Hour)
		}), Chinese, `Tidegate 已用尽：全体用户 已使用配额 daily 的 100%

对象：全体用户
配额：daily
已用：812,345 / 1,000,000 单位（81%）
重置时间：2026-01-02 02:04 (UTC+00:00)（现已重置）
处理建议：在配额重置之前，请求会被拒绝（403 insufficient_quota）。请等待重置，或向管理员申请更多配额。`},
	} {
		t.Run(name, func(t *testing.T) {
			checkEqual(t, "text", Format(c.alert, c.language, noon(), identity).Text(), c.want)
		})
	}
}

func TestThousands(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0", 999: "999", 1000: "1,000", 123456: "123,456", 1234567: "1,234,567", -1: "-1", -1234: "-1,234",
		math.MaxInt64: "9,223,372,036,854,775,807", math.MinInt64: "-9,223,372,036,854,775,808",
	} {
		checkEqual(t, "thousands", thousands(n), want)
	}
	for _, c := range []struct {
		used, limit int64
		want        string
	}{{0, 10, "0%"}, {999, 1000, "99%"}, {1000, 1000, "100%"}, {125, 100, "125%"}, {5, 0, "100%"}, {math.MaxInt64, math.MaxInt64, "100%"}} {
		checkEqual(t, "share", percentOf(c.used, c.limit), c.want)
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		1: "1 min", time.Minute: "1 min", 61 * time.Second: "2 min", time.Hour: "1 h", 90 * time.Minute: "1 h 30 min",
		24 * time.Hour: "1 d", 24*time.Hour + time.Minute: "1 d", 49 * time.Hour: "2 d 1 h", 24*time.Hour - 1: "1 d",
	} {
		checkEqual(t, d.String(), formatDuration(d, " d", " h", " min", " "), want)
	}
}

// hostile are names that would do something if they were not text.
func hostile() []string {
	return []string{
		"", "alice", "a\r\nBcc: evil@example.com\r\n\r\nbody", "@all", "<@all>", "@所有人", "<at id=all></at>", "<at user_id=\"all\">x</at>", "<!channel>", "<!here|x>", "@here",
		"[click](https://evil.example)", "![x](https://evil.example/x.png)", "https://evil.example", "www.evil.example", "WWW.evil.example", "dingtalk://x", "<https://evil.example|x>",
		"</font><a href=https://evil.example>x</a>", "# big", "\n# big", "> quote", "- list", "`code`", "**bold**", "&lt;@all&gt;", "a&b", `"}],"x":"`, "\\u003c", "\x00\x1b[31m", "\u202eevil", "\u2028x", "\xff\xfe",
		"﹫all", "=?utf-8?q?x?=", ".\r\n.\r\nRCPT TO:<x@y>", strings.Repeat("<", 5000), strings.Repeat("\U0001f525", 5000), strings.Repeat("&", 5000), "$urlVal",
	}
}

// strings of any depth in a JSON value.
func texts(v any) (out []string) {
	switch v := v.(type) {
	case string:
		out = append(out, v)
	case []any:
		for _, e := range v {
			out = append(out, texts(e)...)
		}
	case map[string]any:
		for _, e := range v {
			out = append(out, texts(e)...)
		}
	}
	return out
}

// shape is a JSON value without its strings' contents.
func shape(v any) any {
	switch v := v.(type) {
	case string:
		return ""
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = shape(e)
		}
		return out
	case map[string]any:
		out := map[string]any{}
		for k, e := range v {
			out[k] = shape(e)
		}
		return out
	}
	return v
}

func count(in []string, what string) (n int) {
	for _, s := range in {
		n += strings.Count(s, what)
	}
	return n
}

// harmless holds that the names of an alert change nothing but text in any channel,
// beside the same alert with plain names.
func harmless(t interface {
	Helper()
	Fatalf(string, ...any)
}, language, quota, per, who, unit string) {
	t.Helper()
	evil, plain := sample(), sample()
	evil.Quota, evil.Scope, evil.Subject, evil.Unit = quota, per, who, unit
	plain.Scope = "user"
	now := noon()
	for kind, write := range map[string]func(Config, Alert, time.Time) request{Webhook: webhook, DingTalk: dingtalk, WeCom: wecom, Feishu: feishu, Slack: slack} {
		c := Config{Language: language, Secret: testSecret, URL: "https://receiver.example/x"}
		var got, want any
		body := write(c, evil, now).body
		if err := json.Unmarshal(body, &got); err != nil {
			t.Fatalf("%s: %v in %s", kind, err, body)
		}
		if err := json.Unmarshal(write(c, plain, now).body, &want); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if a, b := encode(shape(got)), encode(shape(want)); !bytes.Equal(a, b) {
			t.Fatalf("%s: the shape changed:\n%s\n%s", kind, a, b)
		}
		if kind == Webhook {
			fields := got.(map[string]any)
			if fields["who"] != strings.ToValidUTF8(who, "\ufffd") && utf8.ValidString(who) {
				t.Fatalf("who came back as %q, was %q", fields["who"], who)
			}
			got, want = []any{fields["title"], fields["text"]}, []any{want.(map[string]any)["title"], want.(map[string]any)["text"]}
		}
		g, w := texts(got), texts(want)
		special := map[string]string{Webhook: "\n\r\x00\u2028\u202e", Feishu: "\n\r\x00\u2028\u202e", Slack: "\n\r<>\x00\u2028\u202e", DingTalk: "\n\r<>[]()@*`~#!&|\\$\x00\u2028\u202e", WeCom: "\n\r<>[]()@*`~#!&|\\$\x00\u2028\u202e"}
		for _, r := range special[kind] {
			if count(g, string(r)) != count(w, string(r)) {
				t.Fatalf("%s: %q stands there %d times and not %d: %q", kind, r, count(g, string(r)), count(w, string(r)), g)
			}
		}
		for _, s := range g {
			if lower := strings.ToLower(s); strings.Contains(lower, "://") || strings.Contains(lower, "www.") {
				t.Fatalf("%s: a link in %q", kind, s)
			}
			most := map[string]int{WeCom: 4096, DingTalk: 20000, Feishu: 20000, Webhook: 20000}[kind] // bytes
			if kind == Slack && utf8.RuneCountInString(s) > 3000 || kind != Slack && len(s) > most {
				t.Fatalf("%s: %d bytes", kind, len(s))
			}
			if kind == Slack {
				rest := strings.NewReplacer("&amp;", "", "&lt;", "", "&gt;", "").Replace(s)
				if strings.Contains(rest, "&") {
					t.Fatalf("slack: an entity of its own in %q", s)
				}
			}
		}
	}
	harmlessMail(t, language, evil, plain)
}

func harmlessMail(t interface {
	Helper()
	Fatalf(string, ...any)
}, language string, evil, plain Alert) {
	t.Helper()
	read := func(a Alert) (headers []string, subject string, lines int) {
		ch := &Channel{config: Config{Language: language, From: "Tidegate <tidegate@example.com>"}, now: noon}
		m, err := ch.compose("ops@example.com", a)
		if err != nil {
			t.Fatalf("%v", err)
		}
		var wire bytes.Buffer
		if _, err := m.WriteTo(&wire); err != nil {
			t.Fatalf("%v", err)
		}
		got, err := mail.ReadMessage(&wire)
		if err != nil {
			t.Fatalf("%v", err)
		}
		for name, values := range got.Header {
			for range values {
				headers = append(headers, name)
			}
		}
		slices.Sort(headers)
		if to := got.Header.Get("To"); to != "<ops@example.com>" {
			t.Fatalf("to %q", to)
		}
		subject, err = new(mime.WordDecoder).DecodeHeader(got.Header.Get("Subject"))
		if err != nil {
			t.Fatalf("%v", err)
		}
		body, err := io.ReadAll(quotedprintable.NewReader(got.Body))
		if err != nil {
			t.Fatalf("%v", err)
		}
		return headers, subject, bytes.Count(body, []byte("\n"))
	}
	headers, subject, lines := read(evil)
	wantHeaders, _, wantLines := read(plain)
	if !slices.Equal(headers, wantHeaders) || lines != wantLines {
		t.Fatalf("mail: headers %v and not %v, %d lines and not %d", headers, wantHeaders, lines, wantLines)
	}
	if want := Format(evil, language, noon(), escapeHeader).Title; subject != want {
		t.Fatalf("mail: subject %q, not %q", subject, want)
	}
}

func TestNamesAreText(t *testing.T) {
	for _, name := range hostile() {
		for _, language := range []string{English, Chinese} {
			harmless(t, language, name, "user", name, "units")
			harmless(t, language, "daily", name+"x", name+"x", name)
		}
	}
}

func TestAnyNamesAreText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.OneOf(rapid.String(), rapid.SampledFrom(hostile()), rapid.StringOfN(rapid.RuneFrom([]rune("<>[]()@!&:/w.\r\n#*`|\\\"'= ")), 0, 100, -1))
		harmless(t, rapid.SampledFrom([]string{English, Chinese}).Draw(t, "language"), name.Draw(t, "quota"), rapid.SampledFrom([]string{"user", "key", "user,model"}).Draw(t, "per"),
			name.Draw(t, "who")+"x", "tokens")
	})
}

func FuzzNames(f *testing.F) {
	for _, name := range hostile() {
		f.Add(name, "daily")
	}
	f.Fuzz(func(t *testing.T, who, quota string) {
		harmless(t, English, quota, "user", who+"x", "units")
		harmless(t, Chinese, quota, "user", who+"x", "units")
	})
}

// FuzzAnswer holds that whatever a vendor answers is told in bounds.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"errcode":0,"errmsg":"ok"}`))
	f.Add([]byte(`{"errcode":310000,"errmsg":"sign not match"}`))
	f.Add([]byte(`{"errcode":1e400,"errmsg":{}}`))
	f.Add([]byte("\xff\x00"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		complaint, ok := codeIn("errcode", "errmsg")(answer)
		if complaint != "" && !ok || len(complaint) > maxErrorText || strings.ContainsAny(complaint, "\r\n\x00") {
			t.Fatalf("%q, %v", complaint, ok)
		}
		if q := quote(answer); len(q) > 200 || !utf8.ValidString(q) || strings.ContainsAny(q, "\r\n\x00") {
			t.Fatalf("%q", q)
		}
	})
}
