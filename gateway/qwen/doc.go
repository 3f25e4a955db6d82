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
//  4. Within a piece, the two neighbours with the lowest merge are merged until none merge.
//
// Done literally, step 4 costs O(n log n) and a heap. This package encodes by backtracking
// instead, in linear time, a method known from GitHub's bpe crate (rust-gems, 2024): a
// sequence of tokens is the BPE encoding of its bytes exactly if each two neighbours would
// encode to themselves. The search adds the longest token that matches if it fits its left neighbour,
// and tries its next shorter prefix otherwise. If none fits, it drops the neighbour and
// marks the place where it ended: no encoding has a border there. No place is marked twice,
// so the work is linear in the piece. To see whether two neighbours fit, merges on both
// sides of their border are undone, latest first; at no stage may a merge across the border
// have come earlier. This needs ids in merge order; see bpe.go.
//
// The reference is the Rust tokenizers library that vLLM calls. It reads Unicode 16 in its
// patterns and Unicode 9 in its normaliser, so neither package unicode nor x/text agrees
// with it (x/text also breaks up runs of over 30 combining marks, and the library does
// not). unicode.txt holds the library's own answer for every code point, and the
// normaliser here is the standard's algorithm on that table. Bytes that are no UTF-8 count
// as U+FFFD.
//
// # Chat template
//
// [Render] is Qwen3's chat template by hand, with what vLLM does to messages and tools
// before it renders them: text parts are joined by a newline and empty ones dropped, null
// content is empty, reasoning comes under either of its two names, a call's arguments are
// parsed and dumped again as Python's json.dumps does. Releases differ in that; see
// [Dialect]. A message of an unknown role is dropped without an error, as the template
// does. A caller that wants "developer" counted maps it to "system" first.
//
// # Counting a conversation
//
// A chat resends its whole past with every turn. [Counter] keeps the count of each message
// under a hash of its JSON, so a turn costs the hash of the past and the count of the new
// messages. Counts add up because an added token stands at every border between two
// rendered messages: step 1 cuts there. No added token spans the cut, because "<" occurs
// only at the beginning of one.
package qwen
