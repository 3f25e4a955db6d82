package admission

import (
	"strings"
	"testing"
	"time"

	"tidegate/admission/limit"
)

func TestQueueConfig(t *testing.T) {
	good := DefaultQueue()
	good.Tenants = []TenantWeight{{"ann", 4}, {"bob", maxTenantWeight}}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	if w := good.tenantWeights(); w["ann"] != 4 || len(w) != 2 {
		t.Errorf("weights %v", w)
	}
	for name, c := range map[string]struct {
		change func(*QueueConfig)
		want   []string // the beginning of each line
	}{
		"length": {func(c *QueueConfig) { c.MaxLength = -1 }, []string{"max_length: is -1"}},
		"long":   {func(c *QueueConfig) { c.MaxLength = 1e9 }, []string{"max_length: is 1000000000; expected 0 (nothing waits) to 1000000"}},
		"wait":   {func(c *QueueConfig) { c.MaxWait = 0 }, []string{"max_wait: is 0s; expected 1ms to 1h"}},
		"day":    {func(c *QueueConfig) { c.MaxWait = 24 * time.Hour }, []string{"max_wait: is 24h"}},
		"all at once": {func(c *QueueConfig) { *c = QueueConfig{MaxLength: -1} },
			[]string{"max_length: ", "max_wait: ", "weights.input: is 0; expected 1 to 1000", "weights.output: ", `per: is ""; expected user, project, department, key`}},
		"tenants": {func(c *QueueConfig) {
			c.Tenants = []TenantWeight{{"a", 0}, {"", 1}, {"b", 1001}, {"a", 2}, {"", 3}}
		}, []string{"tenants[0].weight: is 0", "tenants[1].name: is missing", "tenants[2].weight: is 1001", `tenants[3].name: "a" already has a weight in tenants[0]`, "tenants[4].name: is missing"}},
	} {
		t.Run(name, func(t *testing.T) {
			q := DefaultQueue()
			c.change(&q)
			err := q.Validate()
			if err == nil {
				t.Fatal("no fault")
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(c.want) {
				t.Fatalf("%d faults; want %d:\n%v", len(lines), len(c.want), err)
			}
			for i, line := range lines {
				if !strings.HasPrefix(line, c.want[i]) {
					t.Errorf("%q; want %q", line, c.want[i])
				}
			}
		})
	}
}

func TestQueueTenant(t *testing.T) {
	whole := limit.Subjects{Department: "d", Project: "p", User: "u", Key: "k"}
	ofFile := limit.Subjects{User: "u", Key: "k"}
	for _, c := range []struct {
		per  string
		of   limit.Subjects
		want string
	}{
		{PerDepartment, whole, "d"}, {PerProject, whole, "p"}, {PerUser, whole, "u"}, {PerKey, whole, "k"},
		{PerDepartment, ofFile, "u"}, {PerProject, ofFile, "u"}, {PerKey, ofFile, "k"}, {PerUser, limit.Subjects{}, ""},
	} {
		if got := (&QueueConfig{Scope: c.per}).tenant(&c.of); got != c.want {
			t.Errorf("per %s of %+v: %q; want %q", c.per, c.of, got, c.want)
		}
	}
}
