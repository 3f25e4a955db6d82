// Package backend is the way to a model's vLLM servers: what is configured of
// them, whether they are in rotation, and the exchange of one request for one
// answer.
//
// An exchange runs on one goroutine. net/http's Transport hands every request
// to two goroutines of its connection and back, which at the rate of a token
// stream is most of what a proxy costs; and it hides the connection, whose
// read deadline here is the only timer of a request: it carries the first-token,
// idle and total limits, the keep-alives while nothing comes, and the caller's
// leaving. Reading and writing HTTP/1.1 itself is net/http's (ReadResponse).
//
// Two facts of vLLM's server rule the pool. It closes idle connections after
// 5 s, so ours live 4 s, and an end of file before any byte of the answer on a
// used connection is tried again on a new one. And closing the connection is
// the only way to cancel a request: when the caller leaves, ours is half-closed
// at once, which the server takes for a disconnect, and what it had already sent
// is still read (for 500 ms at most) so that its tokens are counted.
package backend
