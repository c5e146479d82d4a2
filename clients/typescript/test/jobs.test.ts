import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { type Client, MoyinError, hasEnded, type JobRequest } from "moyin-client";
import { answer, LOST, problem, ScriptedGateway } from "./scripted_gateway.js";

const QUEUED = { id: "j1", status: "queued" };
const CHAT: JobRequest = { kind: "chat", request: { model: "auto", messages: [] } };
let gateway: ScriptedGateway;
let client: Client;

beforeEach(async () => {
  gateway = await ScriptedGateway.start();
  client = gateway.newClient();
});
afterEach(() => gateway.stop());

const WORK: JobRequest[] = [
  CHAT,
  { kind: "render", template: "dawn", inputs: { seed: 0 }, batch: { seeds: 4 }, cache: false },
  { kind: "http", request: { path: "/reports", method: "POST", body: { a: null } } },
  {
    kind: "pipeline",
    steps: [
      { kind: "chat", request: { model: "auto" } },
      { kind: "render", template: "dawn", inputs: { prompt: "${steps.0.text}" } },
    ],
    priority: 2,
    metadata: { project: "dawn" },
    webhook: "https://a.example/b",
    deadline: "2026-12-01T00:00:00Z",
  },
];
for (const work of WORK)
  test(`a job of the kind ${work.kind} is submitted as documented`, async () => {
    gateway.script("POST", "/jobs", answer(QUEUED, 202));
    const job = await client.submit(work);
    assert.deepEqual([job.id, hasEnded(job)], ["j1", false]);
    const [seen] = gateway.seen;
    assert.deepEqual(JSON.parse(String(seen?.body)), work);
    assert.equal(seen?.headers["authorization"], "Bearer key-1");
    assert.equal(seen?.headers["content-type"], "application/json");
  });

test("a submission whose answer is lost is repeated with its key", async () => {
  const busy = problem(503, "service_unavailable", {}, { "retry-after": "0" });
  gateway.script("POST", "/jobs", LOST, busy, answer(QUEUED, 202), answer(QUEUED, 202));
  await client.submit(CHAT);
  await client.submit(CHAT, { idempotencyKey: "mine" });
  const keys = gateway.seen.map((seen) => seen.headers["idempotency-key"]);
  assert.match(String(keys[0]), /^[0-9a-f]{32}$/);
  assert.deepEqual(keys, [keys[0], keys[0], keys[0], "mine"]);
});

test("a dead gateway is waited for", async () => {
  const url = gateway.url;
  await gateway.stop();
  let failures = 0;
  const patient = gateway.newClient({
    retry: { tries: 4, firstPause: 0.01 },
    fetch: async (...request) => {
      try {
        return await fetch(...request);
      } catch (error) {
        failures += 1;
        if (failures === 2) await gateway.listen();
        throw error;
      }
    },
  });
  gateway.script("GET", "/jobs/j1", answer(QUEUED));
  assert.equal((await patient.job("j1")).id, "j1");
  assert.deepEqual([failures, gateway.url], [2, url]);
});

test("tries are bounded", async () => {
  gateway.script("GET", "/jobs/j1", LOST, LOST, LOST, LOST, answer(QUEUED));
  await assert.rejects(client.job("j1"), { code: "connection_failed", status: undefined });
  assert.equal(gateway.seen.length, 4);
});

test("a gateway that sends nothing is given up after the timeout", async () => {
  const impatient = gateway.newClient({ timeout: 0.2, retry: { tries: 2, firstPause: 0.01 } });
  const silent = { pieces: ['{"id":'], hangs: true };
  gateway.script("GET", "/jobs/j1", silent, silent);
  await assert.rejects(impatient.job("j1"), { code: "connection_failed", message: /sent nothing for 0.2 s/ });
  assert.equal(gateway.seen.length, 2);
});

test("an error has the members that the gateway sends", async () => {
  const more = { field: "inputs.seed", node_errors: { 3: "x" } };
  gateway.script("POST", "/jobs", problem(400, "invalid_request", more));
  await assert.rejects(client.submit(CHAT), (error) => {
    assert.ok(error instanceof MoyinError);
    assert.deepEqual(
      [error.message, error.status, error.code, error.field, error.requestId, error.details],
      ["wrong: invalid_request", 400, "invalid_request", "inputs.seed", "req_7", { node_errors: { 3: "x" } }],
    );
    return true;
  });
  assert.equal(gateway.seen.length, 1);
});

test("an error of a route with OpenAI's errors has the same members", async () => {
  const error = { message: "group_by: wrong", type: "invalid_request_error", code: "invalid_request", param: "group_by" };
  gateway.script("GET", "/v1/usage", { ...answer({ error }, 400), headers: { "x-request-id": "req_9" } });
  await assert.rejects(client.usage(), {
    message: "group_by: wrong", status: 400, code: "invalid_request", field: "group_by", requestId: "req_9",
  });
});

test("an error of another server has its status", async () => {
  gateway.script("GET", "/jobs/j1", { status: 418, body: "<h1>teapot</h1>" });
  await assert.rejects(client.job("j1"), { status: 418, code: "http_error", message: "HTTP status 418" });
});

test("a redirect is an error and sends the key nowhere else", async () => {
  gateway.script("GET", "/jobs/j1", { status: 307, headers: { location: `${gateway.url}/jobs/j2` } });
  await assert.rejects(client.job("j1"), { status: 307 });
  assert.deepEqual(gateway.seen.map((seen) => seen.path), ["/jobs/j1"]);
});

for (const body of ["<html>", "[]", "null", '{"id": "j1"}', '{"id": "j1", "status": 3}'])
  test(`a response that is not a job is an error: ${body}`, async () => {
    gateway.script("GET", "/jobs/j1", { body });
    await assert.rejects(client.job("j1"), { code: "malformed_response" });
  });

test("pages are read to the end", async () => {
  gateway.script(
    "GET", "/jobs",
    answer({ jobs: [QUEUED, { ...QUEUED, id: "j2" }], next_cursor: "c1" }),
    answer({ jobs: [], next_cursor: "c2" }),
    answer({ jobs: [{ ...QUEUED, id: "j3" }], next_cursor: null }),
  );
  const ids: string[] = [];
  const filter = {
    status: ["failed" as const, "cancelled" as const], kind: "render" as const,
    metadata: { project: "aurora" }, created_after: "2026-01-01T00:00:00Z",
  };
  for await (const job of client.jobs(filter, { pageSize: 2 })) ids.push(job.id);
  assert.deepEqual(ids, ["j1", "j2", "j3"]);
  const query = {
    status: "failed,cancelled", kind: "render", "metadata.project": "aurora",
    created_after: "2026-01-01T00:00:00Z", limit: "2",
  };
  assert.deepEqual(
    gateway.seen.map((seen) => seen.query),
    [query, { ...query, cursor: "c1" }, { ...query, cursor: "c2" }],
  );
});

for (const id of ["", ".", "..", "../v1/models", "a/b", "a?b", "%2e%2e"])
  test(`an id cannot lead to another route: ${id}`, async () => {
    await assert.rejects(client.delete(id), TypeError);
    assert.deepEqual(gateway.seen, []);
  });

test("jobs are cancelled, retried and deleted", async () => {
  gateway.script("POST", "/jobs/j1/cancel", answer(QUEUED, 202));
  gateway.script("POST", "/jobs/j1/retry", answer({ ...QUEUED, attempts: 2 }, 202));
  gateway.script("DELETE", "/jobs/j1", { status: 204 });
  const job = await client.cancel("j1");
  assert.equal((await client.retry(job)).attempts, 2);
  await client.delete(job);
  assert.deepEqual(gateway.seen.map((seen) => seen.method), ["POST", "POST", "DELETE"]);
});

for (const [method, code] of [["cancel", "job_finished"], ["retry", "job_not_finished"]] as const)
  test(`a repeated ${method} that was done already returns the job`, async () => {
    gateway.script("POST", `/jobs/j1/${method}`, LOST, problem(409, code), problem(409, code));
    gateway.script("GET", "/jobs/j1", answer({ id: "j1", status: "cancelled" }));
    assert.equal((await client[method]("j1")).status, "cancelled");
    await assert.rejects(client[method]("j1"), { code });
  });

test("a repeated deletion of what is gone succeeds, unless only a limit came before", async () => {
  const missing = problem(404, "job_not_found");
  gateway.script("DELETE", "/jobs/j1", LOST, missing, problem(429, "rate_limit_exceeded"), missing);
  await client.delete("j1");
  await assert.rejects(client.delete("j1"), { code: "job_not_found" });
});

test("many jobs are changed until no cursor is left, and the counts are summed", async () => {
  gateway.script(
    "POST", "/jobs/delete",
    answer({ matched: 10_000, done: 9_000, skipped: 1_000, next_cursor: "c1", dry_run: false }),
    answer({ matched: 5, done: 5, skipped: 0, next_cursor: null, dry_run: false }),
  );
  gateway.script("POST", "/jobs/cancel", answer({ matched: 3, done: 0, skipped: 0, next_cursor: null }));
  const filter = { metadata: { project: "aurora" } };
  assert.deepEqual(await client.deleteJobs(filter), { matched: 10_005, done: 9_005, skipped: 1_000 });
  assert.equal((await client.cancelJobs(filter, { dryRun: true })).matched, 3);
  assert.deepEqual(gateway.seen.map((seen) => JSON.parse(String(seen.body))), [
    { filter, dry_run: false, cursor: null },
    { filter, dry_run: false, cursor: "c1" },
    { filter, dry_run: true, cursor: null },
  ]);
});

test("graphs and usage are read", async () => {
  gateway.script("GET", "/jobs/j1/graph", answer({ 1: { class_type: "EmptyImage" } }));
  gateway.script("GET", "/v1/usage", answer({ from: "a", to: "b", total: { calls: 2 } }));
  assert.deepEqual(await client.graph("j1", { step: 1 }), { 1: { class_type: "EmptyImage" } });
  const usage = await client.usage({ from: "2026-11-01", group_by: ["day", "model"] });
  assert.equal(usage.total.calls, 2);
  assert.deepEqual(gateway.seen[0]?.query, { step: "1" });
});

test("a signal ends a call, also during a pause", async () => {
  gateway.script("GET", "/jobs/j1", LOST);
  const controller = new AbortController();
  const sleepy = gateway.newClient({ retry: { firstPause: 3600, longestPause: 3600 } });
  const call = sleepy.job("j1", { signal: controller.signal });
  const reason = new Error("enough");
  setTimeout(() => controller.abort(reason), 100);
  await assert.rejects(call, reason);
  await assert.rejects(client.job("j1", { signal: controller.signal }), reason);
});

test("a signal ends a list between the items of a page", async () => {
  gateway.script("GET", "/jobs", answer({ jobs: [QUEUED, { ...QUEUED, id: "j2" }], next_cursor: null }));
  const controller = new AbortController();
  const jobs = client.jobs({}, { signal: controller.signal });
  assert.equal((await jobs.next()).value?.id, "j1");
  controller.abort(new Error("enough"));
  await assert.rejects(jobs.next(), { message: "enough" });
});

test("options that are undefined have their defaults", async () => {
  const retry = { tries: undefined, firstPause: 0.001, longestPause: 0.001, longestRetryAfter: undefined };
  const client = gateway.newClient({ timeout: undefined, retry });
  gateway.script("GET", "/jobs/j1", ...Array(20).fill(problem(503, "service_unavailable")));
  await assert.rejects(client.job("j1"), { status: 503 });
  assert.equal(gateway.seen.length, 10);
});

test("a timeout or a pause may be longer than a timer of JavaScript", async () => {
  const patient = gateway.newClient({ timeout: Infinity, retry: { tries: 1 } });
  gateway.script("GET", "/jobs/j1", answer(QUEUED));
  assert.equal((await patient.job("j1")).id, "j1");
  const signal = AbortSignal.timeout(200);
  const waiting = gateway.newClient({ retry: { longestRetryAfter: Infinity } });
  gateway.script("GET", "/jobs/j2", problem(503, "service_unavailable", {}, { "retry-after": "3000000" }));
  await assert.rejects(waiting.job("j2", { signal }), { name: "TimeoutError" });
  assert.equal(gateway.seen.filter((seen) => seen.path === "/jobs/j2").length, 1);
});

test("an address without http is refused at once", () => {
  for (const url of ["localhost:8000", "ftp://127.0.0.1", "127.0.0.1:8000", ""])
    assert.throws(() => gateway.newClient({ url }), TypeError);
});
