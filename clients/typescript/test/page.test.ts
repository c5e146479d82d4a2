import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { PageClient } from "moyin-client";
import { answer, event, LOST, problem, ScriptedGateway, stream } from "./scripted_gateway.js";

const PREVIEW = { step: 0, media_type: "image/jpeg", url: "/jobs/j1/preview?number=5" };
const TOKEN = "e.y/J+=";
let gateway: ScriptedGateway;
let page: PageClient;

beforeEach(async () => {
  gateway = await ScriptedGateway.start();
  page = new PageClient({ url: gateway.url, token: TOKEN, retry: { tries: 4, firstPause: 0.01, longestPause: 0.02 } });
});
afterEach(() => gateway.stop());

test("a server creates a token for its page, and sends its own key in no URL", async () => {
  const token = { token: TOKEN, expires_at: "2026-11-28T12:05:00Z" };
  gateway.script("POST", "/jobs/j1/token", LOST, answer(token), answer(token));
  const client = gateway.newClient();
  assert.deepEqual(await client.createToken("j1"), token);
  await client.createToken({ id: "j1" }, { expiresIn: 60 });
  const bodies = gateway.seen.map((seen) => JSON.parse(String(seen.body)));
  assert.deepEqual(bodies, [{ expires_in: 300 }, { expires_in: 300 }, { expires_in: 60 }]);
  for (const { query, headers } of gateway.seen)
    assert.deepEqual([query, headers["authorization"]], [{}, "Bearer key-1"]);
});

test("a page follows a job with its token, over broken connections", async () => {
  gateway.script(
    "GET", "/jobs/j1/events",
    stream([event("running", { id: "j1" }, "2-0"), event("preview", PREVIEW)], { breaks: true }),
    stream([event("succeeded", { id: "j1" }, "9-0")]),
  );
  const types = [];
  for await (const one of page.events("j1", { previews: true })) types.push(one.type);
  assert.deepEqual(types, ["running", "preview", "succeeded"]);
  for (const { query, headers } of gateway.seen)
    assert.deepEqual([query, headers["authorization"]], [{ previews: "true", token: TOKEN }, undefined]);
  assert.equal(gateway.seen[1]?.headers["last-event-id"], "2-0");
});

test("a page whose token has expired continues with a new one", async () => {
  gateway.script(
    "GET", "/jobs/j1/events",
    stream([event("running", { id: "j1" }, "2-0")], { breaks: true }), problem(401, "invalid_token"),
    stream([event("succeeded", { id: "j1" }, "9-0")]),
  );
  let lastEventId: string | undefined;
  await assert.rejects(
    async () => {
      for await (const one of page.events("j1")) lastEventId = one.id ?? lastEventId;
    },
    { status: 401, code: "invalid_token" },
  );
  const renewed = new PageClient({ url: gateway.url, token: "new" });
  for await (const one of renewed.events("j1", { lastEventId })) assert.equal(one.id, "9-0");
  const { query, headers } = gateway.seen[2] ?? {};
  assert.deepEqual([query, headers?.["last-event-id"]], [{ token: "new" }, "2-0"]);
});

test("a page loads previews and files", async () => {
  const picture = { headers: { "content-type": "image/jpeg" }, body: "picture" };
  gateway.script(
    "GET", "/jobs/j1/preview", problem(404, "preview_not_found"), problem(503, "service_unavailable"), picture,
    problem(404, "job_not_found"),
  );
  gateway.script("GET", "/artifacts/art_1", picture);
  assert.equal(await page.preview("j1"), null);
  const preview = await page.preview("j1");
  assert.deepEqual([await preview?.text(), preview?.type], ["picture", "image/jpeg"]);
  await assert.rejects(page.preview("j1"), { code: "job_not_found" });
  assert.equal(await (await page.download("art_1", { width: 256 })).text(), "picture");
  assert.deepEqual(gateway.seen.at(-1)?.query, { token: TOKEN, w: "256" });
  for (const seen of gateway.seen) assert.equal(seen.headers["authorization"], undefined);
});

test("the client with a key loads previews as well", async () => {
  gateway.script("GET", "/jobs/j1/preview", problem(404, "preview_not_found"), { body: "picture" });
  const client = gateway.newClient();
  assert.equal(await client.preview("j1"), null);
  assert.equal(await (await client.preview("j1"))?.text(), "picture");
  assert.deepEqual(gateway.seen[0]?.query, {});
});

test("addresses of pictures have the token", () => {
  const token = encodeURIComponent(TOKEN);
  assert.equal(page.url(PREVIEW), `${gateway.url}/jobs/j1/preview?number=5&token=${token}`);
  const file = { id: "art_1", url: "/artifacts/art_1" };
  assert.equal(page.url(file, { width: 256 }), `${gateway.url}/artifacts/art_1?w=256&token=${token}`);
  const behind = new PageClient({ url: "https://a.example/moyin/?x=1", token: "t" });
  assert.equal(behind.url(file), "https://a.example/moyin/artifacts/art_1?token=t");
});

for (const url of ["https://evil.example/a", "@evil.example/a", ".evil.example", ":81/a", ""])
  test(`the token reaches no other host: ${url}`, () => {
    assert.throws(() => page.url({ url }), TypeError);
  });

test("a path cannot name another host", () => {
  for (const url of ["//evil.example/a", "/\\evil.example/a", "/@evil.example"])
    assert.equal(new URL(page.url({ url })).origin, gateway.url);
});

test("an API key is no token", () => {
  for (const token of ["moyin_1_secret", ""])
    assert.throws(() => new PageClient({ url: gateway.url, token }), TypeError);
});
