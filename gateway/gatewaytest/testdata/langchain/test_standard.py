"""LangChain's standard integration suite against a base_url.

Run it against the simulator alone or against a gateway in front of it:

    tidegate-vllm-sim --listen 127.0.0.1:8000 &
    OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=EMPTY \
        PYTHONDONTWRITEBYTECODE=1 pytest test_standard.py

Needs langchain-openai and langchain-tests. MODEL names the model, default
Qwen3-1.7B.
"""

import os

import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class Shared(ChatModelIntegrationTests):
    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        return {
            "model": os.environ.get("MODEL", "Qwen3-1.7B"),
            "base_url": os.environ["OPENAI_BASE_URL"],
            "api_key": os.environ.get("OPENAI_API_KEY", "EMPTY"),
            "stream_usage": True,
            "max_retries": 0,
        }

    @property
    def supports_json_mode(self):
        return True


class TestThinking(Shared):
    """The server's default: the model thinks first."""


class TestNoThinking(Shared):
    @property
    def chat_model_params(self):
        return {
            **super().chat_model_params,
            "extra_body": {"chat_template_kwargs": {"enable_thinking": False}},
        }


class TestAutoTools(Shared):
    """The model decides by itself whether to call a tool."""

    @property
    def has_tool_choice(self):
        return False


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_structured_methods(method):
    from pydantic import BaseModel

    class Trip(BaseModel):
        city: str
        days: int
        stops: list[str]

    llm = ChatOpenAI(**Shared().chat_model_params)
    if method == "json_mode":
        raw = llm.bind(response_format={"type": "json_object"}).invoke(
            "JSON with 'city' and 'days', please"
        )
        assert '"city"' in raw.content and '"days"' in raw.content
        return
    got = llm.with_structured_output(Trip, method=method).invoke(
        "Plan 4 days in Rome with the Forum"
    )
    assert got.days == 4
    assert got.city


def test_stream_usage_and_reasoning_hook():
    llm = ChatOpenAI(
        **Shared().chat_model_params,
        extra_body={"sim": {"tokens": 40, "thinking_tokens": 10}},
    )
    full = None
    for chunk in llm.stream([HumanMessage("Hello")]):
        full = chunk if full is None else full + chunk
    assert full.usage_metadata["output_tokens"] == 40
    assert full.usage_metadata["input_tokens"] == 9
    assert full.response_metadata["finish_reason"] == "stop"
