package limit

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
)

// Subjects identifies the accounts, the model and the address of a request. An empty one meets
// no rule.
type Subjects struct {
	Department string // a department owns projects, a project users, a user keys
	Project    string
	User       string
	Key        string // name of the key, never the key itself
	Model      string // model that is asked for
	IP         netip.Addr
}

// subject is a property of requests that a rule may count by.
type subject int

// The subjects; in keys they stand in this order.
const (
	byDepartment subject = iota
	byProject
	byUser
	byKey
	byIP
	byModel
	byNone
	subjectCount
)

func (s subject) String() string {
	return [...]string{"department", "project", "user", "key", "ip", "model", "global"}[s]
}

// subjectKinds holds the subjects of a rule, in their order.
type subjectKinds []subject

// parseSubjectKinds reads one subject, or two that are joined by a comma.
func parseSubjectKinds(text string) (subjectKinds, bool) {
	var out subjectKinds
	for word := range strings.SplitSeq(text, ",") {
		found := subjectCount
		for s := range subjectCount {
			if s.String() == strings.TrimSpace(word) {
				found = s
			}
		}
		if found == subjectCount || slices.Contains(out, found) {
			return nil, false
		}
		out = append(out, found)
	}
	if len(out) > 2 || len(out) == 2 && slices.Contains(out, byNone) {
		return nil, false
	}
	slices.Sort(out)
	return out, true
}

// home is the place of a rule's counters: the slot of an address, of a tenant, of a model or
// of all. They are asked in this order.
type home int

const (
	ofIP home = iota
	ofTenant
	ofModel
	ofAll
)

func (p subjectKinds) home() home {
	switch {
	case p[0] <= byKey:
		return ofTenant
	case p[0] == byIP:
		return ofIP
	case p[0] == byModel:
		return ofModel
	}
	return ofAll
}

// names holds the subjects of one request as they appear in keys.
type names struct {
	values [subjectCount]string
	homes  [ofAll + 1]string
}

// names returns the subjects and the homes that are asked for.
func (s *Subjects) names(subjects [subjectCount]bool, homes [ofAll + 1]bool) (n names) {
	n.values = [subjectCount]string{
		byDepartment: safe(s.Department), byProject: safe(s.Project), byUser: safe(s.User), byKey: safe(s.Key), byNone: "all",
	}
	if subjects[byIP] {
		n.values[byIP] = network(s.IP)
		n.homes[ofIP] = "tg:{i:" + n.values[byIP] + "}:"
	}
	if subjects[byModel] {
		n.values[byModel] = safe(s.Model)
	}
	if homes[ofModel] {
		n.homes[ofModel] = "tg:{m:" + n.values[byModel] + "}:"
	}
	n.homes[ofAll] = "tg:{g}:"
	// The tenant is the largest thing that owns the caller, so that all its keys
	// and users lie together.
	for kind := byDepartment; kind <= byKey && homes[ofTenant]; kind++ {
		if n.values[kind] != "" {
			n.homes[ofTenant] = "tg:{t:" + kind.String() + "=" + n.values[kind] + "}:"
			break
		}
	}
	return n
}

// key returns the key of a counter, with a suffix, or "" where the request lacks a subject.
func (n *names) key(h home, counter string, kinds subjectKinds, suffix string) string {
	for _, s := range kinds {
		if n.values[s] == "" {
			return ""
		}
	}
	if len(kinds) == 1 {
		return n.homes[h] + counter + kinds[0].String() + "=" + n.values[kinds[0]] + suffix
	}
	return n.homes[h] + counter + kinds[0].String() + "=" + n.values[kinds[0]] + "," + kinds[1].String() + "=" + n.values[kinds[1]] + suffix
}

// network returns an address, or of IPv6 the /64 that one caller usually has whole.
func network(ip netip.Addr) string {
	ip = ip.Unmap().WithZone("")
	switch {
	case !ip.IsValid():
		return ""
	case ip.Is4():
		return ip.String()
	}
	net, err := ip.Prefix(64)
	if err != nil {
		return ""
	}
	return net.String()
}

// maxName is the longest name in a key, in bytes; longer ones are hashed.
const maxName = 96 // bytes of a name in a key; longer ones are hashed

// safe returns a name that cannot be mistaken for another part of a key.
func safe(name string) string {
	plain := len(name) <= maxName
	for i := 0; plain && i < len(name); i++ {
		plain = !special(name[i])
	}
	if plain {
		return name
	}
	if len(name) > maxName {
		sum := sha256.Sum256([]byte(name))
		return "%sha256%" + hex.EncodeToString(sum[:])
	}
	var b strings.Builder
	for i := range len(name) {
		if special(name[i]) {
			b.WriteByte('%')
			b.WriteString(hex.EncodeToString([]byte{name[i]}))
			continue
		}
		b.WriteByte(name[i])
	}
	return b.String()
}

func special(c byte) bool {
	return c <= ' ' || c >= 0x7f || strings.IndexByte("{}%,=:", c) >= 0
}

// describe returns the names of the subjects of a request that a rule counts by.
func (p subjectKinds) describe(s *Subjects) string {
	values := [...]string{s.Department, s.Project, s.User, s.Key, network(s.IP), s.Model, ""}
	var out []string
	for _, one := range p {
		out = append(out, values[one])
	}
	return strings.Join(out, ", ")
}
