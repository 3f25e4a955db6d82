package overload

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"tidegate/gateway/gatewaytest/bench"
)

// Fragment is the addition of a mode to the gateway's configuration.
type Fragment struct {
	Top      string // sections
	Large    string // settings of the large model
	Small    string // settings of the small model
	Backends string // settings of every backend
}

// ReadFragment reads a file of up to four YAML documents: sections of the
// configuration, settings of the large model, of the small one, and of every backend.
func ReadFragment(file string) (Fragment, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return Fragment{}, err
	}
	parts := strings.Split(strings.TrimPrefix("\n"+string(raw), "\n---\n"), "\n---\n")
	if len(parts) > 4 {
		return Fragment{}, fmt.Errorf("%s: has %d documents, at most 4 make sense", file, len(parts))
	}
	parts = append(parts, "", "", "")
	return Fragment{parts[0], parts[1], parts[2], parts[3]}, nil
}

// adminVariable holds the administrator's key for the gateway.
const adminVariable = "OVERLOAD_ADMIN_KEY"

const adminKey = "tg-of-the-overload-benchmark-for-making-its-keys"

// config returns the configuration of a gateway in front of servers.
func config(listen, ops, dir string, s *Servers, f Fragment) string {
	var b strings.Builder
	fmt.Fprintf(&b, "server: {listen: '%s', ops_listen: '%s', shutdown_grace: 1s}\n", listen, ops)
	fmt.Fprintf(&b, "auth: {mode: keys, admin_key_env: %s}\n", adminVariable)
	fmt.Fprintf(&b, "store: {dsn: 'sqlite://%[1]s/tidegate.db', journal_dir: '%[1]s/journal'}\n", dir)
	b.WriteString("models:\n")
	for _, m := range []struct {
		name, extra string
		urls        []string
	}{{LargeModel, f.Large, s.Larges}, {SmallModel, f.Small, s.Smalls}} {
		if len(m.urls) == 0 {
			continue
		}
		fmt.Fprintf(&b, "  - name: %s\n    probe: 500ms\n", m.name)
		indented(&b, "    ", m.extra)
		b.WriteString("    backends:\n")
		for _, u := range m.urls {
			fmt.Fprintf(&b, "      - url: %s\n", u)
			indented(&b, "        ", f.Backends)
		}
	}
	b.WriteString(f.Top + "\n")
	return b.String()
}

func indented(b *strings.Builder, prefix, lines string) {
	for line := range strings.Lines(lines) {
		b.WriteString(prefix + strings.TrimRight(line, "\n") + "\n")
	}
}

// StartGateway starts the gateway in front of servers, with a database of its own in
// dir. env is its environment.
func StartGateway(ctx context.Context, binary, dir string, env []string, s *Servers, f Fragment) (*bench.Actor, string, error) {
	listen, err := bench.FreeAddress()
	if err != nil {
		return nil, "", err
	}
	ops, err := bench.FreeAddress()
	if err != nil {
		return nil, "", err
	}
	file := filepath.Join(dir, "tidegate.yaml")
	if err := os.WriteFile(file, []byte(config(listen, ops, dir, s, f)), 0o600); err != nil {
		return nil, "", err
	}
	cmd := exec.Command(binary, "serve", "--config", file)
	cmd.Env = append(env, adminVariable+"="+adminKey)
	a, err := bench.StartActor(dir, "tidegate", cmd)
	if err != nil {
		return nil, "", err
	}
	a.Base = "http://" + listen
	if err := a.Ready(ctx); err != nil {
		a.Stop()
		return nil, "", fmt.Errorf("start the gateway: %w: %s", err, a.Stderr())
	}
	return a, "http://" + ops, nil
}

// MakeKey makes a key for a tenant over the gateway's administration.
func (t *Tenant) MakeKey(ctx context.Context, base string) error {
	body := fmt.Sprintf(`{"user":%q,"tier":%q}`, t.Name, t.Tier)
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/admin/v1/keys", strings.NewReader(body))
	if err != nil {
		return err
	}
	q.Header.Set("Authorization", "Bearer "+adminKey)
	q.Header.Set("Content-Type", "application/json")
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(q)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	defer resp.Body.Close()
	var made struct{ Secret string }
	var raw bytes.Buffer
	if _, err := raw.ReadFrom(resp.Body); err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	if err := json.Unmarshal(raw.Bytes(), &made); err != nil || made.Secret == "" {
		return fmt.Errorf("make a key for %s: %s: %.300s", t.Name, resp.Status, raw.Bytes())
	}
	t.Key = made.Secret
	return nil
}
