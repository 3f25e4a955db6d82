package account

import (
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

func fault(kind error, field, format string, args ...any) error {
	return &Fault{kind, field, fmt.Sprintf(format, args...)}
}

// Department owns projects.
type Department struct {
	Name    string    `json:"name"`
	Created time.Time `json:"created_at"`
}

// Project belongs to a department and has users.
type Project struct {
	Name       string    `json:"name"`
	Department string    `json:"department"`
	Created    time.Time `json:"created_at"`
}

// User belongs to a project and has keys.
type User struct {
	Name       string    `json:"name"`
	Project    string    `json:"project"`
	Department string    `json:"department"`
	Created    time.Time `json:"created_at"`
}

// Entry is a line of the audit log. Its ids follow each other without gaps.
type Entry struct {
	ID      int64           `json:"id"`
	At      time.Time       `json:"at"`
	Who     string          `json:"who"`
	What    string          `json:"what"` // such as key.revoke
	Subject string          `json:"subject"`
	Before  json.RawMessage `json:"before"` // null: there was nothing
	After   json.RawMessage `json:"after"`
}

// Page picks a part of a list, which is in the order of names or ids.
type Page struct {
	After string // the name or id of the last one that is known; empty: from the start
	Limit int    // 1 to MaxPage; 0: MaxPage
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
	who   string
	now   time.Time
}

// change runs f in a transaction and takes over what it did. Transactions that
// change accounts come one after another: each first locks the count of changes.
func (s *Store) change(ctx context.Context, who string, f func(c *change) error) error {
	err := s.db.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		if _, err := tx.ExecContext(ctx, "UPDATE account_feed SET seq = seq WHERE one = 1"); err != nil {
			return fmt.Errorf("lock the accounts: %w", err)
		}
		return f(&change{ctx, tx, s, who, s.hooks.now().Truncate(time.Millisecond).UTC()})
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

// note writes a line into the audit log.
func (c *change) note(what, subject string, before, after any) error {
	was, err1 := json.Marshal(before)
	became, err2 := json.Marshal(after)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("write the audit log: %w", err)
	}
	var id int64
	err := c.tx.NewRaw("UPDATE account_feed SET seq = seq + 1 WHERE one = 1 RETURNING seq").Scan(c.ctx, &id)
	if err == nil {
		_, err = c.tx.ExecContext(c.ctx, "INSERT INTO account_audit (id, at_ms, who, what, subject, was, became) VALUES (?, ?, ?, ?, ?, ?, ?)",
			id, c.now.UnixMilli(), c.who, what, subject, string(was), string(became))
	}
	if err != nil {
		return fmt.Errorf("write the audit log: %w", err)
	}
	return nil
}

// one reads a text; ok is false where there is no row.
func (c *change) one(query string, args ...any) (text string, ok bool, err error) {
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

// checkName takes names that can stand in a path, a list and a metric as they are.
func checkName(field, name string) error {
	ok := name != "" && len(name) <= maxName
	for i, r := range name {
		ok = ok && (unicode.IsLetter(r) || unicode.IsDigit(r) || i > 0 && strings.ContainsRune("._-@+", r))
	}
	if !ok {
		return fault(ErrInvalid, field, "%s: must be 1 to %d letters, digits or any of . _ - @ + and begin with a letter or digit", field, maxName)
	}
	return nil
}

func (c *change) department(name string) (Department, error) {
	d := Department{name, c.now}
	if err := c.exec("INSERT INTO account_departments (name, created_ms) VALUES (?, ?)", name, c.now.UnixMilli()); err != nil {
		return d, err
	}
	return d, c.note("department.create", name, nil, d)
}

func (c *change) project(name, department string) (Project, error) {
	p := Project{name, department, c.now}
	if err := c.exec("INSERT INTO account_projects (name, department, created_ms) VALUES (?, ?, ?)", name, department, c.now.UnixMilli()); err != nil {
		return p, err
	}
	return p, c.note("project.create", name, nil, p)
}

func (c *change) user(name, project, department string) (User, error) {
	u := User{name, project, department, c.now}
	if err := c.exec("INSERT INTO account_users (name, project, created_ms) VALUES (?, ?, ?)", name, project, c.now.UnixMilli()); err != nil {
		return u, err
	}
	return u, c.note("user.create", name, nil, u)
}

// CreateDepartment makes a department; who is written into the audit log.
func (s *Store) CreateDepartment(ctx context.Context, who, name string) (d Department, err error) {
	if err := checkName("name", name); err != nil {
		return d, err
	}
	err = s.change(ctx, who, func(c *change) error {
		_, taken, err := c.one("SELECT name FROM account_departments WHERE name = ?", name)
		if taken {
			err = fault(ErrConflict, "name", "there is a department %s already", name)
		}
		if err == nil {
			d, err = c.department(name)
		}
		return err
	})
	return d, err
}

// CreateProject makes a project in a department that is there.
func (s *Store) CreateProject(ctx context.Context, who, name, department string) (p Project, err error) {
	if err := checkName("name", name); err != nil {
		return p, err
	}
	err = s.change(ctx, who, func(c *change) error {
		owner, taken, err := c.one("SELECT department FROM account_projects WHERE name = ?", name)
		if err != nil {
			return err
		}
		if taken {
			return fault(ErrConflict, "name", "there is a project %s already, in department %s", name, owner)
		}
		if _, ok, err := c.one("SELECT name FROM account_departments WHERE name = ?", department); err != nil || !ok {
			return errors.Join(err, missing(ok, "department", department))
		}
		p, err = c.project(name, department)
		return err
	})
	return p, err
}

// CreateUser makes a user in a project that is there.
func (s *Store) CreateUser(ctx context.Context, who, name, project string) (u User, err error) {
	if err := checkName("name", name); err != nil {
		return u, err
	}
	err = s.change(ctx, who, func(c *change) error {
		owner, taken, err := c.one("SELECT project FROM account_users WHERE name = ?", name)
		if err != nil {
			return err
		}
		if taken {
			return fault(ErrConflict, "name", "there is a user %s already, in project %s", name, owner)
		}
		department, ok, err := c.one("SELECT department FROM account_projects WHERE name = ?", project)
		if err != nil || !ok {
			return errors.Join(err, missing(ok, "project", project))
		}
		u, err = c.user(name, project, department)
		return err
	})
	return u, err
}

func missing(ok bool, kind, name string) error {
	if ok {
		return nil
	}
	return fault(ErrNotFound, kind, "there is no %s %q: create it first", kind, name)
}

// member finds the user of a new key, and makes what is missing of user, project
// and department. made says what was.
func (c *change) member(user, project, department string) (found User, made []string, err error) {
	in, ok, err := c.one("SELECT project FROM account_users WHERE name = ?", user)
	if err != nil {
		return found, nil, err
	}
	if ok && project != "" && project != in {
		return found, nil, fault(ErrConflict, "project", "the user %s is in project %s, not %s: users have one project", user, in, project)
	}
	name := project
	switch {
	case ok:
		name = in
	case name == "":
		name = defaultName
	}
	of, there, err := c.one("SELECT department FROM account_projects WHERE name = ?", name)
	if err != nil {
		return found, nil, err
	}
	if there && department != "" && department != of {
		return found, nil, fault(ErrConflict, "department", "the project %s is in department %s, not %s: projects have one department", name, of, department)
	}
	if !there {
		if of = department; of == "" {
			of = defaultName
		}
		_, known, err := c.one("SELECT name FROM account_departments WHERE name = ?", of)
		if err != nil {
			return found, nil, err
		}
		if !known {
			if _, err := c.department(of); err != nil {
				return found, nil, err
			}
			made = append(made, "department "+of)
		}
		if _, err := c.project(name, of); err != nil {
			return found, nil, err
		}
		made = append(made, "project "+name)
	}
	found = User{Name: user, Project: name, Department: of}
	if !ok {
		if found, err = c.user(user, name, of); err != nil {
			return found, nil, err
		}
		made = append(made, "user "+user)
	}
	return found, made, nil
}

// page reads a part of a list and reports whether there is more.
func page[Row, Item any](ctx context.Context, s *Store, p Page, item func(Row) Item, query string, args ...any) (items []Item, more bool, err error) {
	var rows []Row
	if err := s.db.NewRaw(query+" LIMIT ?", append(args, p.limit()+1)...).Scan(ctx, &rows); err != nil {
		return nil, false, fmt.Errorf("read the accounts: %w", err)
	}
	if more = len(rows) > p.limit(); more {
		rows = rows[:p.limit()]
	}
	items = make([]Item, 0, len(rows))
	for _, r := range rows {
		items = append(items, item(r))
	}
	return items, more, nil
}

type memberRow struct {
	Name, Project, Department string
	CreatedMs                 int64
}

// Departments lists departments by name.
func (s *Store) Departments(ctx context.Context, p Page) (items []Department, more bool, err error) {
	return page(ctx, s, p, func(r memberRow) Department { return Department{r.Name, at(r.CreatedMs)} },
		"SELECT name, created_ms FROM account_departments WHERE name > ? ORDER BY name", p.After)
}

// Projects lists projects by name, of one department or of all.
func (s *Store) Projects(ctx context.Context, department string, p Page) (items []Project, more bool, err error) {
	return page(ctx, s, p, func(r memberRow) Project { return Project{r.Name, r.Department, at(r.CreatedMs)} },
		"SELECT name, department, created_ms FROM account_projects WHERE name > ? AND (? = '' OR department = ?) ORDER BY name", p.After, department, department)
}

// Users lists users by name, of one project or of all.
func (s *Store) Users(ctx context.Context, project string, p Page) (items []User, more bool, err error) {
	return page(ctx, s, p, func(r memberRow) User { return User{r.Name, r.Project, r.Department, at(r.CreatedMs)} },
		`SELECT u.name, u.project, p.department, u.created_ms FROM account_users AS u JOIN account_projects AS p ON p.name = u.project
		WHERE u.name > ? AND (? = '' OR u.project = ?) ORDER BY u.name`, p.After, project, project)
}

// Audit lists the audit log, the newest first, from before an id or, with 0, from
// the end.
func (s *Store) Audit(ctx context.Context, before int64, limit int) (items []Entry, more bool, err error) {
	type row struct {
		ID, AtMs                        int64
		Who, What, Subject, Was, Became string
	}
	return page(ctx, s, Page{Limit: limit}, func(r row) Entry {
		return Entry{r.ID, at(r.AtMs), r.Who, r.What, r.Subject, json.RawMessage(r.Was), json.RawMessage(r.Became)}
	}, "SELECT id, at_ms, who, what, subject, was, became FROM account_audit WHERE (? = 0 OR id < ?) ORDER BY id DESC", before, before)
}
