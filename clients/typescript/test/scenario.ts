/**
 * Runs a scenario with the TypeScript client; tests/acceptance/test_client_scenario.py compares what it
 * prints with the Python client's.
 *
 * The first line of its input is JSON with the scenario and how to reach the stack. It prints JSON lines:
 * `{"kill": "ID OF THE JOB"}`, after which it waits for a line, and at the end `{"results": [...]}`.
 */

import { createHash } from "node:crypto";
import { once } from "node:events";
import { createServer, type IncomingHttpHeaders } from "node:http";
import type { AddressInfo } from "node:net";
import { createInterface } from "node:readline";
import { Client, type Job, type JobFilter, type JobRequest, MoyinError, verifyWebhook } from "moyin-client";

type Step = any;
type Result = Record<string, unknown>;
interface Received {
  headers: IncomingHttpHeaders;
  body: Buffer;
}

// A busy machine takes minutes to start a replica anew.
const PATIENT = { tries: 60, longestPause: 5 };
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const webhooks: Received[] = [];
const server = createServer(async (request, response) => {
  const pieces: Buffer[] = [];
  for await (const piece of request) pieces.push(piece as Buffer);
  webhooks.push({ headers: request.headers, body: Buffer.concat(pieces) });
  response.writeHead(204).end();
  server.emit("webhook");
});

/** Does the steps of a scenario, each of which returns what the other client must return as well. */
class Runner {
  readonly #client: Client;
  readonly #jobs: Record<string, Job> = {};

  constructor(client: Client) {
    this.#client = client;
  }

  async run(step: Step): Promise<Result> {
    const action = (this as unknown as Record<string, (step: Step) => Promise<Result>>)[step.do];
    if (!action) throw new Error(`no such step: ${step.do}`);
    return { do: step.do, ...(await action.call(this, step)) };
  }

  async submit(step: Step): Promise<Result> {
    const work: JobRequest = step.job;
    const idempotencyKey = `${work.metadata?.["scenario"]}-${step.as}`;
    const job = await this.#client.submit(work, { idempotencyKey });
    this.#jobs[step.as] = job;
    if (!step.twice) return { status: job.status };
    const again = await this.#client.submit(work, { idempotencyKey });
    return { status: job.status, again: again.id === job.id ? "the same job" : again.id };
  }

  async follow(step: Step): Promise<Result> {
    const job = this.#job(step);
    const events = [];
    let killAt = step.kill_at;
    for await (const event of this.#client.events(job)) {
      events.push(event);
      if (event.type === killAt) {
        killAt = undefined;
        print({ kill: job.id });
        await lines.next();
      }
    }
    const ids = events.map((event) => event.id);
    const everything = await collect(this.#client.events(job));
    const half = Math.floor(ids.length / 2);
    const lastEventId = ids[half] ?? undefined;
    const rest = (await collect(this.#client.events(job, { lastEventId }))).map((event) => event.id);
    return {
      types: events.map((event) => event.type).filter((type) => type !== "progress"),
      repeated: ids.length - new Set(ids).size,
      lost: new Set(everything.map((event) => event.id).filter((id) => !ids.includes(id))).size,
      resumed: `${rest}` === `${ids.slice(half + 1)}` ? "the rest" : [ids, rest],
    };
  }

  async fetch(step: Step): Promise<Result> {
    const [artifact] = (await this.#client.wait(this.#job(step))).artifacts;
    if (!artifact) throw new Error("there is no picture");
    const content = await read(this.#client.download(artifact));
    return {
      media_type: artifact.media_type,
      begins: content.subarray(0, 8).toString("hex"),
      thumbnail: sniff(await read(this.#client.download(artifact, { width: step.width }))),
    };
  }

  async graph(step: Step): Promise<Result> {
    const graph = (await this.#client.graph(this.#job(step))) as Record<string, { inputs: unknown }>;
    return { inputs: graph[step.node]?.inputs };
  }

  async webhook(step: Step): Promise<Result> {
    const secret = await this.#client.webhookSecret();
    if (!webhooks.length) await once(server, "webhook", { signal: AbortSignal.timeout(180_000) });
    const { headers, body } = webhooks.shift() as Received;
    const webhook = await verifyWebhook(secret, headers, body);
    if (webhook.job.id !== this.#job(step).id) throw new Error("the webhook is of another job");
    const changed = await getCode(verifyWebhook(secret, headers, Buffer.concat([body, Buffer.from(" ")])));
    return { type: webhook.type, status: webhook.job.status, changed };
  }

  async cancel(step: Step): Promise<Result> {
    const submitted = this.#job(step);
    for await (const event of this.#client.events(submitted)) if (event.type === step.at) break;
    await this.#client.cancel(submitted);
    const job = await this.#client.wait(submitted);
    const again = await getCode(this.#client.cancel(job));
    return { status: job.status, by: job.cancelled_by?.kind ?? null, again };
  }

  async children(step: Step): Promise<Result> {
    const job = await this.#client.wait(this.#job(step));
    const children = job.children ?? [];
    const pictures = new Set<string>();
    for (const artifact of children.flatMap((child) => child.artifacts)) {
      const picture = await read(this.#client.download(artifact, { width: step.width }));
      pictures.add(createHash("sha256").update(picture).digest("hex"));
    }
    return { status: job.status, children: children.map((child) => child.status), pictures: pictures.size };
  }

  async outputs(step: Step): Promise<Result> {
    const job = await this.#client.wait(this.#job(step));
    const outputs = job.outputs.map((output) =>
      output.text ? "text" : output.artifacts.length ? "artifacts" : "body",
    );
    return { status: job.status, outputs };
  }

  async refused(step: Step): Promise<Result> {
    const error = await getError(this.#client.submit(step.job));
    return { status: error?.status, code: error?.code, field: error?.field };
  }

  async missing(): Promise<Result> {
    const error = await getError(this.#client.job("no-such-job"));
    return { status: error?.status, code: error?.code, request_id: Boolean(error?.requestId) };
  }

  async file(step: Step): Promise<Result> {
    const content = new TextEncoder().encode(step.text);
    const file = await this.#client.upload(content, { name: step.name, mediaType: step.media_type });
    const listed = await collect(this.#client.artifacts({ media_type: step.media_type }));
    const link = await this.#client.link(file, { expiresIn: 60 });
    const linked = await (await fetch(link.url)).text();
    const text = await (await this.#client.download(file)).text();
    await this.#client.deleteArtifact(file);
    const deleted = await getCode(this.#client.download(file));
    return { listed: listed.length, read: text, linked, deleted };
  }

  async list(step: Step): Promise<Result> {
    const jobs = await collect(this.#client.jobs(step.filter as JobFilter, { pageSize: 2 }));
    return { parts: jobs.map((job) => job.metadata["part"]) };
  }

  async usage(step: Step): Promise<Result> {
    const report = await this.#client.usage({ group_by: [step.group_by] });
    const calls = report.groups.reduce((sum, group) => sum + group.calls, 0);
    return { group_by: report.group_by, groups: report.total.calls === calls };
  }

  async delete(step: Step): Promise<Result> {
    const filter: JobFilter = step.filter;
    await this.#client.delete(this.#job(step));
    const left = (await collect(this.#client.jobs(filter))).length;
    const counted = await this.#client.deleteJobs(filter, { dryRun: true });
    const deleted = await this.#client.deleteJobs(filter);
    const listed = (await collect(this.#client.jobs(filter))).length;
    return { left, counted: counted.matched, done: deleted.done, listed };
  }

  #job(step: Step): Job {
    const job = this.#jobs[step.job];
    if (!job) throw new Error(`no such job: ${step.job}`);
    return job;
  }
}

/** Return the scenario with its variables' values. */
function substitute(value: unknown, variables: Result): unknown {
  if (typeof value === "string" && /^\$[^{]/.test(value)) return variables[value.slice(1)];
  if (Array.isArray(value)) return value.map((item) => substitute(item, variables));
  if (typeof value === "object" && value !== null)
    return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, substitute(item, variables)]));
  return value;
}

function print(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}

function sniff(picture: Buffer): string {
  const isWebp = picture.toString("latin1", 0, 4) === "RIFF" && picture.toString("latin1", 8, 12) === "WEBP";
  return isWebp ? "image/webp" : "another type";
}

async function read(download: Promise<Blob>): Promise<Buffer> {
  return Buffer.from(await (await download).arrayBuffer());
}

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const collected: T[] = [];
  for await (const item of items) collected.push(item);
  return collected;
}

async function getError(call: Promise<unknown>): Promise<MoyinError | undefined> {
  try {
    await call;
  } catch (error) {
    if (error instanceof MoyinError) return error;
    throw error;
  }
  return undefined;
}

async function getCode(call: Promise<unknown>): Promise<string> {
  return (await getError(call))?.code ?? "no error";
}

const { url, key, steps, variables } = JSON.parse((await lines.next()).value as string);
server.listen(0, "127.0.0.1");
await once(server, "listening");
const webhook = `http://127.0.0.1:${(server.address() as AddressInfo).port}/hook`;
const runner = new Runner(new Client({ url, apiKey: key, retry: PATIENT }));
const results: Result[] = [];
for (const step of substitute(steps, { ...variables, webhook }) as Step[]) results.push(await runner.run(step));
print({ results });
server.close();
server.closeAllConnections();
process.stdin.destroy();
