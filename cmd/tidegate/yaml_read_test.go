package main

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"
	"unicode/utf16"
)

const plainModels = "auth: {mode: open}\nmodels: [{name: m, backends: [{url: 'http://a:1'}]}]\n"

// TestByteOrderMark: a file that an editor on Windows saved is read; one in UTF-16 is
// refused with what to do.
func TestByteOrderMark(t *testing.T) {
	if c, err := readConfig("F", []byte("\ufeffserver: {listen: ':1'}\n"+plainModels), noEnv); err != nil || c.Server.Listen != ":1" {
		t.Errorf("%v: %q", err, c.Server.Listen)
	}
	_, err := readConfig("F", []byte("\ufeffserver: {lisen: ':1'}\n"+plainModels), noEnv)
	if err == nil || !strings.HasPrefix(err.Error(), "F:1:10: unknown key") || !strings.HasSuffix(err.Error(), "\n    server: {lisen: ':1'}\n             ^") {
		t.Errorf("%v", err)
	}
	wide := []byte{0xff, 0xfe}
	for _, unit := range utf16.Encode([]rune(plainModels)) {
		wide = binary.LittleEndian.AppendUint16(wide, unit)
	}
	if _, err := readConfig("F", wide, noEnv); err == nil || !strings.Contains(err.Error(), "UTF-16; save it as UTF-8") {
		t.Errorf("%v", err)
	}
}

// TestMergeKeys: << takes in other mappings, of which a key of one's own goes before.
func TestMergeKeys(t *testing.T) {
	for name, text := range map[string]string{
		"block": "models:\n  - &base\n    name: a\n    probe: 3s\n    backends: [{url: 'http://x:1'}]\n  - <<: *base\n    name: b\n    backends: [{url: 'http://x:2'}]\n",
		"after": "models:\n  - &base {name: a, probe: 3s, backends: [{url: 'http://x:1'}]}\n  - {name: b, backends: [{url: 'http://x:2'}], <<: *base}\n",
		"list":  "models:\n  - &base {name: a, probe: 3s, backends: [{url: 'http://x:1'}]}\n  - &more {name: c, probe: 4s, backends: [{url: 'http://x:3'}]}\n  - {<<: [*base, *more], name: b, backends: [{url: 'http://x:2'}]}\n",
		"chain": "models:\n  - &base {name: a, probe: 3s, backends: [{url: 'http://x:1'}]}\n  - &next {<<: *base, name: c, backends: [{url: 'http://x:3'}]}\n  - {<<: *next, name: b, backends: [{url: 'http://x:2'}]}\n",
	} {
		c, err := readConfig("F", []byte("auth: {mode: open}\n"+text), noEnv)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		m := c.Models[len(c.Models)-1]
		if m.Name != "b" || m.Probe != 3*time.Second || len(m.Backends) != 1 || m.Backends[0].URL != "http://x:2" {
			t.Errorf("%s: %+v", name, m)
		}
	}
	for text, want := range map[string]string{
		"models: [{<<: 3, name: a}]\n":                                 "F:1:11: << takes a mapping",
		"models: [{<<: *none, name: a}]\n":                             "F:1:11: << takes a mapping",
		"models:\n  - &a {name: a, prob: 3s}\n  - {<<: *a, name: b}\n": "F:2:18: unknown key \"prob\"; expected \"probe\"?",
	} {
		if _, err := readConfig("F", []byte(text), noEnv); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

// TestAllUnreadable: whatever of a file and of the environment cannot be read is said at
// once, each at its place.
func TestAllUnreadable(t *testing.T) {
	const text = "server:\n  lisen: ':1'\n  header_timeout: 5 minutes\n  max_body: [1]\nauth: nobody\nlimts: []\nmodels:\n  - name: m\n    probe: 1:30\n    backends:\n      - {url: 'http://a:1', wieght: 2}\n      - 3\n      - {url: 'http://a:2', weight: x}\n"
	_, err := readConfig("F", []byte(text), func(name string) (string, bool) {
		value, ok := map[string]string{"TIDEGATE_QUEUE_MAX_WAIT": "soon", "TIDEGATE_LIMITS": "{}"}[name]
		return value, ok
	})
	if err == nil {
		t.Fatal("it was taken")
	}
	for _, want := range []string{
		`F:2:3: unknown key "lisen"; expected "listen"?`,
		`F:3:19: server.header_timeout: expected a duration such as 10s, 1m30s, 12h or 30d, not "5 minutes"`,
		`F:4:14: server.max_body: expected a single value, not a list`,
		`F:5:7: auth: expected a mapping of keys to values, not text`,
		`F:6:1: unknown key "limts"; expected "limits"?`,
		`F:9:12: models[0].probe: expected a duration such as 10s, 1m30s, 12h or 30d, not "1:30"`,
		`F:11:29: unknown key "wieght"; expected "weight"?`,
		`F:12:9: models[0].backends[1]: expected a mapping of keys to values, not a whole number`,
		`F:13:37: models[0].backends[2].weight: expected a whole number, not text`,
		`environment variable TIDEGATE_QUEUE_MAX_WAIT: expected a duration`,
		`environment variable TIDEGATE_LIMITS: expected a list, not a mapping of keys to values`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("expected %q in:\n%v", want, err)
		}
	}
	if n := strings.Count(err.Error(), "F:"); n != 9 {
		t.Errorf("%d faults of the file, expected 9", n)
	}
}

// TestFaultsInOrder: faults come in the order of the file, every time.
func TestFaultsInOrder(t *testing.T) {
	for range 20 {
		_, _, stderr := checked(t, "auth:\n  keys: [{name: a, first: 1, second: 2, third: 3, fourth: 4}]\nfifth: 5\n", nil)
		last := 0
		for _, key := range []string{`"first"`, `"second"`, `"third"`, `"fourth"`, `"fifth"`} {
			place := strings.Index(stderr, "unknown key "+key)
			if place < last {
				t.Fatalf("%s is not in its place:\n%s", key, stderr)
			}
			last = place
		}
	}
}

// TestMisplacedKeys: a key that stands in the wrong section is told where it belongs.
func TestMisplacedKeys(t *testing.T) {
	for text, want := range map[string]string{
		"listen: ':1'\n":           `F:1:1: unknown key "listen" here; there is server.listen`,
		"server: {dsn: x}\n":       `F:1:10: unknown key "dsn" here; there is store.dsn`,
		"server: {tsl: {}}\n":      `F:1:10: unknown key "tsl"; expected "tls"?`,
		"store: {max_wat: 1s}\n":   `F:1:9: unknown key "max_wat"; expected "max_wait"?`,
		"server: {whatsoever: 1}}": `F:1:`,
	} {
		if _, err := readConfig("F", []byte(text+plainModels), noEnv); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

// TestFaultsHideSecrets: whatever is wrong with a file, and wherever a secret stands in
// it, what is said of it does not hold the secret.
func TestFaultsHideSecrets(t *testing.T) {
	const secret = "hunter2Secret"
	for _, text := range []string{
		"redis: {password: " + secret + "}\n",
		"redis:\n  password: '" + secret + "'\n",
		"auth: {admin_key: " + secret + "}\n",
		"auth:\n  keys:\n    - {user: a, key: \"" + secret + "\"}\n",
		"auth: {keys: [{user: a, sha256: " + secret + "}]}\n",
		"auth: {keys: [{user: a, key_env: " + secret + "}]}\n",
		"auth: {keys: [{user: a, key_file: " + secret + "}]}\n",
		"auth: {admin_key_env: " + secret + "}\n",
		"store: {dsn: 'postgres://u:" + secret + "@h:port/db'}\n",
		"store: {dsn: 'postgres://u:se/" + secret + "@h/db'}\n",
		"store: {dsn: 'mysql://" + secret + "@h/db'}\n",
		"store: {dns: 'postgres://u:" + secret + "@h/db'}\n",
		"redis: {addrs: ['redis://:" + secret + "@h:1']}\n",
		"redis: {addrs: ['h:1?password=" + secret + "']}\n",
		"telemetry: {otlp_endpoint: 'http//u:" + secret + "@h'}\n",
		"alerts: [{type: slack, url: 'https://hooks.slack.com/services/" + secret + "', min: all}]\n",
		"alerts: [{type: dingtalk, url: 'https://oapi.dingtalk.com/robot/send?access_token=" + secret + "'}]\n",
		"alerts: [{type: email, password: " + secret + "}]\n",
		"gpus: [{name: a, agent: 'http://u:" + secret + "@h:1', token: " + secret + "}]\n",
		"gpus: [{name: a, agent: 'http://u:" + secret + " x@h:1'}]\n",
		"models: [{name: n, backends: [{url: 'http://u:" + secret + "@h:1'}]}]\n",
		"models: [{name: n, backends: [{url: 'http://h:1?key=" + secret + "'}]}]\n",
		"models: [{name: n, backends: [{url: 'http://h:1', api_key: " + secret + "}]}]\n",
		"models: [{name: n, backends: [{url: 'http://h:1', api_key_env: " + secret + "}]}]\n",
		"server: {listen: ':1', api_token: " + secret + ", lisen: 1}\n",
		"redis: {password: \"" + secret + "}\n",
		"redis: {password: " + secret + "\n",
	} {
		if !strings.HasPrefix(text, "models") {
			text += "models: [{name: m, backends: [{url: 'http://a:1'}]}]\n"
		}
		if _, err := readConfig("F", []byte(text), noEnv); err == nil {
			t.Errorf("taken: %s", text)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("%s\nsays:\n%v", text, err)
		}
	}
	// What is no secret is shown.
	_, err := readConfig("F", []byte("models: [{name: Qwen3-30B-A3B-Instruct-2507-FP8, timeouts: {first_token: 1 s}, backends: [{url: 'http://a:1', api_key_env: VLLM_API_KEY, gpus: [GPU-5c1f7d0e-1111-2222-3333-444455556666]}]}]\n"), noEnv)
	for _, shown := range []string{"Qwen3-30B-A3B-Instruct-2507-FP8", "first_token: 1 s", "VLLM_API_KEY", "GPU-5c1f7d0e-1111-2222-3333-444455556666", "http://a:1"} {
		if err == nil || !strings.Contains(err.Error(), shown) {
			t.Errorf("%s is not shown:\n%v", shown, err)
		}
	}
}
