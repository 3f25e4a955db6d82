"""The clients as they come, at every level of degradation.

A third gateway, whose large model has the small one to fall back on, is pinned to
one level after the other over the admin API.
"""

import contextlib
import json
import os
import urllib.request

import openai
import pytest
from conftest import KEY, MODEL, PATIENCE, SMALL_MODEL
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAI
from test_langchain import Trip as LangChainTrip
from test_langchain import get_weather
from test_openai import ASK_WEATHER, HELLO, NAMED, WEATHER, Trip, collect, reasoning

URL = os.environ["TIDEGATE_LADDER_URL"]
ADMIN_KEY = os.environ["TIDEGATE_LADDER_ADMIN_KEY"]
CANNED = "The service is busy, please try again shortly."
ROME = [{"role": "user", "content": '4 days in "Rome"'}]
TOOLS = {"messages": ASK_WEATHER, "tools": [WEATHER]}


class Level:
    """A level, and what an answer at it must be like."""

    def __init__(self, number):
        self.number = number
        self.name = f"L{number}"
        self.model = [MODEL, MODEL, MODEL, SMALL_MODEL, "tidegate-canned"][number]
        self.canned = number == 4
        self.thinks = number < 2
        self.notice = {"level": self.name, "reason": "pin", "served": self.model} if number else None

    def pin(self):
        request = urllib.request.Request(
            f"{URL.removesuffix('/v1')}/admin/v1/models/{MODEL}/level",
            data=json.dumps({"level": self.name, "for": "1h"}).encode(),
            headers={"Authorization": f"Bearer {ADMIN_KEY}", "Content-Type": "application/json"},
            method="PUT",
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            assert json.load(answer)["level"] == self.name


@pytest.fixture(scope="module", params=range(5), ids=lambda n: f"L{n}")
def level(request):
    one = Level(request.param)
    one.pin()
    return one


@pytest.fixture(scope="module")
def client():
    # A request that is refused must not pass by being tried again.
    with openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0) as c:
        yield c


def says(level, text):
    assert text == CANNED if level.canned else text


def calls_weather(level, message):
    if level.canned:
        assert not message.tool_calls
        assert message.content == CANNED
    else:
        assert [json.loads(c.function.arguments) for c in message.tool_calls] == [{"city": "Paris"}]


@contextlib.contextmanager
def busy():
    """Where no model answers, a program that wants a call or a format gets an error, not a text."""
    with pytest.raises(openai.InternalServerError, match=CANNED) as e:
        yield
    assert (e.value.status_code, e.value.code) == (503, "overloaded")


def test_create(client, level):
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
    assert raw.headers["x-tidegate-level"] == level.name
    assert raw.headers["x-tidegate-reason"] == ("pin" if level.number else "none")
    got = raw.parse()
    assert got.model == level.model
    assert got.choices[0].finish_reason == "stop"
    says(level, got.choices[0].message.content)
    assert bool(reasoning(got.choices[0].message)) == level.thinks
    assert (got.usage.total_tokens == 0) == level.canned
    assert getattr(got, "tidegate", None) == level.notice


def test_stream(client, level):
    ask = {"model": MODEL, "messages": HELLO, "stream": True}
    text, thought, finish, usage = collect(client.chat.completions.create(**ask))
    says(level, text)
    assert bool(thought) == level.thinks
    assert finish == "stop"
    assert usage is None
    chunks = list(client.chat.completions.create(**ask, stream_options={"include_usage": True}))
    assert {c.model for c in chunks} == {level.model}
    assert all(getattr(c, "tidegate", None) == level.notice for c in chunks if c.choices)
    assert len({c.id for c in chunks}) == 1
    whole = client.chat.completions.create(model=MODEL, messages=HELLO)
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_stream_helper(client, level):
    with client.chat.completions.stream(model=MODEL, messages=HELLO) as stream:
        text = "".join(e.delta for e in stream if e.type == "content.delta")
        final = stream.get_final_completion()
    says(level, text)
    assert final.choices[0].message.content == text
    assert final.model == level.model


def test_choices(client, level):
    got = client.chat.completions.create(model=MODEL, messages=HELLO, n=3)
    assert [c.index for c in got.choices] == list(range(1 if level.number else 3))


def test_completion(client, level):
    ask = {"model": MODEL, "prompt": ["Once", "Twice"]}
    whole = client.completions.create(**ask)
    texts = ["", ""]
    for c in client.completions.create(**ask, stream=True):
        texts[c.choices[0].index] += c.choices[0].text
    assert [c.text for c in whole.choices] == texts
    for text in texts:
        says(level, text)


@pytest.mark.parametrize("choice", ["auto", "required", NAMED], ids=["auto", "required", "named"])
def test_tools(client, level, choice):
    ask = {"model": MODEL, **TOOLS, "tool_choice": choice}
    if level.canned and choice != "auto":
        with busy():
            client.chat.completions.create(**ask)
        with busy(), client.chat.completions.stream(**ask):
            pass
        return
    calls_weather(level, client.chat.completions.create(**ask).choices[0].message)
    with client.chat.completions.stream(**ask) as stream:
        for _ in stream:
            pass
        calls_weather(level, stream.get_final_completion().choices[0].message)


def test_structured_output(client, level):
    ask = {"model": MODEL, "messages": ROME, "response_format": Trip}
    if level.canned:
        with busy():
            client.chat.completions.parse(**ask)
        with busy(), client.chat.completions.stream(**ask):
            pass
        return
    assert client.chat.completions.parse(**ask).choices[0].message.parsed == Trip(city="Rome", days=4)
    with client.chat.completions.stream(**ask) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.parsed == Trip(city="Rome", days=4)


async def test_async(level):
    async with openai.AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0) as c:
        got = ""
        async for chunk in await c.chat.completions.create(model=MODEL, messages=HELLO, stream=True):
            got += chunk.choices[0].delta.content or ""
    says(level, got)


def test_refused(client, level):
    ask = {"model": MODEL, "messages": HELLO, "extra_headers": {"x-tidegate-max-level": "L1"}}
    if level.number <= 1:
        assert client.chat.completions.create(**ask).choices[0].message.content
        return
    with pytest.raises(openai.InternalServerError) as e:
        client.chat.completions.create(**ask)
    assert (e.value.status_code, e.value.code) == (503, "overloaded")


def chat(**more):
    return ChatOpenAI(base_url=URL, api_key=KEY, model=MODEL, max_retries=0, **more)


def test_langchain(level):
    got = chat(include_response_headers=True).invoke("Hello")
    says(level, got.content)
    assert got.response_metadata["model_name"] == level.model
    assert got.response_metadata["headers"]["x-tidegate-level"] == level.name
    assert got.response_metadata["token_usage"].get("tidegate") == level.notice
    full = None
    for chunk in chat(stream_usage=True).stream("Hello"):
        full = chunk if full is None else full + chunk
    assert full.content == got.content
    assert full.usage_metadata["total_tokens"] == got.usage_metadata["total_tokens"]
    assert full.response_metadata["finish_reason"] == "stop"
    says(level, OpenAI(base_url=URL, api_key=KEY, model=MODEL, max_retries=0).invoke("Once"))


@pytest.mark.parametrize("choice", ["auto", "any", "get_weather"])
def test_langchain_tools(level, choice):
    llm = chat().bind_tools([get_weather], tool_choice=choice)
    asked = [HumanMessage('Use get_weather for "Paris"')]
    if level.canned and choice != "auto":
        with busy():
            llm.invoke(asked)
        with busy():
            list(llm.stream(asked))
        return
    full = None
    for chunk in llm.stream(asked):
        full = chunk if full is None else full + chunk
    for got in (llm.invoke(asked), full):
        if level.canned:
            assert got.tool_calls == []
            assert got.content == CANNED
        else:
            assert [(c["name"], c["args"]) for c in got.tool_calls] == [("get_weather", {"city": "Paris"})]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_structured_output(level, method):
    llm = chat().with_structured_output(LangChainTrip, method=method)
    if level.canned:
        with busy():
            llm.invoke('4 days in "Rome"')
        with busy():
            list(llm.stream('4 days in "Rome"'))
        return
    assert llm.invoke('4 days in "Rome"') == LangChainTrip(city="Rome", days=4)
    assert list(llm.stream('4 days in "Rome"'))[-1] == LangChainTrip(city="Rome", days=4)
