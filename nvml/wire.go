package nvml

// Report is the answer of an agent to GET /v1/readings.
type Report struct {
	Node   string    `json:"node"`
	BootID string    `json:"boot_id"` // id of the agent's process
	Seq    uint64    `json:"seq"`     // number of the report, rising within a boot
	Driver string    `json:"driver,omitempty"`
	Error  string    `json:"error,omitempty"` // reason why no GPU can be read; empty: there is none
	GPUs   []Reading `json:"gpus"`
}

// Reading is the state of one GPU. A nil pointer is an unknown value, which is never the same
// as 0. Temperatures are in degrees Celsius, memory in bytes, power in milliwatts.
type Reading struct {
	Index       int    `json:"index"`
	UUID        string `json:"uuid"`
	Name        string `json:"name"`
	Parent      string `json:"parent,omitempty"` // UUID of the GPU of a MIG device
	State       string `json:"state"`            // ok | wedged | lost
	AgeMs       int64  `json:"age_ms"`           // age of the values, by the agent's own clock
	Sweep       uint64 `json:"sweep,omitempty"`  // number of the sweep of the values, rising within a boot; 0: unknown
	Margin      *int   `json:"margin,omitempty"` // distance to the nearest slowdown threshold
	Temperature *int   `json:"temperature,omitempty"`
	HBM         *int   `json:"hbm,omitempty"`
	Memory
	Power          *uint64           `json:"power_mw,omitempty"`
	PowerLimit     *uint64           `json:"power_limit_mw,omitempty"`
	Utilisation    *int              `json:"utilisation,omitempty"` // percent; shown, never used for control
	Reasons        []string          `json:"reasons,omitzero"`      // clocks-event reasons in force, nil where not known: sw_thermal, hw_thermal, hw_power_brake, hw_slowdown, sw_power_cap, ...
	ThrottleNs     map[string]uint64 `json:"throttle_ns,omitempty"` // cumulative time of each reason
	XIDs           []XID             `json:"xids,omitempty"`        // newest last, at most MaxXIDs
	ECCUncorrected *uint64           `json:"ecc_uncorrected,omitempty"`
	RowsPending    *bool             `json:"rows_pending,omitempty"`
	LatencyUs      int64             `json:"latency_us"` // duration of the last sweep over this GPU
}

// Memory holds the memory of a GPU in bytes. It is part of a Reading, and its members are the
// Reading's own in JSON.
type Memory struct {
	MemoryTotal    *uint64 `json:"memory_total,omitempty"`
	MemoryUsed     *uint64 `json:"memory_used,omitempty"`
	MemoryFree     *uint64 `json:"memory_free,omitempty"`
	MemoryReserved *uint64 `json:"memory_reserved,omitempty"` // memory that the driver keeps for itself
}

// MaxXIDs is the largest number of XIDs in a Reading.
const MaxXIDs = 16

// XID is an error event of the driver.
type XID struct {
	Code  uint64 `json:"code"` // 0: no XID
	AgeMs int64  `json:"age_ms"`
	Fatal bool   `json:"fatal"` // the GPU must not be used before a reset
}
