package gateway

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strings"
	"time"

	"tidegate/admission"
	"tidegate/admission/limit"
	"tidegate/degrade"
	"tidegate/gateway/account"
	"tidegate/gateway/backend"
	"tidegate/gateway/ledger"
	"tidegate/gateway/openai"
)

// call is one request of a caller and what became of it. It lives as long as
// its handler and is used by its goroutine alone.
type call struct {
	w      http.ResponseWriter
	values []string // room for those of the answer's header
	r      *http.Request
	set    *settings
	id     string
	route  string // the pattern of the route, for metrics
	began  time.Time

	traceID string // of its span, in hex; empty: it is not traced

	addr  netip.Addr // the caller's, once it is known
	who   account.Identity
	kind  openai.Route
	body  *openai.Request
	wish  openai.Wish
	by    limit.Subjects // whom the limits count it by, once it has asked them
	asked *backend.Model // that the caller named
	model *backend.Model // that answers: a smaller one from L3 on
	limit int            // the answer's limit in tokens, as sent to the server
	out   *reply         // what the caller is sent

	level    degrade.Level
	reason   string        // of the level
	most     degrade.Level // the smallest answer that the caller accepts
	served   string        // what really answered, by name
	streamed bool          // the server's answer is a stream; the caller's wish may differ

	sent       bool              // the head of the answer is on its way to the caller
	status     int               // of the answer
	code       string            // of the error; empty: there was none, or nobody to tell it
	param      string            // parameter that the error names; empty: none
	rule       string            // limit that refused; empty: none did
	backend    string            // the last one tried
	retry      time.Duration     // the longest that a server which refused asked to be left alone
	prompt     int               // exact tokens of the prompt, or of all prompts
	longest    int               // those of the longest prompt
	several    bool              // there are several prompts
	answers    int               // choices of all prompts together
	permit     *admission.Permit // it held a place on a backend, so it goes into the ledger
	paid       bool              // the next attempt is taken out of the budget of retries
	charged    bool              // usage goes to the caller's account
	flight     *ledger.Flight    // that it is under way; nil: it is not, or is counted
	counted    bool              // the ledger has it
	held       holding           // of the budget of bodies
	settled    bool              // its place and what the limits reserved are given back
	usage      openai.Usage
	estimated  bool      // a figure of usage is the gateway's own
	metered    int       // tokens of the answer that the meters have
	activity   *activity // what its caller uses; nil: it is not to be admitted yet
	phase      phase
	firstToken time.Time
	tracing    *tracing      // nil: it is not traced
	reading    time.Duration // that the caller took to send the body
	overhead   time.Duration // what the gateway itself took until a backend was asked

	truncated    bool // the longest prompt is cut to what truncate_prompt_tokens allows
	noThinking   bool // the prompt was counted with thinking off, by wish or by a server's default
	quietDefault bool // the server asked last switches thinking off by itself
}

// handler serves one route; answer deals with what it returns.
type handler func(*call) error

// answer runs a handler and turns its error into a response: the one place that
// recovers, logs and counts.
func (g *Gateway) answer(w http.ResponseWriter, r *http.Request, route string, h handler) {
	c := &call{w: w, r: r, set: g.settings.Load(), route: route, began: time.Now(), status: http.StatusOK, held: holding{budget: &g.bodies}}
	defer c.held.release()
	c.id = newID(c.began)
	c.header("X-Request-Id", c.id)
	g.trace(c)
	err := c.ended(g.guarded(c, h))
	cut := err != nil && g.fail(c, err)
	g.finish(c, err)
	if cut {
		// The caller must notice that the answer is not whole.
		panic(http.ErrAbortHandler)
	}
}

// follow lets the request end when its key is revoked, and returns what is to be called
// when it has ended.
func (c *call) follow() (release func()) {
	ctx, release := c.set.accounts.Follow(c.r.Context(), &c.who)
	c.r = c.r.WithContext(ctx)
	return release
}

// ended returns the reason for which the gateway itself ended the request, in the place
// of an error that looks as if the caller had left; else the error.
func (c *call) ended(err error) error {
	if revoked := (*account.KeyError)(nil); err != nil && errors.As(context.Cause(c.r.Context()), &revoked) {
		return revoked
	}
	return err
}

// guarded turns a panic into an error.
func (g *Gateway) guarded(c *call, h handler) (err error) {
	defer func() {
		if p := recover(); p != nil {
			g.Log.Error("panic", "id", c.id, "panic", p, "stack", string(debug.Stack()))
			err = errPanic
		}
	}()
	return h(c)
}

var errPanic = errors.New("panic in a handler")

// newID is a request id of 128 bits: the time in milliseconds, so that a database
// finds the newest together, and 80 random bits that need not be secret. It is
// unique among all gateways, whenever they run.
func newID(at time.Time) string {
	var b [32]byte
	const digits = "0123456789abcdef"
	ms, hi, lo := uint64(at.UnixMilli()), rand.Uint64(), rand.Uint64()
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

// stand sets the level at which the request is answered, and says it.
func (c *call) stand(level degrade.Level, reason string) {
	reason = cmp.Or(reason, "none")
	said := c.level == level && c.reason == reason
	c.level, c.reason = level, reason
	if c.sent || said {
		return
	}
	c.header("X-Tidegate-Level", level.String())
	c.header("X-Tidegate-Reason", reason)
}

// header sets a header of the answer, whose name must be in its canonical form.
func (c *call) header(name, value string) {
	if len(c.values) == 0 {
		c.values = make([]string, 13) // as many as an answer usually has, in one piece
	}
	c.values[0] = value
	c.w.Header()[name], c.values = c.values[:1:1], c.values[1:]
}

// now reads only one of the two clocks that time.Now reads: it is asked for each
// event of a stream.
func (c *call) now() time.Time { return c.began.Add(time.Since(c.began)) }

// flow is how long a stream took from its first token to what was written last; 0:
// nothing was, since the caller had left.
func (c *call) flow() time.Duration { return max(c.out.lastWrite.Sub(c.firstToken), 0) }

// from returns the caller's address, which is found once.
func (c *call) from() netip.Addr {
	if !c.addr.IsValid() {
		c.addr = c.sender()
	}
	return c.addr
}

// sender finds the caller's address: the last one that is no trusted proxy.
func (c *call) sender() netip.Addr {
	peer, err := netip.ParseAddrPort(c.r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	addr := plainAddr(peer.Addr())
	if !contains(c.set.proxies, addr) {
		return addr
	}
	hops := strings.Split(strings.Join(c.r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0 && contains(c.set.proxies, addr); i-- {
		if strings.TrimSpace(hops[i]) == "" {
			continue // an empty element of a list says nothing (RFC 9110, 5.6.1.2)
		}
		next, ok := nodeAddr(hops[i])
		if !ok {
			break
		}
		addr = next
	}
	return addr
}

// contains reports whether an address is in one of several networks.
func contains(networks []netip.Prefix, addr netip.Addr) bool {
	for _, p := range networks {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// finish counts the request, enters it into the ledger and logs it, once.
func (g *Gateway) finish(c *call, err error) {
	took := time.Since(c.began)
	c.ends()
	g.metrics.finished(c, took)
	g.count(c)
	c.tracing.end(c)
	g.log(c, took, err)
}
