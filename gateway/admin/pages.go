package admin

import (
	"fmt"
	"strconv"

	"tidegate/gateway/account"
	"tidegate/gateway/refusal"
)

// page reads which part of a list is asked for.
func (r *Request) page() (account.Page, error) {
	q := r.URL.Query()
	p := account.Page{Cursor: q.Get("after"), Limit: defaultPage}
	if s := q.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > account.MaxPage {
			return p, refusal.New(refusal.InvalidRequest, "limit", fmt.Sprintf("limit must be from 1 to %d", account.MaxPage))
		}
		p.Limit = n
	}
	return p, nil
}

// defaultPage is the length of a part of a list where the request sets none.
const defaultPage = 100

// page answers with a part of a list. next returns the value of after with which the
// part behind an item is asked for.
func page[T any](r *Request, list func(account.Page) ([]T, bool, error), next func(T) any) (any, error) {
	p, err := r.page()
	if err != nil {
		return nil, err
	}
	items, hasMore, err := list(p)
	if err != nil {
		return nil, err
	}
	answer := map[string]any{"object": "list", "data": items, "has_more": hasMore, "after": nil}
	if hasMore {
		answer["after"] = next(items[len(items)-1])
	}
	return answer, nil
}

// listAudit goes from the newest entry back; after is the last id that is known.
func listAudit(r *Request) (any, error) {
	return page(r, func(p account.Page) ([]account.Entry, bool, error) {
		var beforeID int64
		if p.Cursor != "" {
			n, err := strconv.ParseInt(p.Cursor, 10, 64)
			if err != nil || n < 1 {
				return nil, false, refusal.New(refusal.InvalidRequest, "after", "after must be the id of an entry")
			}
			beforeID = n
		}
		return r.Accounts.Store().Audit(r.Context(), beforeID, p.Limit)
	}, func(e account.Entry) any { return strconv.FormatInt(e.ID, 10) })
}
