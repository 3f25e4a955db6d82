// openai (npm) as it comes, against the gateway.

import assert from "node:assert/strict";
import test from "node:test";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import {
  hello, key, model, openURL, paris, rome, smallKey, smallModel, stops, url, weather, withFault,
} from "./gateway.mjs";

const client = new OpenAI({ baseURL: url, apiKey: key });
const chat = (body, options) => client.chat.completions.create({ model, messages: hello, ...body }, options);
const Trip = z.object({ city: z.string(), days: z.number().int() });
const named = { type: "function", function: { name: "get_weather" } };

async function collect(stream) {
  const got = { text: "", thought: "", finish: null, usage: null };
  for await (const chunk of stream) {
    got.usage = chunk.usage ?? got.usage;
    for (const choice of chunk.choices) {
      got.text += choice.delta.content ?? "";
      got.thought += choice.delta.reasoning_content ?? "";
      got.finish = choice.finish_reason ?? got.finish;
    }
  }
  return got;
}

test("invoke", async () => {
  const got = await chat();
  assert.ok(got.choices[0].message.content);
  assert.equal(got.choices[0].finish_reason, "stop");
  assert.equal(got.model, model);
  assert.equal(got.usage.total_tokens, got.usage.prompt_tokens + got.usage.completion_tokens);
});

test("stream says the same", async () => {
  const whole = await chat();
  const got = await collect(await chat({ stream: true }));
  assert.equal(got.text, whole.choices[0].message.content);
  assert.equal(got.thought, whole.choices[0].message.reasoning_content);
  assert.equal(got.finish, "stop");
  assert.equal(got.usage, null); // not asked for
});

test("stream with usage", async () => {
  const whole = await chat();
  const got = await collect(await chat({ stream: true, stream_options: { include_usage: true } }));
  assert.deepEqual(got.usage.total_tokens, whole.usage.total_tokens);
});

test("stream helper", async () => {
  const stream = client.chat.completions.stream({ model, messages: hello });
  let text = "";
  stream.on("content", (delta) => (text += delta));
  assert.equal(await stream.finalContent(), text);
  assert.ok(text);
});

test("several choices", async () => {
  assert.deepEqual((await chat({ n: 2 })).choices.map((c) => c.index), [0, 1]);
});

test("logprobs", async () => {
  const got = await chat({ logprobs: true, top_logprobs: 2, max_tokens: 5, enable_thinking: false });
  assert.equal(got.choices[0].logprobs.content.length, 5);
});

test("completion", async () => {
  const whole = await client.completions.create({ model, prompt: "Once" });
  let text = "";
  for await (const c of await client.completions.create({ model, prompt: "Once", stream: true })) text += c.choices[0].text;
  assert.ok(text);
  assert.equal(text, whole.choices[0].text);
});

test("models", async () => {
  const ids = [];
  for await (const m of client.models.list()) ids.push(m.id);
  assert.ok(ids.includes(model) && ids.includes(smallModel), ids.join());
  assert.equal((await client.models.retrieve(model)).id, model);
  const bound = await new OpenAI({ baseURL: url, apiKey: smallKey }).models.list();
  assert.deepEqual(bound.data.map((m) => m.id), [smallModel]);
});

test("headers", async () => {
  const { data, response, request_id } = await chat().withResponse();
  assert.ok(request_id && data._request_id === request_id);
  assert.ok(response.headers.get("x-tidegate-level"));
});

for (const choice of ["auto", "required", named]) {
  const name = choice.type ? "named" : choice;
  test(`tools, ${name}`, async () => {
    const ask = { messages: paris, tools: [weather], tool_choice: choice };
    const { message } = (await chat(ask)).choices[0];
    assert.deepEqual(message.tool_calls.map((c) => JSON.parse(c.function.arguments)), [{ city: "Paris" }]);
    const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: "sunny" };
    const last = await chat({ messages: [...paris, message, result], tools: [weather] });
    assert.ok(last.choices[0].message.content);
  });
  test(`tools streamed, ${name}`, async () => {
    const final = await client.chat.completions
      .stream({ model, messages: paris, tools: [weather], tool_choice: choice })
      .finalChatCompletion();
    const [call] = final.choices[0].message.tool_calls;
    assert.ok(call.id);
    assert.equal(call.function.name, "get_weather");
    assert.deepEqual(JSON.parse(call.function.arguments), { city: "Paris" });
  });
}

for (const stream of [false, true]) {
  test(`runTools${stream ? ", streamed" : ""}`, async () => {
    const asked = [];
    const tool = zodFunction({
      name: "get_weather",
      description: "Current weather of a city",
      parameters: z.object({ city: z.string() }),
      function: ({ city }) => {
        asked.push(city);
        return "sunny";
      },
    });
    const runner = client.chat.completions.runTools({ model, messages: paris, tools: [tool], stream });
    assert.ok(await runner.finalContent());
    assert.deepEqual(asked, ["Paris"]);
  });
}

for (const [body, thinks] of [
  [{ enable_thinking: true, return_reasoning: true }, true],
  [{ enable_thinking: false }, false],
  [{ return_reasoning: false }, false],
  [{ chat_template_kwargs: { enable_thinking: false } }, false],
  [{ thinking: { type: "disabled" } }, false],
  [{ extra_body: { enable_thinking: false } }, false], // Node has no extra_body, but people write it
  [{ reasoning_effort: "none" }, false],
]) {
  test(`thinking, ${JSON.stringify(body)}`, async () => {
    const { message } = (await chat(body)).choices[0];
    assert.ok(message.content);
    assert.equal(Boolean(message.reasoning_content), thinks);
    assert.equal((await collect(await chat({ ...body, stream: true }))).thought, message.reasoning_content ?? "");
  });
}

test("structured output", async () => {
  const response_format = zodResponseFormat(Trip, "trip");
  const got = await client.chat.completions.parse({ model, messages: rome, response_format });
  assert.deepEqual(got.choices[0].message.parsed, { city: "Rome", days: 4 });
  const streamed = await client.chat.completions.stream({ model, messages: rome, response_format }).finalChatCompletion();
  assert.deepEqual(streamed.choices[0].message.parsed, { city: "Rome", days: 4 });
});

for (const [name, apiKey, body, type, code] of [
  ["unknown key", "EMPTY", {}, OpenAI.AuthenticationError, "invalid_api_key"],
  ["model not allowed", smallKey, {}, OpenAI.PermissionDeniedError, "model_not_allowed"],
  ["unknown model", key, { model: "gpt-4o" }, OpenAI.NotFoundError, "model_not_found"],
  ["too long", key, { max_tokens: 50_000 }, OpenAI.BadRequestError, "context_length_exceeded"],
  ["the server's refusal", key, { temperature: -1 }, OpenAI.BadRequestError, "invalid_request"],
]) {
  for (const stream of [false, true]) {
    test(`error, ${name}${stream ? ", streamed" : ""}`, async () => {
      let tries = 0;
      const counted = new OpenAI({
        baseURL: url,
        apiKey,
        fetch: (...args) => {
          tries++;
          return fetch(...args);
        },
      });
      await assert.rejects(counted.chat.completions.create({ model, messages: hello, stream, ...body }), (e) => {
        assert.ok(e instanceof type, e);
        assert.equal(e.code, code);
        assert.ok(e.type && e.message && e.requestID);
        return true;
      });
      assert.equal(tries, 1, "what cannot help was tried again");
    });
  }
}

test("busy, then not", async () => {
  await withFault({ kind: "503", count: 1 }, async () => {
    const { data, response } = await chat().withResponse();
    assert.ok(data.choices[0].message.content);
    assert.ok(response.ok);
  });
});

for (const kind of ["error", "die_mid", "truncate"]) {
  test(`failure in the middle: ${kind}`, async () => {
    await withFault({ kind, after: 5 }, async () => {
      let chunks = 0;
      const read = async () => {
        for await (const _ of await chat({ stream: true, sim: { tokens: 60 } })) chunks++;
      };
      await assert.rejects(read(), (e) => e instanceof OpenAI.APIError && e.code === "upstream_error");
      assert.ok(chunks > 0);
    });
  });
}

test("cancel by leaving the loop", () =>
  stops(async (body) => {
    for await (const _ of await chat({ ...body, stream: true })) break;
  }));

test("cancel by AbortController, streamed", () =>
  stops(async (body) => {
    const abort = new AbortController();
    for await (const _ of await chat({ ...body, stream: true }, { signal: abort.signal })) abort.abort();
  }));

test("cancel by AbortController, whole", () =>
  stops((body) => assert.rejects(chat(body, { signal: AbortSignal.timeout(200) }), OpenAI.APIUserAbortError)));

test("the open gateway takes any key", async () => {
  const open = new OpenAI({ baseURL: openURL, apiKey: "EMPTY" });
  const got = await open.chat.completions.create({ model, messages: hello, enable_thinking: true, return_reasoning: true });
  assert.ok(got.choices[0].message.content && got.choices[0].message.reasoning_content);
});
