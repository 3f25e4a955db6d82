#!/usr/bin/env python3
"""The reference the Go package is compared with: the Rust `tokenizers` and jinja2.

    reference.py MERGES.txt.gz TEMPLATE.jinja < requests.jsonl > answers.jsonl
    reference.py --properties > unicode.txt

Requests, one JSON object a line, answered in order:

    {"text": "..."}                     -> {"ids": [...]}
    {"chat": {"messages": [...], "tools": [...] or null, "enable_thinking": bool,
              "add_generation_prompt": bool, "fill_nulls": bool}}
                                        -> {"prompt": "...", "ids": [...]} or {"error": "..."}

--properties asks the same library, code point by code point, for what it believes about
Unicode and prints the table the Go package embeds. The library mixes two editions of
Unicode (one in its regular expressions, an older one in its normaliser), so no published
table would do.

Needs the packages tokenizers and jinja2.
"""
import copy
import gzip
import json
import sys
import unicodedata

import jinja2
import jinja2.sandbox
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|>"
    " <|box_start|> <|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|>"
    " <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()
PLAIN = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|>"
    " <|repo_name|> <|file_sep|> <tool_response> </tool_response> <think> </think>"
).split()


def byte_alphabet():
    """GPT-2's order of the 256 bytes, and the character that stands for each."""
    order = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    chars = list(order)
    for b in range(256):
        if b not in order:
            order.append(b)
            chars.append(256 + len(order) - 189)
    return [chr(c) for c in chars]


def load(path):
    with gzip.open(path, "rt", encoding="utf-8") as f:
        merges = [tuple(line.split(" ")) for line in f.read().split("\n") if line]
    vocab = {c: i for i, c in enumerate(byte_alphabet())}
    for i, (a, b) in enumerate(merges):
        vocab[a + b] = 256 + i
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    def added(content, special):
        return AddedToken(content, special=special, normalized=False, single_word=False)
    t.add_special_tokens([added(s, True) for s in SPECIAL])
    # The markers of tools and thoughts are added tokens that are not special.
    for s in PLAIN:
        t.add_tokens([added(s, False)])
    assert t.token_to_id("<|endoftext|>") == 151643 and t.token_to_id("</think>") == 151668
    return t


def template(path):
    """The environment Hugging Face renders chat templates in."""
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    env.filters["tojson"] = lambda x, **kw: json.dumps(x, ensure_ascii=False)
    with open(path, encoding="utf-8") as f:
        return env.from_string(f.read())


def text_of(content):
    """vLLM's flattening of a message's content to one string."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = []
    for part in content:
        if not isinstance(part, str):
            kind = part["type"]
            if kind not in ("text", "input_text", "output_text", "refusal", "thinking"):
                raise ValueError("only text content can be counted")
            part = part["text" if kind.endswith("text") else kind]
        if part:
            texts.append(part)
    return "\n".join(texts)


def normalize(messages):
    """What vLLM makes of a request's messages before it renders the template."""
    out = []
    for m in messages:
        n = {"role": m["role"], "content": text_of(m.get("content"))}
        if m["role"] == "assistant":
            reasoning = m.get("reasoning")
            if reasoning is None:
                reasoning = m.get("reasoning_content")
            if reasoning is not None:
                n["reasoning"] = n["reasoning_content"] = reasoning
            if m.get("tool_calls"):
                n["tool_calls"] = calls = copy.deepcopy(m["tool_calls"])
                for call in calls:
                    function = call.get("function") or call
                    arguments = function.get("arguments")
                    if not arguments:
                        function["arguments"] = {}
                    elif isinstance(arguments, str):
                        try:
                            function["arguments"] = json.loads(arguments)
                        except ValueError:
                            pass
        out.append(n)
    return out


def fill(tool):
    """The dump of vLLM's request model for one tool."""
    tool = dict(tool)
    function = dict(tool.pop("function"))
    return {
        "type": tool.pop("type", "function"),
        "function": {
            "name": function.pop("name"),
            "description": function.pop("description", None),
            "parameters": function.pop("parameters", None),
            **function,
        },
        **tool,
    }


def render(tmpl, chat):
    tools = chat.get("tools")
    if tools and chat.get("fill_nulls"):
        tools = [fill(t) for t in tools]
    args = {"messages": normalize(chat["messages"]), "tools": tools,
            "add_generation_prompt": chat.get("add_generation_prompt", True)}
    if "enable_thinking" in chat:
        args["enable_thinking"] = chat["enable_thinking"]
    return tmpl.render(**args)


def ranges(points):
    out = []
    for c in points:
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return " ".join("%x" % a if a == b else "%x-%x" % (a, b) for a, b in out)


def properties():
    import tokenizers
    nfc, nfd = normalizers.NFC().normalize_str, normalizers.NFD().normalize_str
    print("# What the Rust tokenizers %s believes about Unicode; made by testdata/reference.py."
          % tokenizers.__version__)
    print("# L, N, S: letters, numbers, white space of its regular expressions. C class: combining")
    print("# marks by canonical combining class. P c a b: c composes from a and b. E c d...: c")
    print("# decomposes and never comes back. Hangul syllables are left to arithmetic.")
    points = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    for name, pattern in (("L", r"\p{L}"), ("N", r"\p{N}"), ("S", r"\s")):
        gone = pre_tokenizers.Split(Regex(pattern), "removed")
        print(name, ranges([c for c in points if not gone.pre_tokenize_str(chr(c))]))
    # A mark is what moves past a mark of a higher class, or lets one of a lower class past.
    classes = {}
    for c in points:
        s = chr(c)
        if s in "\u0334\u0345" or nfd("\u0345" + s) == s + "\u0345" or nfd(s + "\u0334") == "\u0334" + s:
            classes.setdefault(unicodedata.combining(s), []).append(c)
    assert 0 not in classes
    samples = [(k, chr(v[0])) for k, v in classes.items()]
    for k, marks in sorted(classes.items()):
        for c in marks:
            for other, mark in samples:
                assert nfd(mark + chr(c)) == (chr(c) + mark if k < other else mark + chr(c)), hex(c)
        print("C %d" % k, ranges(marks))
    for c in points:
        s, d = chr(c), nfd(chr(c))
        if d == s or 0xAC00 <= c < 0xD7A4:
            continue
        if nfc(s) == s:
            a, b = nfc(d[:-1]), d[-1]
            assert len(a) == 1 and nfc(a + b) == s and nfd(b) == b, hex(c)
            print("P %x %x %x" % (c, ord(a), ord(b)))
        else:
            print("E %x" % c, " ".join("%x" % ord(x) for x in d))


def main():
    if sys.argv[1:] == ["--properties"]:
        return properties()
    tok, tmpl = load(sys.argv[1]), template(sys.argv[2])
    sys.stdin.reconfigure(encoding="utf-8")
    sys.stdout.reconfigure(encoding="utf-8")
    for line in sys.stdin:
        request = json.loads(line)
        answer = {}
        try:
            text = request.get("text")
            if text is None:
                answer["prompt"] = text = render(tmpl, request["chat"])
            answer["ids"] = tok.encode(text, add_special_tokens=False).ids
        except Exception as e:  # the comparison wants to know that it failed, not how
            answer = {"error": "%s: %s" % (type(e).__name__, e)}
        print(json.dumps(answer, ensure_ascii=False))


main()
