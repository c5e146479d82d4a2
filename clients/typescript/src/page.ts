/** Defines `PageClient`, with which a page follows one job. */

import { type ArtifactId, type CallOptions, download, getPreview, type JobId, jobPath } from "./calls.js";
import { type Connection, type ConnectionOptions, newConnection } from "./exchange.js";
import { follow, type FollowOptions } from "./following.js";
import { fillPolicy, type RetryPolicy } from "./retry.js";
import type { JobEvent } from "./types.js";

export interface PageClientOptions extends ConnectionOptions {
  /** The token that `createToken` returned to the page's own server. */
  token: string;
  /** How often and how patiently requests are sent again. */
  retry?: Partial<RetryPolicy>;
}

/**
 * Reads the events, previews and files of one job with an event token instead of a key. All methods throw
 * `MoyinError`: with the code `invalid_token` when the token has expired, after which a client with a new
 * token continues from the id of the last event.
 */
export class PageClient {
  readonly #connection: Connection;
  readonly #policy: RetryPolicy;

  constructor({ token, retry = {}, ...options }: PageClientOptions) {
    // The token is sent in URLs, which appear in logs and histories.
    if (token.startsWith("moyin_"))
      throw new TypeError("the token is an API key, which must not be in a URL: use one of createToken");
    if (!token) throw new TypeError("the token is empty");
    this.#connection = newConnection(options, { query: { token } });
    this.#policy = fillPolicy(retry);
  }

  /** Yield the events of the job to its end, over broken connections and restarts of the gateway. */
  events(job: JobId, options: FollowOptions = {}): AsyncGenerator<JobEvent, void, undefined> {
    return follow(this.#connection, this.#policy, `${jobPath(job)}/events`, options);
  }

  /** Return the newest preview of a render; null if there is none now. */
  async preview(job: JobId, options: CallOptions = {}): Promise<Blob | null> {
    return getPreview(this.#connection, this.#policy, `${jobPath(job)}/preview`, options);
  }

  /** Return the content of a file, or with `width` a WebP of the picture that is at most so wide. */
  async download(
    artifact: ArtifactId, options: CallOptions & { width?: number } = {},
  ): Promise<Blob> {
    return download(this.#connection, this.#policy, artifact, options);
  }

  /**
   * Return the address of a file or of a `preview` event's picture with the token, such as for `<img>`.
   * `width` makes it that of a WebP which is at most so wide.
   */
  url({ url }: { url: string }, { width }: { width?: number } = {}): string {
    // Only paths: the token must not reach another host.
    if (!url.startsWith("/")) throw new TypeError(`${JSON.stringify(url)} is not a path of the gateway`);
    const address = new URL(this.#connection.url + url);
    if (width !== undefined) address.searchParams.set("w", `${width}`);
    address.searchParams.set("token", this.#connection.query["token"] as string);
    return address.href;
  }
}
