package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"tidegate/gateway/gatewaytest/stack"
)

// TestListenAddresses: what cannot be listened on is refused with what to write.
func TestListenAddresses(t *testing.T) {
	for address, want := range map[string]string{
		":8080": "", "127.0.0.1:0": "", "[::1]:8080": "", "localhost:8080": "", "gateway.internal:8080": "",
		"":                     "server.listen: is empty",
		"8080":                 `write ":8080" for all addresses`,
		"localhost":            `has no port; write "localhost:8080"`,
		"http://0.0.0.0:8080":  "is a URL",
		":99999":               "must be a number from 0 to 65535",
		":http":                "must be a number from 0 to 65535",
		"::1:8080":             "is no address",
		"127.0.0.1:8080/v1":    "must be a number",
		"some host:8080":       "has no valid host",
		"user@10.0.0.1:8080":   "has no valid host",
		"tcp://127.0.0.1:8080": "is a URL",
	} {
		_, err := readConfig("F", []byte(fmt.Sprintf("server: {listen: %q, ops_listen: ''}\n", address)+plainModels), noEnv)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", address, err, want)
		}
		if address == "" {
			continue // no ops listener
		}
		_, err = readConfig("F", []byte(fmt.Sprintf("server: {listen: '10.0.0.1:1', ops_listen: %q}\n", address)+plainModels), noEnv)
		if (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), "F:1:44: server.ops_listen: ") {
			t.Errorf("ops %q: %v, want %q", address, err, want)
		}
	}
	for _, c := range []struct {
		listen, ops string
		taken       bool
	}{
		{":9090", "127.0.0.1:9090", true}, {"127.0.0.1:9090", ":9090", true}, {"0.0.0.0:9090", "10.0.0.1:9090", true}, {"localhost:9090", "127.0.0.1:9090", true},
		{"[::]:9090", "127.0.0.1:9090", true}, {"10.0.0.1:9090", "127.0.0.1:9090", false}, {":8080", ":9090", false}, {"127.0.0.1:0", "127.0.0.1:0", false}, {":9090", "", false},
	} {
		_, err := readConfig("F", []byte(fmt.Sprintf("server: {listen: %q, ops_listen: %q}\n", c.listen, c.ops)+plainModels), noEnv)
		if (err != nil) != c.taken || err != nil && !strings.Contains(err.Error(), "is taken by server.listen") {
			t.Errorf("%s and %s: %v", c.listen, c.ops, err)
		}
	}
}

// checked runs tidegate check on a text.
func checked(t *testing.T, text string, variables map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "tidegate.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errors bytes.Buffer
	p := &process{stdout: &out, stderr: &errors, env: func(name string) (string, bool) { v, ok := variables[name]; return v, ok }}
	for name := range variables {
		p.names = append(p.names, name)
	}
	code = p.run(t.Context(), append([]string{"check", "--config", file}, args...))
	return code, out.String(), strings.ReplaceAll(errors.String(), file, "F")
}

// TestCheckWarnings: what is probably not meant is said with its place, and fails the
// check only where it is to.
func TestCheckWarnings(t *testing.T) {
	dir := t.TempDir()
	open, closed := filepath.Join(dir, "open"), filepath.Join(dir, "closed")
	for file, mode := range map[string]os.FileMode{open: 0o644, closed: 0o640} {
		if err := os.WriteFile(file, []byte("a-secret-of-twenty-bytes"), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil { // whatever the umask is
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, text string
		variables  map[string]string
		want       []string
	}{
		{"nothing", "server: {trusted_proxies: [10.0.0.0/8, 'fd00::/16']}\n", nil, nil},
		{"proxies", "server: {trusted_proxies: [10.0.0.0/8, 0.0.0.0/0, '::/0']}\n", nil, []string{"F:1:40: server.trusted_proxies[1]: 0.0.0.0/0 lets anyone", "F:1:51: server.trusted_proxies[2]: ::/0 lets anyone"}},
		{"ops", "server: {ops_listen: ':9090'}\n", nil, []string{"F:1:22: server.ops_listen: :9090 is reachable at every address"}},
		{"ops, IPv6", "server: {ops_listen: '[::]:9090'}\n", nil, []string{"F:1:22: server.ops_listen: "}},
		{"open mode", "auth: {mode: open}\n", nil, []string{"F:1:14: auth.mode: is open, and server.listen is :8080"}},
		{"open mode on loopback", "auth: {mode: open}\nserver: {listen: 'localhost:8080'}\n", nil, nil},
		{"open file", "auth: {admin_key_file: " + open + "}\n", nil, []string{"F:1:24: auth.admin_key_file: every user of this machine may read " + open + " (mode 0644); chmod 0600"}},
		{"closed file", "auth: {admin_key_file: " + closed + "}\n", nil, nil},
		{"near", "", map[string]string{"TIDEGATE_SERVER_LISTN": ":1"}, []string{"environment variable TIDEGATE_SERVER_LISTN: names no setting and is ignored; is TIDEGATE_SERVER_LISTEN meant?"}},
		{"nearly the administrators' key", "", map[string]string{"TIDEGATE_ADMIN_KY": "hunter2"}, []string{"is TIDEGATE_ADMIN_KEY meant?"}},
		{"far", "", map[string]string{"TIDEGATE_COLOUR": "red"}, []string{"environment variable TIDEGATE_COLOUR: names no setting"}},
		{"known", "auth: {admin_key_env: TIDEGATE_OUR_ADMIN}\n", map[string]string{
			"TIDEGATE_SERVER_TRUSTED_PROXIES": "[10.0.0.0/8]", "TIDEGATE_OUR_ADMIN": "a-secret-of-twenty-bytes", "TIDEGATE_CONFIG": "x", "TIDEGATE_SERVICE_HOST": "10.0.0.1", "TIDEGATE_PORT": "tcp://10.0.0.1:8080",
			"TIDEGATE_PORT_8080_TCP_ADDR": "10.0.0.1", "TIDEGATE_OPS_SERVICE_PORT_HTTP": "9090", "TIDEGATE_TEST_X": "", "HOME": "/",
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := c.text + "models: [{name: m, backends: [{url: 'http://a:1'}]}]\n"
			code, stdout, stderr := checked(t, text, c.variables)
			if code != exitOK || !strings.HasPrefix(stdout, "ok: 1 models") {
				t.Fatalf("code %d: %s%s", code, stdout, stderr)
			}
			if got := strings.Count(stderr, "warning: "); got != len(c.want) {
				t.Errorf("%d warnings, want %q:\n%s", got, c.want, stderr)
			}
			for _, want := range c.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("want %q:\n%s", want, stderr)
				}
			}
			strict := exitOK
			if len(c.want) > 0 {
				strict = exitUsage
			}
			if code, stdout, stderr := checked(t, text, c.variables, "--strict"); code != strict {
				t.Errorf("--strict: code %d: %s%s", code, stdout, stderr)
			}
		})
	}
}

// TestCheckCertificates: check says of certificates what serve would, and of those that
// have ended what clients would.
func TestCheckCertificates(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	const day = 24 * time.Hour
	good, goodKey := stack.CertificateFor(t, dir, "good", now.Add(-day), now.Add(90*day))
	ended, endedKey := stack.CertificateFor(t, dir, "ended", now.Add(-9*day), now.Add(-day))
	soon, soonKey := stack.CertificateFor(t, dir, "soon", now.Add(-9*day), now.Add(3*day+time.Hour))
	early, earlyKey := stack.CertificateFor(t, dir, "early", now.Add(day), now.Add(90*day))
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("no PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, cert, key, ca string
		code                int
		want                string
	}{
		{"good", good, goodKey, good, exitOK, ""},
		{"no file", filepath.Join(dir, "none.pem"), goodKey, "", exitUsage, "F:1:27: server.tls.cert_file: open " + dir + "/none.pem: no such file"},
		{"no key", good, filepath.Join(dir, "none.key"), "", exitUsage, "server.tls.key_file: open "},
		{"a key of another", good, soonKey, "", exitUsage, "server.tls.cert_file: "},
		{"no PEM", text, goodKey, "", exitUsage, "server.tls.cert_file: "},
		{"an authority in no PEM", good, goodKey, text, exitUsage, "server.tls.client_ca_file: " + text + " holds no certificate"},
		{"no authority", good, goodKey, filepath.Join(dir, "none.pem"), exitUsage, "server.tls.client_ca_file: open "},
		{"ended", ended, endedKey, "", exitOK, "warning: F:1:27: server.tls.cert_file: a certificate in " + ended + " expired on " + now.Add(-day).UTC().Format(time.DateOnly)},
		{"ends soon", soon, soonKey, "", exitOK, "in 3 days"},
		{"not yet", early, earlyKey, "", exitOK, "is the clock of this machine right?"},
		{"an authority that ended", good, goodKey, ended, exitOK, "server.tls.client_ca_file: a certificate in "},
	} {
		t.Run(c.name, func(t *testing.T) {
			tls := fmt.Sprintf("server: {tls: {cert_file: %s, key_file: %s, client_ca_file: '%s'}}\n", c.cert, c.key, c.ca)
			code, stdout, stderr := checked(t, tls+"models: [{name: m, backends: [{url: 'http://a:1'}]}]\n", nil)
			if code != c.code || !strings.Contains(stderr, c.want) || c.want == "" && stderr != "" {
				t.Errorf("code %d: %s%s\nwant %q", code, stdout, stderr, c.want)
			}
		})
	}
}

// TestSecretFiles: every setting that names a file with a secret is looked at.
func TestSecretFiles(t *testing.T) {
	c, err := readSettings("F", []byte("server: {tls: {key_file: f}}\nauth: {admin_key_file: f, keys: [{key_file: f}]}\nredis: {password_file: f}\n"+
		"models: [{backends: [{api_key_file: f}]}]\ngpus: [{token_file: f}]\nalerts: [{url_file: f, secret_file: f, password_file: f}]\n"), noEnv)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range c.secretFiles() {
		got = append(got, f.path)
	}
	for _, path := range pathsOf(reflect.TypeFor[config](), "") {
		public := []string{"server.tls.cert_file", "server.tls.client_ca_file", "gpus[].ca_file", "alerts[].ca_file"}
		if strings.HasSuffix(path, "_file") && !slices.Contains(public, path) && !slices.Contains(got, strings.ReplaceAll(path, "[]", "[0]")) {
			t.Errorf("%s is not looked at", path)
		}
	}
}

// TestTakenPorts: a port that another process has is said with the flag that chooses
// another one.
func TestTakenPorts(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for flag, args := range map[string][]string{
		"--ops-listen": {"--listen", "127.0.0.1:0", "--ops-listen", l.Addr().String()},
		"--listen":     {"--listen", l.Addr().String(), "--ops-listen", "127.0.0.1:0"},
	} {
		var out, errors bytes.Buffer
		t.Chdir(t.TempDir())
		code := run(t.Context(), append([]string{"serve", "--backend", "http://127.0.0.1:1"}, args...), noEnv, &out, &errors)
		want := "another process listens on " + l.Addr().String() + ": stop it, or choose another address with " + flag + ", such as " + flag + " 127.0.0.1:0"
		if code != exitFailed || !strings.Contains(errors.String(), want) {
			t.Errorf("%s: code %d: %s", flag, code, errors.String())
		}
	}
}

// TestCheckLive: check --live says of everything that a gateway asks what it answers, and
// fails where one does not answer as it should.
func TestCheckLive(t *testing.T) {
	s := startServers(t, nil)
	dir := t.TempDir()
	readings := filepath.Join("..", "..", "deploy", "compose", "gpu.jsonl")
	good := fmt.Sprintf("server: {listen: '127.0.0.1:8080'}\nstore: {dsn: 'sqlite://%s/t.db', journal_dir: %s}\ngpus: [{name: rec, replay: %s}]\n"+
		"models:\n  - {name: %s, backends: [{url: '%s/v1'}]}\n", dir, dir, readings, stack.LargeModel, s[0].URL)
	code, stdout, stderr := checked(t, good, nil, "--live")
	if code != exitOK || !strings.Contains(stderr, "asking 4") {
		t.Fatalf("code %d\n%s%s", code, stdout, stderr)
	}
	for _, want := range []string{
		"ok      backend " + s[0].URL + "/v1 of " + stack.LargeModel + ": version ", " serves " + stack.LargeModel + " with a context of ",
		"ok      store: there is no " + dir + "/t.db yet; serve makes it", "ok      journal " + dir + ": can be written to", "ok      gpus rec: replay answers with ",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("want %q:\n%s", want, stdout)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "t.db")); err == nil {
		t.Error("it made a store")
	}
	for _, r := range s[0].Requests() {
		if r.Path != "/health" && r.Path != "/v1/models" && r.Path != "/version" {
			t.Errorf("it asked the server for %s", r.Path)
		}
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := closed.Addr().String()
	closed.Close()
	bad := fmt.Sprintf("server: {listen: '127.0.0.1:8080'}\nstore: {dsn: 'postgres://u:hunter2@%s/db', journal_dir: %s}\nredis: {addrs: ['%s']}\ngpus: [{name: card, dcgm: 'http://%s/metrics'}]\n"+
		"models:\n  - {name: another, backends: [{url: '%s'}, {url: 'http://%s'}]}\n", gone, readings, gone, gone, s[0].URL, gone)
	code, stdout, stderr = checked(t, bad, nil, "--live")
	if code != exitFailed || strings.Count(stdout, "FAILED  ") != 6 || !strings.Contains(stderr, "6 of 6 did not answer as they should") || strings.Contains(stdout+stderr, "hunter2") {
		t.Errorf("code %d\n%s%s", code, stdout, stderr)
	}
	for _, want := range []string{"none of which is another", "FAILED  redis " + gone, "FAILED  store: ", "FAILED  gpus card: ", "is no directory", "connection refused"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("want %q:\n%s", want, stdout)
		}
	}
}
