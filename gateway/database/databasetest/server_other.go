//go:build !linux

package databasetest

import "testing"

// Server stands in for the server of a test, which starts on Linux only.
type Server struct{}

// StartServer skips the test.
func StartServer(t testing.TB) *Server {
	t.Helper()
	t.Skip("SKIPPED-PART: tests on PostgreSQL: the server is started on Linux only")
	return nil
}

// Database is never reached.
func (*Server) Database(testing.TB) (dsn string) { return "" }

// Start is never reached.
func (*Server) Start(testing.TB) {}

// Stop is never reached.
func (*Server) Stop(testing.TB) {}

// Pause is never reached.
func (*Server) Pause(testing.TB) {}

// Resume is never reached.
func (*Server) Resume(testing.TB) {}
