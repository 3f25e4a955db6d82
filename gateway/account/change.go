package account

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/uptrace/bun"
)

// Kinds of Fault.
var (
	ErrInvalid  = errors.New("invalid")
	ErrNotFound = errors.New("not found")
	ErrConflict = errors.New("conflict")
)

// Fault is an error in a requested change, worded for the caller.
type Fault struct {
	Kind  error  // ErrInvalid, ErrNotFound or ErrConflict
	Field string // name of the wrong field; empty if there is none
	Text  string
}

func (f *Fault) Error() string { return f.Text }

// Unwrap returns the kind.
func (f *Fault) Unwrap() error { return f.Kind }

// newFault returns a Fault whose text is formatted as by fmt.Sprintf.
func newFault(kind error, field, format string, args ...any) error {
	return &Fault{kind, field, fmt.Sprintf(format, args...)}
}

// Entry is a line of the audit log. Ids increase without gaps.
type Entry struct {
	ID      int64           `json:"id"`
	Time    time.Time       `json:"at"`   // time of the change
	Actor   string          `json:"who"`  // name of the changer
	Action  string          `json:"what"` // kind of change, such as key.revoke
	Subject string          `json:"subject"`
	Old     json.RawMessage `json:"before"` // subject before the change; null for a new one
	New     json.RawMessage `json:"after"`  // subject after the change; null for a deleted one
}

// Page selects a part of a list that is ordered by name or id.
type Page struct {
	Cursor string // name or id of the last entry of the page before; empty for the first page
	Limit  int    // number of entries, 1 to MaxPage; 0 for MaxPage
}

// MaxPage is the largest number of entries of a page.
const MaxPage = 1000

func (p Page) limit() int {
	if p.Limit <= 0 || p.Limit > MaxPage {
		return MaxPage
	}
	return p.Limit
}

// defaultName is the project and the department of those that name none.
const defaultName = "default"

// change is one transaction on the accounts.
type change struct {
	ctx   context.Context
	tx    bun.Tx
	store *Store
	actor string    // name of the changer, for the audit log
	now   time.Time // time of the change, in whole milliseconds
}

// change runs f in a transaction and applies the result to this replica. Transactions that
// change accounts run one after another: each locks the count of changes first.
func (s *Store) change(ctx context.Context, actor string, f func(c *change) error) error {
	err := s.db.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		if _, err := tx.ExecContext(ctx, "UPDATE account_feed SET seq = seq WHERE one = 1"); err != nil {
			return fmt.Errorf("lock the accounts: %w", err)
		}
		return f(&change{ctx, tx, s, actor, s.hooks.now().Truncate(time.Millisecond).UTC()})
	})
	if err != nil {
		return err
	}
	if s.hooks.Wrote != nil {
		s.hooks.Wrote()
	}
	s.mu.Lock()
	loaded := s.seq >= 0
	s.mu.Unlock()
	if loaded && s.Sync(ctx) != nil {
		s.Poke() // the change is committed; this replica learns of it as the others do
	}
	return nil
}

// read runs f in a transaction that changes nothing.
func (s *Store) read(ctx context.Context, f func(c *change) error) error {
	return s.db.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		return f(&change{ctx, tx, s, "", s.hooks.now().Truncate(time.Millisecond).UTC()})
	})
}

// writeAudit writes a line of the audit log, with the subject before and after the change.
func (c *change) writeAudit(action, subject string, old, updated any) error {
	oldJSON, err1 := json.Marshal(old)
	updatedJSON, err2 := json.Marshal(updated)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("write the audit log: %w", err)
	}
	var id int64
	err := c.tx.NewRaw("UPDATE account_feed SET seq = seq + 1 WHERE one = 1 RETURNING seq").Scan(c.ctx, &id)
	if err == nil {
		_, err = c.tx.ExecContext(c.ctx, "INSERT INTO account_audit (id, at_ms, who, what, subject, was, became) VALUES (?, ?, ?, ?, ?, ?, ?)",
			id, c.now.UnixMilli(), c.actor, action, subject, string(oldJSON), string(updatedJSON))
	}
	if err != nil {
		return fmt.Errorf("write the audit log: %w", err)
	}
	return nil
}

// queryText returns the text of a query's first row; ok is false if there is no row.
func (c *change) queryText(query string, args ...any) (text string, ok bool, err error) {
	var found []string
	if err := c.tx.NewRaw(query, args...).Scan(c.ctx, &found); err != nil {
		return "", false, fmt.Errorf("read the accounts: %w", err)
	}
	if len(found) == 0 {
		return "", false, nil
	}
	return found[0], true, nil
}

// exec runs a statement that changes rows.
func (c *change) exec(query string, args ...any) error {
	if _, err := c.tx.ExecContext(c.ctx, query, args...); err != nil {
		return fmt.Errorf("change the accounts: %w", err)
	}
	return nil
}

// maxName is the longest name, in bytes.
const maxName = 64

// checkRef accepts the names that checkName accepts. It also accepts names with the number
// of a reused name, and names of keys derived from them: ann#2 and ann#2-3.
func checkRef(field, name string) error {
	if base, number, found := strings.Cut(name, "#"); found {
		rest := strings.TrimLeft(number, "0123456789")
		if digits := len(number) - len(rest); digits > 0 && digits < 10 && (rest == "" || rest[0] == '-') {
			name = base + rest
		}
	}
	return checkName(field, name)
}

// checkName accepts names that need no escaping in a path, a list or a metric.
func checkName(field, name string) error {
	ok := name != "" && len(name) <= maxName
	for i, r := range name {
		ok = ok && (unicode.IsLetter(r) || unicode.IsDigit(r) || i > 0 && strings.ContainsRune("._-@+", r))
	}
	if !ok {
		return newFault(ErrInvalid, field, "%s: must be 1 to %d letters, digits or any of . _ - @ + and begin with a letter or digit", field, maxName)
	}
	return nil
}

// ensureUser returns the user of a new key. It creates the user, project and department
// that are missing, and lists them in created.
func (c *change) ensureUser(user, project, department string) (found Owner, created []string, err error) {
	u, _, err := c.owner(UserKind, user)
	if err != nil {
		return found, nil, err
	}
	if project != "" {
		p, _, err := c.owner(ProjectKind, project)
		if err != nil {
			return found, nil, err
		}
		if u != nil && (p == nil || p.Name != u.Parent) {
			return found, nil, newFault(ErrConflict, "project", "the user %s is in project %s, not %s: users have one project, and tidegate user set moves them", user, u.Parent, project)
		}
	}
	if u != nil {
		project = u.Parent
	}
	p, created, err := c.ensureProject(cmp.Or(project, defaultName), department)
	if err != nil {
		return found, nil, err
	}
	if u == nil {
		if found, err = c.createOwner(UserKind, user, p.Name); err == nil {
			created = append(created, "user "+found.Name)
		}
		return found, created, err
	}
	found, err = c.ownerView(UserKind, u)
	return found, created, err
}

// ensureProject returns a project. It creates the project and its department if they are
// missing, and lists them in created.
func (c *change) ensureProject(project, department string) (p *ownerRow, created []string, err error) {
	if p, _, err = c.owner(ProjectKind, project); err != nil {
		return nil, nil, err
	}
	d, _, err := c.owner(DepartmentKind, cmp.Or(department, defaultName))
	if err != nil {
		return nil, nil, err
	}
	if p != nil {
		if department != "" && (d == nil || d.Name != p.Parent) {
			return nil, nil, newFault(ErrConflict, "department", "the project %s is in department %s, not %s: projects have one department, and tidegate project set moves them", p.Name, p.Parent, department)
		}
		return p, nil, nil
	}
	if d == nil {
		o, err := c.createOwner(DepartmentKind, cmp.Or(department, defaultName), "")
		if err != nil {
			return nil, nil, err
		}
		d, created = &ownerRow{Name: o.Name}, append(created, "department "+o.Name)
	}
	o, err := c.createOwner(ProjectKind, project, d.Name)
	if err != nil {
		return nil, nil, err
	}
	return &ownerRow{Name: o.Name, Parent: d.Name}, append(created, "project "+o.Name), nil
}

// page returns a part of a list, and reports whether more entries follow.
func page[Row, Item any](ctx context.Context, s *Store, p Page, item func(Row) Item, query string, args ...any) (items []Item, hasMore bool, err error) {
	var rows []Row
	if err := s.db.NewRaw(query+" LIMIT ?", append(args, p.limit()+1)...).Scan(ctx, &rows); err != nil {
		return nil, false, fmt.Errorf("read the accounts: %w", err)
	}
	if hasMore = len(rows) > p.limit(); hasMore {
		rows = rows[:p.limit()]
	}
	items = make([]Item, 0, len(rows))
	for _, r := range rows {
		items = append(items, item(r))
	}
	return items, hasMore, nil
}

// Audit lists the audit log, newest entries first. It starts below beforeID, or at the end
// if that is 0.
func (s *Store) Audit(ctx context.Context, beforeID int64, limit int) (items []Entry, hasMore bool, err error) {
	type row struct {
		ID      int64  `bun:"id"`
		TimeMs  int64  `bun:"at_ms"`
		Actor   string `bun:"who"`
		Action  string `bun:"what"`
		Subject string `bun:"subject"`
		Old     string `bun:"was"`
		New     string `bun:"became"`
	}
	return page(ctx, s, Page{Limit: limit}, func(r row) Entry {
		return Entry{r.ID, timeOf(r.TimeMs), r.Actor, r.Action, r.Subject, json.RawMessage(r.Old), json.RawMessage(r.New)}
	}, "SELECT id, at_ms, who, what, subject, was, became FROM account_audit WHERE (? = 0 OR id < ?) ORDER BY id DESC", beforeID, beforeID)
}
