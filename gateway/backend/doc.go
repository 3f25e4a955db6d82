// Package backend is the way to a model's vLLM servers: what is configured of
// them, whether they are in rotation, and the exchange of one request for one
// answer.
//
// How a request is sent and its answer read is package exchange.
package backend
