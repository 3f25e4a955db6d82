package channel

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Message is an alert as text for people.
type Message struct {
	Title string   // one line, at most a few hundred characters
	Lines []string // subject, quota, use, reset and advice
}

// Text returns the whole message as plain text.
func (m Message) Text() string { return m.Title + "\n\n" + strings.Join(m.Lines, "\n") }

// Format returns an alert as text in a language, English unless that is Chinese, as of
// now. Names that users chose are sanitized, cut to maxName characters and passed through
// escape. It is a pure function.
func Format(a Alert, language string, now time.Time, escape func(string) string) Message {
	name := func(s string) string {
		if s = sanitize(clip(s, 10*maxName)); s == "" {
			s = "-"
		}
		return escape(clipRunes(s, maxName))
	}
	if language == Chinese {
		return chinese(a, now, name)
	}
	return english(a, now, name)
}

// maxName is the longest part of a name that is shown, in characters. It keeps the longest
// message below 4096 bytes in every channel, which is WeCom's limit.
const maxName = 80

// english returns the message in English.
func english(a Alert, now time.Time, name func(string) string) Message {
	subject := strings.Join(strings.FieldsFunc(a.Scope, func(r rune) bool { return r == ',' }), " and ")
	switch {
	case a.Scope == "global" || a.Scope == "" && a.Subject == "":
		subject = "everybody together"
	case a.Subject != "":
		subject = name(subject) + " " + name(a.Subject)
	}
	m := Message{Title: fmt.Sprintf("Tidegate %s: %s has used %d%% of quota %s", a.Severity, subject, a.Percent, name(a.Quota))}
	reset := "has begun anew since"
	if left := a.ResetsAt.Sub(now); left > 0 {
		reset = "in " + formatDuration(left, " d", " h", " min", " ")
	}
	m.Lines = []string{
		"Who: " + subject,
		"Quota: " + name(a.Quota),
		fmt.Sprintf("Used: %s of %s %s (%s)", thousands(a.Used), thousands(a.Limit), name(a.Unit), percentOf(a.Used, a.Limit)),
		fmt.Sprintf("Resets: %s (%s)", formatTime(a.ResetsAt), reset),
	}
	todo := "Slow down, or ask an administrator for more: when all is used, requests are refused until the quota resets."
	switch a.Severity {
	case Severe:
		todo = "Stop what can wait, or ask an administrator for more now: when all is used, requests are refused until the quota resets."
	case Blocked:
		todo = "Requests are refused with 403 insufficient_quota until the quota resets. Wait, or ask an administrator for more."
	}
	m.Lines = append(m.Lines, "What to do: "+todo)
	if a.Test {
		m.Title = "[test] " + m.Title
		m.Lines = append([]string{"This is a test of the channel. Nothing has happened, nothing is to be done."}, m.Lines...)
	}
	return m
}

// chinese returns the message in Chinese.
func chinese(a Alert, now time.Time, name func(string) string) Message {
	words := map[string]string{
		"department": "部门", "project": "项目", "user": "用户", "key": "密钥", "ip": "IP", "model": "模型",
		"warning": "警告", "severe": "严重", "blocked": "已用尽", "units": "单位", "tokens": "tokens",
	}
	word := func(s string) string {
		if w := words[s]; w != "" {
			return w
		}
		return name(s)
	}
	var kinds []string
	for kind := range strings.SplitSeq(clipRunes(a.Scope, maxName), ",") {
		kinds = append(kinds, word(strings.TrimSpace(kind)))
	}
	subject := strings.Join(kinds, "和")
	switch {
	case a.Scope == "global" || a.Scope == "" && a.Subject == "":
		subject = "全体用户"
	case a.Subject != "":
		subject += " " + name(a.Subject)
	}
	m := Message{Title: fmt.Sprintf("Tidegate %s：%s 已使用配额 %s 的 %d%%", word(a.Severity.String()), subject, name(a.Quota), a.Percent)}
	reset := "现已重置"
	if left := a.ResetsAt.Sub(now); left > 0 {
		reset = formatDuration(left, "天", "小时", "分钟", "") + "后"
	}
	m.Lines = []string{
		"对象：" + subject,
		"配额：" + name(a.Quota),
		fmt.Sprintf("已用：%s / %s %s（%s）", thousands(a.Used), thousands(a.Limit), word(a.Unit), percentOf(a.Used, a.Limit)),
		fmt.Sprintf("重置时间：%s（%s）", formatTime(a.ResetsAt), reset),
	}
	todo := "请放慢使用，或向管理员申请更多配额；用尽后请求将被拒绝，直至配额重置。"
	switch a.Severity {
	case Severe:
		todo = "请停止不紧急的任务，或立即向管理员申请更多配额；用尽后请求将被拒绝，直至配额重置。"
	case Blocked:
		todo = "在配额重置之前，请求会被拒绝（403 insufficient_quota）。请等待重置，或向管理员申请更多配额。"
	}
	m.Lines = append(m.Lines, "处理建议："+todo)
	if a.Test {
		m.Title = "[测试] " + m.Title
		m.Lines = append([]string{"这是一条测试消息：没有发生任何事情，无需处理。"}, m.Lines...)
	}
	return m
}

// formatTime returns date and time of day with the offset of the zone, so that no reader
// has to guess it.
func formatTime(t time.Time) string { return t.Format("2006-01-02 15:04 (UTC-07:00)") }

// formatDuration returns a positive duration in its two largest units, rounded up to a
// minute.
func formatDuration(d time.Duration, day, hour, minute, separator string) string {
	minutes := int64((d + time.Minute - 1) / time.Minute)
	days, hours, minutes := minutes/(24*60), minutes/60%24, minutes%60
	var parts []string
	add := func(n int64, unit string) {
		if n > 0 && len(parts) < 2 {
			parts = append(parts, strconv.FormatInt(n, 10)+unit)
		}
	}
	add(days, day)
	add(hours, hour)
	if days == 0 {
		add(minutes, minute)
	}
	return strings.Join(parts, separator)
}

// thousands returns 1234567 as 1,234,567.
func thousands(n int64) string {
	digits := strconv.FormatInt(n, 10)
	sign := ""
	if digits[0] == '-' {
		sign, digits = "-", digits[1:]
	}
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return sign + digits
}

// percentOf returns whole percents, rounded down: 99.9 % is not 100 %.
func percentOf(used, limit int64) string {
	if limit <= 0 {
		return "100%"
	}
	return fmt.Sprintf("%.0f%%", math.Floor(float64(used)/float64(limit)*100))
}

// sanitize returns a text as one line of valid UTF-8, without characters that affect their
// surroundings: controls, bidirectional overrides, invisible characters.
func sanitize(s string) string {
	replace := func(r rune) rune {
		if unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co) || r == utf8.RuneError {
			return ' '
		}
		return r
	}
	return strings.Join(strings.Fields(strings.Map(replace, strings.ToValidUTF8(s, " "))), " ")
}

// clip cuts a text to a size in bytes, between characters.
func clip(s string, size int) string {
	if len(s) <= size {
		return s
	}
	cut := size - len("...")
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "..."
}

// clipRunes cuts a text to a size in characters.
func clipRunes(s string, size int) string {
	if utf8.RuneCountInString(s) <= size {
		return s
	}
	runes := []rune(s)
	return string(runes[:size-3]) + "..."
}

// withoutLinks returns a text in which no program finds a URL. It replaces the colon of
// :// and the dot of www. by their full-width forms.
func withoutLinks(s string) string {
	s = strings.ReplaceAll(s, "://", "\uff1a//")
	for i := 0; i+4 <= len(s); i++ {
		if strings.EqualFold(s[i:i+4], "www.") {
			s = s[:i+3] + "\uff0e" + s[i+4:]
		}
	}
	return s
}

// withoutMarkup returns a text without links, Markdown, HTML and mentions. It replaces
// each of their characters by its full-width form, since DingTalk and WeCom document no
// way to escape them.
func withoutMarkup(s string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune("<>[]()@*`~#!&|\\$", r) {
			return r + 0xfee0 // from ASCII to the block Halfwidth and Fullwidth Forms
		}
		return r
	}, withoutLinks(s))
}

// escapeHeader returns a text that is safe in a mail header: no encoded word of RFC 2047
// begins in it.
func escapeHeader(s string) string { return strings.ReplaceAll(withoutLinks(s), "=?", "=\uff1f") }

// escapeSlack escapes a text for Slack. See
// https://docs.slack.dev/messaging/formatting-message-text, "Escaping text".
func escapeSlack(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(withoutLinks(s))
}
