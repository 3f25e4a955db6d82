package gateway

import (
	"net/http"
	"net/http/httptest"
	"time"

	"tidegate/gateway/door"
	"tidegate/gateway/openai"
)

// newDoor returns the door of one of OpenAI's routes.
func newDoor(route openai.Route) *door.Door {
	if route == openai.Completions {
		return door.Completions()
	}
	return door.Chat()
}

// newGeneration returns the call of a request that is to generate through a door. Its
// writer takes deadlines and keeps to none.
func newGeneration(g *Gateway, r *http.Request, d *door.Door) *call {
	c := g.newCall(deadlines{httptest.NewRecorder()}, r, d.Pattern)
	c.door = d
	return c
}

// deadlines is a recorder that takes deadlines, as a connection does, and keeps to none.
type deadlines struct{ *httptest.ResponseRecorder }

// SetReadDeadline does nothing.
func (deadlines) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing.
func (deadlines) SetWriteDeadline(time.Time) error { return nil }
