package account

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/uptrace/bun"

	"tidegate/gateway/database/databasetest"
)

// between runs a function once, before or after the next query that has some words.
type between struct {
	words         string
	before, after func()
}

func (m *between) BeforeQuery(ctx context.Context, e *bun.QueryEvent) context.Context {
	if f := m.before; f != nil && strings.Contains(e.Query, m.words) {
		m.before = nil
		f()
	}
	return ctx
}

func (m *between) AfterQuery(_ context.Context, e *bun.QueryEvent) {
	if f := m.after; f != nil && strings.Contains(e.Query, m.words) {
		m.after = nil
		f()
	}
}

func (r *replica) begin(t *testing.T, secret string) context.Context {
	t.Helper()
	id, err := r.as(t, secret)
	if err != nil {
		t.Fatal(err)
	}
	ctx, release := r.Follow(t.Context(), &id)
	t.Cleanup(release)
	return ctx
}

func endState(ctx context.Context) KeyState {
	if why := (*KeyError)(nil); errors.As(context.Cause(ctx), &why) {
		return why.State
	}
	return ""
}

// TestFollowAfterMove disables the project that a user was moved to while a request was
// under way.
func TestFollowAfterMove(t *testing.T) {
	dsn, c := databasetest.SQLite(t), newClock()
	a, b := newReplica(t, dsn, c, nil), newReplica(t, dsn, c, nil)
	m := a.make(t, NewKey{User: "ann", Project: "one"})
	if _, err := a.store.CreateOwner(t.Context(), "test", ProjectKind, "two", defaultName); err != nil {
		t.Fatal(err)
	}
	ctx := b.begin(t, m.Secret)
	if _, err := a.store.ChangeOwner(t.Context(), "test", UserKind, "ann", OwnerChange{Parent: ptr("two")}); err != nil {
		t.Fatal(err)
	}
	b.sync(t)
	if ctx.Err() != nil {
		t.Fatal("the move ended the request")
	}
	if _, err := a.store.ChangeOwner(t.Context(), "test", ProjectKind, "two", OwnerChange{Disabled: ptr(true)}); err != nil {
		t.Fatal(err)
	}
	b.sync(t)
	if got := endState(ctx); got != KeyDisabled {
		t.Errorf("the request is %q", got)
	}
}

// TestFollowDuringChange begins a request between the moment that the keys in use are
// counted, since their project was disabled, and that the change is taken over.
func TestFollowDuringChange(t *testing.T) {
	dsn, c := databasetest.SQLite(t), newClock()
	a, b := newReplica(t, dsn, c, nil), newReplica(t, dsn, c, nil)
	first, second := a.make(t, NewKey{User: "ann", Project: "one"}), a.make(t, NewKey{User: "bob", Project: "one"})
	b.sync(t)
	b.check(t, "in memory", second.Secret, nil)
	ctx := b.begin(t, first.Secret)
	if _, err := a.store.ChangeOwner(t.Context(), "test", ProjectKind, "one", OwnerChange{Disabled: ptr(true)}); err != nil {
		t.Fatal(err)
	}
	var late context.Context
	b.store.db = b.store.db.WithQueryHook(&between{words: "k.id IN", before: func() { late = b.begin(t, second.Secret) }})
	b.sync(t)
	if got, then := endState(ctx), endState(late); got != KeyDisabled || then != KeyDisabled {
		t.Errorf("the first request is %q, the one that began meanwhile %q", got, then)
	}
}

// TestFollowSharedLookup begins a request with the answer of a look-up that another had
// begun before the key was revoked.
func TestFollowSharedLookup(t *testing.T) {
	dsn := databasetest.SQLite(t)
	synctest.Test(t, func(t *testing.T) {
		c := &clock{}
		c.ms.Store(time.Now().UnixMilli())
		a, b := newReplica(t, dsn, c, nil), newReplica(t, dsn, c, nil)
		m := a.make(t, NewKey{User: "ann"})
		b.sync(t)
		begun := make(chan context.Context, 1)
		b.store.db = b.store.db.WithQueryHook(&between{words: "k.hash = ", after: func() {
			if _, err := a.store.RevokeKey(t.Context(), "test", "ann"); err != nil {
				t.Error(err)
			}
			b.sync(t)
			go func() { begun <- b.begin(t, m.Secret) }()
			synctest.Wait() // it waits for this answer
		}})
		b.check(t, "looked up before it was revoked", m.Secret, nil)
		if got := endState(<-begun); got != KeyRevoked {
			t.Errorf("the request is %q", got)
		}
		for _, r := range []*replica{a, b} {
			if err := r.db.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestFollowAfterReload begins to follow a request, whose key was looked up before a
// reload, after it: the reload took the key out.
func TestFollowAfterReload(t *testing.T) {
	const key = "a key that is taken out of the file"
	r := newReplica(t, databasetest.SQLite(t), newClock(), func(c *Config) { c.Keys = []KeyConfig{{User: "bob", KeyEnv: "B", Key: key}} })
	r.Enforce()
	id, err := r.as(t, key)
	if err != nil {
		t.Fatal(err)
	}
	New(Default(), r.store).Enforce()
	ctx, release := r.Follow(t.Context(), &id)
	defer release()
	if got := endState(ctx); got != KeyRevoked {
		t.Errorf("the request is %q", got)
	}
}
