package account

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// ImportLine is one line of a list of users and keys.
type ImportLine struct {
	Line   int       // line number, from 1
	NewKey           // user and key; without Name the user alone, and a nil list leaves the key's as it is
	Change KeyChange // changes of an existing key
}

// ImportResult is the result of one line.
type ImportResult struct {
	Line    int
	Actions []string // changes, such as "made user ann"; empty if there are none
	Key     *Key     // created key; nil if there is none
	Secret  string   // text of the created key
}

// LineError is an error in one line of an import.
type LineError struct {
	Line int
	Err  error
}

func (e *LineError) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }

// Unwrap returns the error without its line.
func (e *LineError) Unwrap() error { return e.Err }

// errDryRun rolls back the transaction of a dry run.
var errDryRun = errors.New("dry run")

// Import creates users and keys as the lines describe them, and moves and changes existing
// ones. It applies all lines, or none if any is wrong, with a LineError for each wrong
// one. A line that matches its user and key changes nothing, so an import can be repeated.
// A dry run changes nothing and returns what would change.
func (d *Directory) Import(ctx context.Context, actor string, lines []ImportLine, dry bool) ([]ImportResult, error) {
	projects, keys := map[string]ImportLine{}, map[string]int{}
	return importLines(ctx, d.store, actor, lines, dry, func(c *change, l *ImportLine) (ImportResult, error) {
		result := ImportResult{Line: l.Line}
		first, seen := projects[l.User]
		if seen && first.Project != l.Project && l.Project != "" {
			return result, newFault(ErrInvalid, "project", "the user %s is in project %q in line %d and in %q here: users have one project", l.User, first.Project, first.Line, l.Project)
		}
		if l.Project != "" {
			projects[l.User] = *l
		}
		if line, twice := keys[l.Name]; twice && l.Name != "" {
			return result, newFault(ErrInvalid, "name", "the key %s stands in line %d already: a key has one line", l.Name, line)
		}
		keys[l.Name] = l.Line
		return result, d.importLine(c, l, &result)
	})
}

// importLines applies each line in one transaction: all of them, or none if a line is
// wrong or the run is dry.
func importLines[Line any](ctx context.Context, s *Store, actor string, lines []Line, dry bool, apply func(*change, *Line) (ImportResult, error)) (results []ImportResult, err error) {
	err = s.change(ctx, actor, func(c *change) error {
		var faults []error
		for i := range lines {
			result, err := apply(c, &lines[i])
			if invalid := (*Fault)(nil); errors.As(err, &invalid) {
				faults = append(faults, &LineError{result.Line, invalid})
				continue
			}
			if err != nil {
				return err
			}
			results = append(results, result)
		}
		if len(faults) > 0 {
			return errors.Join(faults...)
		}
		if dry {
			return errDryRun
		}
		return nil
	})
	if err != nil && !errors.Is(err, errDryRun) {
		return nil, err
	}
	return results, nil
}

// importLine applies one line.
func (d *Directory) importLine(c *change, l *ImportLine, result *ImportResult) error {
	k, err := d.newRow(c.now, &l.NewKey)
	if err != nil {
		return err
	}
	user, err := c.importUser(l, result)
	if err != nil || l.Name == "" {
		return err
	}
	rows, err := c.store.keys(c.ctx, c.tx, "k.name = ? AND k.replaced_by = ''", l.Name)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(rows, func(r *keyRow) bool {
		status := r.view(c.now).Status
		return r.UserName == user.Name && (status == KeyActive || status == KeyDisabled)
	}); i >= 0 {
		_, changed, err := d.changeKey(c, rows[i], l.Change)
		if changed {
			result.Actions = append(result.Actions, "changed key "+l.Name)
		}
		return err
	}
	m, err := c.createKey(k, user, l.Name)
	if err == nil {
		result.Key, result.Secret, result.Actions = &m.Key, m.Secret, append(result.Actions, "made key "+m.Key.Name)
	}
	return err
}

// importUser returns the user of a line, after it has created or moved it.
func (c *change) importUser(l *ImportLine, result *ImportResult) (Owner, error) {
	u, _, err := c.owner(UserKind, l.User)
	if err != nil {
		return Owner{}, err
	}
	if u == nil || l.Project == "" {
		user, created, err := c.ensureUser(l.User, l.Project, l.Department)
		for _, m := range created {
			result.Actions = append(result.Actions, "made "+m)
		}
		return user, err
	}
	p, created, err := c.ensureProject(l.Project, l.Department)
	if err != nil {
		return Owner{}, err
	}
	for _, m := range created {
		result.Actions = append(result.Actions, "made "+m)
	}
	user, moved, err := c.changeOwner(UserKind, u.Name, OwnerChange{Parent: &p.Name})
	if moved {
		result.Actions = append(result.Actions, "moved user "+user.Name+" to project "+p.Name)
	}
	return user, err
}

// ImportOverride is one line of a list of overrides.
type ImportOverride struct {
	Line int // line number, from 1
	Override
}

// ImportOverrides sets overrides, under the rules of Import.
func (s *Store) ImportOverrides(ctx context.Context, actor string, lines []ImportOverride, dry bool) ([]ImportResult, error) {
	return importLines(ctx, s, actor, lines, dry, func(c *change, l *ImportOverride) (ImportResult, error) {
		result := ImportResult{Line: l.Line}
		changed, err := c.setOverride(l.Override)
		if changed {
			result.Actions = []string{"set " + l.subject()}
		}
		return result, err
	})
}
