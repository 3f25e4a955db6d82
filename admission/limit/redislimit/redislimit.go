package redislimit

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"tidegate/admission/limit"
)

const maxTracked = 100_000 // homes

// Options configures a Store.
type Options struct {
	// Now is the time of each call; nil where the server's clock decides. Only tests set it.
	Now func() time.Time
	// Damaged is called with the keys of a call that read something which is not of our form
	// and was treated as absent. It must not block; nil for nobody.
	Damaged func(keys []string)
}

// Store is a limit.Store in Redis. It is safe for concurrent use.
type Store struct {
	client   redis.UniversalClient
	cluster  bool
	now      func() time.Time
	onDamage func(keys []string) // called with the keys that were damaged; may be nil
	damaged  atomic.Int64        // calls that read something damaged
	source   string              // limit.lua with its constants
	sha      string              // name of source in Redis
	beat     *redis.Script       // heartbeat of a replica

	mu    sync.Mutex
	homes map[string]bool // homes whose index may hold reservations
}

var _ limit.Store = (*Store)(nil)

// New returns a store. The client must neither retry nor wait beyond a context's
// deadline, as those of Dial: a retry of an answer that was late is another call.
func New(client redis.UniversalClient, o Options) *Store {
	_, cluster := client.(*redis.ClusterClient)
	source := script(limitLua)
	return &Store{client: client, cluster: cluster, now: o.Now, onDamage: o.Damaged, source: source, sha: sha(source), beat: newFleetScript(), homes: map[string]bool{}}
}

// group is the dimensions that one call of the script decides.
type group struct {
	home    string // empty on a single primary
	dims    []limit.Dim
	indexes []int // by dimension: its index in the request
}

// groups splits dimensions by their home, in the order in which they come.
func (s *Store) groups(dims []limit.Dim) []group {
	indexes := make([]int, len(dims))
	for i := range indexes {
		indexes[i] = i
	}
	if !s.cluster || len(dims) == 0 {
		return []group{{"", dims, indexes}}
	}
	var out []group
next:
	for i := range dims {
		home := tag(dims[i].Key)
		for j := range out {
			if out[j].home == home {
				out[j].dims, out[j].indexes = append(out[j].dims, dims[i]), append(out[j].indexes, i)
				continue next
			}
		}
		out = append(out, group{home, []limit.Dim{dims[i]}, []int{i}})
	}
	return out
}

// tag returns the part of a key that determines its slot in a cluster.
func tag(key string) string {
	if _, rest, ok := strings.Cut(key, "{"); ok {
		if name, _, ok := strings.Cut(rest, "}"); ok && name != "" {
			return "{" + name + "}"
		}
	}
	return "{" + key + "}"
}

// numbersOf returns the numbers that belong to a group.
func (g *group) numbersOf(numbers []int64) []int64 {
	out := make([]int64, len(g.indexes))
	for i, index := range g.indexes {
		out[i] = numbers[index]
	}
	return out
}

// call is one call of the script.
type call struct {
	keys []string
	args []any
}

func (s *Store) call(operation, home, id string, dims []limit.Dim, extra ...any) call {
	prefix := "tg:" + home
	c := call{keys: make([]string, 3, 3+len(dims)), args: make([]any, 4, 4+len(extra))}
	c.keys[0], c.keys[1], c.keys[2] = prefix+"id:"+id, prefix+"clock", prefix+"due"
	for i := range dims {
		c.keys = append(c.keys, dims[i].Key)
	}
	c.args[0], c.args[1], c.args[2], c.args[3] = operation, "", id, packDims(dims)
	if s.now != nil {
		c.args[1] = strconv.FormatInt(s.now().UnixMilli(), 10)
	}
	c.args = append(c.args, extra...)
	return c
}

// run runs one call. A server that does not know the script, because it was
// restarted, failed over or had its scripts flushed, gets it with the call.
func (s *Store) run(ctx context.Context, c call) (any, error) {
	out, err := s.client.EvalSha(ctx, s.sha, c.keys, c.args...).Result()
	if unknownScript(err) {
		out, err = s.client.Eval(ctx, s.source, c.keys, c.args...).Result()
	}
	return out, err
}

func unknownScript(err error) bool { return redis.HasErrorPrefix(err, "NOSCRIPT") }

// runAll runs calls in one pipeline and gives each answer, or its error, in turn.
// Where a server does not know the script, one call takes it there and the rest
// follow by name: each round ends at least one call, and a cluster needs a round for
// each of its servers. SCRIPT LOAD would be simpler, but a user of Redis may run
// scripts without being allowed to load them.
func (s *Store) runAll(ctx context.Context, calls []call) ([]any, error) {
	out := make([]any, len(calls))
	left := make([]int, len(calls))
	for i := range left {
		left[i] = i
	}
	for len(left) > 0 {
		answers := make([]*redis.Cmd, len(left))
		// Its error is that of one of the answers.
		_, _ = s.client.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i, index := range left {
				answers[i] = p.EvalSha(ctx, s.sha, calls[index].keys, calls[index].args...)
			}
			return nil
		})
		var unknown []int
		for i, index := range left {
			var err error
			if out[index], err = answers[i].Result(); unknownScript(err) {
				unknown = append(unknown, index)
			} else if err != nil {
				return nil, err
			}
		}
		if left = unknown; len(left) == 0 {
			break
		}
		first := left[0]
		var err error
		if out[first], err = s.client.Eval(ctx, s.source, calls[first].keys, calls[first].args...).Result(); err != nil {
			return nil, err
		}
		left = left[1:]
	}
	return out, nil
}

// addHome remembers that a home may hold reservations to reap.
func (s *Store) addHome(home string) {
	s.mu.Lock()
	if len(s.homes) >= maxTracked && !s.homes[home] {
		for tracked := range s.homes { // it is added again when it is asked about
			delete(s.homes, tracked)
			break
		}
	}
	s.homes[home] = true
	s.mu.Unlock()
}

// verdict returns a verdict without the mark of damage, and counts the damage.
func (s *Store) verdict(c *call, n int64) int64 {
	if n < badRecord {
		return n
	}
	s.damaged.Add(1)
	if s.onDamage != nil {
		s.onDamage(c.keys)
	}
	return n - badRecord
}

// Reserve implements limit.Store.
func (s *Store) Reserve(ctx context.Context, r limit.Reservation) (limit.Decision, error) {
	groups := s.groups(r.Dims)
	states := make([]limit.State, len(r.Dims))
	known := 0
	undo := make([][]any, len(groups))
	for i := range groups {
		g := &groups[i]
		verdict, back, err := s.reserve(ctx, r, g, states, i < len(groups)-1)
		if err != nil { // what earlier homes admitted ends with its lease
			return limit.Decision{}, fmt.Errorf("redis: %w", err)
		}
		undo[i] = back
		if verdict == repeated {
			known++
		}
		if verdict == refused && !r.Peek {
			kept := s.cancel(ctx, r.ID, groups[:i], undo)
			out, err := s.peekAll(ctx, r, groups, i, states)
			if err != nil {
				return out, err
			}
			return out, kept
		}
	}
	if known == len(groups) && !r.Peek {
		return limit.Decision{Allowed: true, Repeated: true, Binding: -1, States: states}, nil
	}
	return limit.Decide(r.Dims, states), nil
}

// peekAll judges all dimensions after one of the homes has refused.
func (s *Store) peekAll(ctx context.Context, r limit.Reservation, groups []group, refusedBy int, states []limit.State) (limit.Decision, error) {
	r.Peek = true
	for i := range groups {
		if i == refusedBy {
			continue
		}
		if _, _, err := s.reserve(ctx, r, &groups[i], states, false); err != nil {
			return limit.Decision{}, fmt.Errorf("redis: %w", err)
		}
	}
	return limit.Decide(r.Dims, states), nil
}

// reserve asks one home. With partly it also returns what a cancel needs.
func (s *Store) reserve(ctx context.Context, r limit.Reservation, g *group, states []limit.State, partly bool) (int, []any, error) {
	operation, mark := "reserve", ""
	switch {
	case !r.Peek:
		s.addHome(g.home)
		if partly {
			mark = "1"
		}
	case r.Settled:
		operation = "settled"
	default:
		operation = "peek"
	}
	c := s.call(operation, g.home, r.ID, g.dims, mark)
	answer, err := s.run(ctx, c)
	if err != nil {
		return 0, nil, err
	}
	var back []any
	if list, ok := answer.([]any); ok && len(list) > 0 {
		answer, back = list[0], list[1:]
	}
	verdict, err := unpackStates(answer, g, states)
	return int(s.verdict(&c, verdict)), back, err
}

// errKept means that a reservation was refused, but that what earlier homes had admitted
// could not be taken back. It is to be settled to nothing; else it is reaped when its lease
// ends.
var errKept = errors.New("redis: a refused reservation could not be taken back")

// cancel takes back what earlier homes admitted.
func (s *Store) cancel(ctx context.Context, id string, groups []group, undo [][]any) error {
	var calls []call
	for i := range groups {
		if len(undo[i]) > 0 { // there is nothing where the id was admitted before
			calls = append(calls, s.call("cancel", groups[i].home, id, groups[i].dims, undo[i]...))
		}
	}
	if len(calls) > 0 {
		// The caller may be gone, and what was taken is given back all the same.
		ctx, done := context.WithTimeout(context.WithoutCancel(ctx), cancelTime)
		defer done()
		if _, err := s.runAll(ctx, calls); err != nil {
			return fmt.Errorf("%w: %w", errKept, err)
		}
	}
	return nil
}

const cancelTime = 50 * time.Millisecond

// Settle implements limit.Store.
func (s *Store) Settle(ctx context.Context, t limit.Settlement) (limit.Settled, error) {
	if len(t.Dims) != len(t.Charges) {
		return limit.Settled{}, limit.ErrDims
	}
	mark := ""
	if t.New {
		mark = "1"
	}
	groups := s.groups(t.Dims)
	calls := make([]call, len(groups))
	for i := range groups {
		g := &groups[i]
		calls[i] = s.call("settle", g.home, t.ID, g.dims, packNumbers(g.numbersOf(t.Charges)), mark, max(t.AgeMs, 0))
	}
	answers, err := s.runSeveral(ctx, calls)
	if err != nil {
		return limit.Settled{}, fmt.Errorf("redis: %w", err)
	}
	out := limit.Settled{States: make([]limit.State, len(t.Dims))}
	for i := range groups {
		verdict, err := unpackStates(answers[i], &groups[i], out.States)
		if err != nil {
			return limit.Settled{}, fmt.Errorf("redis: %w", err)
		}
		if verdict < 0 {
			return limit.Settled{}, limit.ErrDims
		}
		out.Applied = s.verdict(&calls[i], verdict) == allowed || out.Applied
	}
	return out, nil
}

// runSeveral runs calls for which one request waits.
func (s *Store) runSeveral(ctx context.Context, calls []call) ([]any, error) {
	if len(calls) == 1 {
		one, err := s.run(ctx, calls[0])
		return []any{one}, err
	}
	return s.runAll(ctx, calls)
}

// Renew implements limit.Store. What nobody could have renewed is reaped by the
// same call; reservations that have ended cost further ones.
func (s *Store) Renew(ctx context.Context, renewals []limit.Renewal) (lost []string, err error) {
	var calls []call
	var ids []string
	for i := range renewals {
		r := &renewals[i]
		if len(r.Charges) != 0 && len(r.Charges) != len(r.Dims) {
			return nil, limit.ErrDims
		}
		groups := s.groups(r.Dims)
		for j := range groups {
			g := &groups[j]
			charges := ""
			if len(r.Charges) > 0 {
				charges = packNumbers(g.numbersOf(r.Charges))
			}
			calls, ids = append(calls, s.call("renew", g.home, r.ID, g.dims, charges)), append(ids, r.ID)
		}
	}
	homes := s.trackedHomes()
	for _, home := range homes {
		calls = append(calls, s.call("due", home, "", nil))
	}
	answers, err := s.runAll(ctx, calls)
	if err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	for i, id := range ids {
		kept, _ := answers[i].(int64)
		if s.verdict(&calls[i], kept) == 0 && (len(lost) == 0 || lost[len(lost)-1] != id) {
			lost = append(lost, id)
		}
	}
	for i, home := range homes {
		if err := s.reap(ctx, home, answers[len(ids)+i]); err != nil {
			return lost, fmt.Errorf("redis: reap: %w", err)
		}
	}
	return lost, nil
}

// trackedHomes returns the homes to check: of a single primary the one.
func (s *Store) trackedHomes() []string {
	if !s.cluster {
		return []string{""}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]string, 0, len(s.homes))
	for home := range s.homes {
		out = append(out, home)
	}
	return out
}

// reap settles reservations whose time is over: the answer lists some of them, and
// it asks for more.
func (s *Store) reap(ctx context.Context, home string, answer any) error {
	for range maxReaps { // so that nothing in the store can keep this going for ever
		dead, err := s.reapListed(ctx, home, answer)
		if err != nil || dead == 0 {
			return err
		}
		if answer, err = s.run(ctx, s.call("due", home, "", nil)); err != nil {
			return err
		}
	}
	return nil
}

// maxReaps bounds the lists of reservations that one Renew reaps.
const maxReaps = 1_000

// reapListed settles the reservations that are listed. Their records hold their dimensions;
// the script needs the keys from here.
func (s *Store) reapListed(ctx context.Context, home string, answer any) (dead int, err error) {
	list, _ := answer.([]any)
	if len(list) == 0 {
		return 0, errAnswer
	}
	if list[0] == "0" && s.cluster {
		s.mu.Lock()
		delete(s.homes, home)
		s.mu.Unlock()
	}
	ids := list[1:]
	if len(ids) == 0 {
		return 0, nil
	}
	records := make([]*redis.StringCmd, len(ids))
	// Its error is that of one of the answers.
	_, _ = s.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i := range ids {
			records[i] = p.Get(ctx, "tg:"+home+"id:"+fmt.Sprint(ids[i]))
		}
		return nil
	})
	calls := make([]call, len(ids))
	for i := range ids {
		err := records[i].Err()
		if err != nil && !errors.Is(err, redis.Nil) && !redis.HasErrorPrefix(err, "WRONGTYPE") {
			return 0, err
		}
		c := s.call("reap", home, fmt.Sprint(ids[i]), nil)
		// What nobody can read is dropped by the script, which is then given no keys.
		raw, keys := unpackRecord(records[i].Val())
		if s.oneHome(home, keys) {
			c.keys, c.args[3] = append(c.keys, keys...), raw
		}
		calls[i] = c
	}
	answers, err := s.runAll(ctx, calls)
	for i := range answers {
		n, _ := answers[i].(int64)
		s.verdict(&calls[i], n)
	}
	return len(ids), err
}

// oneHome reports whether keys that were read back are of counters of a home: no others are
// changed because of them.
func (s *Store) oneHome(home string, keys []string) bool {
	for _, key := range keys {
		if !strings.HasPrefix(key, "tg:") || s.cluster && tag(key) != home {
			return false
		}
	}
	return true
}

var errAnswer = errors.New("the script answered something else")
