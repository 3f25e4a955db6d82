package bench

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"testing"
)

// The test binary plays the parts of the benchmark that must be processes of their
// own: it starts itself again with a role in the environment. A role says on
// stdout where it listens, and serves until it is killed.
const (
	roleVariable    = "TIDEGATE_BENCH_ROLE"
	backendVariable = "TIDEGATE_BENCH_BACKEND" // of the role bare: the mock's URL
)

func TestMain(m *testing.M) {
	var err error
	switch role := os.Getenv(roleVariable); role {
	case "":
		os.Exit(m.Run())
	case "mock":
		err = listen(NewMock(DefaultBehaviour()).Serve)
	case Bare:
		backend, fault := url.Parse(os.Getenv(backendVariable))
		if err = fault; err == nil {
			err = listen(func(l net.Listener) error { return http.Serve(l, NewBare(backend)) })
		}
	default:
		err = fmt.Errorf("%s: there is no role %q", roleVariable, role)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func listen(serve func(net.Listener) error) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return serve(l)
}
