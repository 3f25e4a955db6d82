// Package exchange sends one request to a backend and reads its answer, over HTTP/1.1 and
// connections of its own.
//
// An exchange runs on one goroutine. net/http's Transport hands every request
// to two goroutines of its connection and back, which costs a short answer three
// times the CPU (docs/adr/0002-own-exchange.md); and it hides the connection, whose
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
//
// # States of an exchange
//
//	          Send                 Send              Send              Read, Follow
//	[connecting] -- connection --> [sending] -- written --> [head] -- final head --> [body] -- end --> [done]
//	     ^  |                         |                     | |  ^                    |  |
//	     |  |                         |                 1xx +----+                    |  |
//	     +--|---- stale connection ---|---------------------+                         |  |
//	        |                         |                     |                         |  |
//	        +-------------------------+---------------------+--- error, limit --------+  |
//	                                  |                     |               |            |
//	                                  |                     |               v            |
//	                                  |                     |            [broken]        |
//	                                  |                     |                            |
//	                                  +---------------------+-- Cancel, end of ctx --> [left]
//
// One goroutine, the caller's, makes all moves:
//
//   - Send moves from connecting to body. A reused connection is stale if it ends within
//     1 s before any byte of an answer, or if its answer is 408: Send then takes a new one.
//   - Read and Follow move from body to done at the end of the body, and to broken on an
//     error of the connection or of the framing.
//   - deadlinePassed, at a read deadline, moves to broken if a limit has passed, or if the
//     backend is out of rotation and the request can move to another one.
//   - Cancel, or the end of the context, moves to left: the connection is half-closed, and
//     what the backend had already sent is read for 500 ms at most. Then Read returns
//     ErrLeft. The watch over the context only sets a passed deadline, which wakes the
//     goroutine. While connecting, Send returns the error of the context at once.
//   - Close ends the exchange in any state. A connection in state done returns to the pool;
//     any other is closed.
package exchange
