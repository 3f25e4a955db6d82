package nvml

// Report is what GET /v1/readings of an agent answers.
type Report struct {
	Node   string    `json:"node"`
	BootID string    `json:"boot_id"` // of the agent's process
	Seq    uint64    `json:"seq"`     // of the report, rising within a boot
	Driver string    `json:"driver,omitempty"`
	Error  string    `json:"error,omitempty"` // why there is nothing to be read
	GPUs   []Reading `json:"gpus"`
}

// Reading is the state of one GPU. A pointer that is nil says that the value is not
// known, which is never the same as 0. Temperatures are in degrees Celsius, memory
// in bytes, power in milliwatts.
type Reading struct {
	Index          int               `json:"index"`
	UUID           string            `json:"uuid"`
	Name           string            `json:"name"`
	Parent         string            `json:"parent,omitempty"` // UUID of the GPU that a MIG device is part of
	State          string            `json:"state"`            // ok | wedged | lost
	AgeMs          int64             `json:"age_ms"`           // of the values, by the agent's own clock
	Sweep          uint64            `json:"sweep,omitempty"`  // that the values are of, rising within a boot; 0: not told
	Margin         *int              `json:"margin,omitempty"` // to the nearest slowdown threshold
	Temperature    *int              `json:"temperature,omitempty"`
	HBM            *int              `json:"hbm,omitempty"`
	MemoryTotal    *uint64           `json:"memory_total,omitempty"`
	MemoryUsed     *uint64           `json:"memory_used,omitempty"`
	MemoryFree     *uint64           `json:"memory_free,omitempty"`
	MemoryReserved *uint64           `json:"memory_reserved,omitempty"`
	Power          *uint64           `json:"power_mw,omitempty"`
	PowerLimit     *uint64           `json:"power_limit_mw,omitempty"`
	Utilisation    *int              `json:"utilisation,omitempty"` // percent; shown, never used for control
	Reasons        []string          `json:"reasons,omitzero"`      // clocks-event reasons in force, nil where not known: sw_thermal, hw_thermal, hw_power_brake, hw_slowdown, sw_power_cap, ...
	ThrottleNs     map[string]uint64 `json:"throttle_ns,omitempty"` // cumulative, by reason
	XIDs           []XID             `json:"xids,omitempty"`        // newest last, at most MaxXIDs
	ECCUncorrected *uint64           `json:"ecc_uncorrected,omitempty"`
	RowsPending    *bool             `json:"rows_pending,omitempty"`
	LatencyUs      int64             `json:"latency_us"` // of the last sweep over this GPU
}

// MaxXIDs are told of each GPU at most.
const MaxXIDs = 16

// XID is an error event of the driver.
type XID struct {
	Code  uint64 `json:"code"`
	AgeMs int64  `json:"age_ms"`
	Fatal bool   `json:"fatal"` // the GPU is not to be used until it is reset
}
