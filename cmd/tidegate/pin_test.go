package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidegate/gateway/database/databasetest"
	"tidegate/gateway/gatewaytest/stack"
)

// TestPins runs two gateways over one store: levels are pinned over the API of one
// and by command, and seen and lifted on the other.
func TestPins(t *testing.T) {
	s := startServers(t, nil)
	databasetest.Run(t, func(t *testing.T, dsn string) {
		p := stack.Config{DSN: dsn, Env: map[string]string{"TIDEGATE_ADMIN_KEY": stack.AdminKey}, Extra: "  - {name: Qwen/Qwen3-8B, aliases: [a/b], backends: [{url: 'http://127.0.0.1:1'}]}\n"}
		a, b := startGateway(t, s, p), startGateway(t, s, p)
		t.Run("API", func(t *testing.T) { pinsOverAPI(t, a, b) })
		t.Run("mistakes", func(t *testing.T) { pinMistakes(t, a) })
		t.Run("lost model", func(t *testing.T) { lostPin(t, a, b) })
		t.Run("command", func(t *testing.T) { pinCommands(t, a, b) })
	})
}

func pinsOverAPI(t *testing.T, a, b *front) {
	const of = "/admin/v1/models/"
	a.Expect(t, stack.AdminKey, "GET", "/admin/v1/pins", "", 200, `{"after":null,"data":[],"has_more":false,"object":"list"}`)
	a.Expect(t, stack.AdminKey, "GET", of+stack.LargeModel+"/level", "", 404, `"code":"not_found"`)
	a.Expect(t, stack.AdminKey, "DELETE", of+stack.LargeModel+"/level", "", 404, `"param":"model"`)
	until := time.Now().Add(time.Hour).UTC().Truncate(time.Second).Format(time.RFC3339)
	text := a.Expect(t, stack.AdminKey, "PUT", of+stack.LargeAlias+"/level", `{"level":"L2","until":"`+until+`","why":"a fan is out"}`, 200, `"level":"L2"`)
	for _, want := range []string{`"model":"` + stack.LargeModel + `"`, `"until":"` + until + `"`, `"why":"a fan is out"`, `"by":"admin/admin_key_env"`, `"since":"2`} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is not in %s", want, text)
		}
	}
	for _, name := range []string{stack.LargeModel, stack.LargeAlias} {
		if got := b.Expect(t, stack.AdminKey, "GET", of+name+"/level", "", 200, ""); got != text {
			t.Errorf("%s, expected %s", got, text)
		}
	}
	// Names with slashes, as they are and encoded, and by an alias.
	for i, name := range []string{"Qwen/Qwen3-8B", "Qwen%2FQwen3-8B", "a%2fb", "a/b"} {
		level := "L" + string(rune('0'+i))
		a.Expect(t, stack.AdminKey, "PUT", of+name+"/level", `{"level":"`+level+`","for":"30m"}`, 200, `"model":"Qwen/Qwen3-8B"`)
		b.Expect(t, stack.AdminKey, "GET", of+name+"/level", "", 200, `"level":"`+level+`"`)
	}
	var list struct {
		Data []struct{ Model, Level string }
	}
	if err := json.Unmarshal([]byte(b.Expect(t, stack.AdminKey, "GET", "/admin/v1/pins", "", 200, "")), &list); err != nil || len(list.Data) != 2 {
		t.Errorf("%v, %+v", err, list)
	}
	b.Expect(t, stack.AdminKey, "DELETE", of+"a%2Fb/level", "", 200, `{"lifted":{"model":"Qwen/Qwen3-8B","level":"L3"`)
	a.Expect(t, stack.AdminKey, "GET", of+"Qwen/Qwen3-8B/level", "", 404, "not_found")
	log := a.Expect(t, stack.AdminKey, "GET", "/admin/v1/audit?limit=2", "", 200, `"what":"pin.lift"`)
	if !strings.Contains(log, `"who":"admin/admin_key_env"`) || !strings.Contains(log, `"before":{"model":"Qwen/Qwen3-8B","level":"L2"`) || !strings.Contains(log, `"after":null`) {
		t.Error(log)
	}
	a.Expect(t, stack.AdminKey, "DELETE", of+stack.LargeAlias+"/level", "", 200, text)
	a.Expect(t, stack.AdminKey, "GET", "/admin/v1/pins", "", 200, `"data":[]`)
	// One that is short ends by itself, on both.
	a.Expect(t, stack.AdminKey, "PUT", of+stack.LargeModel+"/level", `{"level":"L4","for":"1s"}`, 200, "L4")
	for _, f := range []*front{a, b} {
		stack.Eventually(t, "the pin to end", func() bool {
			status, _ := f.Call(t, stack.AdminKey, "GET", of+stack.LargeModel+"/level", "")
			return status == 404
		})
	}
}

func pinMistakes(t *testing.T, f *front) {
	const path = "/admin/v1/models/" + stack.LargeModel + "/level"
	for body, want := range map[string]string{
		`{"for":"1h"}`:              `level: must be L0 to L4, not \"\"`,
		`{"level":"L5","for":"1h"}`: `"param":"level"`,
		`{"level":2,"for":"1h"}`:    "level: expected text, not number",
		`{"level":"L2"}`:            "a pin must end",
		`{"level":"L2","for":"1h","until":"2026-01-01T00:00:00Z"}`:           "give either until",
		`{"level":"L2","until":"2026-01-01T00:00:00Z"}`:                      "2026-01-01T00:00:00Z is past",
		`{"level":"L2","until":"soon"}`:                                      `"param":"until"`,
		`{"level":"L2","for":"169h"}`:                                        "7 days at most",
		`{"level":"L2","for":"soon"}`:                                        `"param":"for"`,
		`{"level":"L2","for":"1h","why":"a\u0000b"}`:                         `"param":"why"`,
		`{"level":"L2","for":"1h","model":"m"}`:                              "unknown field",
		`{"level":"L2","for":"1h","why":"` + strings.Repeat("x", 600) + `"}`: "why: must be one line",
		`null`: `"param":"level"`,
	} {
		f.Expect(t, stack.AdminKey, "PUT", path, body, 400, want)
	}
	f.Expect(t, stack.AdminKey, "PUT", "/admin/v1/models/none/level", `{"level":"L2","for":"1h"}`, 404, `"code":"model_not_found"`)
	f.Expect(t, stack.AdminKey, "PUT", "/admin/v1/models//level", `{"level":"L2","for":"1h"}`, 404, `"code":"model_not_found"`)
	f.Expect(t, stack.AdminKey, "DELETE", "/admin/v1/models/none%00/level", "", 400, "NUL")
	f.Expect(t, stack.AdminKey, "GET", "/admin/v1/models/"+stack.LargeModel, "", 404, `"code":"unknown_url"`)
	f.Expect(t, stack.AdminKey, "POST", path, `{}`, 405, "method_not_allowed")
	for _, method := range []string{"GET", "PUT", "DELETE"} {
		f.Expect(t, stack.AdaKey, method, path, "", 403, `"code":"access_denied"`)
	}
	f.Expect(t, stack.AdaKey, "GET", "/admin/v1/pins", "", 403, `"code":"access_denied"`)
	f.Expect(t, stack.AdminKey, "GET", "/admin/v1/pins", "", 200, `"data":[]`)
}

// lostPin pins a model of another configuration: it is listed, stops nothing, and
// can be lifted.
func lostPin(t *testing.T, a, b *front) {
	other := filepath.Join(t.TempDir(), "other.yaml")
	raw, err := os.ReadFile(a.File)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(other, []byte(strings.ReplaceAll(string(raw), stack.SmallModel, "Lost/Qwen3")), 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, exitOK, "pin", "Lost/Qwen3", "L4", "--for", "1h", "--config", other)
	for _, f := range []*front{a, b} {
		f.Expect(t, stack.AdminKey, "GET", "/admin/v1/pins", "", 200, `"model":"Lost/Qwen3"`)
		f.Expect(t, stack.AdminKey, "GET", "/admin/v1/models/Lost%2FQwen3/level", "", 200, `"level":"L4"`)
		if status, text := f.Ask(t, stack.AdaKey); status != 200 {
			t.Errorf("%d %s", status, text)
		}
	}
	a.Expect(t, stack.AdminKey, "PUT", "/admin/v1/models/Lost/Qwen3/level", `{"level":"L4","for":"1h"}`, 404, "model_not_found")
	b.Expect(t, stack.AdminKey, "DELETE", "/admin/v1/models/Lost/Qwen3/level", "", 200, `"lifted"`)
}

// pinCommands runs the commands beside the gateways.
func pinCommands(t *testing.T, a, b *front) {
	out, log := command(t, exitOK, "pin", stack.LargeAlias, "L2", "--for", "30m", "--why", "a fan is out", "--config", a.File)
	if out != "" || !strings.HasPrefix(log, "pinned "+stack.LargeModel+" to L2 until 2") {
		t.Errorf("%q, %q", out, log)
	}
	b.Expect(t, stack.AdminKey, "GET", "/admin/v1/models/"+stack.LargeModel+"/level", "", 200, `"why":"a fan is out"`)
	b.Expect(t, stack.AdminKey, "GET", "/admin/v1/audit?limit=1", "", 200, `"who":"cli`)
	command(t, exitOK, "pin", "a/b", "L1", "--until", time.Now().Add(time.Hour).Format(time.RFC3339), "--config", b.File)
	out, _ = command(t, exitOK, "pin", "--config", a.File)
	if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 3 || !strings.HasPrefix(lines[0], "MODEL") || !strings.HasSuffix(lines[1], "-") || !strings.HasSuffix(lines[2], "a fan is out") {
		t.Error(out)
	}
	out, _ = command(t, exitOK, "pin", "--json", "--config", a.File)
	var pins []struct{ Model, Level string }
	if err := json.Unmarshal([]byte(out), &pins); err != nil || len(pins) != 2 || pins[0].Model != "Qwen/Qwen3-8B" || pins[1].Level != "L2" {
		t.Errorf("%v: %s", err, out)
	}
	for _, name := range []string{stack.LargeAlias, "Qwen/Qwen3-8B"} {
		if out, log = command(t, exitOK, "unpin", name, "--config", a.File); out != "" || !strings.HasPrefix(log, "lifted the pin of Q") {
			t.Errorf("%q, %q", out, log)
		}
	}
	if out, _ = command(t, exitOK, "pin", "--config", a.File); out != "nothing is pinned\n" {
		t.Error(out)
	}
	if out, _ = command(t, exitOK, "pin", "--json", "--config", a.File); out != "[]\n" {
		t.Error(out)
	}
	for args, want := range map[string]string{
		"pin " + stack.LargeModel: "got 1 arguments",
		"pin --for 30m":           "name a model and its level",
		"pin --json " + stack.LargeModel + " L2 --for 1h":     "--json is for the list",
		"pin none L2 --for 1h":                                `no model "none"`,
		"pin " + stack.LargeModel + " L2":                     "a pin must end",
		"pin " + stack.LargeModel + " L9 --for 1h":            "level: must be L0 to L4",
		"pin " + stack.LargeModel + " L2 --for 200h":          "7 days at most",
		"pin " + stack.LargeModel + " L2 --until 2026-01-01T": "until: must be a time",
		"unpin":                     "name one model",
		"unpin " + stack.LargeModel: "is not pinned",
		"unpin none":                `"none" is not pinned`,
	} {
		_, log := command(t, exitUsage, append(strings.Fields(args), "--config", a.File)...)
		if !strings.Contains(log, want) || strings.Count(log, "\n") != 1 {
			t.Errorf("%s: %s", args, log)
		}
	}
}

// TestPinWithoutModels: a store without a configuration takes a pin of any model,
// as the gateway over it may run with --backend; a store that is not there is not made.
func TestPinWithoutModels(t *testing.T) {
	t.Chdir(t.TempDir())
	if _, log := command(t, exitUsage, "pin", "m", "L2", "--for", "1h"); !strings.Contains(log, "there is no tidegate.db here") {
		t.Error(log)
	}
	command(t, exitOK, "migrate")
	command(t, exitOK, "pin", "m", "L2", "--for", "1h")
	if out, _ := command(t, exitOK, "pin"); !strings.Contains(out, "m      L2") {
		t.Error(out)
	}
}
