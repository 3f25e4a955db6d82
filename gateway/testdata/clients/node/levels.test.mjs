// openai and @langchain/openai (npm) as they come, at every level of degradation. A
// third gateway, whose large model has the small one to fall back on, is pinned to
// one level after the other over the admin API.

import assert from "node:assert/strict";
import { before, describe, test } from "node:test";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI, OpenAI as LangChainOpenAI } from "@langchain/openai";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { hello, key, ladderAdminKey, ladderURL, model, paris, rome, smallModel, weather } from "./gateway.mjs";

const canned = "The service is busy, please try again shortly.";
// A request that is refused must not pass by being tried again.
const client = new OpenAI({ baseURL: ladderURL, apiKey: key, maxRetries: 0 });
const chat = (body, options) => client.chat.completions.create({ model, messages: hello, ...body }, options);
const lang = (more = {}) => new ChatOpenAI({ model, apiKey: key, maxRetries: 0, configuration: { baseURL: ladderURL }, ...more });
// Where no model answers, a program that wants a call or a format gets an error, not a text.
const busy = (e) => e.status === 503 && e.code === "overloaded" && e.message.includes(canned);
const Trip = z.object({ city: z.string(), days: z.number().int() });
const trip = { city: "Rome", days: 4 };
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

for (const [number, name] of ["L0", "L1", "L2", "L3", "L4"].entries()) {
  const isCanned = number === 4;
  const thinks = number < 2;
  const answers = [model, model, model, smallModel, "tidegate-canned"][number];
  const notice = number ? { level: name, reason: "pin", served: answers } : undefined;
  const says = (text) => (isCanned ? assert.equal(text, canned) : assert.ok(text));

  describe(name, () => {
    before(async () => {
      const to = `${ladderURL.replace(/\/v1$/, "")}/admin/v1/models/${model}/level`;
      const headers = { Authorization: `Bearer ${ladderAdminKey}`, "Content-Type": "application/json" };
      const got = await fetch(to, { method: "PUT", headers, body: JSON.stringify({ level: name, for: "1h" }) });
      assert.equal((await got.json()).level, name);
    });

    test("create", async () => {
      const { data, response } = await chat().withResponse();
      assert.equal(response.headers.get("x-tidegate-level"), name);
      assert.equal(response.headers.get("x-tidegate-reason"), number ? "pin" : "none");
      assert.equal(data.model, answers);
      assert.equal(data.choices[0].finish_reason, "stop");
      says(data.choices[0].message.content);
      assert.equal(Boolean(data.choices[0].message.reasoning_content), thinks);
      assert.equal(data.usage.total_tokens === 0, isCanned);
      assert.deepEqual(data.tidegate, notice);
    });

    test("stream", async () => {
      let text = "", thought = "", finish, usage;
      for await (const chunk of await chat({ stream: true, stream_options: { include_usage: true } })) {
        assert.equal(chunk.model, answers);
        if (chunk.choices.length > 0) assert.deepEqual(chunk.tidegate, notice);
        usage = chunk.usage ?? usage;
        text += chunk.choices[0]?.delta.content ?? "";
        thought += chunk.choices[0]?.delta.reasoning_content ?? "";
        finish = chunk.choices[0]?.finish_reason ?? finish;
      }
      says(text);
      assert.equal(Boolean(thought), thinks);
      assert.equal(finish, "stop");
      assert.equal(usage.total_tokens, (await chat()).usage.total_tokens);
    });

    test("stream helper", async () => {
      const stream = client.chat.completions.stream({ model, messages: hello });
      let text = "";
      stream.on("content", (delta) => (text += delta));
      assert.equal(await stream.finalContent(), text);
      says(text);
    });

    test("several choices", async () => {
      const got = await chat({ n: 3 });
      assert.deepEqual(got.choices.map((c) => c.index), number === 0 ? [0, 1, 2] : [0]);
    });

    test("completion", async () => {
      const whole = await client.completions.create({ model, prompt: "Once" });
      let text = "";
      for await (const c of await client.completions.create({ model, prompt: "Once", stream: true })) text += c.choices[0].text;
      assert.equal(text, whole.choices[0].text);
      says(text);
    });

    for (const tool_choice of ["auto", "required"]) {
      test(`tools, ${tool_choice}`, async () => {
        const ask = { model, messages: paris, tools: [weather], tool_choice };
        if (isCanned && tool_choice === "required") {
          await assert.rejects(chat(ask), busy);
          return assert.rejects(client.chat.completions.stream(ask).finalChatCompletion(), busy);
        }
        const streamed = await client.chat.completions.stream(ask).finalChatCompletion();
        for (const { message } of [(await chat(ask)).choices[0], streamed.choices[0]]) {
          if (isCanned) {
            assert.equal(message.content, canned);
            assert.equal((message.tool_calls ?? []).length, 0);
          } else {
            assert.deepEqual(message.tool_calls.map((c) => JSON.parse(c.function.arguments)), [{ city: "Paris" }]);
          }
        }
      });
    }

    test("structured output", async () => {
      const ask = { model, messages: rome, response_format: zodResponseFormat(Trip, "trip") };
      if (isCanned) {
        await assert.rejects(client.chat.completions.parse(ask), busy);
        return assert.rejects(client.chat.completions.stream(ask).finalChatCompletion(), busy);
      }
      const streamed = await client.chat.completions.stream(ask).finalChatCompletion();
      for (const { message } of [(await client.chat.completions.parse(ask)).choices[0], streamed.choices[0]]) {
        assert.deepEqual(message.parsed ?? null, trip);
        assert.equal(message.refusal ?? null, null);
      }
    });

    test("refused", async () => {
      const ask = chat({}, { headers: { "x-tidegate-max-level": "L1" } });
      if (number <= 1) return assert.ok((await ask).choices[0].message.content);
      await assert.rejects(ask, (e) => e instanceof OpenAI.InternalServerError && e.status === 503 && e.code === "overloaded");
    });

    test("LangChain", async () => {
      const whole = await lang().invoke("Hello");
      says(whole.content);
      assert.equal(whole.response_metadata.model_name, answers);
      assert.deepEqual(whole.response_metadata.usage.tidegate, notice);
      const full = await collect(lang().stream("Hello"));
      assert.equal(full.content, whole.content);
      assert.deepEqual(full.response_metadata.usage.tidegate, notice);
      assert.equal(full.usage_metadata.total_tokens, whole.usage_metadata?.total_tokens ?? 0); // LangChain leaves out what is 0
      assert.equal(Boolean(whole.additional_kwargs.reasoning_content), thinks);
      assert.equal((await lang({ streaming: true }).invoke("Hello")).content, whole.content);
      says(await new LangChainOpenAI({ model, apiKey: key, maxRetries: 0, configuration: { baseURL: ladderURL } }).invoke("Once"));
    });

    for (const tool_choice of ["auto", "any"]) {
      test(`LangChain, tools, ${tool_choice}`, async () => {
        const llm = lang().bindTools([getWeather], { tool_choice });
        if (isCanned && tool_choice === "any") {
          await assert.rejects(llm.invoke('Use get_weather for "Paris"'), busy);
          return assert.rejects(collect(llm.stream('Use get_weather for "Paris"')), busy);
        }
        for (const got of [await llm.invoke('Use get_weather for "Paris"'), await collect(llm.stream('Use get_weather for "Paris"'))]) {
          assert.deepEqual(got.tool_calls.map((c) => c.args), isCanned ? [] : [{ city: "Paris" }]);
          if (isCanned) assert.equal(got.content, canned);
        }
      });
    }

    for (const method of ["jsonSchema", "functionCalling"]) {
      test(`LangChain, withStructuredOutput, ${method}`, async () => {
        const got = lang().withStructuredOutput(Trip, { method, name: "trip" }).invoke('4 days in "Rome"');
        return isCanned ? assert.rejects(got, busy) : assert.deepEqual(await got, trip);
      });
    }
  });
}
