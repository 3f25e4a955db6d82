package gateway

import (
	"math/rand/v2"
	"net/http"
	"net/netip"
	"time"

	"tidegate/admission"
	"tidegate/admission/limit"
	"tidegate/gateway/account"
	"tidegate/gateway/activity"
	"tidegate/gateway/backend"
	"tidegate/gateway/door"
)

// call is one HTTP request of a caller and all that its handler knows of it. It lives as
// long as its handler and is used by its goroutine alone. Each part has one writer: the
// head of the call is set by answer, request by parse, plan by generate and the sender,
// writer by itself, outcome by who ends the request.
type call struct {
	r        *http.Request
	settings *settings
	id       string     // request id, 32 hexadecimal digits
	route    string     // pattern of the route, for metrics
	door     *door.Door // nil where the route generates nothing
	began    time.Time

	addr     netip.Addr       // caller's address; invalid before clientAddr was called
	caller   account.Identity // zero before the key was checked
	subjects limit.Subjects   // accounts that the limits counted the request by
	bodies   holding          // bytes held of the body budget
	reading  time.Duration    // time that the caller took to send the body

	writer  answerWriter
	tracing *tracing     // nil where the request is not traced
	use     activity.Use // what the caller uses now, for /top

	request    request
	demand     *admission.Demand // what the request asks of admission; nil before
	permit     *admission.Permit // nil before admission
	plan       plan
	outcome    outcome
	settlement settlement
}

// handler serves one route. The error becomes the answer where nothing was sent yet.
type handler func(*call) error

// newID returns a request id of 128 bits: the time in milliseconds, so that a database
// finds the newest together, and 80 random bits that need not be secret. It is unique
// among all gateways, whenever they run.
func newID(t time.Time) string {
	var b [32]byte
	const digits = "0123456789abcdef"
	ms, hi, lo := uint64(t.UnixMilli()), rand.Uint64(), rand.Uint64()
	for i := range 12 {
		b[11-i] = digits[ms>>(4*i)&15]
	}
	for i := range 4 {
		b[12+i] = digits[hi>>(4*i)&15]
	}
	for i := range 16 {
		b[16+i] = digits[lo>>(4*i)&15]
	}
	return string(b[:])
}

// clientAddr returns the caller's address, which is found once.
func (c *call) clientAddr() netip.Addr {
	if !c.addr.IsValid() {
		c.addr = clientAddr(c.r, c.settings.proxies)
	}
	return c.addr
}

// mayUse reports whether the key may use a model; an allow-list may name an alias.
func (c *call) mayUse(m *backend.Model) bool { return mayUse(&c.caller, m) }

// hold makes the request hold so many bytes of the body budget in all, or refuses it. The
// caller must be known.
func (c *call) hold(bytes int) error {
	c.bodies.caller = c.caller.User
	return c.bodies.resize(int64(bytes))
}

// dropBody releases the body once no backend will be sent it: a long stream need not hold
// it.
func (c *call) dropBody() {
	c.request.Body = nil
	c.bodies.release()
}

// asked returns the name of the model that the caller asked for; empty before it is known.
func (c *call) asked() string {
	if c.request.model == nil {
		return ""
	}
	return c.request.model.Name
}

// served returns the name of what answers, or of the model that was asked for before there
// is a plan.
func (c *call) served() string {
	if c.plan.served != "" {
		return c.plan.served
	}
	return c.asked()
}

// maxTokens returns the tokens that a choice may have, by the plan once there is one.
func (c *call) maxTokens() int {
	if c.plan.served != "" {
		return c.plan.limit
	}
	return c.request.limit
}

// limitSubjects returns the accounts by which the limits count the request.
func (c *call) limitSubjects() limit.Subjects {
	return limit.Subjects{
		Department: c.caller.Department, Project: c.caller.Project, User: c.caller.User, Key: c.caller.Key, IP: c.clientAddr(), Model: c.asked(),
	}
}
