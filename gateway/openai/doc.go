// Package openai is the wire: the bytes that OpenAI clients and vLLM servers
// exchange. It knows nobody and does no I/O of its own.
//
// A gateway that decodes and re-encodes bodies loses what it does not know:
// fields that are newer than itself, the order of keys, long integers. So every
// edit here is surgical. A strict walker (json.go) validates a text in one pass
// and hands out the spans of its members; an edit replaces, adds or drops spans
// and copies the rest as it came.
//
//   - Request: a request's body, its edits, and the translation of the spellings
//     that clients use for what vLLM calls otherwise.
//   - Scanner: server-sent events out of any splitting of bytes.
//   - Tap: what happens to each event of a stream on its way to the caller
//     (tokens counted, what was not asked for taken out, names made true).
//   - ReadAnswer: the same for an answer that comes as one JSON body.
//   - Request.MakeUnary, Request.StopThinking, Request.LimitTokens: what a level of
//     degradation does to a body; View.Stream makes the answer in one piece into the
//     stream that its caller asked for, and Canned is an answer without a server, in
//     the Language that its caller speaks.
//   - Error: OpenAI's error body, and the reading of vLLM's.
package openai
