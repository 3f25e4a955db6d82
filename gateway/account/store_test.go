package account

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uptrace/bun"
	"go.uber.org/goleak"

	"tidegate/gateway/database"
	"tidegate/gateway/database/databasetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clock is a time that tests move.
type clock struct{ ms atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.ms.Store(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC).UnixMilli())
	return c
}

func (c *clock) now() time.Time          { return time.UnixMilli(c.ms.Load()) }
func (c *clock) advance(d time.Duration) { c.ms.Add(d.Milliseconds()) }

// queries counts what a store asks its database.
type queries struct{ n atomic.Int64 }

func (q *queries) BeforeQuery(ctx context.Context, _ *bun.QueryEvent) context.Context {
	q.n.Add(1)
	return ctx
}
func (q *queries) AfterQuery(context.Context, *bun.QueryEvent) {}

// replica is a directory over a store of its own, as a gateway has it.
type replica struct {
	*Directory
	db    *bun.DB
	asked *queries
}

func newReplica(t testing.TB, dsn string, c *clock, edit func(*Config)) *replica {
	t.Helper()
	db, err := database.Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if err := Migrate(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	q := &queries{}
	db = db.WithQueryHook(q)
	s := NewStore(db, Hooks{now: c.now})
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	config := Default()
	if edit != nil {
		edit(&config)
	}
	if err := config.Validate(); err != nil {
		t.Fatal(err)
	}
	return &replica{New(config, s), db, q}
}

func (r *replica) sync(t testing.TB) {
	t.Helper()
	if err := r.store.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (r *replica) make(t testing.TB, n NewKey) CreatedKey {
	t.Helper()
	m, err := r.CreateKey(t.Context(), "test", n)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// as asks who a key's text is, from a usual address.
func (r *replica) as(t testing.TB, secret string) (Identity, error) {
	t.Helper()
	return r.Identify(t.Context(), "Bearer "+secret, netip.MustParseAddr("192.0.2.7"))
}

func (r *replica) check(t testing.TB, what, secret string, want error) {
	t.Helper()
	if id, err := r.as(t, secret); !errors.Is(err, want) || err == nil && id.User == "" {
		t.Errorf("%s: %+v, %v; expected %v", what, id, err, want)
	}
}

func TestStore(t *testing.T) {
	databasetest.Run(t, func(t *testing.T, dsn string) {
		for name, test := range map[string]func(*testing.T, string){
			"a key's life": keyLife, "refusals": refusals, "expiring": expiring, "standing": keyStates, "a name again": reusedNames, "an expired key of a deleted user": expiredOfDeleted, "a key of a disabled project": keyOfDisabled,
			"an override of a deleted user": overrideOfDeleted, "namesakes": manyNamesakes, "import twice": importTwice, "key changes": keyChanges, "revokes": revokeAll, "following": requestsUnderWay, "unnamed keys": unnamedKeys, "rotation": rotation, "members": members, "faults": faults, "replicas": replicas,
			"audit": audit, "overrides": overrides, "many overrides": manyOverrides, "pins": pins, "lists": lists, "storm": storm, "closed": closed,
		} {
			t.Run(name, func(t *testing.T) { test(t, dsn) })
		}
	})
}

func keyLife(t *testing.T, dsn string) {
	c := newClock()
	r := newReplica(t, dsn, c, nil)
	m := r.make(t, NewKey{User: "ann", Project: "apollo", Department: "space", Name: "laptop", Models: []string{"qwen3"},
		IPs: []string{"192.0.2.99/24", "2001:db8::1"}, Tier: Critical, MaxLevel: "L2", Admin: true})
	if !wellFormed(m.Secret) || !slices.Equal(m.Created, []string{"department space", "project apollo", "user ann"}) {
		t.Errorf("%+v", m)
	}
	if !slices.Equal(m.Key.IPs, []string{"192.0.2.0/24", "2001:db8::1/128"}) {
		t.Errorf("%q", m.Key.IPs)
	}
	id, err := r.as(t, m.Secret)
	id.models, id.expiresText, id.sum, id.seq = nil, "", hash{}, 0
	want := Identity{Department: "space", Project: "apollo", User: "ann", Key: "laptop", KeyID: m.Key.ID, Tier: Critical, MaxLevel: 2, Admin: true, Expires: c.now().Add(168 * time.Hour).UTC()}
	if err != nil || fmt.Sprintf("%+v", id) != fmt.Sprintf("%+v", want) {
		t.Errorf("%+v, %v\nexpected %+v", id, err, want)
	}
	if id, _ := r.as(t, m.Secret); !id.MayUse("qwen3") || id.MayUse("small") {
		t.Error("the list of models is not kept")
	}
	for from, want := range map[string]error{"192.0.2.255": nil, "192.0.3.1": ErrIPNotAllowed, "2001:db8::1": nil, "2001:db8::2": ErrIPNotAllowed} {
		if _, err := r.Identify(t.Context(), "Bearer "+m.Secret, netip.MustParseAddr(from)); !errors.Is(err, want) {
			t.Errorf("from %s: %v", from, err)
		}
	}
	if _, err := r.Identify(t.Context(), "Bearer "+m.Secret, netip.Addr{}); !errors.Is(err, ErrIPNotAllowed) {
		t.Errorf("from nowhere: %v", err)
	}
	var rows []string
	if err := r.db.NewRaw("SELECT hash || models || id FROM account_keys UNION ALL SELECT was || became FROM account_audit").Scan(t.Context(), &rows); err != nil {
		t.Fatal(err)
	}
	if all := strings.Join(rows, "\n"); strings.Contains(all, m.Secret) || strings.Contains(all, m.Secret[3:]) {
		t.Error("the store holds the key's text")
	}
	short := r.make(t, NewKey{User: "ann", TTL: "1h"})
	c.advance(time.Hour - time.Millisecond)
	r.sync(t)
	r.check(t, "just before its end", short.Secret, nil)
	c.advance(time.Millisecond)
	r.check(t, "at its end", short.Secret, ErrUnknownKey)
	r.check(t, "of longer life", m.Secret, nil)
	if k, err := r.store.Key(t.Context(), short.Key.Name); err != nil || k.Status != KeyExpired {
		t.Errorf("%+v, %v", k, err)
	}
	if keys, err := r.store.RevokeKey(t.Context(), "test", "laptop"); err != nil || len(keys) != 1 || keys[0].Revoked == nil || keys[0].Status != KeyRevoked {
		t.Errorf("%+v, %v", keys, err)
	}
	r.check(t, "revoked", m.Secret, ErrUnknownKey)
	if _, err := r.store.RevokeKey(t.Context(), "test", "laptop"); !errors.Is(err, ErrConflict) {
		t.Errorf("twice: %v", err)
	}
	// What a gone key was called its user may use again.
	if again := r.make(t, NewKey{User: "ann", Name: "laptop"}); again.Key.Name != "laptop" {
		t.Errorf("%+v", again)
	}
}

func rotation(t *testing.T, dsn string) {
	c := newClock()
	r := newReplica(t, dsn, c, nil)
	first := r.make(t, NewKey{User: "rob", Name: "rob-ci", Models: []string{"m"}, IPs: []string{"192.0.2.7"}, Tier: Batch, MaxLevel: "L1", TTL: "100h"})
	c.advance(10 * time.Hour)
	r.sync(t)
	second, err := r.RotateKey(t.Context(), "test", "rob-ci", DefaultOverlap)
	if err != nil || second.Secret == first.Secret || second.Old.ID != first.Key.ID || second.Old.Status != KeyReplaced {
		t.Fatalf("%+v, %v", second, err)
	}
	same := second.Key
	same.ID, same.Created, same.Expires = first.Key.ID, first.Key.Created, first.Key.Expires
	if fmt.Sprintf("%+v", same) != fmt.Sprintf("%+v", first.Key) || !second.Key.Expires.Equal(c.now().Add(100*time.Hour)) {
		t.Errorf("%+v\nis no heir of %+v", second.Key, first.Key)
	}
	if _, err := r.RotateKey(t.Context(), "test", first.Key.ID, 0); !errors.Is(err, ErrConflict) {
		t.Errorf("the old one again: %v", err)
	}
	c.advance(24*time.Hour - time.Millisecond)
	r.sync(t)
	r.check(t, "the old one in the overlap", first.Secret, nil)
	r.check(t, "the new one in the overlap", second.Secret, nil)
	c.advance(time.Millisecond)
	r.check(t, "the old one after the overlap", first.Secret, ErrUnknownKey)
	r.check(t, "the new one after the overlap", second.Secret, nil)
	third, err := r.RotateKey(t.Context(), "test", second.Key.ID, 1000*time.Hour)
	if err != nil || !third.Old.Expires.Equal(*second.Key.Expires) {
		t.Errorf("an overlap must not prolong a life: %+v, %v", third, err)
	}
	keys, err := r.store.RevokeKey(t.Context(), "test", "rob-ci")
	if err != nil || len(keys) != 3 {
		t.Errorf("by its name every key goes, or a later end would make it good again: %+v, %v", keys, err)
	}
	r.check(t, "the replaced one", second.Secret, ErrUnknownKey)
	r.check(t, "the last one", third.Secret, ErrUnknownKey)
	if _, err := r.RotateKey(t.Context(), "test", "rob-ci", 0); !errors.Is(err, ErrConflict) {
		t.Errorf("a revoked one: %v", err)
	}
	now := r.make(t, NewKey{User: "rob"})
	if _, err := r.RotateKey(t.Context(), "test", now.Key.Name, 0); err != nil {
		t.Fatal(err)
	}
	r.check(t, "no overlap", now.Secret, ErrUnknownKey)
}

func members(t *testing.T, dsn string) {
	r := newReplica(t, dsn, newClock(), nil)
	ctx, s := t.Context(), r.store
	if m := r.make(t, NewKey{User: "mia"}); m.Key.Project != defaultName || m.Key.Department != defaultName || m.Key.Name != "mia" {
		t.Errorf("%+v", m)
	}
	if m := r.make(t, NewKey{User: "mia", Project: defaultName}); m.Key.Name != "mia-2" || len(m.Created) != 0 {
		t.Errorf("%+v", m)
	}
	if _, err := s.CreateOwner(ctx, "test", DepartmentKind, "m-dep", ""); err != nil {
		t.Fatal(err)
	}
	if p, err := s.CreateOwner(ctx, "test", ProjectKind, "m-proj", "m-dep"); err != nil || p.Department != "m-dep" {
		t.Fatal(p, err)
	}
	if u, err := s.CreateOwner(ctx, "test", UserKind, "max", "m-proj"); err != nil || u.Department != "m-dep" {
		t.Fatal(u, err)
	}
	r.make(t, NewKey{User: "max", Name: "max-key"})
	_, dep := s.CreateOwner(ctx, "test", DepartmentKind, "m-dep", "")
	_, proj := s.CreateOwner(ctx, "test", ProjectKind, "m-proj", "m-dep")
	_, user := s.CreateOwner(ctx, "test", UserKind, "max", "m-proj")
	_, moved := r.CreateKey(ctx, "test", NewKey{User: "max", Project: "other"})
	_, lent := r.CreateKey(ctx, "test", NewKey{User: "moe", Project: "m-proj", Department: "other"})
	_, taken := r.CreateKey(ctx, "test", NewKey{User: "max", Name: "max-key"})
	if _, err := s.RevokeKey(ctx, "test", "max-key"); err != nil {
		t.Fatal(err)
	}
	_, others := r.CreateKey(ctx, "test", NewKey{User: "mia", Name: "max-key"})
	for i, err := range []error{dep, proj, user, moved, lent, taken, others} {
		if !errors.Is(err, ErrConflict) {
			t.Errorf("%d: %v", i, err)
		}
	}
	_, noDep := s.CreateOwner(ctx, "test", ProjectKind, "p9", "none")
	_, noProj := s.CreateOwner(ctx, "test", UserKind, "u9", "none")
	_, noKey := s.RevokeKey(ctx, "test", "none")
	_, noRotate := r.RotateKey(ctx, "test", "none", 0)
	_, noShow := s.Key(ctx, "none")
	for i, err := range []error{noDep, noProj, noKey, noRotate, noShow} {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("%d: %v", i, err)
		}
	}
}

func faults(t *testing.T, dsn string) {
	r := newReplica(t, dsn, newClock(), nil)
	before, _, err := r.store.Audit(t.Context(), 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	for field, keys := range map[string][]NewKey{
		"user":       {{}, {User: "a b"}, {User: "-a"}, {User: "a/b"}, {User: "a,b"}, {User: strings.Repeat("x", 65)}, {User: "a\x00"}},
		"project":    {{User: "a", Project: "."}},
		"department": {{User: "a", Department: "a:b"}},
		"name":       {{User: "a", Name: "{a}"}},
		"ttl":        {{User: "a", TTL: "never"}, {User: "a", TTL: "0s"}, {User: "a", TTL: "-1h"}, {User: "a", TTL: "week"}, {User: "a", TTL: "1ms"}},
		"tier":       {{User: "a", Tier: "gold"}},
		"max_level":  {{User: "a", MaxLevel: "L5"}, {User: "a", MaxLevel: "2"}, {User: "a", MaxLevel: "L"}, {User: "a", MaxLevel: "L01"}, {User: "a", MaxLevel: "L-1"}},
		"models":     {{User: "a", Models: []string{""}}, {User: "a", Models: make([]string, 101)}},
		"ips":        {{User: "a", IPs: []string{"10.0.0.0/33"}}, {User: "a", IPs: []string{"here"}}, {User: "a", IPs: []string{"::ffff:10.0.0.1"}}, {User: "a", IPs: []string{"fe80::1%eth0"}}},
	} {
		for _, k := range keys {
			_, err := r.CreateKey(t.Context(), "test", k)
			var f *Fault
			if !errors.As(err, &f) || !errors.Is(err, ErrInvalid) || f.Field != field {
				t.Errorf("%s: %+v: %v", field, k, err)
			}
		}
	}
	after, _, err := r.store.Audit(t.Context(), 0, 1)
	if err != nil || fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("a refused change stands in the audit log: %v, %v", after, err)
	}
	for field, overrides := range map[string][]Override{
		"of":           {{Rule: "r", Name: "n", Requests: "1/1m"}, {Rule: "r", Scope: "ip", Name: "n", Requests: "1/1m"}},
		"name":         {{Rule: "r", Scope: "user", Requests: "1/1m"}},
		"rule":         {{Scope: "user", Name: "n", Requests: "1/1m"}},
		"requests":     {{Rule: "r", Scope: "user", Name: "n", Requests: Amount(strings.Repeat("1", maxAmount+1))}},
		"input_tokens": {{Rule: "r", Scope: "user", Name: "n", Units: "1", InputTokens: Amount(strings.Repeat("x", 1<<20))}},
	} {
		for _, o := range overrides {
			err := r.store.SetOverride(t.Context(), "test", o)
			var f *Fault
			if !errors.As(err, &f) || !errors.Is(err, ErrInvalid) || f.Field != field {
				t.Errorf("%s: %+v: %v", field, o, err)
			}
		}
	}
	forever := newReplica(t, dsn, newClock(), func(c *Config) { c.AllowUnexpiring = true })
	if m := forever.make(t, NewKey{User: "eve", TTL: "never"}); m.Key.Expires != nil {
		t.Errorf("%+v", m)
	}
	if m, err := r.RotateKey(t.Context(), "test", "eve", 0); err != nil || m.Key.Expires == nil {
		t.Errorf("a key without end survives the rule that forbids it: %+v, %v", m, err)
	}
}

// replicas are two gateways over one database.
func replicas(t *testing.T, dsn string) {
	c := newClock()
	a, b := newReplica(t, dsn, c, nil), newReplica(t, dsn, c, nil)
	m := a.make(t, NewKey{User: "rae"})
	b.check(t, "made a moment ago elsewhere", m.Secret, nil)
	asked := b.asked.n.Load()
	b.check(t, "again", m.Secret, nil)
	if n := b.asked.n.Load() - asked; n != 0 {
		t.Errorf("a key in memory costs %d questions", n)
	}
	if _, err := a.store.RevokeKey(t.Context(), "test", m.Key.ID); err != nil {
		t.Fatal(err)
	}
	a.check(t, "revoked here", m.Secret, ErrUnknownKey)
	b.check(t, "revoked elsewhere, not heard yet", m.Secret, nil)
	b.sync(t)
	b.check(t, "revoked elsewhere", m.Secret, ErrUnknownKey)
	// Three replicas at their first start make one administrator's key, whoever is first.
	secrets := make([]string, 3)
	var group sync.WaitGroup
	for i := range secrets {
		r := newReplica(t, dsn, c, nil)
		group.Go(func() {
			var err error
			if secrets[i], err = r.Bootstrap(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	slices.Sort(secrets)
	if secrets[1] != "" || !wellFormed(secrets[2]) {
		t.Fatalf("%q", secrets)
	}
	if id, err := a.as(t, secrets[2]); err != nil || !id.Admin {
		t.Errorf("%+v, %v", id, err)
	}
	if _, err := a.store.RevokeKey(t.Context(), "test", "admin"); err != nil {
		t.Fatal(err)
	}
	if text, err := New(validConfig(), a.store).Bootstrap(t.Context()); err != nil || text != "" {
		t.Errorf("the file names keys: %q, %v", text, err)
	}
	if text, err := a.Bootstrap(t.Context()); err != nil || text == "" {
		t.Errorf("the only administrator is gone: %q, %v", text, err)
	}
}

func audit(t *testing.T, dsn string) {
	r := newReplica(t, dsn, newClock(), nil)
	m, err := r.CreateKey(t.Context(), "key:boss", NewKey{User: "aud", Project: "aud-p", Department: "aud-d"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.store.RevokeKey(t.Context(), "cli:joe", m.Key.ID); err != nil {
		t.Fatal(err)
	}
	got, more, err := r.store.Audit(t.Context(), 0, 5)
	if err != nil || !more && got[4].ID != 1 {
		t.Fatal(got, more, err)
	}
	var lines []string
	for _, e := range got {
		lines = append(lines, e.Actor+" "+e.Action+" "+e.Subject)
	}
	want := []string{"cli:joe key.revoke " + m.Key.ID, "key:boss key.create " + m.Key.ID, "key:boss user.create aud", "key:boss project.create aud-p", "key:boss department.create aud-d"}
	if !slices.Equal(lines, want) {
		t.Errorf("%q\nexpected %q", lines, want)
	}
	var before, after Key
	if err := errors.Join(json.Unmarshal(got[0].Old, &before), json.Unmarshal(got[0].New, &after)); err != nil || before.Status != KeyActive || after.Status != KeyRevoked || string(got[1].Old) != "null" {
		t.Errorf("%+v, %v", got[0], err)
	}
	if next, _, err := r.store.Audit(t.Context(), got[4].ID, 5); err != nil || len(next) > 0 && next[0].ID != got[4].ID-1 {
		t.Error(next, err)
	}
}

func overrides(t *testing.T, dsn string) {
	c := newClock()
	applied := 0
	a, b := newReplica(t, dsn, c, nil), newReplica(t, dsn, c, nil)
	b.store.hooks.Applied = func() { applied++ }
	var o Override
	if err := json.Unmarshal([]byte(`{"rule":"user-rate","of":"user","name":"ann","requests":"100/1m","tokens":5000,"burst":"7","units":null}`), &o); err != nil {
		t.Fatal(err)
	}
	if err := a.store.SetOverride(t.Context(), "test", o); err != nil {
		t.Fatal(err)
	}
	want := Override{Rule: "user-rate", Scope: "user", Name: "ann", Requests: "100/1m", Tokens: "5000", Burst: "7"}
	b.sync(t)
	if got := b.store.Overrides(); !slices.Equal(got, []Override{want}) || applied != 1 {
		t.Errorf("%+v, applied %d times", got, applied)
	}
	for _, bad := range []string{`{"requests":{}}`, `{"requests":[1]}`, `{"requests":true}`} {
		var kind *json.UnmarshalTypeError
		if err := json.Unmarshal([]byte(bad), &Override{}); !errors.As(err, &kind) || kind.Field != "requests" {
			t.Errorf("%s: %v", bad, err)
		}
	}
	o.Requests = "5/s"
	if err := a.store.SetOverride(t.Context(), "test", o); err != nil {
		t.Fatal(err)
	}
	if got := newReplica(t, dsn, c, nil).store.Overrides(); len(got) != 1 || got[0].Requests != "5/s" {
		t.Errorf("%+v", got)
	}
	if err := a.store.DeleteOverride(t.Context(), "test", "user", "ann", "user-rate"); err != nil {
		t.Fatal(err)
	}
	if err := a.store.DeleteOverride(t.Context(), "test", "user", "ann", "user-rate"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	b.sync(t)
	if got := b.store.Overrides(); len(got) != 0 || applied != 2 {
		t.Errorf("%+v, applied %d times", got, applied)
	}
	got, _, err := a.store.Audit(t.Context(), 0, 3)
	if err != nil || got[0].Action != "override.delete" || string(got[0].New) != "null" || string(got[2].Old) != "null" || !strings.Contains(string(got[1].Old), "100/1m") {
		t.Errorf("%+v, %v", got, err)
	}
}

// manyOverrides are more than one page.
func manyOverrides(t *testing.T, dsn string) {
	r := newReplica(t, dsn, newClock(), nil)
	var want []string
	for _, of := range []string{"department", "key", "user"} {
		for i := range MaxPage/2 + 1 {
			o := Override{Rule: fmt.Sprintf("r%d", i%2), Scope: of, Name: fmt.Sprintf("n%04d", i/2), Requests: "1/1m"}
			text, err := json.Marshal(o)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.db.ExecContext(t.Context(), "INSERT INTO account_overrides VALUES (?, ?, ?, ?)", o.Scope, o.Name, o.Rule, string(text)); err != nil {
				t.Fatal(err)
			}
			want = append(want, o.Path())
		}
	}
	paths := func(items []Override) (out []string) {
		for i := range items {
			out = append(out, items[i].Path())
		}
		return out
	}
	if got := paths(newReplica(t, dsn, newClock(), nil).store.Overrides()); !slices.Equal(got, want) {
		t.Errorf("a new replica knows %d of %d", len(got), len(want))
	}
	items, more, err := r.store.StoredOverrides(t.Context(), Page{Cursor: want[2], Limit: 3})
	if err != nil || !more || !slices.Equal(paths(items), want[3:6]) {
		t.Errorf("%q, %v, %v", paths(items), more, err)
	}
	items, more, err = r.store.StoredOverrides(t.Context(), Page{Cursor: want[len(want)-1]})
	if err != nil || more || items == nil || len(items) > 0 {
		t.Errorf("%q, %v, %v", items, more, err)
	}
	var f *Fault
	if _, _, err := r.store.StoredOverrides(t.Context(), Page{Cursor: "user/n"}); !errors.As(err, &f) || f.Field != "after" {
		t.Errorf("%v", err)
	}
	if _, err := r.db.ExecContext(t.Context(), "DELETE FROM account_overrides"); err != nil {
		t.Fatal(err)
	}
}

func lists(t *testing.T, dsn string) {
	r := newReplica(t, dsn, newClock(), nil)
	var want []string
	for i := range 7 {
		want = append(want, r.make(t, NewKey{User: "lea", Name: fmt.Sprintf("lea%d", i), Project: "lists", Department: "lists"}).Key.ID)
	}
	slices.Sort(want)
	var got []string
	for page, more := (Page{Limit: 3}), true; more; {
		keys, next, err := r.store.Keys(t.Context(), "lea", page)
		if err != nil || next != (len(got)+len(keys) < 7) {
			t.Fatal(keys, next, err)
		}
		for _, k := range keys {
			got = append(got, k.ID)
		}
		page.Cursor, more = got[len(got)-1], next
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q\nexpected %q", got, want)
	}
	users, more, err := r.store.Owners(t.Context(), UserKind, "lists", Page{})
	if err != nil || more || len(users) != 1 || users[0].Department != "lists" {
		t.Error(users, more, err)
	}
	projects, _, err := r.store.Owners(t.Context(), ProjectKind, "lists", Page{})
	if err != nil || len(projects) != 1 || projects[0].Name != "lists" {
		t.Error(projects, err)
	}
	departments, _, err := r.store.Owners(t.Context(), DepartmentKind, "", Page{Cursor: "list", Limit: 1})
	if err != nil || len(departments) != 1 || departments[0].Name != "lists" || departments[0].Created.IsZero() {
		t.Error(departments, err)
	}
}

// storm sends keys that nobody made, many at once, and one good one among them.
func storm(t *testing.T, dsn string) {
	c := newClock()
	unbound := func(a *Config) { a.FailedKeys = 0 } // as if each key came from another address
	a, b := newReplica(t, dsn, c, unbound), newReplica(t, dsn, c, unbound)
	asked := b.asked.n.Load()
	for range 10_000 {
		b.check(t, "made up", NewSecret(), ErrUnknownKey)
	}
	if n := b.asked.n.Load() - asked; n != unknownBurst {
		t.Errorf("the database was asked %d times, expected %d", n, unknownBurst)
	}
	m := a.make(t, NewKey{User: "sam"})
	b.check(t, "made elsewhere in the storm, not heard yet", m.Secret, ErrUnknownKey)
	b.sync(t)
	b.check(t, "made elsewhere in the storm", m.Secret, nil)
	c.advance(time.Second)
	asked, same := b.asked.n.Load(), NewSecret()
	for range 100 {
		b.check(t, "the same made up", same, ErrUnknownKey)
	}
	if n := b.asked.n.Load() - asked; n != 1 {
		t.Errorf("the same unknown key asked the database %d times", n)
	}
	// Many that ask for the same good key cold ask the database once.
	cold := newReplica(t, dsn, c, nil)
	asked = cold.asked.n.Load()
	var group sync.WaitGroup
	for range 50 {
		group.Go(func() { cold.check(t, "cold", m.Secret, nil) })
	}
	group.Wait()
	if n := cold.asked.n.Load() - asked; n != 1 {
		t.Errorf("50 at once asked the database %d times", n)
	}
}

// closed is a database that fails at once.
func closed(t *testing.T, dsn string) {
	c := newClock()
	r := newReplica(t, dsn, c, nil)
	warm, cold := r.make(t, NewKey{User: "clo"}), r.make(t, NewKey{User: "clo"})
	static := validConfig()
	file := New(static, r.store)
	r.check(t, "before", warm.Secret, nil)
	if err := r.db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.store.Sync(t.Context()); err == nil {
		t.Fatal("a closed database answers")
	}
	asked := r.asked.n.Load()
	c.advance(staleAfter)
	r.check(t, "in memory", warm.Secret, nil)
	r.check(t, "known, not in memory", cold.Secret, ErrUnavailable)
	r.check(t, "unknown", NewSecret(), ErrUnavailable)
	if n := r.asked.n.Load() - asked; n != 0 {
		t.Errorf("a database that is down is asked %d times", n)
	}
	r.check(t, "of odd shape", "EMPTY", ErrUnknownKey)
	if _, err := file.Identify(t.Context(), "Bearer "+annKey, netip.Addr{}); err != nil {
		t.Errorf("of the file: %v", err)
	}
	c.advance(time.Millisecond)
	r.check(t, "in memory for too long", warm.Secret, ErrUnavailable)
	static.Mode = Open
	if id, err := New(static, r.store).Identify(t.Context(), "Bearer "+warm.Secret, netip.MustParseAddr("192.0.2.7")); err != nil || id.User != "192.0.2.7" {
		t.Errorf("in open mode: %+v, %v", id, err)
	}
	if _, err := r.CreateKey(t.Context(), "test", NewKey{User: "clo"}); err == nil || errors.As(err, new(*Fault)) {
		t.Errorf("a change: %v", err)
	}
}
