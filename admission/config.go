package admission

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"tidegate/admission/limit"
)

// Whose requests share one turn in the queue.
const (
	PerUser       = "user"
	PerProject    = "project"
	PerDepartment = "department"
	PerKey        = "key"
)

const (
	maxQueueLength  = 1_000_000
	maxQueueWait    = time.Hour
	maxTokenWeight  = 1000
	maxTenantWeight = 1000
)

// QueueConfig is the queue section of the configuration: how requests wait for a
// model whose backends are full.
type QueueConfig struct {
	MaxLength int            `yaml:"max_length"` // sequences (prompts x n) that wait for one model, in this gateway; 0: none waits
	MaxWait   time.Duration  `yaml:"max_wait"`   // a request that would wait longer is refused at once
	Weights   QueueWeights   `yaml:"weights"`
	Degrade   bool           `yaml:"degrade"` // who finds no place is answered without thinking, and by the smaller model where the wait would be long
	Scope     string         `yaml:"per"`     // user | project | department | key: who is one tenant
	Tenants   []TenantWeight `yaml:"tenants"` // those whose weight is not 1
}

// QueueWeights holds the weights of tokens in a tenant's service. A token of an answer costs
// the engine more than one of a prompt.
type QueueWeights struct {
	Input  int `yaml:"input"`  // of a prompt token in a tenant's share
	Output int `yaml:"output"` // of an answer token
}

// TenantWeight is the share of a full model that a tenant has, beside tenants of weight 1.
type TenantWeight struct {
	Name   string `yaml:"name"`   // of the tenant, as per says
	Weight int    `yaml:"weight"` // its share beside others, whose is 1
}

// DefaultQueue returns the defaults of the section. The weights are those of the paper that
// the queue follows.
func DefaultQueue() QueueConfig {
	return QueueConfig{MaxLength: 1000, MaxWait: 30 * time.Second, Weights: QueueWeights{Input: 1, Output: 2}, Degrade: true, Scope: PerUser}
}

// Validate returns all faults, each with its path first.
func (c *QueueConfig) Validate() error {
	var faults []error
	fault := func(path, format string, args ...any) {
		faults = append(faults, fmt.Errorf("%s: "+format, append([]any{path}, args...)...))
	}
	if c.MaxLength < 0 || c.MaxLength > maxQueueLength {
		fault("max_length", "is %d; expected 0 (nothing waits) to %d", c.MaxLength, maxQueueLength)
	}
	if c.MaxWait < time.Millisecond || c.MaxWait > maxQueueWait {
		fault("max_wait", "is %v; expected 1ms to 1h, such as 30s", c.MaxWait)
	}
	for _, w := range []struct {
		path string
		n    int
	}{{"weights.input", c.Weights.Input}, {"weights.output", c.Weights.Output}} {
		if w.n < 1 || w.n > maxTokenWeight {
			fault(w.path, "is %d; expected 1 to %d", w.n, maxTokenWeight)
		}
	}
	if scopes := []string{PerUser, PerProject, PerDepartment, PerKey}; !slices.Contains(scopes, c.Scope) {
		fault("per", "is %q; expected %s", c.Scope, strings.Join(scopes, ", "))
	}
	first := map[string]int{}
	for i, t := range c.Tenants {
		path := fmt.Sprintf("tenants[%d]", i)
		if j, twice := first[t.Name]; t.Name == "" {
			fault(path+".name", "is missing; expected the name of a %s", c.Scope)
		} else if twice {
			fault(path+".name", "%q already has a weight in tenants[%d]; expected each name once", t.Name, j)
		} else {
			first[t.Name] = i
		}
		if t.Weight < 1 || t.Weight > maxTenantWeight {
			fault(path+".weight", "is %d; expected 1 to %d", t.Weight, maxTenantWeight)
		}
	}
	return errors.Join(faults...)
}

// tenant returns the subject by which a request waits in the queue. Keys of the
// configuration file have no department and no project; they wait as their user.
func (c *QueueConfig) tenant(s *limit.Subjects) string {
	wider := []string{s.Department, s.Project, s.User, s.Key}
	narrowest := max(slices.Index([]string{PerDepartment, PerProject, PerUser, PerKey}, c.Scope), 0)
	for _, name := range wider[narrowest:] {
		if name != "" {
			return name
		}
	}
	return ""
}

// tenantWeights returns the weights by name; a name that is missing has 1.
func (c *QueueConfig) tenantWeights() map[string]int {
	m := make(map[string]int, len(c.Tenants))
	for _, t := range c.Tenants {
		m[t.Name] = t.Weight
	}
	return m
}
