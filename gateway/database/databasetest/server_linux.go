package databasetest

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // registers the driver
)

// patience bounds every wait for the server. It is long for the sake of loaded machines.
const patience = time.Minute

// Server is a PostgreSQL server that belongs to one test. It keeps its port on the
// loopback interface when it is stopped and started again, and runs without fsync. One
// goroutine may use it.
type Server struct {
	bin, dir   string              // directories of the programs and of the data
	port       int                 // TCP port
	credential *syscall.Credential // user that the server runs as; nil for the test's own
	cmd        *exec.Cmd           // nil while the server is stopped
	out        *bytes.Buffer       // log of the server since Start
	databases  int                 // number created so far
}

// StartServer creates and starts a server, or skips the test where PostgreSQL is not
// installed. The server ends with the test.
func StartServer(t testing.TB) *Server {
	t.Helper()
	bin := programs()
	if bin == "" {
		t.Skip("SKIPPED-PART: tests on PostgreSQL: there is no initdb on this machine (apt-get install postgresql)")
	}
	dir, err := os.MkdirTemp("", "tidegate-postgres-") //nolint:usetesting // the parent of t.TempDir is closed to the user that the server runs as
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{bin: bin, dir: dir}
	t.Cleanup(func() {
		s.halt(t, syscall.SIGQUIT)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if os.Geteuid() == 0 { // PostgreSQL refuses to run as root
		s.credential = nobody(t)
		if err := os.Chown(dir, int(s.credential.Uid), int(s.credential.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := s.command("initdb", "-N", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "-D", s.data()).CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.port = l.Addr().(*net.TCPAddr).Port
	l.Close()
	s.Start(t)
	return s
}

// programs returns the directory of the server's programs, or "" if there is none.
func programs() string {
	if path, err := exec.LookPath("initdb"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			return filepath.Dir(path)
		}
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		return ""
	}
	return filepath.Dir(slices.Max(found))
}

// nobody returns the user that runs the server if the test runs as root.
func nobody(t testing.TB) *syscall.Credential {
	t.Helper()
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		}
	}
	t.Fatal("PostgreSQL refuses to run as root, and there is no user postgres or nobody")
	return nil
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/bin:/bin"}
	// A test binary that is killed takes its server with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.credential, Pdeathsig: syscall.SIGQUIT}
	return cmd
}

func (s *Server) dsn(name string) string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/%s?sslmode=disable", s.port, name)
}

// Start starts the server, and returns when it answers.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	s.cmd = s.command("postgres", "-D", s.data(), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
		"-c", "port="+strconv.Itoa(s.port), "-c", "fsync=off", "-c", "full_page_writes=off", "-c", "max_connections=100", "-c", "shared_buffers=16MB")
	s.out = &bytes.Buffer{}
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	db := s.admin(t)
	defer closeDB(t, db)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for db.PingContext(ctx) != nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.halt(t, syscall.SIGQUIT)
			t.Fatalf("the PostgreSQL server does not answer:\n%s", s.out)
		}
	}
}

func (s *Server) admin(t testing.TB) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", s.dsn("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func closeDB(t testing.TB, db *sql.DB) {
	t.Helper()
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

// Database makes an empty database and returns its DSN.
func (s *Server) Database(t testing.TB) (dsn string) {
	t.Helper()
	db := s.admin(t)
	defer closeDB(t, db)
	s.databases++
	name := fmt.Sprintf("test%d", s.databases)
	if _, err := db.ExecContext(t.Context(), "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	return s.dsn(name)
}

// Stop kills the server at once, as a crash would: connections break, and new ones are
// refused until Start.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	s.halt(t, syscall.SIGQUIT)
}

func (s *Server) halt(t testing.TB, sig syscall.Signal) {
	if s.cmd == nil || s.cmd.Process == nil {
		return
	}
	s.Resume(t) // a paused server handles no signal
	_ = s.cmd.Process.Signal(sig)
	var status *exec.ExitError
	if err := s.cmd.Wait(); err != nil && !errors.As(err, &status) {
		t.Errorf("stopping PostgreSQL: %v", err)
	}
	s.cmd = nil
}

// Pause freezes the server: the system still accepts connections, and nothing answers.
func (s *Server) Pause(t testing.TB) {
	t.Helper()
	s.signal(t, syscall.SIGSTOP)
}

// Resume ends a Pause.
func (s *Server) Resume(t testing.TB) {
	t.Helper()
	s.signal(t, syscall.SIGCONT)
}

// signal sends a signal to the server's main process first, so that it starts no new ones,
// and then to its children.
func (s *Server) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	main := s.cmd.Process.Pid
	if err := syscall.Kill(main, sig); err != nil {
		t.Errorf("signal PostgreSQL: %v", err)
	}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range stats {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		// PID (NAME) STATE PARENT
		_, rest, _ := strings.Cut(string(raw), ") ")
		if fields := strings.Fields(rest); len(fields) < 2 || fields[1] != strconv.Itoa(main) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil {
			_ = syscall.Kill(pid, sig) // it may have ended
		}
	}
}
