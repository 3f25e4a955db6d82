package nvml

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"tidegate/nvml/promtext"
)

// maxPage bounds an exporter's page, in bytes: 16 GPUs with all fields and the
// labels of Kubernetes need some 2 MiB.
const maxPage = 4 << 20

// dcgm scrapes a dcgm-exporter. It leaves a value out when it does not know it, so
// what is absent is unknown. After a restart of its host engine it may serve the
// last values for ever: energy that does not rise shows it, since no GPU draws none.
type dcgm struct {
	page *page
	scan promtext.Scanner
	seen map[string]*life // by UUID, of the GPUs on the last page
}

// life is what has to be remembered of a GPU between two pages.
type life struct {
	energy  float64   // in millijoules
	changed time.Time // when that was last seen to change
	xid     uint64    // the last one; 0: none
	xidAt   time.Time
	dated   bool // it came while we were looking
}

// found is a GPU on a page.
type found struct {
	g              *GPU
	energy         float64
	alive          bool // energy is given
	gpuMax, memMax *int // temperatures up to which it may run
	xid            uint64
}

func newDCGM(c *Config) *dcgm {
	return &dcgm{page: newPage(c.DCGM, "", c, maxPage), seen: map[string]*life{}}
}

func (d *dcgm) close() { d.page.close() }

func (d *dcgm) read(ctx context.Context, until time.Time) (s *sample, err error) {
	err = d.page.get(ctx, until, func(body io.Reader, arrived time.Time) (err error) {
		s, err = d.take(body, arrived)
		return err
	})
	return s, err
}

// take reads a page that arrived at a moment.
func (d *dcgm) take(body io.Reader, arrived time.Time) (*sample, error) {
	byUUID := map[string]*found{}
	var order []*found
	d.scan.Reset(body, "", d.page.limit)
	of := func(uuid string) *found {
		f := byUUID[uuid]
		if f == nil {
			f = &found{g: &GPU{Reading: Reading{UUID: uuid, State: StateOK}}}
			byUUID[uuid] = f
			order = append(order, f)
		}
		return f
	}
	for d.scan.Next() {
		name, v, ok := d.sample()
		uuid := string(d.scan.Label("UUID"))
		if uuid == "" {
			uuid = string(d.scan.Label("uuid")) // of an exporter with --use-old-namespace
		}
		if !ok || uuid == "" || len(order) > maxGPUs {
			continue
		}
		targets := []*found{of(uuid)}
		d.describe(targets[0].g)
		if part := string(d.scan.Label("GPU_I_ID")); part != "" {
			// A MIG device has memory of its own and shares its GPU's heat.
			f := of(uuid + "/" + part)
			d.describe(f.g)
			switch f.g.Parent = uuid; string(name) {
			case "DCGM_FI_DEV_FB_TOTAL", "DCGM_FI_DEV_FB_FREE", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_RESERVED":
				targets[0] = f
			case "DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_BOARD_POWER_WATTS", "DCGM_FI_DEV_ENFORCED_POWER_LIMIT", "DCGM_FI_DEV_BOARD_POWER_LIMIT_ENFORCED_WATTS", "DCGM_FI_DEV_GPU_UTIL":
			default:
				targets = append(targets, f)
			}
		}
		for _, f := range targets {
			f.set(name, v)
		}
	}
	if err := d.scan.Err(); err != nil {
		return nil, err
	}
	if len(order) == 0 {
		return nil, errors.New("the page has no samples of DCGM with a UUID: is this a dcgm-exporter?")
	}
	return d.date(order, arrived), nil
}

// sample is the name of the current field as DCGM has it, and its value; false: it is
// none that is read here. Version 1 of the exporter had names of its own, which
// later ones still give with the fields of etc/1.x-compatibility-metrics.csv.
func (d *dcgm) sample() (name []byte, v float64, ok bool) {
	name = d.scan.Name()
	switch string(name) {
	case "dcgm_gpu_temp":
		name = []byte("DCGM_FI_DEV_GPU_TEMP")
	case "dcgm_memory_temp":
		name = []byte("DCGM_FI_DEV_MEMORY_TEMP")
	case "dcgm_power_usage":
		name = []byte("DCGM_FI_DEV_POWER_USAGE")
	case "dcgm_total_energy_consumption":
		name = []byte("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION")
	case "dcgm_gpu_utilization":
		name = []byte("DCGM_FI_DEV_GPU_UTIL")
	case "dcgm_xid_errors":
		name = []byte("DCGM_FI_DEV_XID_ERRORS")
	case "dcgm_fb_free":
		name = []byte("DCGM_FI_DEV_FB_FREE")
	case "dcgm_fb_used":
		name = []byte("DCGM_FI_DEV_FB_USED")
	default:
		if !bytes.HasPrefix(name, []byte("DCGM_FI_DEV_")) {
			return nil, 0, false
		}
	}
	v, ok = d.scan.Value()
	return name, v, ok
}

// describe reads the labels that say which GPU it is.
func (d *dcgm) describe(g *GPU) {
	if g.Name != "" {
		return
	}
	g.Name = string(d.scan.Label("modelName"))
	// An index that is none leaves 0; the UUID still names the GPU.
	g.Index, _ = strconv.Atoi(string(d.scan.Label("gpu")))
}

// set takes in one sample, under its old or its new name.
func (f *found) set(field []byte, v float64) {
	r := &f.g.Reading
	switch string(field) {
	case "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_GPU_TEMP_CELSIUS":
		r.Temperature = whole(v)
	case "DCGM_FI_DEV_MEMORY_TEMP", "DCGM_FI_DEV_MEMORY_TEMP_CELSIUS":
		r.HBM = positive(v) // 0 where there is no sensor
	case "DCGM_FI_DEV_GPU_TEMP_LIMIT", "DCGM_FI_DEV_GPU_TEMP_MARGIN_CELSIUS":
		r.Margin = whole(v)
	case "DCGM_FI_DEV_GPU_MAX_OP_TEMP", "DCGM_FI_DEV_GPU_MAX_OP_TEMP_CELSIUS":
		f.gpuMax = positive(v)
	case "DCGM_FI_DEV_MEM_MAX_OP_TEMP", "DCGM_FI_DEV_MEMORY_MAX_OP_TEMP_CELSIUS":
		f.memMax = positive(v)
	case "DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_BOARD_POWER_WATTS":
		r.Power = amount(v * 1000)
	case "DCGM_FI_DEV_ENFORCED_POWER_LIMIT", "DCGM_FI_DEV_BOARD_POWER_LIMIT_ENFORCED_WATTS":
		r.PowerLimit = amount(v * 1000)
	case "DCGM_FI_DEV_GPU_UTIL":
		r.Utilisation = whole(v)
	case "DCGM_FI_DEV_FB_TOTAL":
		r.MemoryTotal = amount(v * mebi)
	case "DCGM_FI_DEV_FB_FREE":
		r.MemoryFree = amount(v * mebi)
	case "DCGM_FI_DEV_FB_USED":
		r.MemoryUsed = amount(v * mebi)
	case "DCGM_FI_DEV_FB_RESERVED":
		r.MemoryReserved = amount(v * mebi)
	case "DCGM_FI_DEV_CLOCKS_EVENT_REASONS", "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS":
		if mask := amount(v); mask != nil {
			r.Reasons = ReasonNames(*mask)
		}
	case "DCGM_FI_DEV_XID_ERRORS", "DCGM_FI_DEV_XID_ERROR":
		if code := amount(v); code != nil {
			f.xid = *code
		}
	case "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL":
		r.ECCUncorrected = amount(v)
	case "DCGM_FI_DEV_ROW_REMAP_PENDING", "DCGM_FI_DEV_ROW_REMAP_FAILURE":
		// What could not be remapped is pending too; that nothing failed says less.
		n := whole(v)
		if n != nil && (*n > 0 || r.RowsPending == nil && string(field) == "DCGM_FI_DEV_ROW_REMAP_PENDING") {
			pending := *n > 0
			r.RowsPending = &pending
		}
	case "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION":
		f.energy, f.alive = v, v > 0 // a counter that stands at 0 counts nothing
	}
}

const mebi = 1 << 20

// blank is the least of the values that DCGM writes in place of one that it has not
// (DCGM_INT32_BLANK of dcgm_structs.h; those of other types are larger).
const blank = 0x7ffffff0

// whole and amount are nil for what DCGM writes in place of a value it has not.
func whole(v float64) *int {
	if v <= -blank || v >= blank {
		return nil
	}
	n := int(v)
	return &n
}

// positive is whole for what is 0 where it is not known.
func positive(v float64) *int {
	if v <= 0 {
		return nil
	}
	return whole(v)
}

func amount(v float64) *uint64 {
	if v < 0 || v > 1<<52 {
		return nil
	}
	n := uint64(v)
	return &n
}

// date finds out how old each GPU's values are, and what befell it since.
func (d *dcgm) date(order []*found, arrived time.Time) *sample {
	s := &sample{}
	seen, undated, margins, reasons := map[string]*life{}, 0, false, false
	for _, f := range order {
		l := d.seen[f.g.UUID]
		switch {
		case l == nil:
			l = &life{energy: f.energy, changed: arrived, xid: f.xid, xidAt: arrived}
		case l.energy != f.energy:
			l.energy, l.changed = f.energy, arrived
		}
		if l.xid != f.xid {
			l.xid, l.xidAt, l.dated = f.xid, arrived, true
		}
		seen[f.g.UUID] = l
		f.g.At = arrived
		if f.alive {
			f.g.At = l.changed
		} else if f.g.Parent == "" {
			undated++
		}
		if l.xid != 0 {
			// One that was there before us may be long over, so it condemns nothing.
			fatal := l.dated && FatalXID(l.xid)
			f.g.XIDs = []XID{{Code: l.xid, AgeMs: arrived.Sub(l.xidAt).Milliseconds(), Fatal: fatal}}
		}
		if r := &f.g.Reading; r.Margin == nil {
			r.Margin = MarginBelow(f.gpuMax, f.memMax, r.Temperature, r.HBM)
		}
		margins, reasons = margins || f.g.Margin != nil, reasons || f.g.Reasons != nil
		s.gpus = append(s.gpus, f.g)
	}
	d.seen = seen
	var warnings []string
	if undated > 0 {
		warnings = append(warnings, fmt.Sprintf("%d GPUs have no DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION: frozen values would not be noticed", undated))
	}
	if !margins {
		warnings = append(warnings, "no GPU has a temperature margin: let the exporter give DCGM_FI_DEV_GPU_TEMP_LIMIT, or for cards before Ada DCGM_FI_DEV_GPU_MAX_OP_TEMP")
	}
	if !reasons {
		warnings = append(warnings, "no GPU has its clocks' reasons: let the exporter give DCGM_FI_DEV_CLOCKS_EVENT_REASONS")
	}
	s.warning = strings.Join(warnings, "; ")
	return s
}
