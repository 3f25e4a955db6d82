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

// dcgm scrapes a dcgm-exporter, which leaves out values that it does not know. After a restart
// of its host engine it may serve the last values for ever. Energy that does not rise shows
// that, since every GPU draws power.
type dcgm struct {
	page *page
	scan promtext.Scanner
	seen map[string]*history // GPUs on the last page, by UUID
}

// history is the state of a GPU between two pages.
type history struct {
	energy  float64   // total energy in millijoules
	changed time.Time // time at which the energy was last seen to change
	xid     uint64    // code of the last XID; 0: none
	xidAt   time.Time
	dated   bool // the XID came while the exporter was watched
}

// found is a GPU on a page.
type found struct {
	g              *GPU
	energy         float64
	alive          bool // the page has the energy
	gpuMax, memMax *int // highest operating temperatures, in degrees Celsius
	xid            uint64
}

func newDCGM(c *Config) *dcgm {
	return &dcgm{page: newPage(c.DCGM, "", c, maxPage), seen: map[string]*history{}}
}

func (d *dcgm) close() { d.page.close() }

func (d *dcgm) read(ctx context.Context, deadline time.Time) (s *sample, err error) {
	err = d.page.get(ctx, deadline, func(body io.Reader, arrived time.Time) (err error) {
		s, err = d.parse(body, arrived)
		return err
	})
	return s, err
}

// parse reads a page that arrived at a moment.
func (d *dcgm) parse(body io.Reader, arrived time.Time) (*sample, error) {
	byUUID := map[string]*found{}
	var order []*found
	d.scan.Reset(body, "", d.page.limit)
	lookup := func(uuid string) *found {
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
		targets := []*found{lookup(uuid)}
		d.describe(targets[0].g)
		if part := string(d.scan.Label("GPU_I_ID")); part != "" {
			// A MIG device has memory of its own and shares its GPU's heat.
			f := lookup(uuid + "/" + part)
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

// sample returns DCGM's name of the current field, and its value; false: it is not read here.
// Version 1 of the exporter had names of its own, which later versions still use with the
// fields of etc/1.x-compatibility-metrics.csv.
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

// describe sets the name and the index of a GPU from the labels.
func (d *dcgm) describe(g *GPU) {
	if g.Name != "" {
		return
	}
	g.Name = string(d.scan.Label("modelName"))
	// A label that is no number leaves 0; the UUID still names the GPU.
	g.Index, _ = strconv.Atoi(string(d.scan.Label("gpu")))
}

// set stores one sample, under its old or its new name.
func (f *found) set(field []byte, v float64) {
	r := &f.g.Reading
	switch string(field) {
	case "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_GPU_TEMP_CELSIUS":
		r.Temperature = signedOrNil(v)
	case "DCGM_FI_DEV_MEMORY_TEMP", "DCGM_FI_DEV_MEMORY_TEMP_CELSIUS":
		r.HBM = positiveOrNil(v) // 0 where there is no sensor
	case "DCGM_FI_DEV_GPU_TEMP_LIMIT", "DCGM_FI_DEV_GPU_TEMP_MARGIN_CELSIUS":
		r.Margin = signedOrNil(v)
	case "DCGM_FI_DEV_GPU_MAX_OP_TEMP", "DCGM_FI_DEV_GPU_MAX_OP_TEMP_CELSIUS":
		f.gpuMax = positiveOrNil(v)
	case "DCGM_FI_DEV_MEM_MAX_OP_TEMP", "DCGM_FI_DEV_MEMORY_MAX_OP_TEMP_CELSIUS":
		f.memMax = positiveOrNil(v)
	case "DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_BOARD_POWER_WATTS":
		r.Power = unsignedOrNil(v * 1000)
	case "DCGM_FI_DEV_ENFORCED_POWER_LIMIT", "DCGM_FI_DEV_BOARD_POWER_LIMIT_ENFORCED_WATTS":
		r.PowerLimit = unsignedOrNil(v * 1000)
	case "DCGM_FI_DEV_GPU_UTIL":
		r.Utilisation = signedOrNil(v)
	case "DCGM_FI_DEV_FB_TOTAL":
		r.MemoryTotal = unsignedOrNil(v * mebi)
	case "DCGM_FI_DEV_FB_FREE":
		r.MemoryFree = unsignedOrNil(v * mebi)
	case "DCGM_FI_DEV_FB_USED":
		r.MemoryUsed = unsignedOrNil(v * mebi)
	case "DCGM_FI_DEV_FB_RESERVED":
		r.MemoryReserved = unsignedOrNil(v * mebi)
	case "DCGM_FI_DEV_CLOCKS_EVENT_REASONS", "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS":
		if mask := unsignedOrNil(v); mask != nil {
			r.Reasons = ReasonNames(*mask)
		}
	case "DCGM_FI_DEV_XID_ERRORS", "DCGM_FI_DEV_XID_ERROR":
		if code := unsignedOrNil(v); code != nil {
			f.xid = *code
		}
	case "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL":
		r.ECCUncorrected = unsignedOrNil(v)
	case "DCGM_FI_DEV_ROW_REMAP_PENDING", "DCGM_FI_DEV_ROW_REMAP_FAILURE":
		// Rows that could not be remapped are pending too; a failure count of 0 is no
		// proof that none is pending.
		n := signedOrNil(v)
		if n != nil && (*n > 0 || r.RowsPending == nil && string(field) == "DCGM_FI_DEV_ROW_REMAP_PENDING") {
			pending := *n > 0
			r.RowsPending = &pending
		}
	case "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION":
		f.energy, f.alive = v, v > 0 // a counter that stands at 0 counts nothing
	}
}

const mebi = 1 << 20

// blank is the smallest value that DCGM writes in place of a missing one (DCGM_INT32_BLANK of
// dcgm_structs.h; those of other types are larger).
const blank = 0x7ffffff0

// signedOrNil returns a number; nil for DCGM's blank.
func signedOrNil(v float64) *int {
	if v <= -blank || v >= blank {
		return nil
	}
	n := int(v)
	return &n
}

// positiveOrNil returns a number; nil for DCGM's blank, and for 0 where that stands for an
// unknown value.
func positiveOrNil(v float64) *int {
	if v <= 0 {
		return nil
	}
	return signedOrNil(v)
}

// unsignedOrNil returns a number; nil for DCGM's blank.
func unsignedOrNil(v float64) *uint64 {
	if v < 0 || v > 1<<52 {
		return nil
	}
	n := uint64(v)
	return &n
}

// date sets the time of each GPU's values, and its errors.
func (d *dcgm) date(order []*found, arrived time.Time) *sample {
	s := &sample{}
	seen, undated, margins, reasons := map[string]*history{}, 0, false, false
	for _, f := range order {
		l := d.seen[f.g.UUID]
		switch {
		case l == nil:
			l = &history{energy: f.energy, changed: arrived, xid: f.xid, xidAt: arrived}
		case l.energy != f.energy:
			l.energy, l.changed = f.energy, arrived
		}
		if l.xid != f.xid {
			l.xid, l.xidAt, l.dated = f.xid, arrived, true
		}
		seen[f.g.UUID] = l
		f.g.MeasuredAt = arrived
		if f.alive {
			f.g.MeasuredAt = l.changed
		} else if f.g.Parent == "" {
			undated++
		}
		if l.xid != 0 {
			// The first XID on a page may be long over, so it is never fatal.
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
