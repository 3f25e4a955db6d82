package redislimit

import (
	"crypto/sha1" //nolint:gosec // the name that Redis gives a script
	_ "embed"
	"encoding/hex"
	"regexp"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"tidegate/admission/limit"
)

//go:embed limit.lua
var limitLua string

//go:embed fleet.lua
var fleetLua string

// number is the size of a packed number, in bytes.
const number = 8

// Fields of a packed dimension. All of them are there where its limit changes by the clock;
// else a lease ends after dimEdge, a quota after dimEnd and a window after dimBurst.
const (
	dimKind = iota
	dimSoft
	dimLimit
	dimCost
	dimEdge
	dimFloor
	dimWindow
	dimBucket
	dimBurst
	dimNextLimit
	dimNextBurst
	maxFields

	dimBegin, dimEnd = dimWindow, dimBucket // of a quota

	fieldsOfLease, fieldsOfQuota, fieldsOfWindow = dimEdge + 1, dimEnd + 1, dimBurst + 1
)

// Fields of the head of a record.
const (
	recordState = iota
	recordEnds
	recordCount   // dimensions
	recordTime    // time of the reservation
	recordLength  // bytes of the packed dimensions
	recordCharged // 1 where charges and floors follow
	recordFields
)

// An answer has a verdict and a time, then four numbers for each dimension.
const (
	stateHead   = 2
	stateFields = 4
)

// Verdicts of the script.
const (
	refused = iota
	allowed
	repeated

	wrongDims = -1
	// badRecord is added to a verdict where something that was read is damaged.
	badRecord = 16
)

const (
	keySlack   = time.Minute         // time by which keys outlive their use
	recordLife = 3 * time.Hour       // life of a record without a quota, and of the clock
	quotaLife  = 32 * 24 * time.Hour // life of a record with a quota, and of the index
	newLife    = 24 * time.Hour      // time for which a settlement without a reservation is remembered
	clockLead  = time.Hour           // a clock that was further ahead was wrong
	memberLife = 35 * time.Second    // time after its last heartbeat for which a replica counts
	fleetLife  = time.Hour           // life of the list of replicas
)

// scriptConstants returns the numbers of the scripts by name. It is their only source: a
// script has none of its own but positions of keys and arguments. Indexes count from 1, as
// Lua's do; times are in milliseconds.
func scriptConstants() map[string]int64 {
	ms := time.Duration.Milliseconds
	return map[string]int64{
		"KIND": dimKind + 1, "SOFT": dimSoft + 1, "LIMIT": dimLimit + 1, "COST": dimCost + 1, "EDGE": dimEdge + 1, "FLOOR": dimFloor + 1,
		"WINDOW": dimWindow + 1, "BUCKET": dimBucket + 1, "BURST": dimBurst + 1, "BEGIN": dimBegin + 1, "END": dimEnd + 1,
		"NEXTLIMIT": dimNextLimit + 1, "NEXTBURST": dimNextBurst + 1, "FIELDS": maxFields,
		"LEASEFIELDS": fieldsOfLease, "QUOTAFIELDS": fieldsOfQuota, "WINDOWFIELDS": fieldsOfWindow,
		"LEASE": int64(limit.Lease), "QUOTA": int64(limit.Quota),

		// Counters of windows and of quotas.
		"EXPIRES": 1, "DEBT": 2, "DEBTAT": 3, "DEBTWINDOW": 4, "RATE": 5, "SUM": 6, "FIRST": 7,
		"QBEGIN": 2, "QEND": 3, "USED": 4, "HELD": 5,

		// Records.
		"RSTATE": recordState + 1, "RENDS": recordEnds + 1, "RCOUNT": recordCount + 1, "RTIME": recordTime + 1,
		"RLENGTH": recordLength + 1, "RCHARGED": recordCharged + 1, "HEADFIELDS": recordFields, "HEADBYTES": recordFields * number,
		"NUMBER": number, "LIVE": 0, "REAPED": 1, "SETTLED": 2, "SKIPPED": -1, "NOWHERE": -2,

		// Answers: the numbers of dimension i, from 1 on, begin at i * STATEFIELDS - STATEBASE.
		"STATEFIELDS": stateFields, "STATEHEAD": stateHead, "STATEBASE": stateFields - stateHead - 1, "STATEWAIT": stateHead,
		"REFUSED": refused, "ALLOWED": allowed, "AGAIN": repeated, "WRONGDIMS": wrongDims, "BADRECORD": badRecord,

		"LEASELIFE": ms(limit.LeaseLife), "SETTLEDLIFE": ms(limit.SettledLife), "REAPEDLIFE": ms(limit.ReapedLife), "SKEW": ms(limit.CalendarSkew),
		"SLACK": ms(keySlack), "RECORD": ms(recordLife), "CLOCKLIFE": ms(recordLife), "MONTH": ms(quotaLife), "NEWLIFE": ms(newLife), "HOUR": ms(clockLead),
		"PRECISION": 50, "SPELL": 10_000, "MEMBERLIFE": ms(memberLife), "FLEETLIFE": ms(fleetLife),

		"MAXCHARGE": limit.MaxCharge, "MAXSUM": limit.MaxSum, "MAXDEBT": limit.MaxDebt,
		"MAXLIST": 3_000, "MAXSLOTS": 100_000, // numbers that are unpacked at once; places of one request
		"DUEBATCH": 500, // reservations to reap that one call lists
		"SWEEP":    10,  // one in so many first places of a counter removes those that ended
	}
}

// scriptName matches the name of a constant in a script.
func scriptName() *regexp.Regexp { return regexp.MustCompile(`\$[A-Z]+`) }

// withoutComments returns a script without its lines of comment.
func withoutComments(text string) string {
	return regexp.MustCompile(`(?m)^ *--.*\n`).ReplaceAllString(text, "")
}

// script returns a script with its constants as numbers and without its comments.
func script(text string) string {
	constants := scriptConstants()
	return scriptName().ReplaceAllStringFunc(withoutComments(text), func(name string) string {
		value, ok := constants[name[1:]]
		if !ok {
			return name // TestScript finds it
		}
		return strconv.FormatInt(value, 10)
	})
}

// newFleetScript returns the script of heartbeats.
func newFleetScript() *redis.Script { return redis.NewScript(script(fleetLua)) }

// sha returns the name that Redis gives a script.
func sha(source string) string {
	sum := sha1.Sum([]byte(source)) //nolint:gosec // see the import
	return hex.EncodeToString(sum[:])
}
