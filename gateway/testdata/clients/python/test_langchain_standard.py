"""LangChain's own integration suite for chat models, against the gateway.

What a text-only Qwen3 cannot do is switched off by the suite's own properties,
each with its reason; all else must pass.
"""

from conftest import KEY, MODEL, SMALL_MODEL, URL
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class Shared(ChatModelIntegrationTests):
    body = {"enable_thinking": True, "return_reasoning": True}

    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        return {
            "model": MODEL,
            "base_url": URL,
            "api_key": KEY,
            # ChatOpenAI asks for usage on streams by itself only at OpenAI.
            "stream_usage": True,
            "extra_body": self.body,
        }

    @property
    def supports_json_mode(self):
        return True

    @property
    def supports_anthropic_inputs(self):
        return True  # the textual part of them; images are asked for only with image inputs

    @property
    def model_override_value(self):
        return SMALL_MODEL

    # Qwen3 reads text only: no images, neither in messages nor in tool results.
    supports_image_inputs = False
    supports_image_urls = False
    supports_image_tool_message = False
    # Nor PDF files, for the same reason.
    supports_pdf_inputs = False
    supports_pdf_tool_message = False
    # Nor sound or film.
    supports_audio_inputs = False
    supports_video_inputs = False
    # Recorded HTTP would test the recording: here a gateway answers every time.
    enable_vcr_tests = False


class TestThinking(Shared):
    """The model thinks first."""


class TestNoThinking(Shared):
    body = {"enable_thinking": False}


class TestAutoTools(Shared):
    """Nothing forces a tool: the model decides by itself."""

    has_tool_choice = False


class TestFunctionCalling(Shared):
    """Structured output by way of a tool instead of a JSON schema."""

    @property
    def structured_output_kwargs(self):
        return {"method": "function_calling"}
