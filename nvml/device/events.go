package device

import (
	"context"
	"errors"
	"slices"
	"time"

	"tidegate/nvml"
)

// eventWait bounds how long a generation's end waits for the event loop.
const eventWait = 500 * time.Millisecond

// events keeps the errors that the driver reports, until ctx ends. It is one more
// thread inside of the library, and all it does there is wait.
func (s *Sampler) events(ctx context.Context, slots []*slot) {
	retry := backoff{first: time.Second, most: 30 * time.Second}
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
			s.noteXID(slots[event.GPU], event.XID)
		}
	}
}

func (s *Sampler) noteXID(sl *slot, code uint64) {
	if ofApplication(code) {
		return
	}
	s.mu.Lock()
	sl.xids = append(sl.xids, xid{code, time.Now()})
	if len(sl.xids) > nvml.MaxXIDs {
		// What says that the GPU must not be used is kept longest.
		drop := max(0, slices.IndexFunc(sl.xids, func(x xid) bool { return !nvml.FatalXID(x.code) }))
		sl.xids = slices.Delete(sl.xids, drop, drop+1)
	}
	id := sl.id
	s.mu.Unlock()
	s.log.Error("GPU error", "gpu", id.Index, "uuid", id.UUID, "xid", code, "fatal", nvml.FatalXID(code))
}
