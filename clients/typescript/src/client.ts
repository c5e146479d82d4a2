/** Defines `Client`: the jobs and files of a gateway. */

import {
  type ArtifactId, artifactPath, buildQuery, type CallOptions, download, getPreview, type JobId, jobPath, post,
  send,
} from "./calls.js";
import { newMalformed, parseObject } from "./errors.js";
import { type Call, type Connection, type ConnectionOptions, newConnection } from "./exchange.js";
import { follow, type FollowOptions } from "./following.js";
import { fillPolicy, pauseInOutage, type RetryPolicy, sleep } from "./retry.js";
import {
  type Artifact, type ArtifactFilter, type BulkResult, type EventToken, hasEnded, type Job, type JobDetail,
  type JobEvent, type JobFilter, type JobRequest, type Link, type ListedArtifact, type ProgressEvent,
  type UsageQuery, type UsageReport,
} from "./types.js";

export interface ClientOptions extends ConnectionOptions {
  /** The key for every request, which is never sent in a URL. */
  apiKey: string;
  /** How often and how patiently requests are sent again. */
  retry?: Partial<RetryPolicy>;
}

interface WaitOptions extends CallOptions {
  onProgress?: (progress: ProgressEvent) => void;
  /** The seconds for which the gateway may be away at a time. Default: 600. */
  longestOutage?: number;
}

interface PageOptions extends CallOptions {
  /** The size of the pages, 1 to 200. Default: 50. */
  pageSize?: number;
}

/**
 * The jobs and files of a gateway. All methods throw `MoyinError`. Jobs and files are given by their id, or
 * as another method returned them.
 */
export class Client {
  readonly #connection: Connection;
  readonly #policy: RetryPolicy;

  constructor({ apiKey, retry = {}, ...options }: ClientOptions) {
    this.#connection = newConnection(options, { headers: { authorization: `Bearer ${apiKey}` } });
    this.#policy = fillPolicy(retry);
  }

  /**
   * Submit a job and return it; retries of this call cannot submit it twice. Calls that have the same
   * `idempotencyKey` submit one job, also from several processes; the default is a new one.
   */
  async submit(
    job: JobRequest, { idempotencyKey, signal }: CallOptions & { idempotencyKey?: string } = {},
  ): Promise<Job> {
    const headers = { "idempotency-key": idempotencyKey ?? newKey() };
    return parseJob(await this.#send(post("/jobs", job, headers), signal));
  }

  /** Return a job with its outputs as it is now. */
  async job(job: JobId, { signal }: CallOptions = {}): Promise<JobDetail> {
    return parseJob<JobDetail>(await this.#send({ method: "GET", path: jobPath(job) }, signal));
  }

  /** Yield the jobs that meet all conditions, newest first; pages are read as needed. */
  jobs(filter: JobFilter = {}, options: PageOptions = {}): AsyncGenerator<Job, void, undefined> {
    const { metadata, status, ...others } = filter;
    const query: Record<string, unknown> = { ...others, status: status?.join(",") };
    for (const [key, value] of Object.entries(metadata ?? {})) query[`metadata.${key}`] = value;
    return this.#readPages("/jobs", "jobs", query, options);
  }

  /** Request the cancellation of a job. It ends a moment later, perhaps as `succeeded`. */
  async cancel(job: JobId, { signal }: CallOptions = {}): Promise<Job> {
    return this.#change(job, "cancel", ["job_finished"], signal);
  }

  /** Continue a failed or cancelled job after its last finished step. */
  async retry(job: JobId, { signal }: CallOptions = {}): Promise<Job> {
    return this.#change(job, "retry", ["job_not_finished", "job_finished"], signal);
  }

  /** Delete a job that has ended, with its events and files. */
  async delete(job: JobId, { signal }: CallOptions = {}): Promise<void> {
    const call: Call = { method: "DELETE", path: jobPath(job), settledBy: ["job_not_found"] };
    await this.#send(call, signal);
  }

  /** Cancel all queued and running jobs that meet the conditions, or only count them (`dryRun`). */
  async cancelJobs(
    filter: JobFilter, options: CallOptions & { dryRun?: boolean } = {},
  ): Promise<BulkResult> {
    return this.#changeMany("/jobs/cancel", filter, options);
  }

  /** Delete all ended jobs that meet the conditions with their files, or only count them (`dryRun`). */
  async deleteJobs(
    filter: JobFilter, options: CallOptions & { dryRun?: boolean } = {},
  ): Promise<BulkResult> {
    return this.#changeMany("/jobs/delete", filter, options);
  }

  /** Return the graph of a render; in a pipeline of a step, in a batch of a child. */
  async graph(
    job: JobId, { step = 0, signal }: CallOptions & { step?: number } = {},
  ): Promise<Record<string, unknown>> {
    const call: Call = { method: "GET", path: `${jobPath(job)}/graph`, query: { step: `${step}` } };
    return parseObject(await this.#send(call, signal));
  }

  /** Yield the events of a job to its end, over broken connections and restarts of the gateway. */
  events(job: JobId, options: FollowOptions = {}): AsyncGenerator<JobEvent, void, undefined> {
    return follow(this.#connection, this.#policy, `${jobPath(job)}/events`, options);
  }

  /**
   * Wait until a job has ended, and return it with its outputs; look at its `status`.
   *
   * The gateway may be away for `longestOutage` seconds at a time (default: 600), counted from its
   * last answer; a longer outage throws the error of the last try.
   */
  async wait(job: JobId, { onProgress, longestOutage = 600, signal }: WaitOptions = {}): Promise<JobDetail> {
    let lastEventId: string | undefined;
    let answeredAt = performance.now();
    while (true) {
      try {
        for await (const event of this.events(job, { lastEventId, signal })) {
          answeredAt = performance.now();
          lastEventId = event.id ?? lastEventId;
          if (event.type === "progress") onProgress?.(event.data);
          else if (event.type === "step" && event.data.value != null && event.data.max != null)
            onProgress?.({ value: event.data.value, max: event.data.max, step: event.data.step });
        }
        const found = await this.job(job, { signal });
        answeredAt = performance.now();
        if (hasEnded(found)) return found;
      } catch (error) {
        const isOver = performance.now() - answeredAt > longestOutage * 1000;
        await sleep(pauseInOutage(this.#policy, error, isOver), signal);
        continue;
      }
      // It was retried after the last event.
      await sleep(this.#policy.firstPause, signal);
    }
  }

  /**
   * Return the newest preview of a render; null if there is none now. The gateway keeps previews only while
   * a client follows the job with `previews`, or calls this at least every fifteen seconds.
   */
  async preview(job: JobId, options: CallOptions = {}): Promise<Blob | null> {
    return getPreview(this.#connection, this.#policy, `${jobPath(job)}/preview`, options);
  }

  /**
   * Return a token for a page (`PageClient`), which opens the job's events, previews and files for
   * `expiresIn` seconds (300), an hour at most.
   */
  async createToken(
    job: JobId, { expiresIn = 300, signal }: CallOptions & { expiresIn?: number } = {},
  ): Promise<EventToken> {
    const call = post(`${jobPath(job)}/token`, { expires_in: expiresIn });
    return parseObject(await this.#send(call, signal), "token", "expires_at") as unknown as EventToken;
  }

  /**
   * Store a file; name it `artifact:<id>` in graphs and inputs. In Node, `fs.openAsBlob(path)` makes a Blob
   * of a file. The name and the media type of a `File` or `Blob` are the defaults.
   */
  async upload(
    file: Blob | Uint8Array | ArrayBuffer,
    options: CallOptions & { name?: string; mediaType?: string; idempotencyKey?: string } = {},
  ): Promise<Artifact> {
    const body = file instanceof Blob ? file : new Blob([file as BlobPart]);
    const name = options.name ?? (file instanceof File ? file.name : "");
    const text = await this.#send(
      {
        method: "POST",
        path: "/artifacts",
        query: name ? { name } : {},
        headers: {
          "content-type": options.mediaType || body.type || "application/octet-stream",
          "idempotency-key": options.idempotencyKey ?? newKey(),
        },
        body,
      },
      options.signal,
    );
    return parseObject(text, "id") as Artifact;
  }

  /** Return the content of a file, or with `width` a WebP of the picture that is at most so wide. */
  async download(
    artifact: ArtifactId, options: CallOptions & { width?: number } = {},
  ): Promise<Blob> {
    return download(this.#connection, this.#policy, artifact, options);
  }

  /** Yield the files that meet all conditions, newest first; pages are read as needed. */
  artifacts(
    filter: ArtifactFilter = {}, options: PageOptions = {},
  ): AsyncGenerator<ListedArtifact, void, undefined> {
    return this.#readPages("/artifacts", "artifacts", filter, options);
  }

  /** Delete an upload. A file that a job made is deleted with the job. */
  async deleteArtifact(artifact: ArtifactId, { signal }: CallOptions = {}): Promise<void> {
    const path = artifactPath(artifact);
    await this.#send({ method: "DELETE", path, settledBy: ["artifact_not_found"] }, signal);
  }

  /** Return a link that returns a file without a key for `expiresIn` seconds (3600), a day at most. */
  async link(
    artifact: ArtifactId, { expiresIn = 3600, signal }: CallOptions & { expiresIn?: number } = {},
  ): Promise<Link> {
    const call = post(`${artifactPath(artifact)}/link`, { expires_in: expiresIn });
    const link = parseObject(await this.#send(call, signal), "url", "expires_at") as unknown as Link;
    return { ...link, url: this.#connection.url + link.url };
  }

  /** Return the sums of calls, tokens and costs of text and renders. */
  async usage(query: UsageQuery = {}, { signal }: CallOptions = {}): Promise<UsageReport> {
    const call: Call = { method: "GET", path: "/v1/usage", query: buildQuery(query) };
    return parseObject(await this.#send(call, signal), "from", "to") as unknown as UsageReport;
  }

  /** Return the secret of your webhooks, for `verifyWebhook`. */
  async webhookSecret({ signal }: CallOptions = {}): Promise<string> {
    const text = await this.#send({ method: "GET", path: "/jobs/webhook-secret" }, signal);
    return parseObject(text, "secret")["secret"] as string;
  }

  async #change(
    job: JobId, action: string, settledBy: string[], signal: AbortSignal | undefined,
  ): Promise<Job> {
    const path = jobPath(job);
    const text = await this.#send({ method: "POST", path: `${path}/${action}`, settledBy }, signal);
    return text === undefined ? this.job(job, { signal }) : parseJob(text);
  }

  async #changeMany(
    path: string, filter: JobFilter, { dryRun = false, signal }: CallOptions & { dryRun?: boolean },
  ): Promise<BulkResult> {
    const sum = { matched: 0, done: 0, skipped: 0 };
    let cursor: unknown = null;
    do {
      const body = parseObject(await this.#send(post(path, { filter, dry_run: dryRun, cursor }), signal));
      for (const name of ["matched", "done", "skipped"] as const) {
        const count = body[name];
        if (typeof count !== "number") throw newMalformed(`${name} is not a number`);
        sum[name] += count;
      }
      cursor = body["next_cursor"];
    } while (typeof cursor === "string");
    return sum;
  }

  async *#readPages<T>(
    path: string, name: string, filter: object, { pageSize, signal }: PageOptions,
  ): AsyncGenerator<T, void, undefined> {
    let cursor: unknown;
    do {
      const query = buildQuery({ ...filter, limit: pageSize, cursor });
      const page = parseObject(await this.#send({ method: "GET", path, query }, signal));
      const items = page[name];
      if (!Array.isArray(items)) throw newMalformed(`${name} is not a list`);
      for (const item of items as T[]) {
        signal?.throwIfAborted();
        yield item;
      }
      cursor = page["next_cursor"];
    } while (typeof cursor === "string");
  }

  /** Send a request until it succeeds and return the body; undefined if an earlier try had succeeded. */
  #send(call: Call & { settledBy: string[] }, signal?: AbortSignal): Promise<string | undefined>;
  #send(call: Call, signal?: AbortSignal): Promise<string>;
  #send(call: Call, signal?: AbortSignal): Promise<string | undefined> {
    return send(this.#connection, this.#policy, call, signal, (exchange) => exchange.text());
  }
}

function parseJob<T extends Job>(text: string): T {
  return parseObject(text, "id", "status") as unknown as T;
}

/** Return a new idempotency key. `crypto.randomUUID` is missing on pages without TLS. */
function newKey(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
