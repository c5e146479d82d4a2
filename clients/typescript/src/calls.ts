/** Builds requests, and sends them until they succeed. */

import { MoyinError } from "./errors.js";
import { type Call, type Connection, Exchange } from "./exchange.js";
import { pauseAfter, type RetryPolicy, sleep } from "./retry.js";

export interface CallOptions {
  /** Ends the call, which then throws the signal's reason. */
  signal?: AbortSignal | undefined;
}

/** A job, or its id. */
export type JobId = string | { id: string };
/** A file, or its id. */
export type ArtifactId = string | { id: string };

/** Send a request until it succeeds and return the result; undefined if an earlier try had succeeded. */
export async function send<T>(
  connection: Connection,
  policy: RetryPolicy,
  call: Call,
  signal: AbortSignal | undefined,
  read: (exchange: Exchange) => Promise<T>,
): Promise<T> {
  let mayBeDone = false;
  for (let failures = 1; ; failures++) {
    let pause: number;
    try {
      const exchange = await Exchange.open(connection, call, signal);
      try {
        return await read(exchange);
      } finally {
        exchange.close();
      }
    } catch (error) {
      if (mayBeDone && error instanceof MoyinError && call.settledBy?.includes(error.code))
        return undefined as T;
      // A limit is checked before anything is done.
      mayBeDone ||= !(error instanceof MoyinError && error.status === 429);
      pause = pauseAfter(policy, error, failures);
    }
    await sleep(pause, signal);
  }
}

/** Return the content of a file. */
export async function download(
  connection: Connection,
  policy: RetryPolicy,
  artifact: ArtifactId,
  { width, signal }: CallOptions & { width?: number | undefined },
): Promise<Blob> {
  const query: Record<string, string> = width === undefined ? {} : { w: `${width}` };
  const call: Call = { method: "GET", path: artifactPath(artifact), query };
  return send(connection, policy, call, signal, (exchange) => exchange.blob());
}

/** Return the newest preview of a job; null if there is none now. */
export async function getPreview(
  connection: Connection, policy: RetryPolicy, path: string, { signal }: CallOptions,
): Promise<Blob | null> {
  try {
    const call: Call = { method: "GET", path };
    return await send(connection, policy, call, signal, (exchange) => exchange.blob());
  } catch (error) {
    if (error instanceof MoyinError && error.code === "preview_not_found") return null;
    throw error;
  }
}

export function post(path: string, body: unknown, headers: Record<string, string> = {}): Call {
  return {
    method: "POST",
    path,
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify(body),
  };
}

export function buildQuery(members: object): Record<string, string | string[]> {
  const query: Record<string, string | string[]> = {};
  for (const [name, value] of Object.entries(members))
    if (value !== undefined && value !== null)
      query[name] = Array.isArray(value) ? value.map(String) : String(value);
  return query;
}

export function jobPath(job: JobId): string {
  return `/jobs/${getId(job)}`;
}

export function artifactPath(artifact: ArtifactId): string {
  return `/artifacts/${getId(artifact)}`;
}

/** Return an id that is safe in a path; throw TypeError if it could lead to another route. */
function getId(item: string | { id: string }): string {
  const id = typeof item === "string" ? item : item.id;
  if (!/^[\w~-][\w.~-]*$/.test(id)) throw new TypeError(`${JSON.stringify(id)} is not the id of a job or file`);
  return id;
}
