// Package bench measures what the gateway costs: it drives a mock vLLM
// directly, through the least reverse proxy that net/http gives ([NewBare]) and
// through the gateway, and puts the three beside each other ([Report]).
//
// It has a load generator that speaks HTTP/1.1 and server-sent events by hand
// ([Run], [Conn]), a mock that does the same ([Mock]) and a reader of /proc
// ([Watch]), because on one machine what the tools take is missing to what is
// measured. The gateway's own tests use package gatewaytest, whose fake is faithful
// where this mock is fast.
//
// BenchmarkGateway runs it all, and so does make bench:
//
//	TIDEGATE_BENCH_BINARY=$PWD/bin/tidegate go test -tags nomsgpack -run '^$' -bench Gateway -benchtime 1x -timeout 30m ./gateway/gatewaytest/bench
//
// How to get a figure that means something:
//
//   - Quote ratios of one run. Targets take turns and each run starts a fresh
//     process, so a noisy minute hurts all alike; absolute figures of a shared
//     machine are noise. A ratio is taken within a round, its median over rounds.
//   - Look at the column "other cores": what foreign processes used meanwhile. Above
//     about 0.1 the run is suspect; on a loaded machine even CPU per request grows
//     several times, because preempted Go programs spin. Interrupts are in it, and
//     rounding can make it slightly negative.
//   - Generator, mock and target share the processors, so req/s is what the three
//     reach together. CPU µs/req is the target's own cost and the figure to
//     optimise. /proc counts CPU in ticks of 10 ms: let a run last seconds.
//   - Events of a stream without delay arrive several to a read, so the scenario
//     stream is a best case; stream-5ms is the honest cost of an event.
//   - A gateway remembers the length of a conversation that it has counted. The
//     scenarios small and large repeat theirs; in small-new and large-new no two
//     requests are alike, and the tokenizer's cost is in the figure.
//   - Memory per stream is honest only in a fresh process; later the heap is there.
package bench
