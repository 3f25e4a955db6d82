package gatewaytest

import (
	"container/heap"
	"sync"
	"time"
)

// slack lets the loop deal tokens that are due a little later in the same
// round, so that thousands of streams cost a thousand wake-ups a second at most.
const slack = time.Millisecond

// engine is the scheduler: the only place that knows load. A sequence waits
// until a slot and its KV blocks are there, is silent for TTFT and prefill,
// and then gets a token every ITL. When the cache is full the largest
// (priority, arrival) running sequence is preempted: it gives its blocks back,
// waits again and is recomputed.
//
// One goroutine holds the clock; it lives only while something is due. With
// an ITL of 0 nothing is due after the first token: the reader draws its
// tokens by poll.
type engine struct {
	mu       sync.Mutex
	speed    Speed
	bound    int
	engines  int
	cache    *kvCache
	waiting  seqHeap
	running  map[*sequence]struct{}
	due      dueHeap
	wake     chan struct{}
	alive    bool
	loops    sync.WaitGroup
	closed   bool
	dead     bool
	paused   bool // asleep: nothing is started
	arrivals int64
	meters   []*meter
	totals   totals
}

// Speed holds the options that may change while the server runs.
type Speed struct {
	// TTFT is the time from scheduling to the first token of an empty prompt.
	TTFT time.Duration
	// ITL is the time between two tokens of a sequence; 0: as fast as it is read.
	ITL time.Duration
	// PrefillPerToken is added to TTFT for each prompt token not in the prefix cache.
	PrefillPerToken time.Duration
	// Slots is vLLM's max_num_seqs, the number of sequences that run at once.
	Slots int
	// Tokens is the length of an answer, thinking and end token included;
	// 0: drawn for each prompt.
	Tokens int
}

type totals struct {
	peakRunning, peakWaiting int
	preemptions, rejections  int64
}

func newEngine(o Options) *engine {
	e := &engine{
		speed:   o.Speed,
		waiting: seqHeap{byPriority: o.PriorityScheduling},
		bound:   o.MaxQueued,
		engines: o.Engines,
		cache:   newKVCache(o.KVBlocks),
		running: map[*sequence]struct{}{},
		wake:    make(chan struct{}, 1),
	}
	for range o.Engines {
		e.meters = append(e.meters, newMeter(o.MaxModelLen))
	}
	return e
}

// sequence is one choice of one request. All fields below the line belong to
// the engine's lock.
type sequence struct {
	prompt   []uint32
	hashes   []uint64 // of the full blocks of the prompt
	salt     uint64
	script   *script
	priority int64
	extraITL time.Duration
	maxNew   int // max_tokens as vLLM resolved it, for the histogram
	fanout   int // n
	ready    chan<- struct{}

	// ---
	arrival   int64
	nextToken time.Time // time at which the next token is due
	waitIndex int       // index in the waiting heap, -1 elsewhere
	dueIndex  int       // index in the due heap, -1 elsewhere
	drawn     bool      // ITL 0: past the first token, the reader draws
	state     state
	meter     *meter
	milestones
	progressCounts
}

// milestones holds the times of a sequence; zero before they come.
type milestones struct{ arrived, scheduled, first, last, ended time.Time }

// progressCounts holds the counts of a sequence.
type progressCounts struct {
	produced  int // tokens generated
	private   int // KV blocks that no other sequence shares
	cached    int // prompt tokens found in the prefix cache
	preempted int // preemptions
}

type state int

const (
	waiting state = iota
	running
	finished
	aborted
	failed // the engine died
)

// progress is the part of a sequence that its reader sees.
type progress struct {
	produced int
	cached   int
	state    state
}

// submit queues the sequences of one request.
func (e *engine) submit(seqs []*sequence) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.dead || e.closed {
		return engineDead()
	}
	now := time.Now()
	for _, s := range seqs {
		e.arrivals++
		s.arrival = e.arrivals
		s.arrived = now
		s.meter = e.meters[int(e.arrivals)%e.engines]
		s.waitIndex, s.dueIndex = -1, -1
		heap.Push(&e.waiting, s)
	}
	e.schedule(now)
	e.totals.peakWaiting = max(e.totals.peakWaiting, len(e.waiting.seqs))
	return nil
}

// admit checks the queue bound of v0.29 before anything is rendered.
func (e *engine) admit(n int) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.dead || e.closed {
		return engineDead()
	}
	if e.bound > 0 && len(e.waiting.seqs)+len(e.running)+n > e.bound {
		e.totals.rejections++
		return queueFull()
	}
	return nil
}

// schedule starts what fits, in order. It never skips the head of the queue.
func (e *engine) schedule(now time.Time) {
	for !e.paused && len(e.waiting.seqs) > 0 && len(e.running) < e.speed.Slots {
		s := e.waiting.seqs[0]
		size := len(s.prompt) + s.produced + 1
		private := (size+blockTokens-1)/blockTokens - len(s.hashes)
		cached, ok := e.cache.acquire(s.hashes, private)
		if !ok {
			break
		}
		heap.Pop(&e.waiting)
		s.private = private
		// The last token is always computed again.
		hit := min(cached*blockTokens, (len(s.prompt)-1)/blockTokens*blockTokens)
		if s.preempted == 0 {
			s.cached = hit
			s.scheduled = now
			s.meter.prefill(len(s.prompt), hit)
		}
		s.state = running
		e.running[s] = struct{}{}
		work := len(s.prompt) + s.produced - hit
		s.nextToken = now.Add(e.speed.TTFT + time.Duration(work)*e.speed.PrefillPerToken)
		s.drawn = false
		heap.Push(&e.due, s)
	}
	e.totals.peakRunning = max(e.totals.peakRunning, len(e.running))
	e.rouse()
}

// rouse makes the loop look at the due heap again.
func (e *engine) rouse() {
	if len(e.due) == 0 || e.closed {
		return
	}
	if !e.alive {
		e.alive = true
		e.loops.Go(e.loop)
		return
	}
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

func (e *engine) loop() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		e.mu.Lock()
		e.deal(time.Now())
		if len(e.due) == 0 || e.closed {
			e.alive = false
			e.mu.Unlock()
			return
		}
		pause := time.Until(e.due[0].nextToken)
		e.mu.Unlock()
		timer.Reset(pause)
		select {
		case <-timer.C:
		case <-e.wake:
		}
	}
}

// deal hands out every token that is due.
func (e *engine) deal(now time.Time) {
	step := 0
	limit := now.Add(min(slack, e.speed.ITL/8))
	for len(e.due) > 0 && !e.due[0].nextToken.After(limit) {
		s := e.due[0]
		pause := e.speed.ITL + s.extraITL
		if pause == 0 {
			heap.Pop(&e.due)
			s.drawn = true
		} else {
			s.nextToken = s.nextToken.Add(pause)
			heap.Fix(&e.due, 0)
		}
		if e.token(s, now) {
			step++
			notify(s.ready)
		}
	}
	if step > 0 {
		e.meters[0].iteration.observe(float64(step))
	}
}

// token deals one token to a running sequence; false if the sequence had to
// make room for others, or for itself.
func (e *engine) token(s *sequence, now time.Time) bool {
	if len(s.prompt)+s.produced+1 > (len(s.hashes)+s.private)*blockTokens {
		for !e.cache.grow() {
			victim := e.largest()
			e.preempt(victim)
			if victim == s {
				return false
			}
		}
		s.private++
	}
	s.produced++
	s.meter.token(s, now)
	s.last = now
	if s.produced >= len(s.script.ids) {
		e.leave(s, finished, now)
	}
	return true
}

func (e *engine) largest() *sequence {
	var worst *sequence
	for s := range e.running {
		if worst == nil || e.waiting.precedes(worst, s) {
			worst = s
		}
	}
	return worst
}

func (e *engine) preempt(s *sequence) {
	e.drop(s)
	s.preempted++
	s.meter.preemptions++
	e.totals.preemptions++
	s.state = waiting
	heap.Push(&e.waiting, s)
}

// drop takes a running sequence out of the running set and frees its blocks.
func (e *engine) drop(s *sequence) {
	delete(e.running, s)
	if s.dueIndex >= 0 {
		heap.Remove(&e.due, s.dueIndex)
	}
	var made []uint64
	if n := len(s.prompt) + s.produced; n/blockTokens > len(s.hashes) {
		ids := append(append(make([]uint32, 0, n), s.prompt...), s.script.ids[:s.produced]...)
		made = blockHashes(s.salt, ids)[len(s.hashes):]
	}
	e.cache.release(s.hashes, s.private, made)
	s.private = 0
}

// leave ends a sequence in a final state, whatever it was doing.
func (e *engine) leave(s *sequence, final state, now time.Time) {
	switch s.state {
	case running:
		e.drop(s)
	case waiting:
		heap.Remove(&e.waiting, s.waitIndex)
	default:
		return
	}
	s.state = final
	s.ended = now
	if final == finished {
		s.meter.finish(s, now)
	}
	e.schedule(now)
}

// poll returns the progress of a sequence. With an ITL of 0 it first draws up to limit tokens.
func (e *engine) poll(s *sequence, limit int) progress {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s.drawn && s.state == running {
		now := time.Now()
		if e.speed.ITL+s.extraITL > 0 { // the speed was changed meanwhile
			s.drawn = false
			s.nextToken = now
			heap.Push(&e.due, s)
			e.rouse()
		}
		for n := 0; n < limit && s.drawn && s.state == running; n++ {
			e.token(s, now)
		}
	}
	return progress{s.produced, s.cached, s.state}
}

// abort ends a sequence whose client left.
func (e *engine) abort(s *sequence) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.leave(s, aborted, time.Now())
}

// kill ends the engine core: every live sequence fails.
func (e *engine) kill(dead bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dead = dead
	if dead {
		e.failAll()
	}
}

func (e *engine) failAll() {
	now := time.Now()
	for len(e.waiting.seqs) > 0 {
		s := e.waiting.seqs[0]
		e.leave(s, failed, now)
		notify(s.ready)
	}
	for s := range e.running {
		e.leave(s, failed, now)
		notify(s.ready)
	}
}

func (e *engine) close() {
	e.mu.Lock()
	e.closed = true
	e.failAll()
	select {
	case e.wake <- struct{}{}:
	default:
	}
	e.mu.Unlock()
	e.loops.Wait()
}

// change sets the speed; running sequences feel it at their next token.
func (e *engine) change(edit func(*Speed)) Speed {
	e.mu.Lock()
	defer e.mu.Unlock()
	edit(&e.speed)
	e.schedule(time.Now())
	return e.speed
}

// pause puts the engine to sleep: waiting sequences stay, the prefix cache is lost.
func (e *engine) pause(paused bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.paused = paused
	if paused {
		e.cache.forget()
	}
	e.schedule(time.Now())
}

func (e *engine) tokens() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.speed.Tokens
}

func (e *engine) isDead() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.dead || e.closed
}

func notify(ready chan<- struct{}) {
	select {
	case ready <- struct{}{}:
	default:
	}
}

// seqHeap orders by (priority, arrival), or by arrival alone.
type seqHeap struct {
	byPriority bool
	seqs       []*sequence
}

func (h *seqHeap) precedes(a, b *sequence) bool {
	if h.byPriority && a.priority != b.priority {
		return a.priority < b.priority
	}
	return a.arrival < b.arrival
}

func (h *seqHeap) Len() int           { return len(h.seqs) }
func (h *seqHeap) Less(i, j int) bool { return h.precedes(h.seqs[i], h.seqs[j]) }
func (h *seqHeap) Swap(i, j int) {
	h.seqs[i], h.seqs[j] = h.seqs[j], h.seqs[i]
	h.seqs[i].waitIndex, h.seqs[j].waitIndex = i, j
}
func (h *seqHeap) Push(x any) {
	s := x.(*sequence)
	s.waitIndex = len(h.seqs)
	h.seqs = append(h.seqs, s)
}
func (h *seqHeap) Pop() any {
	last := len(h.seqs) - 1
	s := h.seqs[last]
	h.seqs[last] = nil
	h.seqs = h.seqs[:last]
	s.waitIndex = -1
	return s
}

// dueHeap orders running sequences by their next token.
type dueHeap []*sequence

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].nextToken.Before(h[j].nextToken) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].dueIndex, h[j].dueIndex = i, j
}
func (h *dueHeap) Push(x any) {
	s := x.(*sequence)
	s.dueIndex = len(*h)
	*h = append(*h, s)
}
func (h *dueHeap) Pop() any {
	last := len(*h) - 1
	s := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	s.dueIndex = -1
	return s
}
