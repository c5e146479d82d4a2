import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import type { Client, FollowOptions, JobEvent, ProgressEvent } from "moyin-client";
import { answer, event, LOST, problem, ScriptedGateway, stream } from "./scripted_gateway.js";

const EVENTS = "/jobs/j1/events";
const status = (name: string, id = "") => event(name, { id: "j1", status: name, attempt: 1 }, id);
const RUNNING = status("running", "2-0");
const SUCCEEDED = status("succeeded", "9-0");
const PREVIEW = event("preview", { step: 0, media_type: "image/jpeg", url: "/jobs/j1/preview?number=5" });
let gateway: ScriptedGateway;
let client: Client;

beforeEach(async () => {
  gateway = await ScriptedGateway.start();
  client = gateway.newClient();
});
afterEach(() => gateway.stop());

async function collect(options?: FollowOptions): Promise<JobEvent[]> {
  const events: JobEvent[] = [];
  for await (const one of client.events("j1", options)) events.push(one);
  return events;
}

const ids = (events: JobEvent[]) => events.map((one) => one.id);
const cursors = () => gateway.seen.map((seen) => seen.headers["last-event-id"]);

test("events have a type, data and a cursor", async () => {
  const progress = { value: 3, max: 20, step: 0, node: "KSampler" };
  gateway.script(
    "GET", EVENTS,
    stream([status("queued", "1-0"), ": still here\n\n", event("progress", progress, "2-0"), event("novelty", { x: 1 }, "4-0"), SUCCEEDED]),
  );
  const events = await collect();
  assert.deepEqual(
    events.map((one) => [one.type, one.id]),
    [["queued", "1-0"], ["progress", "2-0"], ["novelty", "4-0"], ["succeeded", "9-0"]],
  );
  assert.deepEqual([events[1]?.data, events[2]?.data], [progress, { x: 1 }]);
  assert.deepEqual(cursors(), [undefined]);
});

for (const breaks of [true, false])
  test(`a stream that ends early resumes after the last whole event (reset: ${breaks})`, async () => {
    gateway.script(
      "GET", EVENTS,
      stream([status("queued", "1-0"), RUNNING.slice(0, 20)], { breaks }),
      stream([RUNNING], { breaks }),
      stream([SUCCEEDED]),
    );
    assert.deepEqual(ids(await collect({ lastEventId: "0-0" })), ["1-0", "2-0", "9-0"]);
    assert.deepEqual(cursors(), ["0-0", "1-0", "2-0"]);
  });

test("errors that pass are waited for", async () => {
  const slow = event("error", { code: "slow_consumer", message: "too slow" });
  gateway.script(
    "GET", EVENTS, problem(503, "service_unavailable"), stream(["retry: 10\n\n", RUNNING, slow]), stream([SUCCEEDED]),
  );
  assert.deepEqual(ids(await collect()), ["2-0", "9-0"]);
});

test("an event without an id does not move the cursor", async () => {
  const last = status("succeeded");
  gateway.script("GET", EVENTS, stream([RUNNING, last], { breaks: true }), stream([last]));
  assert.deepEqual(ids(await collect()), ["2-0", null, null]);
  assert.equal(cursors()[1], "2-0");
});

test("previews are typed and never cursors", async () => {
  gateway.script(
    "GET", EVENTS, stream([RUNNING, PREVIEW], { breaks: true }), stream([PREVIEW], { breaks: true }), stream([SUCCEEDED]),
  );
  const events = await collect({ previews: true });
  assert.deepEqual(
    events.map((one) => [one.type, one.id]),
    [["running", "2-0"], ["preview", null], ["preview", null], ["succeeded", "9-0"]],
  );
  const urls = events.map((one) => (one.type === "preview" ? one.data.url : undefined));
  assert.equal(urls[1], "/jobs/j1/preview?number=5");
  assert.deepEqual(cursors(), [undefined, "2-0", "2-0"]);
  assert.deepEqual(gateway.seen.map((seen) => seen.query), Array(3).fill({ previews: "true" }));
});

test("a preview after the last event does not reopen the stream", async () => {
  gateway.script("GET", EVENTS, stream([SUCCEEDED, PREVIEW]));
  assert.deepEqual((await collect({ previews: true })).map((one) => one.type), ["succeeded", "preview"]);
  assert.equal(gateway.seen.length, 1);
});

for (const reply of [problem(404, "job_not_found"), stream([event("error", { code: "job_not_found", message: "no" })])])
  test(`other errors end the stream (status ${reply.status ?? 200})`, async () => {
    gateway.script("GET", EVENTS, reply);
    await assert.rejects(collect(), { code: "job_not_found" });
    assert.equal(gateway.seen.length, 1);
  });

test("only failures in a row count", async () => {
  const broken = [0, 1, 2, 3, 4, 5].map((n) => stream([status("running", `2-${n}`)], { breaks: true }));
  gateway.script("GET", EVENTS, ...broken, LOST, LOST, LOST, LOST);
  await assert.rejects(collect(), { code: "connection_failed" });
  // Four tries in a row; the last stream with an event is the first of them.
  assert.equal(gateway.seen.length, 9);
});

test("nothing comes after the last event", async () => {
  gateway.script("GET", EVENTS, { status: 204 });
  assert.deepEqual(await collect({ lastEventId: "9-0" }), []);
});

test("a stream goes on after a retry of the job", async () => {
  gateway.script(
    "GET", EVENTS,
    stream([status("failed", "3-0"), status("queued", "4-0")], { breaks: true }), stream([status("succeeded")]),
  );
  assert.deepEqual(ids(await collect()), ["3-0", "4-0", null]);
  assert.equal(cursors()[1], "4-0");
});

test("an event that is not an object is an error", async () => {
  gateway.script("GET", EVENTS, stream(["data: 3\n\n"]));
  await assert.rejects(collect(), { code: "malformed_response" });
});

test("a caller that stops early closes the connection", async () => {
  gateway.script("GET", EVENTS, stream([RUNNING], { hangs: true }));
  for await (const one of client.events("j1")) {
    assert.equal(one.id, "2-0");
    break;
  }
  // The server closes only when no connection is in use.
  await gateway.stop();
  await gateway.listen();
});

test("a signal ends a stream that waits", async () => {
  gateway.script("GET", EVENTS, stream([RUNNING], { hangs: true }));
  const controller = new AbortController();
  await assert.rejects(
    async () => {
      for await (const _ of client.events("j1", { signal: controller.signal })) controller.abort();
    },
    { name: "AbortError" },
  );
});

test("waiting reports progress and returns the job, also after a retry meanwhile", async () => {
  gateway.script(
    "GET", EVENTS,
    stream([event("progress", { value: 1, max: 2, step: 0 }, "2-0")], { breaks: true }),
    stream([event("step", { step: 0, artifacts: [], value: 1, max: 2 }, "3-0"), status("failed", "4-0")]),
    stream([event("step", { step: 1, artifacts: [] }, "5-0"), SUCCEEDED]),
  );
  gateway.script(
    "GET", "/jobs/j1",
    answer({ id: "j1", status: "queued" }),
    answer({ id: "j1", status: "succeeded", outputs: [{ step: 0, text: "blue" }] }),
  );
  const reported: ProgressEvent[] = [];
  const job = await client.wait("j1", { onProgress: (progress) => reported.push(progress) });
  assert.equal(job.outputs[0]?.text, "blue");
  assert.deepEqual(reported, [{ value: 1, max: 2, step: 0 }, { value: 1, max: 2, step: 0 }]);
  assert.deepEqual(gateway.seen.filter((seen) => seen.path === EVENTS).map((seen) => seen.headers["last-event-id"]), [
    undefined, "2-0", "4-0",
  ]);
});

test("waiting outlasts more failures than the policy tries, up to the longest outage", async () => {
  const failures = Array.from({ length: 9 }, () => problem(503, "service_unavailable"));
  gateway.script("GET", EVENTS, stream([RUNNING]), ...failures, stream([SUCCEEDED]));
  gateway.script("GET", "/jobs/j1", answer({ id: "j1", status: "succeeded" }));
  assert.equal((await client.wait("j1")).status, "succeeded");
  gateway.script("GET", EVENTS, ...failures);
  await assert.rejects(client.wait("j1", { longestOutage: 0 }), { status: 503 });
});

test("a signal ends a stream between the events of a piece", async () => {
  gateway.script("GET", EVENTS, stream([status("queued", "1-0") + RUNNING], { hangs: true }));
  const controller = new AbortController();
  const events = client.events("j1", { signal: controller.signal });
  assert.equal((await events.next()).value?.id, "1-0");
  controller.abort(new Error("enough"));
  await assert.rejects(events.next(), { message: "enough" });
});
