"""openai (Python) as it comes, against the gateway."""

import asyncio
import json

import openai
import pytest
from conftest import KEY, LONG, MODEL, OPEN_URL, SMALL_KEY, SMALL_MODEL, URL
from pydantic import BaseModel

HELLO = [{"role": "user", "content": "Hello"}]

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
ASK_WEATHER = [{"role": "user", "content": 'Use get_weather for "Paris"'}]
NAMED = {"type": "function", "function": {"name": "get_weather"}}


class Trip(BaseModel):
    city: str
    days: int


@pytest.fixture
def client():
    with openai.OpenAI(base_url=URL, api_key=KEY) as c:
        yield c


def reasoning(part):
    return getattr(part, "reasoning_content", None) or ""


def collect(stream):
    text = thought = ""
    finish = usage = None
    for chunk in stream:
        if chunk.usage:
            usage = chunk.usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            thought += reasoning(choice.delta)
            finish = choice.finish_reason or finish
    return text, thought, finish, usage


def test_invoke(client):
    got = client.chat.completions.create(model=MODEL, messages=HELLO)
    assert got.choices[0].message.content
    assert got.choices[0].finish_reason == "stop"
    assert got.model == MODEL
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens


def test_stream_says_the_same(client):
    whole = client.chat.completions.create(model=MODEL, messages=HELLO)
    text, thought, finish, usage = collect(
        client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    )
    assert text == whole.choices[0].message.content
    assert thought == reasoning(whole.choices[0].message)
    assert finish == "stop"
    assert usage is None  # not asked for


def test_stream_usage(client):
    whole = client.chat.completions.create(model=MODEL, messages=HELLO)
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    assert collect(stream)[3].total_tokens == whole.usage.total_tokens


def test_stream_helper(client):
    with client.chat.completions.stream(model=MODEL, messages=HELLO) as stream:
        text = "".join(e.delta for e in stream if e.type == "content.delta")
        final = stream.get_final_completion()
    assert text and text == final.choices[0].message.content


def test_choices(client):
    got = client.chat.completions.create(model=MODEL, messages=HELLO, n=2)
    assert [c.index for c in got.choices] == [0, 1]


def test_logprobs(client):
    got = client.chat.completions.create(
        model=MODEL, messages=HELLO, logprobs=True, top_logprobs=2, max_tokens=5,
        extra_body={"enable_thinking": False},
    )
    assert len(got.choices[0].logprobs.content) == 5


def test_completion(client):
    whole = client.completions.create(model=MODEL, prompt="Once")
    stream = client.completions.create(model=MODEL, prompt="Once", stream=True)
    assert "".join(c.choices[0].text for c in stream) == whole.choices[0].text != ""


def test_models(client):
    assert {MODEL, SMALL_MODEL} <= {m.id for m in client.models.list()}
    assert client.models.retrieve(MODEL).id == MODEL


def test_models_of_a_bound_key():
    with openai.OpenAI(base_url=URL, api_key=SMALL_KEY) as c:
        assert [m.id for m in c.models.list()] == [SMALL_MODEL]


def test_headers(client):
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
    assert raw.headers["x-request-id"]
    assert raw.headers["x-tidegate-level"]
    assert raw.parse()._request_id == raw.headers["x-request-id"]
    with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=HELLO, stream=True
    ) as raw:
        assert raw.headers["x-request-id"] and raw.headers["x-tidegate-level"]
        for _ in raw.iter_lines():
            pass


@pytest.mark.parametrize("choice", ["auto", "required", NAMED], ids=["auto", "required", "named"])
def test_tools(client, choice):
    got = client.chat.completions.create(
        model=MODEL, messages=ASK_WEATHER, tools=[WEATHER], tool_choice=choice
    ).choices[0].message
    assert [json.loads(c.function.arguments) for c in got.tool_calls] == [{"city": "Paris"}]
    result = {"role": "tool", "tool_call_id": got.tool_calls[0].id, "content": "sunny"}
    last = client.chat.completions.create(
        model=MODEL, messages=[*ASK_WEATHER, got, result], tools=[WEATHER]
    )
    assert last.choices[0].message.content


@pytest.mark.parametrize("choice", ["auto", "required", NAMED], ids=["auto", "required", "named"])
def test_tools_streamed(client, choice):
    with client.chat.completions.stream(
        model=MODEL, messages=ASK_WEATHER, tools=[WEATHER], tool_choice=choice
    ) as stream:
        # Not the event that the arguments are done: the helper leaves it out where
        # a busy server sends a whole call and its end in one chunk.
        deltas = [e for e in stream if e.type == "tool_calls.function.arguments.delta"]
        final = stream.get_final_completion()
    assert {e.name for e in deltas} == {"get_weather"}
    assert json.loads("".join(e.arguments_delta for e in deltas)) == {"city": "Paris"}
    call = final.choices[0].message.tool_calls[0]
    assert call.id and json.loads(call.function.arguments) == {"city": "Paris"}


@pytest.mark.parametrize(
    ("body", "thinks"),
    [
        ({"enable_thinking": True, "return_reasoning": True}, True),
        ({"enable_thinking": True}, True),
        ({"enable_thinking": False}, False),
        ({"return_reasoning": False}, False),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"thinking": {"type": "disabled"}}, False),
        ({"extra_body": {"enable_thinking": False}}, False),
    ],
    ids=str,
)
def test_thinking(client, body, thinks):
    ask = {"model": MODEL, "messages": HELLO, "extra_body": body}
    whole = client.chat.completions.create(**ask).choices[0].message
    assert whole.content
    assert bool(reasoning(whole)) == thinks
    assert collect(client.chat.completions.create(**ask, stream=True))[1] == reasoning(whole)


def test_effort_none(client):
    got = client.chat.completions.create(model=MODEL, messages=HELLO, reasoning_effort="none")
    assert got.choices[0].message.content and not reasoning(got.choices[0].message)


def test_structured_output(client):
    got = client.chat.completions.parse(
        model=MODEL, messages=[{"role": "user", "content": '4 days in "Rome"'}], response_format=Trip
    )
    assert got.choices[0].message.parsed == Trip(city="Rome", days=4)


def test_structured_output_streamed(client):
    with client.chat.completions.stream(
        model=MODEL, messages=[{"role": "user", "content": '4 days in "Rome"'}], response_format=Trip
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == Trip(city="Rome", days=4)


@pytest.mark.parametrize(
    ("key", "ask", "error", "code"),
    [
        ("EMPTY", {}, openai.AuthenticationError, "invalid_api_key"),
        (SMALL_KEY, {}, openai.PermissionDeniedError, "model_not_allowed"),
        (KEY, {"model": "gpt-4o"}, openai.NotFoundError, "model_not_found"),
        (KEY, {"max_tokens": 50_000}, openai.BadRequestError, "context_length_exceeded"),
        (KEY, {"temperature": -1}, openai.BadRequestError, "invalid_request"),
        (KEY, {"model": "Qwen3-gone"}, openai.InternalServerError, "no_backend"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_errors(key, ask, error, code, stream):
    with openai.OpenAI(base_url=URL, api_key=key, max_retries=0) as c:
        with pytest.raises(error) as e:
            c.chat.completions.create(**{"model": MODEL, "messages": HELLO, "stream": stream, **ask})
    assert e.value.code == code
    assert e.value.type and e.value.message
    assert e.value.request_id


def test_no_retry_where_none_helps(client, monkeypatch):
    tries = []
    send = client._client.send
    monkeypatch.setattr(client._client, "send", lambda *a, **k: tries.append(1) or send(*a, **k))
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert len(tries) == 1


def test_busy_then_not(client, servers):
    servers.fault(kind="503", count=1)
    got = client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
    assert got.retries_taken == 1
    assert got.parse().choices[0].message.content


@pytest.mark.parametrize("kind", ["error", "die_mid", "truncate"])
def test_failure_in_the_middle(client, servers, kind):
    servers.fault(kind=kind, after=5)
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, extra_body={"sim": {"tokens": 60}}
    )
    seen = 0
    with pytest.raises(openai.APIError) as e:
        for _ in stream:
            seen += 1
    assert seen > 0
    assert e.value.code == "upstream_error"


def test_cancel(client, slowly, tag):
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, user=tag, extra_body={"sim": {"tokens": LONG}}
    )
    for _ in stream:
        break
    stream.close()
    record = slowly.record(tag)
    assert record["Aborted"] and record["Output"] < LONG


async def test_async():
    async with openai.AsyncOpenAI(base_url=URL, api_key=KEY) as c:
        asks = [c.chat.completions.create(model=MODEL, messages=HELLO) for _ in range(8)]
        assert all(a.choices[0].message.content for a in await asyncio.gather(*asks))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_async_cancel(slowly, tag, stream):
    began = asyncio.Event()

    async def ask(c):
        got = c.chat.completions.create(
            model=MODEL, messages=HELLO, stream=stream, user=tag, extra_body={"sim": {"tokens": LONG}}
        )
        if not stream:
            asyncio.get_running_loop().call_later(0.2, began.set)
            return await got
        # Only a with statement closes a stream that is cancelled between two reads: the
        # exception's traceback keeps the iterator alive.
        async with await got as chunks:
            async for _ in chunks:
                began.set()
                await asyncio.sleep(0)  # where data always waits, nothing else can be cancelled

    async with openai.AsyncOpenAI(base_url=URL, api_key=KEY) as c:
        task = asyncio.create_task(ask(c))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        record = await asyncio.to_thread(slowly.record, tag)
    assert record["Aborted"] and record["Output"] < LONG


def test_open_gateway_takes_any_key():
    with openai.OpenAI(base_url=OPEN_URL, api_key="EMPTY") as c:
        got = c.chat.completions.create(
            model=MODEL, messages=HELLO,
            extra_body={"enable_thinking": True, "return_reasoning": True},
        )
    assert got.choices[0].message.content and reasoning(got.choices[0].message)
