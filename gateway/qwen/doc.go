// Package qwen counts the prompt tokens of Qwen3 models exactly, without asking a backend.
//
// Admission reserves tokens before a request is sent, so the number must be known first
// and must be the one the backend will bill: vLLM's usage.prompt_tokens is the length of
// the id list it makes of the rendered chat template. All Qwen3 sizes share one tokenizer
// and one template, so one count serves every backend a request may be routed to.
//
// # Tokenizer
//
// Qwen3 uses byte-level BPE (Sennrich et al. 2016 on bytes, as in GPT-2): 256 byte tokens,
// then one token for each of 151,387 merges in merge order (id = 256 + merge index, so the
// list of merges is the vocabulary), then 26 added tokens. A text becomes ids in four steps:
//
//  1. The added tokens, such as <|im_end|>, are cut out wherever they stand, in a user's
//     text too.
//  2. What lies between two of them is brought to Unicode NFC.
//  3. It is split into pieces by the pattern of Qwen's tokenizer.json (contractions, words
//     with one leading mark, single digits, runs of marks, line ends, spaces). The pattern
//     looks ahead, which RE2 cannot, so the splitter is written by hand; see split.go.
//  4. Within a piece the two neighbours with the lowest merge go first until none is left.
//
// Step 4 as said costs O(n log n) and a heap. This package encodes by backtracking instead,
// in linear time, a method known from GitHub's bpe crate (rust-gems, 2024): a sequence of
// tokens is the BPE encoding of its bytes exactly if each two neighbours would encode to
// themselves. So take the longest token that matches, check it against its left neighbour,
// else try its next shorter prefix, and if none is left give up the neighbour and mark
// where it ended as a place no encoding passes. No place is given up twice, so the work is
// linear in the piece. Whether two neighbours hold is found by undoing merges on both
// sides of their border, latest first, and asking at each stage whether a merge across the
// border would have come earlier. It needs ids in merge order; see bpe.go.
//
// The reference is the Rust tokenizers library that vLLM calls. It reads Unicode 16 in its
// patterns and Unicode 9 in its normaliser, so neither package unicode nor x/text agrees
// with it (x/text also breaks up runs of over 30 combining marks, as the library does
// not). unicode.txt holds what the library itself answers for every code point, and the
// normaliser here is the standard's algorithm on that table. Bytes that are no UTF-8 count
// as U+FFFD.
//
// # Chat template
//
// [Render] is Qwen3's chat template by hand, with what vLLM does to messages and tools
// before it renders them: text parts are joined by a newline and empty ones dropped, null
// content is empty, reasoning comes under either of its two names, a call's arguments are
// parsed and dumped again as Python's json.dumps does. Releases differ in that; see
// [Dialect]. An unknown role is dropped without a word, as the template does; so a caller
// maps "developer" to "system" first if it wants it counted.
//
// # Counting a conversation
//
// A chat resends its whole past with every turn. [Counter] keeps the count of each message
// under a hash of its JSON, so a turn costs the hash of the past and the count of what is
// new. Adding up counts is right only because every rendered message begins, or the one
// before it ends, with an added token: step 1 cuts there, and no added token can span the
// cut because "<" stands only at the beginning of one.
package qwen
