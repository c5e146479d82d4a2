/** Sends one request and reads its response, with a limit on silence. */

import { buildError, CONNECTION_FAILED, MoyinError } from "./errors.js";
import { startTimer } from "./retry.js";

/** A request. Errors with a code of `settledBy` say, after a lost response, that it was done before. */
export interface Call {
  method: "GET" | "POST" | "DELETE";
  path: string;
  query?: Record<string, string | string[]>;
  headers?: Record<string, string>;
  body?: string | Blob;
  settledBy?: string[];
}

/** How requests reach the gateway; `headers` and `query` have the credential of every request. */
export interface Connection {
  url: string;
  headers: Record<string, string>;
  query: Record<string, string>;
  timeout: number;
  fetch: typeof fetch;
}

export interface ConnectionOptions {
  /** The gateway's address, such as `http://127.0.0.1:8000`. */
  url: string;
  /** The longest time in seconds without a byte from the gateway. Default: 60. */
  timeout?: number | undefined;
  /** What sends requests; default: the global `fetch`. */
  fetch?: typeof fetch | undefined;
}

/** Return the connection that sends a credential in headers or in the query. */
export function newConnection(
  { url, timeout = 60, fetch }: ConnectionOptions,
  { headers = {}, query = {} }: Partial<Pick<Connection, "headers" | "query">>,
): Connection {
  // A base with a path is kept, a query is not.
  const { protocol, origin, pathname } = new URL(url);
  if (!/^https?:$/.test(protocol))
    throw new TypeError(`the url must begin with http:// or https://, not with ${protocol}`);
  return {
    url: origin + pathname.replace(/\/+$/, ""),
    headers,
    query,
    timeout,
    fetch: fetch ?? globalThis.fetch.bind(globalThis),
  };
}

/** A response whose body is read piece by piece. It must be closed. */
export class Exchange {
  response!: Response;
  readonly #abort = new AbortController();
  readonly #connection: Connection;
  readonly #signal: AbortSignal | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #timedOut = false;

  private constructor(connection: Connection, signal: AbortSignal | undefined) {
    this.#connection = connection;
    this.#signal = signal;
    signal?.addEventListener("abort", this.#onAbort);
  }

  /** Send a request; throw MoyinError if the response is not a success. */
  static async open(
    connection: Connection, call: Call, signal: AbortSignal | undefined,
  ): Promise<Exchange> {
    signal?.throwIfAborted();
    const exchange = new Exchange(connection, signal);
    try {
      await exchange.#send(call);
      if (exchange.response.ok) return exchange;
      const { status, headers } = exchange.response;
      throw buildError(status, headers, await exchange.text());
    } catch (error) {
      exchange.close();
      throw error;
    }
  }

  /** Yield the pieces of the body. */
  async *pieces(): AsyncGenerator<Uint8Array<ArrayBuffer>> {
    const reader = this.response.body?.getReader();
    while (reader) {
      this.#restartTimer();
      const { done, value } = await this.#translate(() => reader.read());
      if (done) return;
      yield value;
    }
  }

  /** Return the whole body as text. */
  async text(): Promise<string> {
    return (await this.blob()).text();
  }

  /** Return the whole body. */
  async blob(): Promise<Blob> {
    const pieces: Uint8Array<ArrayBuffer>[] = [];
    for await (const piece of this.pieces()) pieces.push(piece);
    return new Blob(pieces, { type: this.response.headers.get("content-type") ?? "" });
  }

  /** End the exchange; what is left of the response is not read. */
  close(): void {
    clearTimeout(this.#timer);
    this.#signal?.removeEventListener("abort", this.#onAbort);
    this.#abort.abort();
  }

  async #send(call: Call): Promise<void> {
    const { url, fetch } = this.#connection;
    const query = new URLSearchParams(this.#connection.query);
    for (const [name, value] of Object.entries(call.query ?? {}))
      for (const item of Array.isArray(value) ? value : [value]) query.append(name, item);
    // Outside of `translate`: a key that no header can hold is a mistake of the caller.
    const headers = new Headers({ ...this.#connection.headers, ...call.headers });
    const parameters = query.toString();
    const address = url + call.path + (parameters && `?${parameters}`);
    // `fetch` does not report the progress of an upload; the gateway ends those that stall.
    if (!(call.body instanceof Blob)) this.#restartTimer();
    this.response = await this.#translate(() =>
      fetch(address, {
        method: call.method,
        headers,
        body: call.body ?? null,
        redirect: "manual",
        credentials: "omit",
        cache: "no-store",
        signal: this.#abort.signal,
      }),
    );
  }

  #onAbort = () => this.#abort.abort();

  #restartTimer(): void {
    clearTimeout(this.#timer);
    this.#timer = startTimer(() => {
      this.#timedOut = true;
      this.#abort.abort();
    }, this.#connection.timeout);
  }

  /** Wait for a part of the exchange; throw the errors of `fetch` as MoyinError. */
  async #translate<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (cause) {
      if (this.#signal?.aborted) throw this.#signal.reason;
      if (this.#timedOut) {
        const message = `the gateway sent nothing for ${this.#connection.timeout} s`;
        throw new MoyinError(message, { code: CONNECTION_FAILED, cause });
      }
      // `fetch` reports all failures of the network as TypeError.
      const code = cause instanceof TypeError ? CONNECTION_FAILED : "request_failed";
      throw new MoyinError(`the request failed: ${explain(cause)}`, { code, cause });
    } finally {
      // The silence of a caller that takes its time is not the gateway's.
      clearTimeout(this.#timer);
    }
  }
}

function explain(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const reason = error.cause instanceof Error ? error.cause.message : "";
  return reason ? `${error.message}: ${reason}` : error.message;
}
