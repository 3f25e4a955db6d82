package nvml

import (
	"errors"

	"github.com/tidwall/gjson"
)

// numbers are where the pointers of a Reading lead: one piece of memory for all.
type numbers struct {
	whole  [4]int
	amount [8]uint64
	flag   bool
}

// readReport reads what an agent answers. It does what encoding/json would, at a
// tenth of the cost, which hundreds of agents with eight GPUs each, every second,
// make worth its lines. What is of another kind than it should be is not known.
func readReport(body []byte) (r *Report, err error) {
	if !gjson.ValidBytes(body) {
		return nil, errors.New("the answer is no report: it is not JSON")
	}
	root := gjson.ParseBytes(body)
	if !root.IsObject() {
		return nil, errors.New("the answer is no report: it is no JSON object")
	}
	r = &Report{}
	root.ForEach(func(key, v gjson.Result) bool {
		switch key.Str {
		case "node":
			r.Node = v.Str
		case "boot_id":
			r.BootID = v.Str
		case "seq":
			r.Seq = v.Uint()
		case "driver":
			r.Driver = v.Str
		case "error":
			r.Error = v.Str
		case "gpus":
			if !v.IsArray() && v.Type != gjson.Null {
				err = errors.New("the answer is no report: gpus is no list")
			}
			list := v.Array()
			r.GPUs = make([]Reading, len(list))
			all := make([]numbers, len(list))
			for i := range list {
				readReading(list[i], &r.GPUs[i], &all[i])
			}
		}
		return true
	})
	return r, err
}

func readReading(from gjson.Result, r *Reading, n *numbers) {
	if !from.IsObject() {
		return
	}
	from.ForEach(func(key, v gjson.Result) bool {
		switch key.Str {
		case "index":
			r.Index = int(v.Int())
		case "uuid":
			r.UUID = v.Str
		case "name":
			r.Name = v.Str
		case "parent":
			r.Parent = v.Str
		case "state":
			r.State = v.Str
		case "age_ms":
			r.AgeMs = v.Int()
		case "latency_us":
			r.LatencyUs = v.Int()
		case "margin":
			r.Margin = wholeOf(v, &n.whole[0])
		case "temperature":
			r.Temperature = wholeOf(v, &n.whole[1])
		case "hbm":
			r.HBM = wholeOf(v, &n.whole[2])
		case "utilisation":
			r.Utilisation = wholeOf(v, &n.whole[3])
		case "memory_total":
			r.MemoryTotal = amountOf(v, &n.amount[0])
		case "memory_used":
			r.MemoryUsed = amountOf(v, &n.amount[1])
		case "memory_free":
			r.MemoryFree = amountOf(v, &n.amount[2])
		case "memory_reserved":
			r.MemoryReserved = amountOf(v, &n.amount[3])
		case "power_mw":
			r.Power = amountOf(v, &n.amount[4])
		case "power_limit_mw":
			r.PowerLimit = amountOf(v, &n.amount[5])
		case "ecc_uncorrected":
			r.ECCUncorrected = amountOf(v, &n.amount[6])
		case "rows_pending":
			if v.IsBool() {
				n.flag = v.Bool()
				r.RowsPending = &n.flag
			}
		default:
			readLists(key.Str, v, r)
		}
		return true
	})
}

// readLists reads the members of a Reading that have members of their own.
func readLists(key string, v gjson.Result, r *Reading) {
	switch {
	case key == "reasons" && v.IsArray():
		v.ForEach(func(_, reason gjson.Result) bool {
			r.Reasons = append(r.Reasons, reason.Str)
			return true
		})
	case key == "throttle_ns" && v.IsObject():
		r.ThrottleNs = make(map[string]uint64, 4)
		v.ForEach(func(reason, ns gjson.Result) bool {
			r.ThrottleNs[reason.Str] = ns.Uint()
			return true
		})
	case key == "xids" && v.IsArray():
		v.ForEach(func(_, x gjson.Result) bool {
			r.XIDs = append(r.XIDs, XID{Code: x.Get("code").Uint(), AgeMs: x.Get("age_ms").Int(), Fatal: x.Get("fatal").Bool()})
			return true
		})
	}
}

func wholeOf(v gjson.Result, into *int) *int {
	if v.Type != gjson.Number {
		return nil
	}
	*into = int(v.Int())
	return into
}

func amountOf(v gjson.Result, into *uint64) *uint64 {
	if v.Type != gjson.Number || v.Num < 0 {
		return nil
	}
	*into = v.Uint()
	return into
}
