package main

import (
	"bytes"
	"context"
	"regexp"
	"strings"
	"testing"

	"tidegate/gateway/gatewaytest/stack"
)

// TestDemoScenario plays memory in little time: the ladder must go up to L4 and come
// down again, each step must be told with its reason, and what a caller gets must be
// what the level makes of it.
func TestDemoScenario(t *testing.T) {
	out, complaints := &bytes.Buffer{}, &bytes.Buffer{}
	if code := run(t.Context(), []string{"demo", "--scenario", "memory", "--seconds", "14", "--listen", "127.0.0.1:0"}, noEnv, out, complaints); code != exitOK {
		t.Fatalf("code %d: %s\n%s", code, complaints, out)
	}
	text := out.String()
	steps := regexp.MustCompile(`(?m)^ *\d+\.\ds  (server [ABC]|Qwen3-1\.7B) +(L\d) -> (L\d)  gpu_memory [\d.]+, threshold [\d.]+(, of server [AB])?$`).FindAllStringSubmatch(text, -1)
	at := map[string]string{}
	climbed := map[string]bool{}
	for _, s := range steps {
		if was, ok := at[s[1]]; ok && was != s[2] || !ok && s[2] != "L0" {
			t.Errorf("%s goes from %s, and was at %q", s[1], s[2], was)
		}
		at[s[1]] = s[3]
		climbed[s[1]] = climbed[s[1]] || s[3] == "L4"
	}
	for _, who := range []string{"server A", "server B", "Qwen3-1.7B"} {
		if !climbed[who] || at[who] != "L0" {
			t.Errorf("%s did not go to L4 and back to L0: it ends at %q", who, at[who])
		}
	}
	for _, want := range []string{
		`you gets    200  x-tidegate-level: L0  x-tidegate-reason: none  model: Qwen3-1\.7B  streamed in \d+ events, thinking, \d+ tokens: "\w`,
		`you gets    200  x-tidegate-level: L4  x-tidegate-reason: gpu_memory  model: tidegate-canned  whole, no thinking, 0 tokens: "The service is busy`,
		`(?m)^Over after \d+ s\. Levels of Qwen3-1\.7B: L0 .*L4\.`,
		`(?m)^L0 +(\d+) +\d+ +0 +\d+ +\d+ +Qwen3-1\.7B +\d+$`,
		`(?m)^you +\d+ +\d+ +[\d.]+ s +[\d.]+ s$`,
	} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("nothing like %s", want)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// TestDemoStops interrupts a play.
func TestDemoStops(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	out, ended := stack.NewLog(), make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"demo", "--scenario", "queue", "--listen", "127.0.0.1:0"}, noEnv, out, out)
	}()
	stack.Eventually(t, "an answer", func() bool {
		return strings.Contains(out.Text(), "bob gets")
	})
	stop()
	if code := <-ended; code != exitOK {
		t.Errorf("code %d: %s", code, out)
	}
}

func TestDemoMistakes(t *testing.T) {
	for args, want := range map[string]string{
		"demo --scenario fire":               "--scenario fire: there is none such; expected one of heat, memory, queue, recover",
		"demo --scenario heat --seconds 5":   "--seconds 5: expected 10 to 600",
		"demo --scenario heat --seconds 601": "--seconds 601: expected 10 to 600",
		"demo --seconds 20":                  "--seconds belongs to --scenario",
	} {
		var out, complaints bytes.Buffer
		if code := run(t.Context(), strings.Fields(args), noEnv, &out, &complaints); code != exitUsage || !strings.Contains(complaints.String(), want) || strings.Count(complaints.String(), "\n") != 1 {
			t.Errorf("%s: code %d, %s", args, code, &complaints)
		}
	}
}

// TestHeatTrace holds the embedded trace beside the one that the ladder is tested with.
func TestHeatTrace(t *testing.T) {
	all, err := readHeat()
	if err != nil || len(all) != 1560 {
		t.Fatalf("%d readings, %v", len(all), err)
	}
	if first, worst := all[0], all[680]; first != (reading{60, 132270, 1}) || worst != (reading{-2, 132270, 96}) {
		t.Errorf("%v, %v", first, worst)
	}
}
