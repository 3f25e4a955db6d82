package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"tidegate/degrade"
	"tidegate/gateway/account"
	"tidegate/gateway/backend"
	"tidegate/gateway/gatewaytest"
)

// play is one scenario while it runs.
type play struct {
	*scenario
	length time.Duration
	model  string // that the callers ask for
	began  time.Time
	base   string            // URL of the gateway
	keys   map[string]string // by user
	names  map[string]string // of servers, by address
	lines  chan string       // to be printed
	client *http.Client

	mu      sync.Mutex
	steps   []degrade.Change
	answers []received
	shown   received // what was printed last
	once    bool     // anything was
}

// maxLines wait to be printed at most: the ladder is not kept waiting for a terminal.
const maxLines = 1024

// demoScenario plays a scenario to its end, or until ctx ends.
func (p *process) demoScenario(ctx context.Context, address, name string, seconds int) error {
	scene, err := scenarioNamed(name)
	if err != nil {
		return err
	}
	if seconds < 10 || seconds > 600 {
		return usageError{fmt.Errorf("--seconds %d: expected 10 to 600", seconds)}
	}
	_, err = p.perform(ctx, address, scene, seconds)
	return err
}

// perform plays a scenario in so many seconds.
func (p *process) perform(ctx context.Context, address string, scene *scenario, seconds int) (*play, error) {
	speed := float64(scene.seconds) / float64(seconds)
	y := &play{
		scenario: scene, length: time.Duration(seconds) * time.Second, keys: map[string]string{}, names: map[string]string{},
		lines:  make(chan string, maxLines),
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}},
	}
	defer y.client.CloseIdleConnections()
	s, err := p.newStage(address, scene.trace(len(simulated()), speed), func(c *config, o []gatewaytest.Options) { y.set(c, o, speed) })
	if err != nil {
		return nil, err
	}
	defer s.close()
	y.model = s.config.Models[0].Name
	for i, backendURL := range s.config.addresses() {
		y.names[strings.TrimPrefix(backendURL, "http://")] = string(rune('A' + i))
	}
	// What the log would say is what the play prints.
	d, err := newDaemon(ctx, s.config, &process{env: p.env, stdout: p.stdout, stderr: io.Discard})
	if err != nil {
		return nil, err
	}
	d.load = func() (config, error) { return s.config, nil }
	d.ladder.Changed = y.stepped
	y.base = "http://" + d.front.Addr().String()
	y.banner(p.stdout, d, speed)
	ctx, end := context.WithCancel(ctx)
	defer end()
	y.began = time.Now()
	return y, d.run(ctx, func(context.Context) error {
		defer end()
		err := y.run(ctx, p.stdout, d)
		if err == nil {
			y.summary(p.stdout)
		}
		return err
	})
}

// addresses are the servers' URLs in the order of the configuration.
func (c *config) addresses() (addresses []string) {
	for _, m := range c.Models {
		for _, b := range m.Backends {
			addresses = append(addresses, b.URL)
		}
	}
	return addresses
}

// set makes the configuration that of the scenario.
func (y *play) set(c *config, o []gatewaytest.Options, speed float64) {
	for i := range o {
		o[i].TTFT, o[i].ITL = 60*time.Millisecond, 4*time.Millisecond
	}
	c.GPUs[0].Every = 100 * time.Millisecond
	for _, player := range y.callers {
		if y.keys[player.user] != "" {
			continue
		}
		key := "tg-demo-" + rand.Text()
		sum := sha256.Sum256([]byte(key))
		y.keys[player.user] = key
		c.Auth.Keys = append(c.Auth.Keys, account.KeyConfig{User: player.user, SHA256: hex.EncodeToString(sum[:])})
	}
	if y.change != nil {
		y.change(c, o)
	}
	y.hasten(c, speed)
}

func (y *play) banner(out io.Writer, d *daemon, speed float64) {
	l := &d.config.Degrade
	var names []string
	for i, m := range d.config.Models {
		for j := range m.Backends {
			names = append(names, fmt.Sprintf("%c is a server of %s", 'A'+2*i+j, m.Name))
		}
	}
	fmt.Fprintf(out, "\n%s.\n", strings.Join(names, ", "))
	fmt.Fprintf(out, "\nScenario %s: %s, in %v.\n%s\n", y.name, y.synopsis, y.length, strings.ToUpper(y.note[:1])+y.note[1:])
	if speed != 1 {
		fmt.Fprintf(out, "To fit, readings come %.3g times as fast as they would, and the times of the ladder that can be set are as much\n"+
			"shorter: up after %v, down after %v, at most %v, baseline %v. Those that cannot be set stay, such as\n"+
			"the 10 s without throttling and the two minutes in which a level comes back.\n", speed, l.Dwell.Rise, l.Dwell.Fall, l.Dwell.DownMax, l.Baseline)
	}
	user := y.callers[len(y.callers)-1].user
	fmt.Fprintf(out, "\nPaste this meanwhile; it asks as %s:\n\n  %s\n\nCtrl-C stops all.\n\n", user, curlLine(y.base, y.keys[user], "i"))
}

// run lets the callers ask until the play is over, and prints what happens.
func (y *play) run(ctx context.Context, out io.Writer, d *daemon) error {
	ctx, stop := context.WithDeadline(ctx, y.began.Add(y.length))
	defer stop()
	var asking sync.WaitGroup
	for _, player := range y.callers {
		for n := range player.atOnce {
			asking.Go(func() { y.ask(ctx, d, player, n) })
		}
	}
	done := make(chan struct{})
	go func() {
		asking.Wait()
		close(done)
	}()
	for {
		select {
		case line := <-y.lines:
			if _, err := io.WriteString(out, line); err != nil {
				return err
			}
		case <-done:
			for {
				select {
				case line := <-y.lines:
					if _, err := io.WriteString(out, line); err != nil {
						return err
					}
				default:
					return nil
				}
			}
		}
	}
}

// ask is one of a caller's requests at a time, again and again.
func (y *play) ask(ctx context.Context, d *daemon, player caller, n int) {
	share := func(s float64) time.Duration { return time.Duration(s * float64(y.length)) }
	// Those who ask at the same time begin one after the other.
	next := share(player.start) + player.pause*time.Duration(n)/time.Duration(player.atOnce)
	timer := time.NewTimer(time.Until(y.began.Add(next)))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if time.Since(y.began) >= share(player.end) {
			return
		}
		if !d.allUp() {
			timer.Reset(100 * time.Millisecond)
			continue
		}
		// What was asked before the end is answered after it.
		a := fetch(context.WithoutCancel(ctx), y.client, y.base, y.keys[player.user])
		y.answered(player, a)
		timer.Reset(max(player.pause, time.Millisecond))
	}
}

// allUp reports whether each model has a server in rotation.
func (d *daemon) allUp() bool {
	return !slices.ContainsFunc(d.fleet.Models(), func(m *backend.Model) bool { return !m.Pool.Available() })
}

// answered keeps an answer, and prints it if it is of another kind than the one
// before.
func (y *play) answered(player caller, a received) {
	a.user = player.user
	y.mu.Lock()
	defer y.mu.Unlock()
	y.answers = append(y.answers, a)
	previous := y.shown
	if !player.shown || y.once && previous.status == a.status && previous.level == a.level && previous.model == a.model {
		return
	}
	y.shown, y.once = a, true
	y.print("%-10s  %s", player.user+" gets", a)
}

// stepped prints a step of the ladder.
func (y *play) stepped(c degrade.Change) {
	y.mu.Lock()
	defer y.mu.Unlock()
	subject := c.Model
	if c.Backend != "" {
		subject = "server " + y.names[c.Backend]
	}
	if c.From == c.To {
		y.print("%-10s  %s", subject, cmp.Or(c.OutReason, "may be used again"))
		return
	}
	y.steps = append(y.steps, c)
	cause := fmt.Sprintf("%s %.3g", c.Signal, c.Value)
	if !math.IsNaN(c.Threshold) {
		cause += fmt.Sprintf(", threshold %.3g", c.Threshold)
	}
	if c.Cause != "" {
		cause += ", of server " + y.names[c.Cause]
	}
	y.print("%-10s  %v -> %v  %s", subject, c.From, c.To, cause)
}

// print lets run print a line. What nobody reads is lost.
func (y *play) print(format string, args ...any) {
	line := fmt.Sprintf("%6.1fs  ", time.Since(y.began).Seconds()) + fmt.Sprintf(format, args...) + "\n"
	select {
	case y.lines <- line:
	default:
	}
}

// summary says what has happened.
func (y *play) summary(out io.Writer) {
	y.mu.Lock()
	defer y.mu.Unlock()
	levels := []string{degrade.Full.String()}
	for _, c := range y.steps {
		if c.Backend == "" && c.Model == y.model && !slices.Contains(levels, c.To.String()) {
			levels = append(levels, c.To.String())
		}
	}
	slices.Sort(levels)
	fmt.Fprintf(out, "\nOver after %.0f s. Levels of %s: %s. Steps of the ladder, of servers and models: %d.\n\n", time.Since(y.began).Seconds(), y.model, strings.Join(levels, " "), len(y.steps))
	byLevel, byUser := map[string][]received{}, map[string][]received{}
	for _, a := range y.answers {
		byLevel[cmp.Or(a.level, "none")] = append(byLevel[cmp.Or(a.level, "none")], a)
		byUser[a.user] = append(byUser[a.user], a)
	}
	levelled := table{{"LEVEL", "REQUESTS", "ANSWERED", "FAILED", "STREAMED", "WITH THINKING", "MODEL", "TOKENS, MEDIAN"}}
	for _, l := range slices.Sorted(maps.Keys(byLevel)) {
		levelled = append(levelled, append([]string{l}, kinds(byLevel[l])...))
	}
	used := table{{"USER", "REQUESTS", "ANSWERED", "TO THE FIRST WORD, MEDIAN", "AT MOST"}}
	for _, u := range slices.Sorted(maps.Keys(byUser)) {
		line := []string{u, fmt.Sprint(len(byUser[u])), "0", "", ""}
		if first := waits(byUser[u]); len(first) > 0 {
			line[2], line[3], line[4] = fmt.Sprint(len(first)), inSeconds(first[len(first)/2]), inSeconds(first[len(first)-1])
		}
		used = append(used, line)
	}
	_ = levelled.write(out) // who has gone does not read it
	fmt.Fprintln(out)
	_ = used.write(out)
}
