package redislimit

import (
	"context"
	_ "embed"
	"fmt"
	"hash/fnv"
	"math/bits"
	"strconv"
	"sync"

	"github.com/redis/go-redis/v9"
)

//go:embed fleet.lua
var fleetLua string

// member is a replica as an epoch knows it, with what it let in of late.
type member struct {
	name string
	use  uint64
}

// epoch is the members whose shares add up to one.
type epoch []member

// maxUse keeps the arithmetic of shares within 64 bits for a thousand members.
const maxUse = 1 << 40

// share is the part of an amount that a member may have alone: half of it by what
// it let in of late, half evenly. It is rounded down, so that all together have no
// more than the amount.
func (e epoch) share(name string, amount int64) int64 {
	var own, all uint64
	known := false
	for _, m := range e {
		all += m.use
		if m.name == name {
			own, known = m.use, true
		}
	}
	if !known || amount <= 0 {
		return 0
	}
	n := uint64(len(e))
	if all == 0 {
		return amount / int64(n)
	}
	// own/(2·all) + 1/(2·n), as one fraction; it is at most 1.
	high, low := bits.Mul64(uint64(amount), own*n+all)
	part, _ := bits.Div64(high, low, 2*all*n)
	return int64(part)
}

// fleet is what a replica knows of the others. It is safe for concurrent use.
type fleet struct {
	own string

	mu         sync.RWMutex
	this, last epoch
	mark       string // of the store when it was last asked; empty: it had none
	met        bool   // it was asked
}

// markKey holds a random text that is renewed whenever quotas are brought to what is
// known of them from elsewhere. Without it the store is new, or has lost what it had.
const markKey = "tg:{fleet}:mark"

// share is the part of an amount that this replica may have while it is alone: the
// lesser of the last two epochs, since another replica may know only the earlier
// one. What rounding down leaves over (of a limit of one slot, all of it) goes to
// one member that the key picks, while both epochs have the same members.
//
// Who was never told of a fleet takes half: it cannot know how many it is part of.
func (f *fleet) share(key string, amount int64) int64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if len(f.this) == 0 {
		return (amount + 1) / 2
	}
	part := f.this.share(f.own, amount)
	if len(f.last) == 0 {
		return part
	}
	part = min(part, f.last.share(f.own, amount))
	if !f.picks(key) {
		return part
	}
	rest := amount
	for _, m := range f.this {
		if m.name != f.own {
			rest -= max(f.this.share(m.name, amount), f.last.share(m.name, amount))
		}
	}
	return max(part, rest)
}

// picks reports whether the key picks this replica, by the highest hash, and all
// who could be asked agree.
func (f *fleet) picks(key string) bool {
	if len(f.this) != len(f.last) {
		return false
	}
	best, highest := "", uint64(0)
	for i, m := range f.this {
		if m.name != f.last[i].name { // both are in the order of the names
			return false
		}
		h := fnv.New64a()
		_, _ = h.Write([]byte(key))
		_, _ = h.Write([]byte{0})
		_, _ = h.Write([]byte(m.name))
		if sum := h.Sum64(); best == "" || sum > highest {
			best, highest = m.name, sum
		}
	}
	return best == f.own
}

// size is how many members the last epoch had, and what of a limit of 1000 this one
// has.
func (f *fleet) size() (members int, perMille int64) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	switch {
	case len(f.this) == 0:
		return 0, 500
	case len(f.last) == 0:
		return len(f.this), f.this.share(f.own, 1000)
	}
	return len(f.this), min(f.this.share(f.own, 1000), f.last.share(f.own, 1000))
}

// beat says that this replica lives, and learns of the fleet. other says that the
// mark is not the one that it was.
func (f *fleet) beat(ctx context.Context, s *Store, use uint64) (other bool, err error) {
	at := ""
	if s.now != nil {
		at = strconv.FormatInt(s.now().UnixMilli(), 10)
	}
	keys := []string{"tg:{fleet}:members", "tg:{fleet}:use", "tg:{fleet}:shares", markKey}
	answer, err := redis.NewScript(fleetLua).Run(ctx, s.client, keys, at, f.own, min(use, maxUse)).Slice()
	if err != nil {
		return false, fmt.Errorf("redis: fleet: %w", err)
	}
	if len(answer) != 3 {
		return false, errAnswer
	}
	this, last, mark := readEpoch(answer[0]), readEpoch(answer[1]), fmt.Sprint(answer[2])
	f.mu.Lock()
	defer f.mu.Unlock()
	other = f.mark != "" && f.mark != mark
	f.this, f.last, f.mark, f.met = this, last, mark, true
	return other, nil
}

// empty reports whether the store had no mark when it was last asked, and whether it
// ever was.
func (f *fleet) empty() (empty, met bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.met && f.mark == "", f.met
}

// maxMembers bounds an epoch, so that the arithmetic of its shares does not overflow.
// One with more is none of ours.
const maxMembers = 1_000

func readEpoch(answer any) epoch {
	list, _ := answer.([]any)
	if len(list) > 2*maxMembers {
		return nil
	}
	var out epoch
	for i := 0; i+1 < len(list); i += 2 {
		use, _ := strconv.ParseUint(fmt.Sprint(list[i+1]), 10, 64)
		out = append(out, member{fmt.Sprint(list[i]), min(use, maxUse)})
	}
	return out
}
