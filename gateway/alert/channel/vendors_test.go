package channel

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"
)

const testSecret = "0123456789abcdef-webhook"

func shanghai() *time.Location { return time.FixedZone("", 8*3600) }

// noon is when tests send.
func noon() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

func sample() Alert {
	return Alert{
		ID: "01JGTESTALERT", Quota: "daily", Scope: "user", Subject: "alice", Unit: "units", Percent: 80,
		Severity: Warning, Used: 812345, Limit: 1000000,
		ResetsAt: time.Date(2026, 1, 3, 0, 0, 0, 0, shanghai()), Time: noon(),
	}
}

// seen is a request as a sink got it.
type seen struct {
	path, query string
	header      http.Header
	body        string
}

// sink answers every request with a status and a body and hands it on.
func sink(t *testing.T, status int, answer string) (string, chan seen) {
	t.Helper()
	got := make(chan seen, 16)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- seen{r.URL.Path, r.URL.RawQuery, r.Header.Clone(), string(body)}
		w.WriteHeader(status)
		io.WriteString(w, answer)
	}))
	t.Cleanup(server.Close)
	return server.URL, got
}

// newChannel returns a channel whose clock stands at noon and which has no pace.
func newChannel(t *testing.T, c Config) *Channel {
	t.Helper()
	if c.Type != Email && c.Type != Webhook {
		c.URLEnv = "THE_URL"
	}
	c.AllowPrivate = true
	ch, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ch.now = noon
	ch.pacer.interval = 0
	return ch
}

// sendOnce returns the single request that sending an alert makes.
func sendOnce(t *testing.T, c Config, answer string, a Alert) seen {
	t.Helper()
	base, got := sink(t, http.StatusOK, answer)
	c.URL = base + c.URL
	if err := newChannel(t, c).Send(t.Context(), "", a); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 {
		t.Fatalf("%d requests for one alert", len(got))
	}
	return <-got
}

func checkEqual(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n got %s\nwant %s", what, got, want)
	}
}

func TestWebhook(t *testing.T) {
	a := sample()
	a.Subject = `a"lice <b>`
	r := sendOnce(t, Config{Type: Webhook, URL: "/hook?x=1", Secret: testSecret}, "", a)
	checkEqual(t, "target", r.path+"?"+r.query, "/hook?x=1")
	checkEqual(t, "body", r.body, `{"id":"01JGTESTALERT","test":false,"severity":"warning","percent":80,"quota":"daily","per":"user",`+
		`"who":"a\"lice \u003cb\u003e","unit":"units","used":812345,"limit":1000000,"resets_at":"2026-01-03T00:00:00+08:00","at":"2026-01-02T03:04:05Z",`+
		`"title":"Tidegate warning: user a\"lice \u003cb\u003e has used 80% of quota daily",`+
		`"text":"Tidegate warning: user a\"lice \u003cb\u003e has used 80% of quota daily\n\nWho: user a\"lice \u003cb\u003e\nQuota: daily\nUsed: 812,345 of 1,000,000 units (81%)\n`+
		`Resets: 2026-01-03 00:00 (UTC+08:00) (in 12 h 56 min)\nWhat to do: Slow down, or ask an administrator for more: when all is used, requests are refused until the quota resets."}`)
	mac := hmac.New(sha256.New, []byte(testSecret))
	io.WriteString(mac, "1767323045."+r.body)
	for name, want := range map[string]string{
		"Content-Type": "application/json; charset=utf-8", "User-Agent": "tidegate",
		"X-Tidegate-Timestamp": "1767323045", "X-Tidegate-Delivery": "01JGTESTALERT",
		"X-Tidegate-Signature": "sha256=" + hex.EncodeToString(mac.Sum(nil)),
	} {
		checkEqual(t, name, strings.Join(r.header[name], "|"), want)
	}
}

// TestDingTalk checks the signature against the Python of DingTalk's documentation, run
// with its example secret.
func TestDingTalk(t *testing.T) {
	const answer = `{"errcode":0,"errmsg":"ok"}`
	r := sendOnce(t, Config{Type: DingTalk, URL: "/robot/send?access_token=0123abcd", Secret: "this is secret"}, answer, sample())
	checkEqual(t, "target", r.path+"?"+r.query, "/robot/send?access_token=0123abcd&timestamp=1767323045000&sign=%2BR3CNf8wRZg8%2FyimOABS%2FDatG5hPVYyhKXJctfEu5Jk%3D")
	checkEqual(t, "body", r.body, `{"at":{"isAtAll":false},"markdown":{"text":"#### Tidegate warning: user alice has used 80% of quota daily\n\n`+
		`- Who: user alice\n- Quota: daily\n- Used: 812,345 of 1,000,000 units (81%)\n- Resets: 2026-01-03 00:00 (UTC+08:00) (in 12 h 56 min)\n`+
		`- What to do: Slow down, or ask an administrator for more: when all is used, requests are refused until the quota resets.",`+
		`"title":"Tidegate warning: user alice has used 80% of quota daily"},"msgtype":"markdown"}`)
	r = sendOnce(t, Config{Type: DingTalk, URL: "/robot/send?access_token=0123abcd"}, answer, sample())
	checkEqual(t, "unsigned query", r.query, "access_token=0123abcd")
}

func TestWeCom(t *testing.T) {
	r := sendOnce(t, Config{Type: WeCom, URL: "/cgi-bin/webhook/send?key=693a91f6-7xxx-4bc4-97a0-0ec2sifa5aaa", Language: Chinese}, `{"errcode":0,"errmsg":"ok"}`, sample())
	checkEqual(t, "target", r.path+"?"+r.query, "/cgi-bin/webhook/send?key=693a91f6-7xxx-4bc4-97a0-0ec2sifa5aaa")
	checkEqual(t, "body", r.body, `{"markdown":{"content":"#### Tidegate 警告：用户 alice 已使用配额 daily 的 80%\n\u003e 对象：用户 alice\n\u003e 配额：daily\n`+
		`\u003e 已用：812,345 / 1,000,000 单位（81%）\n\u003e 重置时间：2026-01-03 00:00 (UTC+08:00)（12小时56分钟后）\n`+
		`\u003e 处理建议：请放慢使用，或向管理员申请更多配额；用尽后请求将被拒绝，直至配额重置。"},"msgtype":"markdown"}`)
}

// TestFeishu checks the signature against the Python of Feishu's documentation, run
// with its example secret.
func TestFeishu(t *testing.T) {
	a := sample()
	a.Severity, a.Percent, a.Used = Blocked, 100, 1200000
	r := sendOnce(t, Config{Type: Feishu, URL: "/open-apis/bot/v2/hook/xxxxxxxxxxxxxxxxx", Secret: "demo"}, `{"code":0,"msg":"success","data":{}}`, a)
	checkEqual(t, "target", r.path+r.query, "/open-apis/bot/v2/hook/xxxxxxxxxxxxxxxxx")
	checkEqual(t, "body", r.body, `{"card":{"config":{"wide_screen_mode":true},"elements":[{"tag":"div","text":{"content":"Who: user alice\nQuota: daily\n`+
		`Used: 1,200,000 of 1,000,000 units (120%)\nResets: 2026-01-03 00:00 (UTC+08:00) (in 12 h 56 min)\n`+
		`What to do: Requests are refused with 403 insufficient_quota until the quota resets. Wait, or ask an administrator for more.","tag":"plain_text"}}],`+
		`"header":{"template":"red","title":{"content":"Tidegate blocked: user alice has used 100% of quota daily","tag":"plain_text"}}},`+
		`"msg_type":"interactive","sign":"baskhgdDqWahi1xukxhH3tp8rB6GMUx11jkYQ9hkLlw=","timestamp":"1767323045"}`)
	r = sendOnce(t, Config{Type: Feishu, URL: "/open-apis/bot/v2/hook/xxxxxxxxxxxxxxxxx"}, `{"StatusCode":0,"StatusMessage":"success","code":0,"data":{},"msg":"success"}`, a)
	if strings.Contains(r.body, `"sign"`) || strings.Contains(r.body, `"timestamp"`) {
		t.Error("signed without a secret:", r.body)
	}
}

func TestSlack(t *testing.T) {
	a := sample()
	a.Subject = "<!channel> & https://evil.example"
	r := sendOnce(t, Config{Type: Slack, URL: "/services/T00000000/B00000000/0123456789ab"}, "ok", a)
	checkEqual(t, "target", r.path+r.query, "/services/T00000000/B00000000/0123456789ab")
	var body struct {
		Text   string
		Blocks []struct {
			Type string
			Text struct {
				Type, Text string
				Verbatim   bool
			}
		}
	}
	if err := json.Unmarshal([]byte(r.body), &body); err != nil || len(body.Blocks) != 2 {
		t.Fatal(err, r.body)
	}
	const title = "Tidegate warning: user &lt;!channel&gt; &amp; https\uff1a//evil.example has used 80% of quota daily"
	checkEqual(t, "text", body.Text, title)
	checkEqual(t, "first block", body.Blocks[0].Text.Text, "*"+title+"*")
	checkEqual(t, "second block", body.Blocks[1].Text.Text, "Who: user &lt;!channel&gt; &amp; https\uff1a//evil.example\nQuota: daily\nUsed: 812,345 of 1,000,000 units (81%)\n"+
		"Resets: 2026-01-03 00:00 (UTC+08:00) (in 12 h 56 min)\nWhat to do: Slow down, or ask an administrator for more: when all is used, requests are refused until the quota resets.")
	for _, b := range body.Blocks {
		if b.Type != "section" || b.Text.Type != "mrkdwn" || !b.Text.Verbatim {
			t.Errorf("block %+v", b)
		}
	}
}

// TestAnswers holds that what a vendor answers is understood as it documents it.
func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		of     string
		status int
		answer string
		want   string // of the error; empty: delivered
		unsure bool
	}{
		{Webhook, 200, "", "", false},
		{Webhook, 204, "", "", false},
		{Webhook, 202, "anything", "", false},
		{Webhook, 500, "oops\r\n\x1b[31mred", "answered 500 Internal Server Error: oops [31mred", false},
		{Webhook, 404, "", "answered 404 Not Found", false},
		{Webhook, 502, "", "answered 502 Bad Gateway", true},
		{Webhook, 504, "late", "answered 504 Gateway Timeout: late", true},
		{Webhook, 307, "", "answered 307, a redirect, which is not followed: give the URL that it leads to", false},
		{Webhook, 302, "", "answered 302, a redirect, which is not followed: give the URL that it leads to", false},
		{DingTalk, 200, `{"errcode":0,"errmsg":"ok"}`, "", false},
		{DingTalk, 200, `{"errcode":310000,"errmsg":"sign not match"}`, "answered errcode 310000: sign not match", false},
		{DingTalk, 200, `{"errcode":130101}`, "answered errcode 130101", false},
		{DingTalk, 200, `<html>sign in</html>`, "answered 200 with something that is not its kind of answer: <html>sign in</html>", true},
		{DingTalk, 200, `{"errcode":null}`, `answered 200 with something that is not its kind of answer: {"errcode":null}`, true},
		{DingTalk, 200, `{"errcode":"0"}`, "", false},
		{DingTalk, 200, ``, "answered 200 with something that is not its kind of answer: ", true},
		{WeCom, 200, `{"errcode":0,"errmsg":"ok"}`, "", false},
		{WeCom, 200, `{"errcode":93000,"errmsg":"invalid webhook url"}`, "answered errcode 93000: invalid webhook url", false},
		{WeCom, 200, `[]`, "answered 200 with something that is not its kind of answer: []", true},
		{Feishu, 200, `{"code":0,"msg":"success"}`, "", false},
		{Feishu, 200, `{"code":19021,"msg":"sign match fail or timestamp is not within one hour from current time"}`, "answered code 19021: sign match fail or timestamp is not within one hour from current time", false},
		{Feishu, 400, `{"code":9499,"msg":"Bad Request"}`, `answered 400 Bad Request: {"code":9499,"msg":"Bad Request"}`, false},
		{Slack, 200, "ok", "", false},
		{Slack, 200, "nok", "answered 200 with something that is not its kind of answer: nok", true},
		{Slack, 403, "invalid_token", "answered 403 Forbidden: invalid_token", false},
		{Slack, 400, strings.Repeat("x", 1<<20), "answered 400 Bad Request: " + strings.Repeat("x", 197) + "...", false},
	} {
		t.Run(c.of+" "+strconv.Itoa(c.status), func(t *testing.T) {
			base, _ := sink(t, c.status, c.answer)
			ch := newChannel(t, Config{Type: c.of, URL: base + "/a", Secret: map[string]string{Webhook: testSecret}[c.of]})
			err := ch.Send(t.Context(), "", sample())
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			var e *Error
			if !errors.As(err, &e) || e.Text != c.want || e.Unsure != c.unsure || e.Status != c.status {
				t.Fatalf("got  %#v\nwant %q, unsure %v", err, c.want, c.unsure)
			}
		})
	}
}

func TestTargets(t *testing.T) {
	base, got := sink(t, 200, "ok")
	ch := newChannel(t, Config{Name: "ops", Type: Slack, URL: base, Min: Severe})
	if targets := ch.Targets(); len(targets) != 1 || targets[0] != "" {
		t.Error(targets)
	}
	if err := ch.Send(context.Background(), "somebody", sample()); err == nil || len(got) != 0 {
		t.Error("a target that is none was sent to:", err)
	}
	if ch.Accepts(Warning) || !ch.Accepts(Severe) || !ch.Accepts(Blocked) || ch.Name() != "ops" || ch.Type() != Slack {
		t.Error("what the channel says of itself")
	}
}
