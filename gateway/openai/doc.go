// Package openai reads and edits the bytes that OpenAI clients and vLLM backends
// exchange. It knows no caller and no backend, and does no I/O of its own.
//
// A gateway that decodes and re-encodes bodies loses what it does not know: fields
// newer than itself, the order of keys, long integers. So every edit here is
// surgical. A strict walker (package jsonwalk) validates a text in one pass and returns the
// spans of its members. An edit replaces, adds or drops spans and copies the rest
// unchanged.
//
//   - Request: the body of a request, its edits, and the translation of clients'
//     spellings into vLLM's.
//   - Scanner: server-sent events from any splitting of bytes into reads.
//   - Tap: counts and edits each event of a stream on its way to the caller. It
//     removes what the caller did not ask for and sets the model's name.
//   - ReadAnswer: the same for an answer in one JSON body.
//   - Request.MakeUnary, Request.StopThinking, Request.LimitTokens: the edits of a
//     level of degradation. View.Stream turns a unary answer into the stream that its
//     caller asked for. Canned is an answer without a backend, in the caller's Language.
//   - Error: OpenAI's error body, and the reading of vLLM's.
package openai
