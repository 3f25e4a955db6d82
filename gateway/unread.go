package gateway

import (
	"net/http"
	"sync"
)

// maxUnread bounds how many answers one HTTP/2 connection of callers without a good
// key may leave unread. A well-behaved client reads each at once.
const maxUnread = 8

// unread counts, by connection, the answers to strangers that wait to be read. It is
// safe for concurrent use.
type unread struct {
	mu     sync.Mutex
	byConn map[string]int // by remote address and port
}

// acquire counts one more answer; false where the connection has too many already.
func (u *unread) acquire(conn string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.byConn[conn] >= maxUnread {
		return false
	}
	if u.byConn == nil {
		u.byConn = map[string]int{}
	}
	u.byConn[conn]++
	return true
}

// release counts one answer less.
func (u *unread) release(conn string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.byConn[conn]--; u.byConn[conn] <= 0 {
		delete(u.byConn, conn)
	}
}

// write lets write answer a caller who has shown no good key. On HTTP/2 it waits until the
// caller has read the answer, and drops those beyond maxUnread on one connection; dropped
// reports that the stream must be cut. HTTP/1 needs no count: a connection has one answer
// at a time.
func (u *unread) write(w http.ResponseWriter, r *http.Request, write func()) (dropped bool) {
	if r.ProtoMajor < 2 {
		write()
		return false
	}
	if !u.acquire(r.RemoteAddr) {
		return true
	}
	defer u.release(r.RemoteAddr)
	write()
	return http.NewResponseController(w).Flush() != nil
}
