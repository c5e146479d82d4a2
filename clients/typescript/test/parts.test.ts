import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { test } from "node:test";
import { MoyinError, verifyWebhook } from "moyin-client";
import { parseRetryAfter } from "#client/errors";
import { DEFAULT_POLICY, pauseAfter } from "#client/retry";
import { SseParser } from "#client/sse";

const STREAM = new TextEncoder().encode(
  "\ufeffretry: 1500\r\n\r\n" +
    ": comment\n\n" +
    'id: 1-0\nevent: progress\ndata: {"a":\ndata: "ü"}\n\n' +
    "data:no space\r\r" +
    "event: empty\n\n" +
    "retry: soon\nid: bad\0id\nunknown: x\ndata\n\n" +
    "data: cut off",
);

for (const size of [1, 2, 3, 7, 1000])
  test(`a stream is parsed alike in pieces of ${size}`, () => {
    const parser = new SseParser();
    const events = [];
    for (let start = 0; start < STREAM.length; start += size)
      events.push(...parser.feed(STREAM.subarray(start, start + size)));
    assert.deepEqual(events, [
      { type: "progress", id: "1-0", data: '{"a":\n"ü"}' },
      { type: "message", id: "", data: "no space" },
      { type: "message", id: "", data: "" },
    ]);
    assert.equal(parser.retry, 1.5);
  });

test("the text of an event is bounded", () => {
  const parser = new SseParser(1000);
  const piece = (end: string) => new TextEncoder().encode(`data: ${"x".repeat(90)}${end}`);
  for (let n = 0; n < 50; n++) assert.equal([...parser.feed(piece("\n\n"))].length, 1);
  assert.throws(
    () => {
      for (let n = 0; n < 50; n++) [...parser.feed(piece("\n"))];
    },
    { code: "malformed_response" },
  );
});

test("pauses double up to the longest", () => {
  const policy = { ...DEFAULT_POLICY, tries: 5000, firstPause: 1 };
  for (const [failures, longest] of [[1, 1], [2, 2], [3, 4], [4, 8], [5, 10], [4000, 10]] as const) {
    const pause = pauseAfter(policy, new MoyinError("no", { status: 503 }), failures);
    assert.ok(longest / 2 <= pause && pause <= longest);
  }
});

test("the pause is never shorter than the gateway asks for, and not too long", () => {
  const limited = (retryAfter: number) => new MoyinError("no", { status: 429, retryAfter });
  assert.equal(pauseAfter(DEFAULT_POLICY, limited(30), 1), 30);
  assert.ok(pauseAfter(DEFAULT_POLICY, limited(0), 1) > 0);
  assert.throws(() => pauseAfter(DEFAULT_POLICY, limited(121), 1), { status: 429 });
});

for (const [status, code, isSentAgain] of [
  [408, "x", true], [500, "x", false], [409, "x", false], [undefined, "connection_failed", true],
  [undefined, "malformed_response", false], [400, "service_unavailable", false],
] as const)
  test(`status ${status} with code ${code}: sent again is ${isSentAgain}`, () => {
    const error = new MoyinError("no", { status, code });
    const pause = () => pauseAfter({ ...DEFAULT_POLICY, tries: 3 }, error, 1);
    if (isSentAgain) assert.ok(pause() > 0);
    else assert.throws(pause, error);
  });

test("Retry-After is seconds or a date", () => {
  const noon = Date.UTC(2026, 10, 28, 12);
  for (const [value, seconds] of [
    ["7", 7], [" 0 ", 0], ["Sat, 28 Nov 2026 12:00:30 GMT", 30], ["Sat, 28 Nov 2026 11:00:00 GMT", 0],
    ["soon", undefined], ["-3", undefined], ["", undefined],
  ] as const)
    assert.equal(parseRetryAfter(value, noon), seconds, value);
});

const SECRET = `whsec_${Buffer.from("a secret of some length").toString("base64")}`;
const BODY = JSON.stringify({
  type: "job.succeeded", timestamp: "2026-11-28T12:00:00Z", data: { id: "j1", metadata: { a: "ü" } },
});

function sign({ secret = SECRET, body = BODY, age = 0 } = {}): Record<string, string> {
  const sent = `${Math.floor(Date.now() / 1000) - age}`;
  const key = Buffer.from(secret.slice(6), "base64");
  const signature = createHmac("sha256", key).update(`msg_1.${sent}.${body}`).digest("base64");
  return { "webhook-id": "msg_1", "webhook-timestamp": sent, "webhook-signature": `v1,${signature}` };
}

test("a signed webhook is parsed, from any kind of headers", async () => {
  const upper = Object.fromEntries(Object.entries(sign()).map(([name, value]) => [name.toUpperCase(), value]));
  for (const headers of [sign(), upper, new Headers(sign())])
    for (const body of [BODY, new TextEncoder().encode(BODY)]) {
      const webhook = await verifyWebhook(SECRET, headers, body);
      assert.deepEqual([webhook.id, webhook.type, webhook.job.metadata], ["msg_1", "job.succeeded", { a: "ü" }]);
    }
});

test("one of several signatures is enough", async () => {
  const headers = sign();
  headers["webhook-signature"] = `v1,AAAA v1,! v2,x ${headers["webhook-signature"]}`;
  assert.equal((await verifyWebhook(SECRET, headers, BODY)).id, "msg_1");
});

const WRONG: Record<string, [Record<string, string>, string]> = {
  "another secret": [sign({ secret: "whsec_YWJj" }), BODY],
  "changed body": [sign(), `${BODY} `],
  "changed id": [{ ...sign(), "webhook-id": "msg_2" }, BODY],
  "changed time": [{ ...sign(), "webhook-timestamp": `${Math.floor(Date.now() / 1000) + 1}` }, BODY],
  "no time": [{ ...sign(), "webhook-timestamp": "now" }, BODY],
  "empty signature": [{ ...sign(), "webhook-signature": "v1," }, BODY],
  "no headers": [{}, BODY],
  "too old": [sign({ age: 3600 }), BODY],
};
for (const [name, [headers, body]] of Object.entries(WRONG))
  test(`a webhook is refused: ${name}`, async () => {
    await assert.rejects(verifyWebhook(SECRET, headers, body), { code: "invalid_webhook", status: undefined });
  });

test("an old webhook can be tolerated", async () => {
  assert.equal((await verifyWebhook(SECRET, sign({ age: 3600 }), BODY, 7200)).id, "msg_1");
});

test("a secret that is none is an error of the caller", async () => {
  for (const secret of ["whsec_!", "", "whsec_"])
    await assert.rejects(verifyWebhook(secret, sign(), BODY), TypeError);
});

for (const body of ["[]", "{}", "no", '{"type": "x", "timestamp": "y"}'])
  test(`signed nonsense is malformed: ${body}`, async () => {
    await assert.rejects(verifyWebhook(SECRET, sign({ body }), body), { code: "malformed_response" });
  });
