package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"tidegate/gateway"
	"tidegate/gateway/alert/channel"
)

func noEnv(string) (string, bool) { return "", false }

// TestBadFiles reads every bad file of testdata/config; its first line says what
// must be said of it.
func TestBadFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/config/*.yaml")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			_, err = readConfig("F", source, noEnv)
			if err == nil {
				t.Fatal("it was taken")
			}
			first, _, _ := strings.Cut(string(source), "\n")
			for _, want := range strings.Split(strings.TrimPrefix(first, "# "), " && ") {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("expected %q in:\n%v", want, err)
				}
			}
		})
	}
}

// TestExampleAlerts loads the example with the channels that it shows commented out.
func TestExampleAlerts(t *testing.T) {
	source, err := os.ReadFile("../../deploy/tidegate.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	head, rest, found := strings.Cut(string(source), "alerts: []\n")
	if !found {
		t.Fatal("the example shows no alerts")
	}
	shown, rest, _ := strings.Cut(rest, "\n\n")
	shown = strings.ReplaceAll("\n"+shown, "\n#", "\n")
	url := filepath.Join(t.TempDir(), "slack-url")
	if err := os.WriteFile(url, []byte("https://hooks.slack.com/services/T/B/X"), 0o600); err != nil {
		t.Fatal(err)
	}
	shown = strings.Replace(shown, "/run/secrets/slack-url", url, 1)
	c, err := readConfig("example", []byte(head+"alerts:"+shown+"\n\n"+rest), func(name string) (string, bool) {
		value, ok := map[string]string{
			"WEBHOOK_KEY": "a key of more than sixteen", "DINGTALK_URL": "https://oapi.dingtalk.com/robot/send?access_token=x", "DINGTALK_SECRET": "SECx",
			"WECOM_URL": "https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key=x", "FEISHU_URL": "https://open.feishu.cn/open-apis/bot/v2/hook/x",
			"FEISHU_SECRET": "x", "SMTP_PASSWORD": "x",
		}[name]
		return value, ok
	})
	if err != nil {
		t.Fatal(err)
	}
	all, err := c.alertChannels()
	if err != nil || len(all) != len(channel.Types()) || len(all[5].Targets) != 2 || all[3].Accepts(channel.Warning) || all[0].Name != "ops" {
		t.Errorf("got %+v, %v", all, err)
	}
}

func TestNearest(t *testing.T) {
	for written, want := range map[string]string{"first_tokn": "first_token", "dbs": "db", "x": "", "xy": ""} {
		if got := nearest(written, []string{"db", "first_token"}); got != want {
			t.Errorf("%q: %q, want %q", written, got, want)
		}
	}
}

func TestAllFaultsAtOnce(t *testing.T) {
	_, err := readConfig("F", []byte("server: {listen: '', max_n: 0}\nauth: {mode: maybe}\nmodels:\n  - name: a\n    probe: 0s\n"), noEnv)
	if err == nil || strings.Count(err.Error(), "F:") != 5 {
		t.Errorf("expected five faults, got:\n%v", err)
	}
}

func TestExample(t *testing.T) {
	source, err := os.ReadFile("../../deploy/tidegate.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c, err := readConfig("example", source, noEnv)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Models) != 2 || c.Models[0].Timeouts.Total != 10*time.Minute {
		t.Errorf("got %+v", c)
	}
	// What it shows as defaults are the defaults.
	d := defaultConfig()
	d.Server.TrustedProxies, c.Server.TrustedProxies = nil, nil
	d.Server.OpsHosts, c.Server.OpsHosts = nil, nil
	d.Server.CORS.Origins, c.Server.CORS.Origins = nil, nil
	if !reflect.DeepEqual(c.Server, d.Server) {
		t.Errorf("the example shows %+v, the defaults are %+v", c.Server, d.Server)
	}
	c.Auth.Keys = nil
	if !reflect.DeepEqual(c.Auth, d.Auth) || c.Store != d.Store {
		t.Errorf("the example shows %+v and %+v, the defaults are %+v and %+v", c.Auth, c.Store, d.Auth, d.Store)
	}
	// And it names every key there is.
	for _, key := range keysOf(reflect.TypeFor[config]()) {
		if !bytes.Contains(source, []byte(key+":")) && !bytes.Contains(source, []byte(key)) {
			t.Errorf("the example does not show %s", key)
		}
	}
}

func TestEmptySectionsLeaveTheDefaults(t *testing.T) {
	c, err := readConfig("F", []byte("server:\n  # listen: :1\ntelemetry:\nauth: {mode: open}\nmodels: [{name: m, timeouts: , backends: [{url: 'http://a:1'}]}]\n"), noEnv)
	if err != nil || c.Server.Listen != ":8080" || c.Telemetry.Log != "json" || c.Models[0].Timeouts.Idle != 20*time.Second {
		t.Errorf("%v: %+v", err, c)
	}
}

func TestEnvironment(t *testing.T) {
	env := func(name string) (string, bool) {
		v, ok := map[string]string{
			"TIDEGATE_SERVER_LISTEN": "127.0.0.1:1", "TIDEGATE_SERVER_MAX_BODY": "1MiB", "TIDEGATE_SERVER_KEEPALIVE_EVERY": "3s",
			"TIDEGATE_AUTH_MODE": "open", "TIDEGATE_MODELS": "[{name: m, backends: [{url: 'http://a:1', api_key_env: K}]}]",
			"TIDEGATE_SERVER_TLS_CERT_FILE": "", "TIDEGATE_SERVICE_HOST": "10.0.0.1", "K": "secret",
		}[name]
		return v, ok
	}
	c, err := readConfig("F", nil, env)
	if err != nil {
		t.Fatal(err)
	}
	if c.Server.Listen != "127.0.0.1:1" || c.Server.MaxBody != 1<<20 || c.Server.KeepAlive.Every != 3*time.Second ||
		c.Auth.Mode != "open" || c.Models[0].Backends[0].APIKey != "secret" || c.Models[0].Timeouts.Connect != 3*time.Second {
		t.Errorf("got %+v", c)
	}
	_, err = readConfig("F", nil, func(name string) (string, bool) { return "soon", name == "TIDEGATE_SERVER_HEADER_TIMEOUT" })
	if err == nil || !strings.Contains(err.Error(), "TIDEGATE_SERVER_HEADER_TIMEOUT") {
		t.Errorf("got %v", err)
	}
}

func TestSizeTexts(t *testing.T) {
	for text, want := range map[string]gateway.Size{"8MiB": 8 << 20, "512KiB": 512 << 10, "1GiB": 1 << 30, "17": 17, "3 B": 3, "8MB": -1, "": -1, "-1": -1, "99999999999GiB": -1} {
		var s gateway.Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%q: %v, %v", text, s, err)
		}
	}
}

// TestCommands runs the command as a shell would.
func TestCommands(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := file("good.yaml", "server: {listen: '127.0.0.1:8080'}\nauth: {mode: open}\nmodels: [{name: m, backends: [{url: 'http://127.0.0.1:1'}]}]\n")
	bad := file("bad.yaml", "auth: {mode: open}\nmodels:\n  - name: m\n    backends: [{url: 'gpu:8000'}]\n")
	for _, c := range []struct {
		args           string
		code           int
		stdout, stderr string
	}{
		{"--help", exitOK, "Exit codes", ""},
		{"serve --help", exitOK, "tidegate serve --backend http://localhost:8000", ""},
		{"check --help", exitOK, "Examples:", ""},
		{"demo --help", exitOK, "Examples:", ""},
		{"usage report --help", exitOK, "Examples:", ""},
		{"usage", exitUsage, "", "tidegate usage report"},
		{"version", exitOK, "tidegate ", ""},
		{"check --config " + good, exitOK, "ok: 1 models, 1 backends", ""},
		{"check --config " + bad, exitUsage, "", "bad.yaml:4:22: models[0].backends[0].url:"},
		{"check --config " + dir + "/none.yaml", exitUsage, "", "none.yaml"},
		{"check", exitUsage, "", "give --config FILE"},
		{"serve --backend gpu:8000", exitUsage, "", "http"},
		{"serve --backend http://a:1 --config " + good, exitUsage, "", "exclude"},
		{"serve --port 1", exitUsage, "", "unknown flag"},
		{"serves", exitUsage, "", `unknown command "serves": did you mean tidegate serve (see tidegate --help)` + "\n"},
		{"topp", exitUsage, "", `unknown command "topp": did you mean tidegate top (see tidegate --help)` + "\n"},
		{"key lst", exitUsage, "", `unknown command "lst": did you mean tidegate key list or tidegate key set (see tidegate key --help)` + "\n"},
		{"usage zzzzzz", exitUsage, "", `unknown command "zzzzzz" (see tidegate usage --help)` + "\n"},
		{"serve extra", exitUsage, "", "(see tidegate serve --help)\n"},
		{"alert test", exitUsage, "", "(see tidegate alert test --help)\n"},
		{"--version", exitOK, "tidegate " + version() + " go", ""},
		{"", exitOK, "Available Commands:", ""},
		{"serve --config " + good + " --listen 127.0.0.1:99999", exitUsage, "", "99999"},
	} {
		t.Run(c.args, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := run(t.Context(), strings.Fields(c.args), noEnv, &stdout, &stderr)
			if code != c.code {
				t.Errorf("code %d, expected %d", code, c.code)
			}
			if !strings.Contains(stdout.String(), c.stdout) || !strings.Contains(stderr.String(), c.stderr) || c.stderr == "" && stderr.Len() > 0 {
				t.Errorf("stdout %q\nstderr %q", stdout.String(), stderr.String())
			}
		})
	}
}

// TestLayoutInWords: what the YAML library calls a token or a context is said in words
// that lead to the mistake.
func TestLayoutInWords(t *testing.T) {
	for source, want := range map[string]string{
		"models:\n  - name: a\n  backends: []\n":     "F:3:3: this cannot stand here: is the line indented as those beside it?",
		"models:\n  - name: a\n   backends: []\n":    "F:3:4: this cannot stand here: is the line indented as those beside it?",
		"models\n  - name: x\n":                      "F:1:1: this is no key with a value: is a colon missing after it?",
		"models:\n\t- name: x\n":                     "F:2:1: a tab cannot indent a line: use spaces",
		"models:\n  - name: \"x\n    backends: []\n": "F:2:11: could not find end character of double-quoted text",
	} {
		if _, err := readConfig("F", []byte(source), noEnv); err == nil || !strings.HasPrefix(err.Error(), want+"\n") {
			t.Errorf("%q: %v", source, err)
		}
	}
}

// TestRefusedKeyMakesNoStore: a key that cannot be made leaves no store behind, which in
// the wrong directory would look like the gateway's.
func TestRefusedKeyMakesNoStore(t *testing.T) {
	t.Chdir(t.TempDir())
	for args, want := range map[string]string{
		"key create":                      "give --user NAME",
		"key create --user a/b":           "user: must be",
		"key create --user ann --ttl 3x":  "ttl: must be",
		"key create --user ann --ips 300": "ips: ",
	} {
		var out bytes.Buffer
		code := run(t.Context(), strings.Fields(args), noEnv, &out, &out)
		if _, err := os.Stat("tidegate.db"); code != exitUsage || !strings.Contains(out.String(), want) || err == nil {
			t.Errorf("%s: code %d, store %v: %s", args, code, err, out.String())
		}
	}
}

func TestSchemaDescribesTheExample(t *testing.T) {
	var out bytes.Buffer
	if code := run(context.Background(), []string{"check", "--schema"}, noEnv, &out, &out); code != exitOK {
		t.Fatal(out.String())
	}
	var schema struct{ Properties map[string]any }
	if err := json.Unmarshal(out.Bytes(), &schema); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"server", "auth", "store", "models", "telemetry"} {
		if schema.Properties[key] == nil {
			t.Errorf("the schema lacks %s", key)
		}
	}
	if !strings.Contains(out.String(), `"first_token"`) || !strings.Contains(out.String(), `"max_body"`) || strings.Contains(out.String(), `"APIKey"`) {
		t.Errorf("got %s", out.String())
	}
}

func FuzzConfig(f *testing.F) {
	files, err := filepath.Glob("testdata/config/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range append(files, "../../deploy/tidegate.example.yaml") {
		source, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(source)
	}
	f.Fuzz(func(t *testing.T, source []byte) {
		c, err := readConfig("F", source, noEnv)
		if err == nil && c.validate() != nil {
			t.Error("taken, but not valid")
		}
		if err != nil && err.Error() == "" {
			t.Error("refused without a word")
		}
	})
}
