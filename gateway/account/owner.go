package account

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Kind is a kind of owner of keys.
type Kind string

// The kinds: a department has projects, a project has users, a user has keys.
const (
	DepartmentKind Kind = "department"
	ProjectKind    Kind = "project"
	UserKind       Kind = "user"
)

// Kinds returns all kinds, the largest first.
func Kinds() []Kind { return []Kind{DepartmentKind, ProjectKind, UserKind} }

// table returns the kind's table of the database.
func (k Kind) table() string { return "account_" + string(k) + "s" }

// Parent returns the kind that owners of this kind belong to, or "" for a department.
func (k Kind) Parent() Kind {
	switch k {
	case UserKind:
		return ProjectKind
	case ProjectKind:
		return DepartmentKind
	}
	return ""
}

// child returns the kind that belongs to owners of this kind, or "" for a user.
func (k Kind) child() Kind {
	switch k {
	case DepartmentKind:
		return ProjectKind
	case ProjectKind:
		return UserKind
	}
	return ""
}

// Owner is a department, a project or a user.
type Owner struct {
	Name       string     `json:"name"`
	Project    string     `json:"project,omitempty"`    // project of a user
	Department string     `json:"department,omitempty"` // department of a user or a project
	Created    time.Time  `json:"created_at"`
	Disabled   *time.Time `json:"disabled_at"` // null if enabled
}

// OwnerChange is a change of an owner. A nil field stays as it is.
type OwnerChange struct {
	Parent   *string // new project of a user, or new department of a project
	Disabled *bool   // whether the owner's keys are refused
}

// ownerRow is an owner in the database.
type ownerRow struct {
	Name       string `bun:"name"`
	Parent     string `bun:"parent"` // project of a user, department of a project
	CreatedMs  int64  `bun:"created_ms"`
	DisabledMs int64  `bun:"disabled_ms"` // 0 if enabled
	DeletedMs  int64  `bun:"deleted_ms"`  // 0 if live
	NextName   string `bun:"next_name"`   // row that has the name now; empty for this one
}

// ownerRow reads the row of a name, or returns nil if there is none.
func (c *change) ownerRow(k Kind, name string) (*ownerRow, error) {
	parent := "''"
	if parentKind := k.Parent(); parentKind != "" {
		parent = string(parentKind)
	}
	var rows []*ownerRow
	err := c.tx.NewRaw("SELECT name, "+parent+" AS parent, created_ms, disabled_ms, deleted_ms, next_name FROM "+k.table()+" WHERE name = ?", name).Scan(c.ctx, &rows)
	if err != nil {
		return nil, fmt.Errorf("read the accounts: %w", err)
	}
	if len(rows) == 0 {
		return nil, nil
	}
	return rows[0], nil
}

// owner finds the current owner of a name: the row of that name, or, if that one is
// deleted, the last row that reused the name. A name with a number means that row alone.
// If all are deleted, owner returns the last of them as deleted. If there is none, both
// are nil.
func (c *change) owner(k Kind, name string) (live, deleted *ownerRow, err error) {
	row, err := c.ownerRow(k, name)
	if err == nil && row != nil && row.NextName != "" && !strings.Contains(name, "#") {
		row, err = c.ownerRow(k, row.NextName)
	}
	switch {
	case err != nil || row == nil:
		return nil, nil, err
	case row.DeletedMs == 0:
		return row, nil, nil
	}
	return nil, row, nil
}

// requireOwner finds the current owner of a name, or fails with ErrNotFound.
func (c *change) requireOwner(k Kind, name string) (*ownerRow, error) {
	row, deleted, err := c.owner(k, name)
	if err != nil || row != nil {
		return row, err
	}
	if deleted != nil {
		return nil, deletedFault(k, name, deleted)
	}
	return nil, newFault(ErrNotFound, string(k), "there is no %s %q: create it first", k, name)
}

// deletedFault returns the fault for a deleted owner.
func deletedFault(k Kind, name string, row *ownerRow) error {
	return newFault(ErrNotFound, string(k), "the %s %s was deleted on %s: create it anew, or name another", k, name, timeOf(row.DeletedMs).Format(time.DateOnly))
}

// createOwner creates an owner. An owner that reuses the name of a deleted one is stored
// under that name with a number, such as ann#2. So the usage, the limits and the alerts of
// the two stay apart. The name alone still finds it.
func (c *change) createOwner(k Kind, name, parent string) (Owner, error) {
	live, deleted, err := c.owner(k, name)
	switch {
	case err != nil:
		return Owner{}, err
	case live != nil && live.Parent != "":
		return Owner{}, newFault(ErrConflict, "name", "there is a %s %s already, in %s %s", k, name, k.Parent(), live.Parent)
	case live != nil:
		return Owner{}, newFault(ErrConflict, "name", "there is a %s %s already", k, name)
	}
	stored := name
	if err := checkName(string(k), name); err != nil {
		if deleted != nil {
			err = deletedFault(k, name, deleted)
		}
		return Owner{}, err
	}
	if deleted != nil {
		base, number, _ := strings.Cut(deleted.Name, "#")
		n, _ := strconv.Atoi(number) // 0 for the first, which has no number
		stored = base + "#" + strconv.Itoa(max(n, 1)+1)
		if err := c.exec("UPDATE "+k.table()+" SET next_name = ? WHERE name = ?", stored, name); err != nil {
			return Owner{}, err
		}
	}
	if parentKind := k.Parent(); parentKind == "" {
		err = c.exec("INSERT INTO "+k.table()+" (name, created_ms) VALUES (?, ?)", stored, c.now.UnixMilli())
	} else {
		err = c.exec("INSERT INTO "+k.table()+" (name, "+string(parentKind)+", created_ms) VALUES (?, ?, ?)", stored, parent, c.now.UnixMilli())
	}
	if err != nil {
		return Owner{}, err
	}
	o, err := c.ownerView(k, &ownerRow{Name: stored, Parent: parent, CreatedMs: c.now.UnixMilli()})
	if err != nil {
		return Owner{}, err
	}
	return o, c.writeAudit(string(k)+".create", stored, nil, o)
}

// ownerView returns the public view of an owner.
func (c *change) ownerView(k Kind, r *ownerRow) (Owner, error) {
	o := Owner{Name: r.Name, Created: timeOf(r.CreatedMs)}
	if r.DisabledMs != 0 {
		t := timeOf(r.DisabledMs)
		o.Disabled = &t
	}
	switch k {
	case ProjectKind:
		o.Department = r.Parent
	case UserKind:
		o.Project = r.Parent
		p, err := c.ownerRow(ProjectKind, r.Parent)
		if err != nil {
			return o, err
		}
		o.Department = p.Parent // the foreign key guarantees the project
	}
	return o, nil
}

// CreateOwner creates a department, or a project or user in an existing parent. The audit
// log names actor.
func (s *Store) CreateOwner(ctx context.Context, actor string, k Kind, name, parent string) (o Owner, err error) {
	if err := checkName("name", name); err != nil {
		return o, err
	}
	err = s.change(ctx, actor, func(c *change) error {
		if parentKind := k.Parent(); parentKind != "" {
			if parent == "" {
				return newFault(ErrInvalid, string(parentKind), "%s: is missing: name the one that the %s belongs to, such as %s", parentKind, k, defaultName)
			}
			row, err := c.requireOwner(parentKind, parent)
			if err != nil {
				return err
			}
			parent = row.Name
		}
		o, err = c.createOwner(k, name, parent)
		return err
	})
	return o, err
}

// Owner returns the current owner of a name.
func (s *Store) Owner(ctx context.Context, k Kind, name string) (o Owner, err error) {
	err = s.read(ctx, func(c *change) error {
		row, err := c.requireOwner(k, name)
		if err == nil {
			o, err = c.ownerView(k, row)
		}
		return err
	})
	return o, err
}

// ChangeOwner moves, disables or enables an owner. Past usage stays with the old parent.
// The keys of a disabled owner are refused, and the requests that they have under way end.
func (s *Store) ChangeOwner(ctx context.Context, actor string, k Kind, name string, ch OwnerChange) (updated Owner, err error) {
	if ch.Parent == nil && ch.Disabled == nil {
		return updated, newFault(ErrInvalid, "", "there is no change: give %sdisabled", parentField(k))
	}
	err = s.change(ctx, actor, func(c *change) error {
		updated, _, err = c.changeOwner(k, name, ch)
		return err
	})
	return updated, err
}

// parentField returns the name of the kind's parent for a message.
func parentField(k Kind) string {
	if parentKind := k.Parent(); parentKind != "" {
		return string(parentKind) + " or "
	}
	return ""
}

// changeOwner changes an owner, and reports whether that changed anything.
func (c *change) changeOwner(k Kind, name string, ch OwnerChange) (updated Owner, changed bool, err error) {
	row, err := c.requireOwner(k, name)
	if err != nil {
		return updated, false, err
	}
	old, err := c.ownerView(k, row)
	if err != nil {
		return updated, false, err
	}
	if ch.Parent != nil {
		if k.Parent() == "" {
			return updated, false, newFault(ErrInvalid, "", "a department belongs to nothing that it could move to")
		}
		parent, err := c.requireOwner(k.Parent(), *ch.Parent)
		if err != nil {
			return updated, false, err
		}
		if parent.Name != row.Parent {
			row.Parent, changed = parent.Name, true
			if err := c.exec("UPDATE "+k.table()+" SET "+string(k.Parent())+" = ? WHERE name = ?", row.Parent, row.Name); err != nil {
				return updated, false, err
			}
		}
	}
	if ch.Disabled != nil && *ch.Disabled != (row.DisabledMs != 0) {
		row.DisabledMs, changed = 0, true
		if *ch.Disabled {
			row.DisabledMs = c.now.UnixMilli()
		}
		if err := c.exec("UPDATE "+k.table()+" SET disabled_ms = ? WHERE name = ?", row.DisabledMs, row.Name); err != nil {
			return updated, false, err
		}
	}
	if updated, err = c.ownerView(k, row); err != nil || !changed {
		return updated, false, err
	}
	return updated, true, c.writeAudit(string(k)+".update", row.Name, old, updated)
}

// DeleteOwner deletes a user with all keys, or an empty project or department. Usage keeps
// the name, and the next owner of the name is stored under another. It returns the keys
// that it has revoked.
func (s *Store) DeleteOwner(ctx context.Context, actor string, k Kind, name string) (revoked []Key, err error) {
	err = s.change(ctx, actor, func(c *change) error {
		row, err := c.requireOwner(k, name)
		if err != nil {
			return err
		}
		if err := c.checkEmpty(k, row); err != nil {
			return err
		}
		old, err := c.ownerView(k, row)
		if err != nil {
			return err
		}
		if k == UserKind {
			keys, err := c.store.keys(c.ctx, c.tx, "k.user_name = ?", row.Name)
			if err != nil {
				return err
			}
			if revoked, err = c.revoke(keys); err != nil {
				return err
			}
		}
		if err := c.deleteOverrides(k, row.Name); err != nil {
			return err
		}
		if err := c.exec("UPDATE "+k.table()+" SET deleted_ms = ? WHERE name = ?", c.now.UnixMilli(), row.Name); err != nil {
			return err
		}
		return c.writeAudit(string(k)+".delete", row.Name, old, nil)
	})
	return revoked, err
}

// checkEmpty returns a fault if other owners belong to this one.
func (c *change) checkEmpty(k Kind, row *ownerRow) error {
	childKind := k.child()
	if childKind == "" {
		return nil
	}
	var names []string
	err := c.tx.NewRaw("SELECT name FROM "+childKind.table()+" WHERE "+string(k)+" = ? AND deleted_ms = 0 ORDER BY name LIMIT 4", row.Name).Scan(c.ctx, &names)
	if err != nil {
		return fmt.Errorf("read the accounts: %w", err)
	}
	if len(names) == 0 {
		return nil
	}
	list := strings.Join(names[:min(len(names), 3)], ", ")
	if len(names) > 3 {
		list += ", ..."
	}
	return newFault(ErrConflict, string(k), "the %s %s has %ss (%s): move or delete them first", k, row.Name, childKind, list)
}

// deleteOverrides deletes the overrides of an owner.
func (c *change) deleteOverrides(k Kind, name string) error {
	var rules []string
	if err := c.tx.NewRaw("SELECT rule FROM account_overrides WHERE scope = ? AND name = ? ORDER BY rule", string(k), name).Scan(c.ctx, &rules); err != nil {
		return fmt.Errorf("read the accounts: %w", err)
	}
	for _, rule := range rules {
		if err := c.deleteOverride(string(k), name, rule); err != nil {
			return err
		}
	}
	return nil
}

// Owners lists the owners of a kind by name, in one parent or in all.
func (s *Store) Owners(ctx context.Context, k Kind, parent string, p Page) (items []Owner, hasMore bool, err error) {
	type row struct {
		Name       string `bun:"name"`
		Project    string `bun:"project"`
		Department string `bun:"department"`
		CreatedMs  int64  `bun:"created_ms"`
		DisabledMs int64  `bun:"disabled_ms"`
	}
	show := func(r row) Owner {
		o := Owner{Name: r.Name, Project: r.Project, Department: r.Department, Created: timeOf(r.CreatedMs)}
		if r.DisabledMs != 0 {
			t := timeOf(r.DisabledMs)
			o.Disabled = &t
		}
		return o
	}
	switch k {
	case DepartmentKind:
		return page(ctx, s, p, show, "SELECT name, created_ms, disabled_ms FROM account_departments WHERE deleted_ms = 0 AND name > ? ORDER BY name", p.Cursor)
	case ProjectKind:
		return page(ctx, s, p, show, `SELECT name, department, created_ms, disabled_ms FROM account_projects
			WHERE deleted_ms = 0 AND name > ? AND (? = '' OR department = ?) ORDER BY name`, p.Cursor, parent, parent)
	}
	return page(ctx, s, p, show, `SELECT u.name, u.project, p.department, u.created_ms, u.disabled_ms FROM account_users AS u
		JOIN account_projects AS p ON p.name = u.project
		WHERE u.deleted_ms = 0 AND u.name > ? AND (? = '' OR u.project = ?) ORDER BY u.name`, p.Cursor, parent, parent)
}
