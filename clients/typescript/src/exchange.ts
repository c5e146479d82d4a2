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

export interface Connection {
  url: string;
  apiKey: string;
  timeout: number;
  fetch: typeof fetch;
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
    const { url, apiKey, fetch } = this.#connection;
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(call.query ?? {}))
      for (const item of Array.isArray(value) ? value : [value]) query.append(name, item);
    // Outside of `translate`: a key that no header can hold is a mistake of the caller.
    const headers = new Headers({ authorization: `Bearer ${apiKey}`, ...call.headers });
    const address = `${url}${call.path}${call.query ? `?${query}` : ""}`;
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
