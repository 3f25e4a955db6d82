package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"tidegate/admission/limit/redislimit"
	"tidegate/gateway/backend"
	"tidegate/gateway/database"
	"tidegate/nvml"
)

// liveLimit bounds each question of check --live; they are asked at the same time.
const liveLimit = 10 * time.Second

// liveQuestion is one thing that check --live asks.
type liveQuestion struct {
	subject string
	ask     func(context.Context) (answer string, err error) // ends with its context
}

// liveReply is the outcome of a question.
type liveReply struct {
	answer string
	err    error
	took   time.Duration
}

// checkLive asks everything that a gateway of this configuration would ask, and says
// what it answers, in the order of the configuration. Its error says how many did not
// answer as they should.
func (p *process) checkLive(ctx context.Context, c *config) error {
	client := backend.ProbeClient()
	defer client.CloseIdleConnections()
	asked := c.questions(client)
	fmt.Fprintf(p.stderr, "asking %d: each has %v at most\n", len(asked), liveLimit)
	replies := make([]chan liveReply, len(asked))
	for i, q := range asked {
		replies[i] = make(chan liveReply, 1)
		go func() {
			limited, cancel := context.WithTimeout(ctx, liveLimit)
			defer cancel()
			began := time.Now()
			answer, err := q.ask(limited)
			replies[i] <- liveReply{answer, err, time.Since(began)}
		}()
	}
	failed := 0
	for i, q := range asked {
		r := <-replies[i]
		if r.err != nil {
			failed++
			fmt.Fprintf(p.stdout, "FAILED  %s: %s\n", q.subject, redact(r.err.Error()))
			continue
		}
		fmt.Fprintf(p.stdout, "ok      %s: %s (%d ms)\n", q.subject, r.answer, r.took.Milliseconds())
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d did not answer as they should", failed, len(asked))
	}
	return nil
}

// questions lists what a gateway of this configuration would ask.
func (c *config) questions(client *http.Client) (questions []liveQuestion) {
	for _, m := range c.Models {
		for _, b := range m.Backends {
			questions = append(questions, liveQuestion{"backend " + b.URL + " of " + m.Name, func(ctx context.Context) (string, error) {
				f, err := backend.Ask(ctx, b, append([]string{m.Name}, m.Aliases...), client)
				if err != nil {
					return "", err
				}
				answer := fmt.Sprintf("version %s serves %s with a context of %d tokens", cmp.Or(f.Version, "unknown"), f.Serves, f.MaxModelLen)
				if len(f.Warnings) > 0 {
					answer += "; but " + strings.Join(f.Warnings, "; ")
				}
				return answer, nil
			}})
		}
	}
	if len(c.Redis.Addrs) > 0 {
		questions = append(questions, liveQuestion{"redis " + strings.Join(c.Redis.Addrs, ", "), func(ctx context.Context) (string, error) { return askRedis(ctx, c.Redis) }})
	}
	questions = append(questions, liveQuestion{"store", func(ctx context.Context) (string, error) { return askStore(ctx, c.Store.DSN) }},
		liveQuestion{"journal " + c.Store.JournalDir, func(context.Context) (string, error) { return askJournal(c.Store.JournalDir) }})
	for _, g := range c.GPUs {
		questions = append(questions, liveQuestion{"gpus " + g.Name, func(ctx context.Context) (string, error) { return askSource(ctx, g) }})
	}
	return questions
}

// askRedis asks Redis whether it is there and runs scripts, as the limits need it to.
func askRedis(ctx context.Context, r redislimit.Config) (string, error) {
	r.Timeout = time.Second // it may be the first connection in a long time
	client := redislimit.Dial(r)
	defer client.Close()
	if err := client.Ping(ctx).Err(); err != nil {
		return "", err
	}
	if err := client.Eval(ctx, "return 1", []string{"tg:check"}).Err(); err != nil {
		return "", fmt.Errorf("it answers, but runs no scripts: %w; its user needs +eval and +evalsha on ~tg:*", err)
	}
	return "answers and runs scripts", nil
}

// askStore asks a database for a sign of life. It makes no SQLite file and no tables.
func askStore(ctx context.Context, dsn string) (string, error) {
	if path, ok := sqliteFile(dsn); ok {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			return "there is no " + path + " yet; serve makes it", nil
		}
	}
	db, err := database.Open(ctx, dsn)
	if err != nil {
		return "", err
	}
	if err := db.Close(); err != nil {
		return "", err
	}
	return "answers", nil
}

// askJournal tries whether usage can be written down.
func askJournal(dir string) (string, error) {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "is not there yet; serve makes it", nil
	case err != nil:
		return "", err
	case !info.IsDir():
		return "", errors.New("is no directory")
	case !writable(dir):
		return "", errors.New("cannot be written to by this user")
	}
	return "can be written to", nil
}

// askEvery is the time between two looks at whether a source of readings has answered.
const askEvery = 50 * time.Millisecond

// askSource waits for the first readings of a source, or for the reason why there are
// none.
func askSource(ctx context.Context, source nvml.Config) (string, error) {
	monitor := nvml.New(slog.New(slog.DiscardHandler))
	monitor.Replace([]nvml.Config{source})
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- monitor.Run(running) }()
	defer func() { stop(); <-ended }()
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		sources, gpus := monitor.Status()
		for _, s := range sources {
			if s.OK && s.HeardMs != nil {
				var names []string
				for _, g := range gpus {
					names = append(names, fmt.Sprintf("%s %s %s", g.GPU, g.Name, g.State))
				}
				answer := fmt.Sprintf("%s answers with %d GPUs: %s", s.Kind, len(gpus), strings.Join(names, ", "))
				if s.Warning != "" {
					answer += "; but " + s.Warning
				}
				return answer, nil
			}
			if s.Failures > 3 || s.Failures > 0 && !source.Local { // a local agent takes a moment to start
				return "", errors.New(s.Error)
			}
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("no reading within %v", liveLimit)
		case <-tick.C:
		}
	}
}
