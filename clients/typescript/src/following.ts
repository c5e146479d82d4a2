/** Follows the events of a job over broken connections. */

import { buildEventError, CONNECTION_FAILED, MoyinError, parseObject } from "./errors.js";
import { type Call, type Connection, Exchange } from "./exchange.js";
import { pauseAfter, type RetryPolicy, sleep } from "./retry.js";
import { SseParser } from "./sse.js";
import { hasEnded, type JobEvent } from "./types.js";

export interface FollowOptions {
  /** The id of the last event that you have; the default is to begin with the first. */
  lastEventId?: string | undefined;
  /** Also yield `preview` events while a render shows pictures of its work. */
  previews?: boolean | undefined;
  /** Ends the call, which then throws the signal's reason. */
  signal?: AbortSignal | undefined;
}

/**
 * Yield the events of a job to its end.
 *
 * A job that is retried has several last events, so the job has ended only when the gateway closes the
 * stream after one.
 */
export async function* follow(
  connection: Connection,
  policy: RetryPolicy,
  path: string,
  { lastEventId, previews = false, signal }: FollowOptions,
): AsyncGenerator<JobEvent, void, undefined> {
  let failures = 0;
  let retry = 0;
  let isLastFinal = false;
  while (true) {
    const parser = new SseParser();
    let pause: number;
    try {
      const headers = {
        accept: "text/event-stream",
        ...(lastEventId ? { "last-event-id": lastEventId } : {}),
      };
      const call: Call = { method: "GET", path, headers, query: previews ? { previews: "true" } : {} };
      const exchange = await Exchange.open(connection, call, signal);
      try {
        for await (const piece of exchange.pieces())
          for (const { type, data, id } of parser.feed(piece)) {
            const members = parseObject(data);
            if (type === "error") throw buildEventError(members);
            const event = { type, data: members, id: id || null } as unknown as JobEvent;
            failures = 0;
            lastEventId = id || lastEventId;
            // A preview may come after the last event.
            if (type !== "preview") isLastFinal = hasEnded({ status: type });
            // One piece may have many events, so the signal may abort between them.
            signal?.throwIfAborted();
            yield event;
          }
      } finally {
        exchange.close();
      }
      // 204 says that there is nothing after the last event.
      if (isLastFinal || exchange.response.status === 204) return;
      throw new MoyinError("the stream ended before the job", { code: CONNECTION_FAILED });
    } catch (error) {
      failures += 1;
      pause = pauseAfter(policy, error, failures);
      retry = parser.retry || retry;
    }
    await sleep(Math.max(pause, Math.min(retry, policy.longestPause)), signal);
  }
}
