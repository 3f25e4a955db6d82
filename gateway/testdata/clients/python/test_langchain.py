"""langchain-openai as it comes, against the gateway."""

import asyncio
import contextlib

import openai
import pytest
from conftest import KEY, LONG, MODEL, OPEN_URL, URL
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field


class Trip(BaseModel):
    """A trip."""

    city: str = Field(description="where to")
    days: int = Field(description="for how long")


@tool
def get_weather(city: str) -> str:
    """Current weather of a city."""
    return "sunny in " + city


def chat(**more):
    return ChatOpenAI(base_url=URL, api_key=KEY, model=MODEL, **more)


def test_as_written():
    """The call of the requirements, letter for letter."""
    llm = ChatOpenAI(
        base_url=OPEN_URL,
        api_key="EMPTY",
        model=MODEL,
        extra_body={"enable_thinking": True, "return_reasoning": True},
    )
    got = llm.invoke("Hello")
    assert got.content
    # ChatOpenAI drops the field itself, so the tokens tell: the prompt of a
    # conversation that thinks has none of the four of the empty think block.
    assert got.usage_metadata["input_tokens"] == 9
    assert "".join(c.content for c in llm.stream("Hello")) == got.content


@pytest.mark.parametrize("on", [True, False])
def test_thinking(servers, tag, on):
    llm = chat(extra_body={"enable_thinking": on, "return_reasoning": True, "user": tag})
    got = llm.invoke("Hello")
    assert got.content
    assert got.usage_metadata["input_tokens"] == (9 if on else 13)
    assert (servers.record(tag)["Reasoning"] > 0) == on


def test_stream_usage():
    llm = chat(stream_usage=True)
    full = None
    for chunk in llm.stream([HumanMessage("Hello")]):
        full = chunk if full is None else full + chunk
    streamed, whole = full.usage_metadata, llm.invoke("Hello").usage_metadata
    # This engine states no reasoning tokens. Of a stream the gateway knows how many the engine
    # had made when the reasoning ended; of a whole answer it counts the text, which a
    # stand-in's made-up tokens may divide in another way.
    for usage in (streamed, whole):
        assert 0 < usage.pop("output_token_details")["reasoning"] < usage["output_tokens"]
    assert streamed == whole
    assert full.response_metadata["finish_reason"] == "stop"


def test_headers():
    got = chat(include_response_headers=True).invoke("Hello")
    assert got.response_metadata["headers"]["x-request-id"]
    assert got.response_metadata["headers"]["x-tidegate-level"]


@pytest.mark.parametrize("choice", ["auto", "any", "get_weather"])
def test_tools(choice):
    llm = chat().bind_tools([get_weather], tool_choice=choice)
    asked = HumanMessage('Use get_weather for "Paris"')
    got = llm.invoke([asked])
    assert [(c["name"], c["args"]) for c in got.tool_calls] == [("get_weather", {"city": "Paris"})]
    full = None
    for chunk in llm.stream([asked]):
        full = chunk if full is None else full + chunk
    assert full.tool_calls[0]["args"] == {"city": "Paris"}
    result = get_weather.invoke(got.tool_calls[0])
    assert chat().bind_tools([get_weather]).invoke([asked, got, result]).content


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(method):
    llm = chat().with_structured_output(Trip, method=method)
    assert llm.invoke('4 days in "Rome"') == Trip(city="Rome", days=4)
    assert list(llm.stream('4 days in "Rome"'))[-1] == Trip(city="Rome", days=4)


def test_json_mode():
    got = chat().bind(response_format={"type": "json_object"}).invoke('JSON with "city", please')
    assert '"city"' in got.content


def test_batch():
    got = chat().batch(["Hello"] * 6, config={"max_concurrency": 6})
    assert len({g.content for g in got}) == 1


def test_completion():
    assert OpenAI(base_url=URL, api_key=KEY, model=MODEL, max_tokens=8).invoke("Once")


@pytest.mark.parametrize(
    ("more", "error", "code"),
    [
        ({"api_key": "EMPTY"}, openai.AuthenticationError, "invalid_api_key"),
        ({"model": "gpt-4o"}, openai.NotFoundError, "model_not_found"),
        ({"temperature": -1}, openai.BadRequestError, "invalid_request"),
    ],
    ids=["401", "404", "400"],
)
def test_errors(more, error, code):
    llm = ChatOpenAI(**{"base_url": URL, "api_key": KEY, "model": MODEL, **more})
    with pytest.raises(error) as e:
        llm.invoke("Hello")
    assert e.value.code == code


def test_context_overflow():
    """LangChain has an error of its own for it, which agents catch."""
    with pytest.raises(openai.BadRequestError) as e:
        chat(max_tokens=50_000).invoke("Hello")
    assert e.value.code == "context_length_exceeded"
    assert type(e.value).__name__ == "OpenAIContextOverflowError"


def test_failure_in_the_middle(servers):
    servers.fault(kind="die_mid", after=5)
    with pytest.raises(openai.APIError) as e:
        list(chat(extra_body={"sim": {"tokens": 60}}).stream("Hello"))
    assert e.value.code == "upstream_error"


async def test_async_cancel(slowly, tag):
    llm = chat(extra_body={"sim": {"tokens": LONG}, "user": tag})
    began = asyncio.Event()

    async def ask():
        async with contextlib.aclosing(llm.astream("Hello")) as chunks:  # as in test_openai.py
            async for _ in chunks:
                began.set()
                await asyncio.sleep(0)  # where data always waits, nothing else can be cancelled

    task = asyncio.create_task(ask())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    record = await asyncio.to_thread(slowly.record, tag)
    assert record["Aborted"] and record["Output"] < LONG
