import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { openAsBlob } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, test } from "node:test";
import type { Client } from "moyin-client";
import { answer, LOST, problem, ScriptedGateway } from "./scripted_gateway.js";

const STORED = { id: "art_1", url: "/artifacts/art_1", name: "ü.png", media_type: "image/png", size: 3 };
// More than is read at a time.
const LARGE = Buffer.alloc(800_000, "0123456789abcdef-");
let gateway: ScriptedGateway;
let client: Client;

beforeEach(async () => {
  gateway = await ScriptedGateway.start();
  client = gateway.newClient();
});
afterEach(() => gateway.stop());

test("an upload is repeated as a whole with its key", async () => {
  const folder = await mkdtemp(join(tmpdir(), "moyin-client-"));
  try {
    const path = join(folder, "a.png");
    await writeFile(path, LARGE);
    gateway.script("POST", "/artifacts", LOST, answer(STORED, 201));
    const blob = await openAsBlob(path, { type: "image/png" });
    assert.equal((await client.upload(blob, { name: "ü.png" })).id, "art_1");
  } finally {
    await rm(folder, { recursive: true });
  }
  const [first, second] = gateway.seen;
  assert.ok(first && second);
  assert.ok(first.body.equals(LARGE) && second.body.equals(LARGE));
  assert.deepEqual(first.query, { name: "ü.png" });
  assert.equal(first.headers["content-type"], "image/png");
  assert.equal(first.headers["content-length"], "800000");
  assert.equal(first.headers["idempotency-key"], second.headers["idempotency-key"]);
});

test("bytes and files of pages are uploaded", async () => {
  gateway.script("POST", "/artifacts", answer(STORED, 201), answer(STORED, 201), answer(STORED, 201));
  await client.upload(new TextEncoder().encode("abc"), { name: "a.bin", mediaType: "text/plain" });
  await client.upload(new File(["xyz"], "page.png", { type: "image/png" }));
  await client.upload(new Uint8Array());
  assert.deepEqual(
    gateway.seen.map((seen) => [String(seen.body), seen.headers["content-type"], seen.query]),
    [
      ["abc", "text/plain", { name: "a.bin" }],
      ["xyz", "image/png", { name: "page.png" }],
      ["", "application/octet-stream", {}],
    ],
  );
});

test("a download that breaks begins anew", async () => {
  const short = { headers: { "content-length": `${LARGE.length}` }, body: LARGE.subarray(0, 5), breaks: true };
  gateway.script(
    "GET", "/artifacts/art_1",
    { pieces: [LARGE.subarray(0, 100_000)], breaks: true }, short,
    { headers: { "content-type": "image/webp" }, body: LARGE },
  );
  const picture = await client.download("art_1", { width: 256 });
  assert.ok(Buffer.from(await picture.arrayBuffer()).equals(LARGE));
  assert.equal(picture.type, "image/webp");
  assert.deepEqual(gateway.seen.map((seen) => seen.query), [{ w: "256" }, { w: "256" }, { w: "256" }]);
});

test("files are listed, linked and deleted", async () => {
  const listed = { ...STORED, job: "j1", created_at: "2026-11-28T12:00:00Z" };
  gateway.script("GET", "/artifacts", answer({ artifacts: [listed], next_cursor: null }));
  gateway.script("POST", "/artifacts/art_1/link", answer({ url: "/files/signed/abc/a.png", expires_at: "2026-11-28T13:00:00Z" }));
  gateway.script("DELETE", "/artifacts/art_1", LOST, problem(404, "artifact_not_found"), { status: 204 });
  for await (const artifact of client.artifacts({ job: "j1", media_type: "image/*" })) {
    assert.deepEqual([artifact.job, artifact.created_at], ["j1", "2026-11-28T12:00:00Z"]);
    const link = await client.link(artifact, { expiresIn: 600 });
    assert.equal(link.url, `${gateway.url}/files/signed/abc/a.png`);
    await client.deleteArtifact(artifact);
    await client.deleteArtifact("art_1");
  }
  assert.deepEqual(gateway.seen[0]?.query, { job: "j1", media_type: "image/*" });
  assert.equal(String(gateway.seen[1]?.body), '{"expires_in":600}');
  assert.equal(gateway.seen.length, 5);
});
