// Package overload measures what becomes of requests when there are more of them
// than the fleet can serve: the share that gets a real answer in time, with the
// ladder on and off, and what each tenant gets of a fleet that two of them flood.
//
// BenchmarkOverload replays traces of real services ([Traces], their licences are
// beside them) through the gateway's binary against the stand-ins of package
// gatewaytest. Everything comes from the traces but the text: the arrivals, their
// order and bursts, on a clock made faster or slower so that the work asked for is a
// multiple of what the fleet can do; the tokens of each prompt, and those of each
// answer. Thinking comes on top of the answer and is twice as long, two thirds of the
// output, so a level that switches it off saves what it would save on Qwen3. No two
// prompts share a beginning: there is no prefix cache to help.
//
// Capacity is that of the model that is asked for, on its own servers, at L0. A
// request holds a slot for
//
//	TTFT + input * prefill per token + (3 * answer - 1) * ITL
//
// and all slots together give as many slot-seconds a second; a load of 2 asks for
// twice as many, whatever the lengths of the requests in the window are. Requests a
// second are this divided by the mean time ([Fleet.Capacity]).
//
// What counts ([Tally]): a real answer is a whole one by one of the fleet's models,
// with content, at L0 to L3. A canned one never counts. It is good if it came within
// the objective, of all requests sent, those refused or lost too, in one of two ways:
//
//   - strict: the first content or reasoning that the caller sees. An answer that a
//     level gives whole is seen when it is ready. A caller who asked for no stream
//     waits for the whole by his own wish, so there the engine's first token counts.
//   - engine: the first token that a server made for it, from when it was sent: what
//     vLLM calls TTFT, with the time in the gateway. The stand-in keeps it for each
//     request; the answer's id says which.
//
// BenchmarkFair lets two tenants flood the fleet, one with requests eight times as
// large, and a third ask now and then ([FairRun]).
//
// The environment says what to run; make bench-overload and make bench-tenants name the
// knobs. What a configuration for the ladder on or off, or for the queue, is, comes
// from a file ([Fragment]), so that the benchmark knows no setting of the gateway's.
package overload
