// Where the gateways are, and what the simulated servers say about them. Three
// gateways stand in front of the same simulated vLLM servers: one wants keys, one
// is open, and one can be pinned to a level. The Go test that starts these suites
// tells the addresses.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";

const env = (name) => {
  assert.ok(process.env[name], `${name} is not set`);
  return process.env[name];
};

export const url = env("TIDEGATE_URL");
export const openURL = env("TIDEGATE_OPEN_URL");
export const ladderURL = env("TIDEGATE_LADDER_URL");
export const ladderAdminKey = env("TIDEGATE_LADDER_ADMIN_KEY");
export const key = env("TIDEGATE_KEY");
export const smallKey = env("TIDEGATE_SMALL_KEY");
export const model = env("TIDEGATE_MODEL");
export const smallModel = env("TIDEGATE_SMALL_MODEL");
const sims = env("TIDEGATE_SIMS").split(",");

export const hello = [{ role: "user", content: "Hello" }];
export const rome = [{ role: "user", content: '4 days in "Rome"' }];
export const paris = [{ role: "user", content: 'Use get_weather for "Paris"' }];

export const weather = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Current weather of a city",
    parameters: {
      type: "object",
      properties: { city: { type: "string" } },
      required: ["city"],
    },
  },
};

// These tests stay on this machine. LangChain would fetch a table of tokens from
// the web to guess how many a streamed invoke took; a status that it does not try
// again lets it go on without at once.
const local = globalThis.fetch;
globalThis.fetch = (to, init) => {
  const { hostname } = new URL(to instanceof Request ? to.url : to);
  if (hostname === "127.0.0.1") return local(to, init);
  return Promise.reject(Object.assign(new Error(`these tests do not call ${hostname}`), { status: 404 }));
};

const patience = 20_000; // milliseconds

// Tokens of an answer that nobody waits for.
const long = 30_000;

// record waits for the record of the ended request whose body holds word.
async function record(word) {
  const deadline = performance.now() + patience;
  while (performance.now() < deadline) {
    for (const sim of sims) {
      const ended = await (await fetch(`${sim}/sim/requests?last=50`)).json();
      const found = ended.find((r) => Buffer.from(r.Body ?? "", "base64").includes(word));
      if (found) return found;
    }
  }
  assert.fail(`no server ever ended a request with ${word}`);
}

// withFault lets all servers fail in a way while body runs.
export async function withFault(fault, body) {
  const all = (init) => Promise.all(sims.map((sim) => fetch(`${sim}/sim/faults`, init)));
  await all({ method: "POST", body: JSON.stringify(fault) });
  try {
    await body();
  } finally {
    await all({ method: "DELETE" });
  }
}

// stops checks that a server of a real one's pace is told to stop in the middle
// when ask, which is given the members of a body, leaves.
export async function stops(ask) {
  const user = `tag-${randomUUID()}`;
  await withFault({ kind: "slow", delay_ms: 10 }, async () => {
    await ask({ user, sim: { tokens: long } });
    const r = await record(user);
    assert.ok(r.Aborted && r.Output < long, JSON.stringify({ ...r, Body: "", Header: {} }));
  });
}
