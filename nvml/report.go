package nvml

import "errors"

// numbers holds the values that a Reading points at, in one allocation.
type numbers struct {
	whole  [4]int
	amount [7]uint64
	flag   bool
}

// readReport reads the answer of an agent. It does the same as encoding/json at a tenth of the
// cost, which pays with hundreds of agents of eight GPUs each, every second. A value of the
// wrong type is unknown, and items beyond the bounds of a source are skipped. The known texts
// are those of earlier reports.
func readReport(body []byte, known texts) (*Report, error) {
	r, c := &Report{}, &cursor{rest: body, texts: known}
	if c.peek() != '{' {
		return nil, errors.New("the answer is no report: it is no JSON object")
	}
	lists := true
	c.object(func(key []byte) {
		switch string(key) {
		case "node":
			r.Node = c.text()
		case "boot_id":
			r.BootID = c.text()
		case "seq":
			r.Seq, _ = c.unsigned()
		case "driver":
			r.Driver = c.text()
		case "error":
			r.Error = c.text()
		case "gpus":
			if c.peek() == 'n' {
				c.skip()
				return
			}
			lists = c.list(func() {
				if len(r.GPUs) == maxGPUs {
					c.skip()
					return
				}
				r.GPUs = append(r.GPUs, Reading{})
				readReading(c, &r.GPUs[len(r.GPUs)-1])
			})
		default:
			c.skip()
		}
	})
	switch {
	case c.bad || c.peek() != 0:
		return nil, errors.New("the answer is no report: it is not JSON")
	case !lists:
		return nil, errors.New("the answer is no report: gpus is no list")
	}
	return r, nil
}

// readReading reads one GPU.
func readReading(c *cursor, r *Reading) {
	n := &numbers{}
	c.object(func(key []byte) {
		switch string(key) {
		case "index":
			v, _ := c.signed()
			r.Index = int(v)
		case "uuid":
			r.UUID = c.text()
		case "name":
			r.Name = c.text()
		case "parent":
			r.Parent = c.text()
		case "state":
			r.State = c.text()
		case "age_ms":
			r.AgeMs, _ = c.signed()
		case "sweep":
			r.Sweep, _ = c.unsigned()
		case "latency_us":
			r.LatencyUs, _ = c.signed()
		case "margin":
			r.Margin = n.read(c, 0)
		case "temperature":
			r.Temperature = n.read(c, 1)
		case "hbm":
			r.HBM = n.read(c, 2)
		case "utilisation":
			r.Utilisation = n.read(c, 3)
		case "memory_total":
			r.MemoryTotal = n.readAmount(c, 0)
		case "memory_used":
			r.MemoryUsed = n.readAmount(c, 1)
		case "memory_free":
			r.MemoryFree = n.readAmount(c, 2)
		case "memory_reserved":
			r.MemoryReserved = n.readAmount(c, 3)
		case "power_mw":
			r.Power = n.readAmount(c, 4)
		case "power_limit_mw":
			r.PowerLimit = n.readAmount(c, 5)
		case "ecc_uncorrected":
			r.ECCUncorrected = n.readAmount(c, 6)
		default:
			readRest(c, key, r, n)
		}
	})
}

// readRest reads the members of a Reading that are not plain numbers or texts.
func readRest(c *cursor, key []byte, r *Reading, n *numbers) {
	switch string(key) {
	case "rows_pending":
		if v, ok := c.boolean(); ok {
			n.flag = v
			r.RowsPending = &n.flag
		}
	case "reasons":
		if c.peek() == '[' {
			r.Reasons = []string{} // known, even if empty
		}
		c.list(func() {
			if reason := c.text(); len(r.Reasons) < maxReasons {
				r.Reasons = append(r.Reasons, reason)
			}
		})
	case "throttle_ns":
		c.object(func(reason []byte) {
			name := c.texts.intern(reason)
			ns, ok := c.unsigned()
			if r.ThrottleNs == nil {
				r.ThrottleNs = make(map[string]uint64, 4)
			}
			if ok && len(r.ThrottleNs) <= maxReasons {
				r.ThrottleNs[name] = ns
			}
		})
	case "xids":
		c.list(func() {
			var x XID
			c.object(func(key []byte) {
				switch string(key) {
				case "code":
					x.Code, _ = c.unsigned()
				case "age_ms":
					x.AgeMs, _ = c.signed()
				case "fatal":
					x.Fatal, _ = c.boolean()
				default:
					c.skip()
				}
			})
			if len(r.XIDs) == MaxXIDs {
				r.XIDs = r.XIDs[:copy(r.XIDs, r.XIDs[1:])]
			}
			r.XIDs = append(r.XIDs, x)
		})
	default:
		c.skip()
	}
}

func (n *numbers) read(c *cursor, i int) *int {
	v, ok := c.signed()
	if !ok {
		return nil
	}
	n.whole[i] = int(v)
	return &n.whole[i]
}

func (n *numbers) readAmount(c *cursor, i int) *uint64 {
	v, ok := c.unsigned()
	if !ok {
		return nil
	}
	n.amount[i] = v
	return &n.amount[i]
}
