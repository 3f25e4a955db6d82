package gateway

import (
	"cmp"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// MaxPerUser bounds how many users have metrics of their own.
const MaxPerUser = 1000

const (
	useHalves  = time.Hour // what a user used counts half after that, when the users who use most are found
	useForgets = 1.0       // token: who counts for less has not used anything for most of a day
	candidates = 4         // users that are looked at for each who is shown
	ahead      = 1.25      // by which factor a user must be ahead of the one whose place it takes
)

// userTokens counts the tokens of the users who use most, each as a series of its
// own, and those of all others in the series other. Who comes among them, which is
// when somebody asks for the series, begins at 0; who leaves them loses the series;
// what either uses while it is not among them is in other. So every series only grows
// as long as it is there, and nothing of it is missed. Memory is bounded whatever
// users there are: where more are met than are looked at, the half of those not shown
// that used least is forgotten. It is safe for concurrent use.
type userTokens struct {
	desc *prometheus.Desc

	mu       sync.Mutex
	limit    int // users with a series of their own; 0: there are no series
	shown    map[string]*[4]int64
	overflow [4]int64
	recent   map[string]float64 // tokens of those who are shown or may come to be, which fade
	faded    time.Time
}

func newUserTokens() *userTokens {
	return &userTokens{
		desc: prometheus.NewDesc("tidegate_user_tokens_total",
			"Tokens of the users who use most, as many as telemetry.per_user says, and of all others together in other; a user's series begins at 0 when it comes among them.",
			[]string{"user", "direction"}, nil),
		shown: map[string]*[4]int64{}, recent: map[string]float64{},
	}
}

// keep sets how many users have a series of their own.
func (t *userTokens) keep(limit int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.limit = limit
	if limit == 0 {
		t.overflow = [4]int64{}
		clear(t.shown)
		clear(t.recent)
	}
}

// add counts what a request used.
func (t *userTokens) add(user string, used [4]int, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.limit == 0 {
		return
	}
	sum := &t.overflow
	_, known := t.recent[user]
	if known || named(user) {
		if !known && len(t.recent) >= (1+candidates)*t.limit {
			t.halve()
		}
		t.fade(now)
		t.recent[user] += float64(used[0] + used[2])
		if counts := t.shown[user]; counts != nil {
			sum = counts
		}
	}
	for i, n := range used {
		sum[i] += int64(max(n, 0))
	}
}

// named reports whether a user may have a series: the name other is taken, and who has
// no key is an address.
func named(user string) bool {
	var err error
	if strings.Contains(user, "/") {
		_, err = netip.ParsePrefix(user)
	} else {
		_, err = netip.ParseAddr(user)
	}
	return err != nil && user != "" && user != labelOther
}

// fade lets what was used count for less, once a minute. The lock is held.
func (t *userTokens) fade(now time.Time) {
	passed := now.Sub(t.faded)
	if passed < time.Minute {
		return
	}
	t.faded = now
	factor := math.Exp2(-float64(passed) / float64(useHalves))
	for user := range t.recent {
		if t.recent[user] *= factor; t.recent[user] < useForgets {
			delete(t.recent, user)
			delete(t.shown, user)
		}
	}
}

// halve forgets the half of the users not shown that used least. The lock is held.
func (t *userTokens) halve() {
	waiting := t.waiting()
	for _, user := range waiting[len(waiting)/2:] {
		delete(t.recent, user)
	}
}

// waiting are the users that are not shown, those who used most first. The lock is held.
func (t *userTokens) waiting() (users []string) {
	for user := range t.recent {
		if t.shown[user] == nil {
			users = append(users, user)
		}
	}
	t.sort(users)
	return users
}

func (t *userTokens) sort(users []string) {
	slices.SortFunc(users, func(a, b string) int {
		return cmp.Or(cmp.Compare(t.recent[b], t.recent[a]), cmp.Compare(a, b))
	})
}

// rank gives the series to those who use most now. The lock is held.
func (t *userTokens) rank(now time.Time) {
	t.fade(now)
	shown := make([]string, 0, len(t.shown))
	for user := range t.shown {
		shown = append(shown, user)
	}
	t.sort(shown)
	for len(shown) > t.limit { // a reload wants fewer
		delete(t.shown, shown[len(shown)-1])
		shown = shown[:len(shown)-1]
	}
	for _, user := range t.waiting() {
		switch last := len(shown) - 1; {
		case len(t.shown) < t.limit:
		case last >= 0 && t.recent[user] > ahead*t.recent[shown[last]]:
			delete(t.shown, shown[last])
			shown = shown[:last]
		default:
			return
		}
		t.shown[user] = &[4]int64{}
	}
}

// Describe is prometheus.Collector's.
func (t *userTokens) Describe(out chan<- *prometheus.Desc) { out <- t.desc }

// Collect is prometheus.Collector's.
func (t *userTokens) Collect(out chan<- prometheus.Metric) {
	for _, metric := range t.gather(time.Now()) { // what is sent may wait for the reader
		out <- metric
	}
}

func (t *userTokens) gather(now time.Time) (collected []prometheus.Metric) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.limit == 0 {
		return nil
	}
	t.rank(now)
	series := func(user string, used *[4]int64) {
		for i, n := range used {
			collected = append(collected, prometheus.MustNewConstMetric(t.desc, prometheus.CounterValue, float64(n), user, directions()[i]))
		}
	}
	series(labelOther, &t.overflow)
	for user, used := range t.shown {
		series(user, used)
	}
	return collected
}
