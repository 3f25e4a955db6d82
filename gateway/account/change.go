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

// What a change can be refused for; a Fault wraps one of them.
var (
	ErrInvalid  = errors.New("invalid")
	ErrNotFound = errors.New("not found")
	ErrConflict = errors.New("conflict")
)

// Fault says what is wrong with what was asked for, in words for who asked.
type Fault struct {
	Kind  error  // ErrInvalid, ErrNotFound or ErrConflict
	Field string // the field that is wrong, where there is one
	Text  string
}

func (f *Fault) Error() string { return f.Text }

// Unwrap is the kind.
func (f *Fault) Unwrap() error { return f.Kind }

func newFault(kind error, field, format string, args ...any) error {
	return &Fault{kind, field, fmt.Sprintf(format, args...)}
}

// Entry is a line of the audit log. Its ids follow each other without gaps.
type Entry struct {
	ID      int64           `json:"id"`
	Time    time.Time       `json:"at"`
	Actor   string          `json:"who"`
	Action  string          `json:"what"` // such as key.revoke
	Subject string          `json:"subject"`
	Old     json.RawMessage `json:"before"` // null: there was nothing
	New     json.RawMessage `json:"after"`
}

// Page picks a part of a list, which is in the order of names or ids.
type Page struct {
	Cursor string // the name or id of the last one that is known; empty: from the start
	Limit  int    // 1 to MaxPage; 0: MaxPage
}

// MaxPage is how many entries one page has at most.
const MaxPage = 1000

func (p Page) limit() int {
	if p.Limit <= 0 || p.Limit > MaxPage {
		return MaxPage
	}
	return p.Limit
}

// defaultName is the project or department of those who name none.
const defaultName = "default"

// change is one transaction that changes accounts.
type change struct {
	ctx   context.Context
	tx    bun.Tx
	store *Store
	actor string
	now   time.Time
}

// change runs f in a transaction and takes over what it did. Transactions that
// change accounts come one after another: each first locks the count of changes.
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
		s.Poke() // what is done is done; this replica learns of it as the others do
	}
	return nil
}

// read runs f in a transaction that changes nothing.
func (s *Store) read(ctx context.Context, f func(c *change) error) error {
	return s.db.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		return f(&change{ctx, tx, s, "", s.hooks.now().Truncate(time.Millisecond).UTC()})
	})
}

// note writes a line into the audit log.
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

// one reads a text; ok is false where there is no row.
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

func (c *change) exec(query string, args ...any) error {
	if _, err := c.tx.ExecContext(c.ctx, query, args...); err != nil {
		return fmt.Errorf("change the accounts: %w", err)
	}
	return nil
}

// maxName bounds a name, in bytes.
const maxName = 64

// checkRef takes the names that checkName takes, and such with the number that the name
// of a deleted owner has when it comes again, as keys named after that owner have too:
// ann#2 and ann#2-3.
func checkRef(field, name string) error {
	if base, number, found := strings.Cut(name, "#"); found {
		rest := strings.TrimLeft(number, "0123456789")
		if digits := len(number) - len(rest); digits > 0 && digits < 10 && (rest == "" || rest[0] == '-') {
			name = base + rest
		}
	}
	return checkName(field, name)
}

// checkName takes names that can stand in a path, a list and a metric as they are.
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

// member finds the user of a new key, and makes what is missing of user, project
// and department. made says what was.
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

// projectOf finds a project, and makes it and its department where they are missing.
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

// page reads a part of a list and reports whether there is more.
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

// Audit lists the audit log, the newest first, from before an id or, with 0, from
// the end.
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
