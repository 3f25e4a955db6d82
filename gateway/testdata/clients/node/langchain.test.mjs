// @langchain/openai (npm) as it comes, against the gateway. LangChain's standard
// suite for JavaScript is not run: its package is not in the public registry.

import assert from "node:assert/strict";
import test from "node:test";
import { ContextOverflowError } from "@langchain/core/errors";
import { HumanMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI, OpenAI } from "@langchain/openai";
import { z } from "zod";
import { key, model, openURL, smallModel, stops, url, withFault } from "./gateway.mjs";

const chat = ({ body, ...more } = {}) =>
  new ChatOpenAI({ model, apiKey: key, configuration: { baseURL: url }, modelKwargs: body, ...more });
const Trip = z.object({ city: z.string().describe("where to"), days: z.number().int().describe("for how long") });
const getWeather = tool(({ city }) => `sunny in ${city}`, {
  name: "get_weather",
  description: "Current weather of a city",
  schema: z.object({ city: z.string() }),
});

async function collect(stream) {
  let full;
  for await (const chunk of await stream) full = full ? full.concat(chunk) : chunk;
  return full;
}

test("invoke", async () => {
  const got = await chat().invoke("Hello");
  assert.ok(got.content);
  assert.equal(got.response_metadata.finish_reason, "stop");
  assert.equal(got.usage_metadata.total_tokens, got.usage_metadata.input_tokens + got.usage_metadata.output_tokens);
});

test("stream says the same, usage included", async () => {
  const whole = await chat().invoke("Hello");
  const full = await collect(chat().stream("Hello"));
  assert.equal(full.content, whole.content);
  assert.equal(full.usage_metadata.total_tokens, whole.usage_metadata.total_tokens);
});

test("streaming: true behind invoke", async () => {
  assert.equal((await chat({ streaming: true }).invoke("Hello")).content, (await chat().invoke("Hello")).content);
});

test("batch", async () => {
  const got = await chat().batch(["Hello", "Hello", "Hello", "Hello"]);
  assert.equal(new Set(got.map((m) => m.content)).size, 1);
});

test("another model at call time", async () => {
  const got = await chat({ model: smallModel }).invoke("Hello");
  assert.equal(got.response_metadata.model_name, smallModel);
});

test("completion", async () => {
  const llm = new OpenAI({ model, apiKey: key, maxTokens: 8, configuration: { baseURL: url } });
  assert.ok(await llm.invoke("Once"));
});

for (const [body, thinks] of [
  [{ enable_thinking: true, return_reasoning: true }, true],
  [{ enable_thinking: false }, false],
  [{ return_reasoning: false }, false],
]) {
  test(`reasoning_content, ${JSON.stringify(body)}`, async () => {
    const whole = await chat({ body }).invoke("Hello");
    const streamed = await collect(chat({ body }).stream("Hello"));
    assert.ok(whole.content);
    assert.equal(Boolean(whole.additional_kwargs.reasoning_content), thinks);
    assert.equal(streamed.additional_kwargs.reasoning_content ?? "", whole.additional_kwargs.reasoning_content ?? "");
  });
}

for (const tool_choice of ["auto", "any", "get_weather"]) {
  test(`tools, ${tool_choice}`, async () => {
    const asked = new HumanMessage('Use get_weather for "Paris"');
    const llm = chat().bindTools([getWeather], { tool_choice });
    const got = await llm.invoke([asked]);
    assert.deepEqual(got.tool_calls.map(({ name, args }) => ({ name, args })), [{ name: "get_weather", args: { city: "Paris" } }]);
    const streamed = await collect(llm.stream([asked]));
    assert.deepEqual(streamed.tool_calls[0].args, { city: "Paris" });
    const result = await getWeather.invoke(got.tool_calls[0]);
    assert.ok(result instanceof ToolMessage);
    assert.ok((await chat().bindTools([getWeather]).invoke([asked, got, result])).content);
  });
}

for (const method of ["jsonSchema", "functionCalling"]) {
  test(`withStructuredOutput, ${method}`, async () => {
    const llm = chat().withStructuredOutput(Trip, { method, name: "trip" });
    assert.deepEqual(await llm.invoke('4 days in "Rome"'), { city: "Rome", days: 4 });
  });
}

test("withStructuredOutput, jsonMode", async () => {
  const Answer = z.object({ city: z.string() });
  const got = await chat().withStructuredOutput(Answer, { method: "jsonMode" }).invoke('JSON with "city", please');
  assert.ok(got.city);
});

for (const [name, more, status, code] of [
  ["401", { apiKey: "EMPTY" }, 401, "invalid_api_key"],
  ["404", { model: "gpt-4o" }, 404, "model_not_found"],
  ["400", { temperature: -1 }, 400, "invalid_request"],
]) {
  test(`error ${name}`, async () => {
    await assert.rejects(chat(more).invoke("Hello"), (e) => e.status === status && e.code === code);
  });
}

test("LangChain knows that a prompt is too long", async () => {
  await assert.rejects(chat({ maxTokens: 50_000 }).invoke("Hello"), (e) => ContextOverflowError.isInstance(e));
});

test("failure in the middle", async () => {
  await withFault({ kind: "die_mid", after: 5 }, async () => {
    await assert.rejects(collect(chat({ maxRetries: 0, body: { sim: { tokens: 60 } } }).stream("Hello")), /failed before the answer was whole/);
  });
});

test("cancel by AbortController", () =>
  stops(async (body) => {
    const abort = new AbortController();
    const read = async () => {
      for await (const _ of await chat({ body }).stream("Hello", { signal: abort.signal })) abort.abort();
    };
    await assert.rejects(read(), /abort/i);
  }));

test("the open gateway takes any key", async () => {
  const got = await chat({ apiKey: "EMPTY", configuration: { baseURL: openURL }, body: { enable_thinking: true, return_reasoning: true } }).invoke("Hello");
  assert.ok(got.content && got.additional_kwargs.reasoning_content);
});
