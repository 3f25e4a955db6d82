package account

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tidegate/gateway/database/databasetest"
)

func ptr[T any](v T) *T { return &v }

// state asks how a key stands on a replica; active: it is good.
func (r *replica) state(t testing.TB, secret string) KeyState {
	t.Helper()
	_, err := r.as(t, secret)
	if err == nil {
		return KeyActive
	}
	var known *KeyError
	if !errors.As(err, &known) {
		t.Fatalf("not said of a known key: %v", err)
	}
	return known.State
}

// keyStates disables, enables and moves owners on one replica and looks at the other.
func keyStates(t *testing.T, dsn string) {
	c := newClock()
	a, b := newReplica(t, dsn, c, nil), newReplica(t, dsn, c, nil)
	m := a.make(t, NewKey{User: "sue", Project: "s-one", Department: "s-dep"})
	if _, err := a.store.CreateOwner(t.Context(), "test", ProjectKind, "s-two", "s-dep"); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*replica{a, b} {
		r.check(t, "new", m.Secret, nil) // so that it is in memory
	}
	for kind, name := range map[Kind]string{UserKind: "sue", ProjectKind: "s-one", DepartmentKind: "s-dep"} {
		for _, off := range []bool{true, true, false} {
			o, err := a.store.ChangeOwner(t.Context(), "test", kind, name, OwnerChange{Disabled: &off})
			if err != nil || (o.Disabled != nil) != off {
				t.Errorf("%s %s disabled %v: %+v, %v", kind, name, off, o, err)
			}
			b.sync(t)
			want := KeyActive
			if off {
				want = KeyDisabled
			}
			if here, there := a.state(t, m.Secret), b.state(t, m.Secret); here != want || there != want {
				t.Errorf("%s %s disabled %v: %s here, %s elsewhere", kind, name, off, here, there)
			}
		}
	}
	if k, err := a.store.Key(t.Context(), "sue"); err != nil || k.Status != KeyActive {
		t.Errorf("%+v, %v", k, err)
	}
	if _, err := a.store.ChangeOwner(t.Context(), "test", UserKind, "sue", OwnerChange{Parent: ptr("s-two")}); err != nil {
		t.Fatal(err)
	}
	b.sync(t)
	for _, r := range []*replica{a, b} {
		if id, err := r.as(t, m.Secret); err != nil || id.Project != "s-two" || id.Department != "s-dep" {
			t.Errorf("after the move: %+v, %v", id, err)
		}
	}
	for what, err := range map[string]error{
		"nothing":  errorOf(a.store.ChangeOwner(t.Context(), "test", UserKind, "sue", OwnerChange{})),
		"no such":  errorOf(a.store.ChangeOwner(t.Context(), "test", UserKind, "nobody", OwnerChange{Disabled: ptr(true)})),
		"to none":  errorOf(a.store.ChangeOwner(t.Context(), "test", UserKind, "sue", OwnerChange{Parent: ptr("none")})),
		"not free": errorOf(a.store.DeleteOwner(t.Context(), "test", ProjectKind, "s-two")),
	} {
		if fault := (*Fault)(nil); !errors.As(err, &fault) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func errorOf[T any](_ T, err error) error { return err }

// reusedNames deletes a user and creates another of the same name: nothing of the first one,
// neither keys nor overrides nor the name that usage is counted by, is the second's.
func reusedNames(t *testing.T, dsn string) {
	c := newClock()
	a, b := newReplica(t, dsn, c, nil), newReplica(t, dsn, c, nil)
	old := a.make(t, NewKey{User: "nan", Name: "nan-laptop"})
	b.check(t, "the first", old.Secret, nil)
	if err := a.store.SetOverride(t.Context(), "test", Override{Rule: "daily", Scope: "user", Name: "nan", Units: "5"}); err != nil {
		t.Fatal(err)
	}
	gone, err := a.store.DeleteOwner(t.Context(), "test", UserKind, "nan")
	if err != nil || len(gone) != 1 || gone[0].ID != old.Key.ID {
		t.Fatal(gone, err)
	}
	b.sync(t)
	if s := b.state(t, old.Secret); s != KeyRevoked {
		t.Errorf("the key of a deleted user is %s", s)
	}
	if _, err := a.store.Owner(t.Context(), UserKind, "nan"); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "deleted") {
		t.Error(err)
	}
	for n, want := range []string{"nan#2", "nan#3"} {
		m := a.make(t, NewKey{User: "nan"})
		if m.Key.User != want || !slices.Contains(m.Created, "user "+want) {
			t.Errorf("%d: %+v", n, m)
		}
		if id, err := a.as(t, m.Secret); err != nil || id.User != want {
			t.Errorf("%d: %+v, %v", n, id, err)
		}
		if again := a.make(t, NewKey{User: "nan"}); again.Key.User != want {
			t.Errorf("the name leads to %s", again.Key.User)
		}
		if _, err := a.CreateKey(t.Context(), "test", NewKey{User: "nan", Name: "nan-laptop"}); !errors.Is(err, ErrConflict) {
			t.Errorf("the name of the first one's key: %v", err)
		}
		if err := a.store.SetOverride(t.Context(), "test", Override{Rule: "daily", Scope: "user", Name: "nan", Units: "7"}); err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, o := range a.store.Overrides() {
			if strings.HasPrefix(o.Name, "nan") {
				names = append(names, o.Name)
			}
		}
		if !slices.Equal(names, []string{want}) {
			t.Errorf("overrides of %q", names)
		}
		if keys, _, err := a.store.Keys(t.Context(), "nan", Page{}); err != nil || len(keys) != 2 {
			t.Errorf("%d keys, %v", len(keys), err)
		}
		if _, err := a.store.DeleteOwner(t.Context(), "test", UserKind, "nan"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.store.CreateOwner(t.Context(), "test", UserKind, "nan#7", defaultName); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

// keyChanges changes all that can be changed of a key, and looks at the other replica.
func keyChanges(t *testing.T, dsn string) {
	c := newClock()
	a, b := newReplica(t, dsn, c, nil), newReplica(t, dsn, c, nil)
	m := a.make(t, NewKey{User: "kim", Name: "kim-ci", TTL: "1h", Models: []string{"m"}})
	b.check(t, "new", m.Secret, nil)
	change := func(ref string, ch KeyChange) (Key, error) {
		k, err := a.ChangeKey(t.Context(), "test", ref, ch)
		b.sync(t)
		return k, err
	}
	k, err := change("kim-ci", KeyChange{Name: ptr("kim-build"), TTL: ptr("30d"), Models: &[]string{}, IPs: &[]string{"192.0.2.0/24"}, Tier: ptr(Batch), MaxLevel: ptr("L1")})
	if err != nil || k.Name != "kim-build" || !k.Expires.Equal(c.now().Add(30*24*time.Hour)) || len(k.Models) != 0 || k.Tier != Batch || k.MaxLevel != "L1" {
		t.Fatalf("%+v, %v", k, err)
	}
	if id, err := b.as(t, m.Secret); err != nil || id.Key != "kim-build" || id.Tier != Batch || id.MaxLevel != 1 || !id.MayUse("any") {
		t.Errorf("elsewhere: %+v, %v", id, err)
	}
	if _, err := b.Identify(t.Context(), "Bearer "+m.Secret, netip.MustParseAddr("10.1.1.1")); !errors.Is(err, ErrIPNotAllowed) {
		t.Error(err)
	}
	entries := func() int {
		all, _, err := a.store.Audit(t.Context(), 0, 1)
		if err != nil || len(all) != 1 {
			t.Fatal(err)
		}
		return int(all[0].ID)
	}
	lines := entries()
	if _, err := change(k.ID, KeyChange{Tier: ptr(Batch)}); err != nil || entries() != lines {
		t.Errorf("a change to what it is already: %v, %d lines more", err, entries()-lines)
	}
	// Nobody else gets the name that it had: usage stands under it.
	if _, err := a.CreateKey(t.Context(), "test", NewKey{User: "kai", Name: "kim-ci"}); !errors.Is(err, ErrConflict) {
		t.Error(err)
	}
	if again := a.make(t, NewKey{User: "kim", Name: "kim-ci"}); again.Key.Name != "kim-ci" {
		t.Errorf("%+v", again.Key)
	}
	for what, ch := range map[string]KeyChange{
		"nothing": {}, "both ends": {TTL: ptr("1h"), Expires: ptr("2027-01-01T00:00:00Z")}, "past": {Expires: ptr("2020-01-01T00:00:00Z")},
		"tier": {Tier: ptr(Tier("gold"))}, "level": {MaxLevel: ptr("L9")}, "ips": {IPs: &[]string{"x"}}, "name": {Name: ptr("a b")},
		"year 10000": {Expires: ptr("9999-12-31T23:59:59-12:00")}, "for ever": {TTL: ptr("100000d")}, "never": {TTL: ptr("never")}, "taken": {Name: ptr("kim-ci")},
	} {
		if _, err := change("kim-build", ch); !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrConflict) {
			t.Errorf("%s: %v", what, err)
		}
	}
	c.advance(31 * 24 * time.Hour)
	a.sync(t)
	b.sync(t)
	if s := b.state(t, m.Secret); s != KeyExpired {
		t.Errorf("it is %s", s)
	}
	if _, err := change("kim-build", KeyChange{Expires: ptr(c.now().Add(time.Hour).Format(time.RFC3339))}); err != nil || b.state(t, m.Secret) != KeyActive {
		t.Errorf("a later end of a key that has expired: %v, %s", err, b.state(t, m.Secret))
	}
}

// revokeAll revokes by user and by the text of a key, which no error quotes.
func revokeAll(t *testing.T, dsn string) {
	a := newReplica(t, dsn, newClock(), nil)
	one, two, lost := a.make(t, NewKey{User: "rex"}), a.make(t, NewKey{User: "rex"}), a.make(t, NewKey{User: "ray"})
	keys, err := a.RevokeSecret(t.Context(), "test", lost.Secret)
	if err != nil || len(keys) != 1 || keys[0].ID != lost.Key.ID || a.state(t, lost.Secret) != KeyRevoked {
		t.Error(keys, err)
	}
	for secret, kind := range map[string]error{lost.Secret: ErrConflict, NewSecret(): ErrNotFound, "tg-" + lost.Secret: ErrInvalid, "hunter2": ErrInvalid} {
		if _, err := a.RevokeSecret(t.Context(), "test", secret); !errors.Is(err, kind) || strings.Contains(err.Error(), secret) {
			t.Errorf("%v; expected %v", err, kind)
		}
	}
	// Pasted where its name belongs.
	pasted := NewSecret()
	for _, err := range []error{
		errorOf(a.store.RevokeKey(t.Context(), "test", pasted)), errorOf(a.store.Key(t.Context(), pasted)),
		errorOf(a.ChangeKey(t.Context(), "test", pasted, KeyChange{Tier: ptr(Batch)})),
	} {
		if !errors.Is(err, ErrInvalid) || strings.Contains(err.Error(), pasted) || !strings.Contains(err.Error(), "--secret") {
			t.Error(err)
		}
	}
	if keys, err := a.store.RevokeUser(t.Context(), "test", "rex"); err != nil || len(keys) != 2 {
		t.Error(keys, err)
	}
	for _, m := range []CreatedKey{one, two} {
		if s := a.state(t, m.Secret); s != KeyRevoked {
			t.Errorf("%s is %s", m.Key.Name, s)
		}
	}
	if keys, err := a.store.RevokeUser(t.Context(), "test", "rex"); err != nil || len(keys) != 0 {
		t.Error(keys, err)
	}
	if _, err := a.store.RevokeUser(t.Context(), "test", "roy"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

// requestsUnderWay checks that requests under way end on every replica when their key does, and
// no others.
func requestsUnderWay(t *testing.T, dsn string) {
	c := newClock()
	a, b := newReplica(t, dsn, c, nil), newReplica(t, dsn, c, nil)
	begin := func(m CreatedKey) context.Context {
		id, err := b.as(t, m.Secret)
		if err != nil {
			t.Fatal(err)
		}
		ctx, release := b.Follow(t.Context(), &id)
		t.Cleanup(release)
		return ctx
	}
	ends := func(what string, ctx context.Context, want KeyState) {
		t.Helper()
		b.sync(t)
		var why *KeyError
		if errors.As(context.Cause(ctx), &why); want == "" && ctx.Err() != nil || want != "" && (why == nil || why.State != want) {
			t.Errorf("%s: %v; expected %q", what, context.Cause(ctx), want)
		}
	}
	other := begin(a.make(t, NewKey{User: "fox"}))
	revoked := a.make(t, NewKey{User: "flo"})
	ctx := begin(revoked)
	ends("nothing has happened", ctx, "")
	if _, err := a.store.RevokeKey(t.Context(), "test", revoked.Key.ID); err != nil {
		t.Fatal(err)
	}
	ends("revoked elsewhere", ctx, KeyRevoked)

	m := a.make(t, NewKey{User: "fay", Project: "f-one"})
	ctx = begin(m)
	if _, err := a.ChangeKey(t.Context(), "test", m.Key.ID, KeyChange{Tier: ptr(Batch)}); err != nil {
		t.Fatal(err)
	}
	ends("changed", ctx, "")
	if _, err := a.store.ChangeOwner(t.Context(), "test", ProjectKind, "f-one", OwnerChange{Disabled: ptr(true)}); err != nil {
		t.Fatal(err)
	}
	ends("its project is disabled", ctx, KeyDisabled)

	ctx = begin(a.make(t, NewKey{User: "fin"}))
	if _, err := a.store.DeleteOwner(t.Context(), "test", UserKind, "fin"); err != nil {
		t.Fatal(err)
	}
	ends("its user is deleted", ctx, KeyRevoked)

	short := a.make(t, NewKey{User: "fred", TTL: "1h"})
	ctx = begin(short)
	now := a.make(t, NewKey{User: "fred"})
	rotated := begin(now)
	c.advance(2 * time.Hour)
	ends("it has expired", ctx, "")
	if _, err := a.RotateKey(t.Context(), "test", now.Key.ID, 0); err != nil {
		t.Fatal(err)
	}
	ends("rotated without overlap", rotated, KeyExpired)

	// Revoked between the moment that it was looked at and that it is followed.
	late := a.make(t, NewKey{User: "fip"})
	id, err := b.as(t, late.Secret)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.store.RevokeKey(t.Context(), "test", late.Key.ID); err != nil {
		t.Fatal(err)
	}
	b.sync(t)
	ctx, release := b.Follow(t.Context(), &id)
	defer release()
	ends("revoked before it was followed", ctx, KeyRevoked)
	ends("somebody else's", other, "")
	if n := len(b.running.requests); n == 0 {
		t.Error("nothing is followed")
	}
}

// TestEnforce takes a key out of the file while a request goes on with it.
func TestEnforce(t *testing.T) {
	const kept, lost = "a key that stays in the file", "a key that is taken out of it"
	c := Default()
	c.Keys = []KeyConfig{{User: "ann", KeyEnv: "A", Key: kept}, {User: "bob", KeyEnv: "B", Key: lost}}
	r := newReplica(t, "sqlite://"+t.TempDir()+"/a.db", newClock(), func(into *Config) { *into = c })
	contexts := map[string]context.Context{}
	for _, key := range []string{kept, lost} {
		id, err := r.as(t, key)
		if err != nil {
			t.Fatal(err)
		}
		ctx, release := r.Follow(t.Context(), &id)
		defer release()
		contexts[key] = ctx
	}
	c.Keys = c.Keys[:1]
	New(c, r.store).Enforce()
	var why *KeyError
	if !errors.As(context.Cause(contexts[lost]), &why) || why.State != KeyRevoked || why.User != "bob" || contexts[kept].Err() != nil {
		t.Errorf("%v, %v", context.Cause(contexts[lost]), contexts[kept].Err())
	}
}

// expiredOfDeleted deletes a user with a key that has expired: no later end and no
// rotation makes it good again.
func expiredOfDeleted(t *testing.T, dsn string) {
	c := newClock()
	a := newReplica(t, dsn, c, nil)
	m := a.make(t, NewKey{User: "evi", TTL: "1h"})
	c.advance(2 * time.Hour)
	if _, err := a.store.DeleteOwner(t.Context(), "test", UserKind, "evi"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.ChangeKey(t.Context(), "test", m.Key.ID, KeyChange{TTL: ptr("30d")}); !errors.Is(err, ErrConflict) {
		t.Errorf("a later end: %v", err)
	}
	if _, err := a.RotateKey(t.Context(), "test", m.Key.ID, time.Hour); !errors.Is(err, ErrConflict) {
		t.Errorf("a rotation: %v", err)
	}
	if s := a.state(t, m.Secret); s != KeyRevoked {
		t.Errorf("it is %s", s)
	}
}

// keyOfDisabled makes a key for a user whose project is disabled: it is shown as it is.
func keyOfDisabled(t *testing.T, dsn string) {
	a := newReplica(t, dsn, newClock(), nil)
	a.make(t, NewKey{User: "dan", Project: "d-off"})
	if _, err := a.store.ChangeOwner(t.Context(), "test", ProjectKind, "d-off", OwnerChange{Disabled: ptr(true)}); err != nil {
		t.Fatal(err)
	}
	if m := a.make(t, NewKey{User: "dan"}); m.Key.Status != KeyDisabled {
		t.Errorf("it is shown as %s and is %s", m.Key.Status, a.state(t, m.Secret))
	}
}

// overrideOfDeleted sets an override for a deleted user, which nobody could ever meet.
func overrideOfDeleted(t *testing.T, dsn string) {
	a := newReplica(t, dsn, newClock(), nil)
	a.make(t, NewKey{User: "ole"})
	if _, err := a.store.DeleteOwner(t.Context(), "test", UserKind, "ole"); err != nil {
		t.Fatal(err)
	}
	o := Override{Rule: "daily", Scope: "user", Name: "ole", Units: "5"}
	if err := a.store.SetOverride(t.Context(), "test", o); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if _, err := a.store.ImportOverrides(t.Context(), "test", []ImportOverride{{3, o}}, false); !errors.Is(err, ErrNotFound) || !strings.HasPrefix(err.Error(), "line 3: ") {
		t.Error(err)
	}
	for _, name := range []string{"ole#2", "ole#2-3"} {
		if err := checkRef("name", name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"ole#", "ole#x", "ole#2x", "#2", "ole#2-\n"} {
		if checkRef("name", name) == nil {
			t.Errorf("took %q", name)
		}
	}
}

// manyNamesakes deletes and makes a user of one name again and again: to find the last
// takes no longer than to find the second, and a name with a number means that one alone.
func manyNamesakes(t *testing.T, dsn string) {
	a := newReplica(t, dsn, newClock(), nil)
	asked := func(want string) int64 {
		before := a.asked.n.Load()
		if o, err := a.store.Owner(t.Context(), UserKind, "moss"); err != nil || o.Name != want {
			t.Fatalf("%+v, %v", o, err)
		}
		return a.asked.n.Load() - before
	}
	var second int64
	for n := range 12 {
		m := a.make(t, NewKey{User: "moss"})
		if n == 1 {
			second = asked("moss#2")
		}
		if n == 11 {
			break
		}
		if _, err := a.store.DeleteOwner(t.Context(), "test", UserKind, m.Key.User); err != nil {
			t.Fatal(err)
		}
	}
	if last := asked("moss#12"); last != second {
		t.Errorf("%d queries for the twelfth, %d for the second", last, second)
	}
	if _, err := a.store.DeleteOwner(t.Context(), "test", UserKind, "moss#2"); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted the second a second time: %v", err)
	}
	asked("moss#12")
	if _, err := a.CreateKey(t.Context(), "test", NewKey{User: "moss#2"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("a key for a deleted one: %v", err)
	}
}

// TestLastAdministrator starts a gateway where the user of the only administrator's key is
// disabled: no key is made, start after start, that nobody could use.
func TestLastAdministrator(t *testing.T) {
	a := newReplica(t, databasetest.SQLite(t), newClock(), nil)
	if _, err := a.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := a.store.ChangeOwner(t.Context(), "test", UserKind, "admin", OwnerChange{Disabled: ptr(true)}); err != nil {
		t.Fatal(err)
	}
	secret, err := a.Bootstrap(t.Context())
	if fault := (*Fault)(nil); secret != "" || !errors.As(err, &fault) || !strings.Contains(err.Error(), "tidegate user set admin --enable") {
		t.Errorf("%d bytes of a key, %v", len(secret), err)
	}
	if keys, _, err := a.store.Keys(t.Context(), "admin", Page{}); err != nil || len(keys) != 1 {
		t.Errorf("%d keys, %v", len(keys), err)
	}
}

// importTwice imports a list that says two things of one key.
func importTwice(t *testing.T, dsn string) {
	a := newReplica(t, dsn, newClock(), nil)
	line := func(n int) ImportLine { return ImportLine{Line: n, NewKey: NewKey{User: "ivy", Name: "ivy-ci"}} }
	_, err := a.Import(t.Context(), "test", []ImportLine{line(2), line(7)}, false)
	if wrong := (*LineError)(nil); !errors.As(err, &wrong) || wrong.Line != 7 || !strings.Contains(err.Error(), "line 2") {
		t.Error(err)
	}
	if _, err := a.store.Owner(t.Context(), UserKind, "ivy"); !errors.Is(err, ErrNotFound) {
		t.Errorf("half of it was imported: %v", err)
	}
}
