// Package gatewaytest is a stand-in for a Qwen3 vLLM server: the HTTP surface,
// the scheduler and the metrics of vLLM without a GPU and without a model.
//
// It exists because what a gateway gets wrong lies in the details of vLLM's
// wire (which chunk carries usage, what an abort leaves behind, which field
// holds the reasoning in which version), and no published simulator has them.
//
// A request is rendered and tokenised with the real Qwen3 tokenizer, so prompt
// counts are exact. What will be answered is decided at once: a script of real
// tokens with the reason it ends (script.go). The scheduler (engine.go) only
// deals these tokens out: it knows slots, a waiting queue, KV blocks with a
// prefix cache, preemption, and the clock. A handler wakes when its sequences
// have moved, and writes the piece of text between what it has sent and what
// has been dealt (wire.go), merging tokens when it lags, as vLLM does. A client
// that leaves aborts its sequences at once.
//
// A second handler, Control, reads what the engine really did (Records, Stats)
// and injects faults, so that a test can compare a gateway's ledger with the
// truth.
package gatewaytest
