// Package nvml reads the GPUs of the fleet: their memory and temperature as readings with an
// age, never as a bare number. It imports no other package of Tidegate but promtext.
//
// A Monitor polls each source on a goroutine of its own: an agent on another node, an agent
// that it starts itself, a dcgm-exporter, or a recorded trace. Each answer becomes immutable
// GPUs behind atomic pointers, so that the path of a request reads one with two loads and no
// lock. Nothing here waits for a driver: a source that hangs, dies or answers nonsense only
// makes its readings old.
//
// Ages are measured by the monotonic clock of this process: a reading was taken when its
// answer arrived, less the age that the answer gives. Clocks of two machines are never
// compared. A reading is fresh up to 3 s, held up to 10 s (no level may fall because of it),
// and dropped after that. An unknown value is nil, never 0.
package nvml
