package channel

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// valid has a channel of each type.
func valid() []Config {
	return []Config{
		{Type: Webhook, URL: "https://alerts.example.com/x", SecretEnv: "S", Secret: testSecret},
		{Type: Webhook, Name: "inside", URL: "http://10.0.0.5:8080/x", SecretFile: "/s", Secret: testSecret, AllowPrivate: true},
		{Type: DingTalk, URLEnv: "U", URL: "https://oapi.dingtalk.com/robot/send?access_token=x", SecretEnv: "S", Secret: "SEC1"},
		{Type: WeCom, URLFile: "/u", URL: "https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key=x", Language: Chinese},
		{Type: Feishu, URLEnv: "U", URL: "https://open.feishu.cn/open-apis/bot/v2/hook/x", Min: Blocked},
		{Type: Slack, URLEnv: "U", URL: "https://hooks.slack.com/services/T/B/x"},
		{Type: Email, Server: "smtp.example.com:587", From: "tidegate@example.com", To: []string{"a@example.com", "B <b@example.com>"}, Username: "u", PasswordEnv: "P", Password: "p"},
	}
}

func TestValidConfig(t *testing.T) {
	if err := ValidateAll(valid()); err != nil {
		t.Fatal(err)
	}
	for _, c := range valid() {
		if _, err := New(c); err != nil {
			t.Errorf("%s: %v", c.Type, err)
		}
	}
}

func TestConfigFaults(t *testing.T) {
	notPEM := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(notPEM, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	hook := func(change func(*Config)) Config { c := valid()[0]; change(&c); return c }
	ding := func(change func(*Config)) Config { c := valid()[2]; change(&c); return c }
	post := func(change func(*Config)) Config { c := valid()[6]; change(&c); return c }
	for want, c := range map[string]Config{
		`type: "teams" is no channel; expected one of webhook, dingtalk, wecom, feishu, slack, email`: hook(func(c *Config) { c.Type, c.Name = "teams", "x" }),
		`type: "" is no channel; expected`:                    {},
		`name: must be 1 to 64 letters`:                       hook(func(c *Config) { c.Name = "a b" }),
		`language: must be en or zh, not "fr"`:                hook(func(c *Config) { c.Language = "fr" }),
		`min: must be warning, severe or blocked`:             hook(func(c *Config) { c.Min = 7 }),
		`ca_file: open /nowhere`:                              hook(func(c *Config) { c.CAFile = "/nowhere" }),
		`holds no certificate in PEM`:                         hook(func(c *Config) { c.CAFile = notPEM }),
		`url: is missing; expected something like`:            hook(func(c *Config) { c.URL = "" }),
		`url: holds no http or https URL`:                     hook(func(c *Config) { c.URL = "ftp://x/y" }),
		`url_env: holds no http or https URL`:                 ding(func(c *Config) { c.URL = "oapi.dingtalk.com/robot" }),
		`url_file: holds no http`:                             ding(func(c *Config) { c.URL, c.URLEnv, c.URLFile = "https://u:p@x/", "", "/f" }),
		`url_env: excludes url_file`:                          ding(func(c *Config) { c.URLFile = "/f" }),
		`url: is in the clear; expected https://`:             hook(func(c *Config) { c.URL = "http://alerts.example.com/" }),
		`url: is at an address that is not public`:            hook(func(c *Config) { c.URL = "https://192.168.0.7/" }),
		`url_env: is at an address that is not public`:        ding(func(c *Config) { c.URL = "https://localhost/" }),
		`url: carries the robot's token`:                      ding(func(c *Config) { c.URLEnv = "" }),
		`url_env: is missing; expected the name`:              ding(func(c *Config) { c.URL, c.URLEnv = "", "" }),
		`secret_env: excludes secret_file`:                    hook(func(c *Config) { c.SecretFile = "/f" }),
		`secret_env: is missing; a webhook is signed`:         hook(func(c *Config) { c.Secret, c.SecretEnv = "", "" }),
		`secret_env: the key must have 16 characters or more`: hook(func(c *Config) { c.Secret = "short" }),
		`secret_env: a slack channel is not signed`:           ding(func(c *Config) { c.Type = Slack }),
		`server: belongs to type: email`:                      hook(func(c *Config) { c.Server = "x:1" }),
		`to: belongs to type: email`:                          ding(func(c *Config) { c.To = []string{"a@b.example"} }),
		`url: does not belong to type: email`:                 post(func(c *Config) { c.URL = "https://x/" }),
		`server: must be host:port, such as`:                  post(func(c *Config) { c.Server = "smtp.example.com" }),
		`server: is at an address that is not public`:         post(func(c *Config) { c.Server = "[::1]:25" }),
		`tls: must be starttls, implicit or none, not "ssl"`:  post(func(c *Config) { c.TLS = "ssl" }),
		`tls: none would send the password in the clear`:      post(func(c *Config) { c.TLS = NoTLS }),
		`password_env: excludes password_file`:                post(func(c *Config) { c.PasswordFile = "/f" }),
		`password_env: is missing; expected the name`:         post(func(c *Config) { c.Password, c.PasswordEnv = "", "" }),
		`username: is missing beside its password`:            post(func(c *Config) { c.Username = "" }),
		`from: is missing; expected an address`:               post(func(c *Config) { c.From = "" }),
		`from: "a@b\r\nBcc: x@y" is no e-mail address`:        post(func(c *Config) { c.From = "a@b\r\nBcc: x@y" }),
		`to: is missing; expected a list`:                     post(func(c *Config) { c.To = nil }),
		`to[1]: "nobody" is no e-mail address`:                post(func(c *Config) { c.To = []string{"a@b.example", "nobody"} }),
		`to[1]: "a@b.example" is named twice`:                 post(func(c *Config) { c.To = []string{"a@b.example", "a@b.example"} }),
	} {
		err := ValidateAll([]Config{valid()[5], c})
		if err == nil {
			t.Errorf("no fault where %q was to come", want)
			continue
		}
		found := false
		for line := range strings.Lines(err.Error() + "\n") {
			found = found || strings.HasPrefix(line, "alerts[1].") && strings.Contains(line, want)
		}
		if !found {
			t.Errorf("got  %s\nwant alerts[1].%s", err, want)
		}
		for _, token := range []string{"access_token", testSecret, "SEC1"} {
			if strings.Contains(err.Error(), token) {
				t.Errorf("the fault shows a secret: %v", err)
			}
		}
		if _, err := New(c); err == nil {
			t.Errorf("New takes what has the fault %q", want)
		}
	}
}

func TestNamesDiffer(t *testing.T) {
	all := append(valid(), Config{Type: Slack, URLEnv: "U", URL: "https://hooks.slack.com/services/T/B/y"})
	err := ValidateAll(all)
	if err == nil || err.Error() != `alerts[7].name: "slack" is also alerts[5]; expected a name of its own` {
		t.Error(err)
	}
}

// TestUnread holds that New refuses what names a secret that nobody has read.
func TestUnread(t *testing.T) {
	for i, clear := range map[int]func(*Config){
		0: func(c *Config) { c.Secret = "" }, 2: func(c *Config) { c.Secret = "" }, 3: func(c *Config) { c.URL = "" }, 6: func(c *Config) { c.Password = "" },
	} {
		c := valid()[i]
		clear(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: made without its secret", c.Type)
		}
	}
}

func TestDefaults(t *testing.T) {
	if filled := (Config{Type: Email}).withDefaults(); filled.Name != Email || filled.TLS != StartTLS || filled.Language != English || filled.Min != Warning {
		t.Errorf("%+v", filled)
	}
	if filled := (Config{Type: Slack, Name: "ops", Language: Chinese}).withDefaults(); filled.Name != "ops" || filled.TLS != "" || filled.Language != Chinese {
		t.Errorf("%+v", filled)
	}
}

func TestSeverity(t *testing.T) {
	for _, s := range []Severity{Warning, Severe, Blocked} {
		var back Severity
		text, err := s.MarshalText()
		if err != nil || back.UnmarshalText(text) != nil || back != s {
			t.Errorf("%s came back as %s", s, back)
		}
	}
	var s Severity
	if err := s.UnmarshalText([]byte("bad")); err != nil || (Config{Type: Slack, URLEnv: "U", Min: s}).Validate() == nil {
		t.Error("a severity that is none is taken:", err)
	}
}
