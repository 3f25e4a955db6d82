package redislimit

import (
	"context"
	"crypto/rand"
	"fmt"
	"strconv"
	"sync"
	"time"
)

// fleet holds the state of the other replicas. It is safe for concurrent use.
//
// A replica's share of a limit depends only on the number of replicas: all of it where there
// is one, half of it where there are up to halvedUpTo, else twice its even part. So there is
// no time without a share, no replica needs to know the load of another, and a caller that
// uses half of a limit may turn to any replica. The shares of two replicas add up to the
// limit, and those of any number to twice the limit at most; docs/adr/0024 has the shares that
// were rejected.
type fleet struct {
	name string // name of this replica

	mu      sync.RWMutex
	members int       // replicas that the share is made for; 0 where the store never reported it
	fewer   time.Time // time since which the store reports fewer; zero where it does not
	beaten  time.Time // time of the last heartbeat that was answered
	counted string    // name of the counters in the store; another one means that they were lost
	mark    string    // mark in the store when it was last asked; empty where there was none
	met     bool      // the store was asked
}

const (
	// halvedUpTo is the largest number of replicas of which each has half of a limit.
	halvedUpTo = 4
	// fewerFor is the time for which the store must report fewer members until the share
	// grows: one that was emptied knows at first only the replica that asks.
	fewerFor = 35 * time.Second
	// beatGap is the longest time between two heartbeats of an unbroken row.
	beatGap = 15 * time.Second

	// markKey holds a random text that is renewed whenever quotas are brought to what is
	// known of them from elsewhere. Without it the store is new, or has lost what it had.
	markKey = "tg:{fleet}:mark"
)

// part returns a replica's share of every limit, as a fraction.
func part(members int) (numerator, denominator int64) {
	switch {
	case members == 1:
		return 1, 1
	case members <= halvedUpTo: // or never known: it may be one of two
		return 1, 2
	}
	return 2, int64(members)
}

// share returns the part of an amount that this replica may have while it is alone:
// rounded down, but never nothing of something.
func (f *fleet) share(amount int64) int64 {
	if amount <= 0 {
		return 0
	}
	f.mu.RLock()
	n, d := part(f.members)
	f.mu.RUnlock()
	return max(amount/d*n+amount%d*n/d, 1)
}

// size returns the number of replicas that the share is made for, and this one's share of a
// limit of 1000.
func (f *fleet) size() (members int, perMille int64) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	n, d := part(f.members)
	return f.members, 1000 * n / d
}

// beatResult holds the changes that a heartbeat found since the last one.
type beatResult struct {
	restored bool // quotas were brought to what a ledger knows, or the store was emptied
	lost     bool // the store has lost its counters
}

// heartbeat reports that this replica lives, and reads what the store knows of the fleet.
func (f *fleet) heartbeat(ctx context.Context, s *Store, now time.Time) (n beatResult, err error) {
	timeMs := ""
	if s.now != nil {
		timeMs = strconv.FormatInt(s.now().UnixMilli(), 10)
	}
	keys := []string{"tg:{fleet}:members", "tg:{fleet}:counters", markKey}
	answer, err := s.beat.Run(ctx, s.client, keys, timeMs, f.name, rand.Text()).Slice()
	if err != nil {
		return beatResult{}, fmt.Errorf("redis: fleet: %w", err)
	}
	members, counted, mark, ok := parseBeat(answer)
	if !ok {
		return beatResult{}, errAnswer
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	n = beatResult{restored: f.mark != "" && f.mark != mark, lost: f.counted != "" && f.counted != counted}
	f.counted, f.mark, f.met = counted, mark, true
	f.setMembers(members, now)
	return n, nil
}

// parseBeat reads the answer to a heartbeat.
func parseBeat(answer []any) (members int, counted, mark string, ok bool) {
	if len(answer) != 3 {
		return 0, "", "", false
	}
	n, ok := answer[0].(int64)
	if !ok || n < 1 || n > maxMembers {
		return 0, "", "", false
	}
	return int(n), fmt.Sprint(answer[1]), fmt.Sprint(answer[2]), true
}

// maxMembers bounds the size of a fleet that is believed.
const maxMembers = 1_000_000

// setMembers sets the number of members that the store reports. More count at once, fewer when
// they have been so for a while. The lock is held.
func (f *fleet) setMembers(members int, now time.Time) {
	switch {
	case members >= f.members:
		f.members, f.fewer = members, time.Time{}
	case f.fewer.IsZero() || now.Sub(f.beaten) > beatGap:
		f.fewer = now
	case now.Sub(f.fewer) >= fewerFor:
		f.members, f.fewer = members, time.Time{}
	}
	f.beaten = now
}

// empty reports whether the store had no mark when it was last asked, and whether it ever was
// asked.
func (f *fleet) empty() (empty, met bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.met && f.mark == "", f.met
}
