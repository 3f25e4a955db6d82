package device

import (
	"context"
	"errors"
	"slices"
	"time"

	"tidegate/nvml"
)

// eventWait bounds the time that the end of a generation waits for the event loop.
const eventWait = 500 * time.Millisecond

// events records the errors that the driver reports, until ctx ends. It occupies one more
// thread in the library, which only waits there.
func (s *Sampler) events(ctx context.Context, slots []*slot) {
	retry := backoff{first: time.Second, limit: 30 * time.Second}
	for ctx.Err() == nil {
		event, err := s.library.Wait(eventWait)
		switch {
		case errors.Is(err, ErrNoEvents):
			s.log.Warn("no error events: XIDs are not seen", "error", err)
			return
		case err != nil:
			sleep(ctx, retry.next())
		case event == nil:
			retry.reset()
		case event.GPU < 0 || event.GPU >= len(slots):
			s.log.Warn("error event of an unknown GPU", "xid", event.XID)
		default:
			s.recordXID(slots[event.GPU], event.XID)
		}
	}
}

// recordXID records an error event, unless an application caused it.
func (s *Sampler) recordXID(sl *slot, code uint64) {
	if isApplicationXID(code) {
		return
	}
	s.mu.Lock()
	sl.xids = append(sl.xids, xid{code, time.Now()})
	if len(sl.xids) > nvml.MaxXIDs {
		// Fatal errors are kept longest.
		drop := max(0, slices.IndexFunc(sl.xids, func(x xid) bool { return !nvml.FatalXID(x.code) }))
		sl.xids = slices.Delete(sl.xids, drop, drop+1)
	}
	id := sl.id
	s.mu.Unlock()
	s.log.Error("GPU error", "gpu", id.Index, "uuid", id.UUID, "xid", code, "fatal", nvml.FatalXID(code))
}
