// Package nvml says what the GPUs of the fleet are doing: their memory and
// temperature as readings with an age, never as a bare number. It is the last
// room of the house; it calls nobody, and whatever a driver does stays in here.
//
// A Monitor asks each source on a goroutine of its own: an agent on another node,
// an agent that it starts itself, a dcgm-exporter, or a recorded trace. What a
// source says becomes immutable GPUs, published behind atomic pointers, so that
// the path of a request reads one with two loads and no lock, whatever a source is
// doing meanwhile. Nothing here waits for a driver: a source that hangs, dies or
// talks nonsense only makes its readings old.
//
// Ages are measured by this process's monotonic clock: a reading was taken when
// its answer arrived, less the age that the answer gives. Clocks of two machines
// are never compared. A reading is fresh up to 3 s, held up to 10 s (nothing may be
// relaxed on its account), and dropped after that. What is not known is nil, never 0.
package nvml
