/** Decides whether and when a failed request is sent again. */

import { CONNECTION_FAILED, MoyinError } from "./errors.js";

const STATUSES = new Set([408, 429, 502, 503, 504]);
// Codes of the event `error`, which has no status.
const CODES = new Set([
  CONNECTION_FAILED, "overloaded", "service_unavailable", "slow_consumer", "unavailable",
]);

/** How often and how patiently a request is sent again; times are in seconds. */
export interface RetryPolicy {
  /** The number of times that a request is sent; for events, in a row without an event. Default: 10. */
  tries: number;
  /** The pause before the second try; every further pause is twice as long. Default: 0.5. */
  firstPause: number;
  /** The longest pause that the client chooses itself. Default: 10. */
  longestPause: number;
  /** The longest pause that the gateway may ask for; a longer one throws the error. Default: 120. */
  longestRetryAfter: number;
}

export const DEFAULT_POLICY: Readonly<RetryPolicy> = {
  tries: 10,
  firstPause: 0.5,
  longestPause: 10,
  longestRetryAfter: 120,
};

/** Return the policy with the defaults for options that are missing or undefined. */
export function fillPolicy(policy: Partial<RetryPolicy>): RetryPolicy {
  const given = Object.entries(policy).filter(([, value]) => value !== undefined);
  return { ...DEFAULT_POLICY, ...Object.fromEntries(given) };
}

/** Return the seconds before the next try, after so many failures; throw the error if there is none. */
export function pauseAfter(policy: RetryPolicy, error: unknown, failures: number): number {
  if (!(error instanceof MoyinError) || !isRetryable(error)) throw error;
  const requested = error.retryAfter ?? 0;
  if (failures >= policy.tries || requested > policy.longestRetryAfter) throw error;
  const backoff = Math.min(policy.firstPause * 2 ** (failures - 1), policy.longestPause);
  return Math.max(requested, backoff * (0.5 + Math.random() / 2));
}

/** Return the seconds before further tries after `policy.tries`; throw the error if there are none. */
export function pauseInOutage(policy: RetryPolicy, error: unknown, isOver: boolean): number {
  if (isOver || !(error instanceof MoyinError) || !isRetryable(error)) throw error;
  const requested = error.retryAfter ?? 0;
  if (requested > policy.longestRetryAfter) throw error;
  return Math.max(requested, policy.longestPause * (0.5 + Math.random() / 2));
}

/** Call `action` after so many seconds, 24.8 days at most: a longer timer would end at once. */
export function startTimer(action: () => void, seconds: number): ReturnType<typeof setTimeout> {
  return setTimeout(action, Math.min(seconds * 1000, 2 ** 31 - 1));
}

/** Resolve after so many seconds; reject with the reason of the signal if it aborts before. */
export function sleep(seconds: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const end = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", end);
      if (signal?.aborted) reject(signal.reason);
      else resolve();
    };
    const timer = startTimer(end, seconds);
    signal?.addEventListener("abort", end);
  });
}

function isRetryable(error: MoyinError): boolean {
  return error.status === undefined ? CODES.has(error.code) : STATUSES.has(error.status);
}
