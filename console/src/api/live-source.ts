/**
 * Follows server-sent events while the page is visible: a browser has few connections to a host for all its tabs.
 * Connects again after failures, the more rarely the longer they last.
 */

import { call } from "./client";
import { ApiError } from "./errors";

const FIRST_PAUSE_MILLISECONDS = 3_000;
const LONGEST_PAUSE_MILLISECONDS = 60_000;

export interface LiveState {
  isReconnecting: boolean;
  /** Why the server refuses the events; `null` while it does not, or cannot be reached. */
  refusal: ApiError | null;
}

export const CONNECTED: LiveState = { isReconnecting: false, refusal: null };

interface Options {
  /** Returns the address, which may say after which event to go on. */
  getAddress: () => string;
  listeners: Record<string, (message: MessageEvent<string>) => void>;
  onState: (state: LiveState) => void;
  /** The server has said that no event follows. */
  onEnd?: () => void;
  /** Returns whether a refusal says so, because what is followed has ended. */
  isOver?: () => boolean;
}

export class LiveSource {
  private source: EventSource | undefined;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private readonly request = new AbortController();
  private failures = 0;

  constructor(private readonly options: Options) {
    document.addEventListener("visibilitychange", () => this.restart(), { signal: this.request.signal });
    this.restart();
  }

  close() {
    this.request.abort();
    this.stop();
  }

  private stop() {
    clearTimeout(this.timer);
    this.source?.close();
  }

  private restart() {
    this.stop();
    if (!document.hidden) this.open();
  }

  private open() {
    const source = new EventSource(this.options.getAddress());
    this.source = source;
    for (const [type, listen] of Object.entries(this.options.listeners)) {
      source.addEventListener(type, (message: MessageEvent<string>) => {
        this.failures = 0;
        listen(message);
      });
    }
    source.onopen = () => this.options.onState(CONNECTED);
    // An event `error` of the server and a broken connection both arrive here.
    source.onerror = () => {
      // A stream that was closed here may still report a failure.
      if (this.request.signal.aborted || source !== this.source) return;
      // A browser does not connect again after a refusal, such as of a session that is too old.
      if (source.readyState === EventSource.CLOSED) {
        if (this.options.isOver?.()) this.end();
        else this.retryLater(null);
      } else this.options.onState({ isReconnecting: true, refusal: null });
    };
  }

  private end() {
    this.close();
    this.options.onState(CONNECTED);
    this.options.onEnd?.();
  }

  private retryLater(refusal: ApiError | null) {
    this.options.onState({ isReconnecting: true, refusal });
    const pause = Math.min(LONGEST_PAUSE_MILLISECONDS, FIRST_PAUSE_MILLISECONDS * 2 ** this.failures);
    this.failures += 1;
    this.timer = setTimeout(() => void this.retry(), pause);
  }

  /** Ask for the events as any request does, which renews the session and gets the reason of a refusal. */
  private async retry() {
    const { source, request: { signal } } = this;
    // A page that is hidden and shown again meanwhile has another stream.
    const isObsolete = () => signal.aborted || source !== this.source;
    try {
      const response = await call(this.options.getAddress(), { headers: { accept: "text/event-stream" }, signal });
      await response.body?.cancel();
      if (isObsolete()) return;
      if (response.status === 204) this.end();
      else this.restart();
    } catch (error) {
      if (isObsolete() || document.hidden) return;
      this.retryLater(error instanceof ApiError && error.status > 0 ? error : null);
    }
  }
}
