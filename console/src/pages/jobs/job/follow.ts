/** Follows a job by its server-sent events while its page is open. */

import { type QueryClient, useQueryClient } from "@tanstack/react-query";
import { useEffect, useState } from "react";

import { CONNECTED, LiveSource, type LiveState } from "#/api/live-source";

import {
  isOpen, type JobDetail, type PreviewEvent, type ProgressEvent, STATUSES, type StatusEvent, type StepEvent,
} from "../types";
import { addToLog, EMPTY_LOG, type Log, type LogEvent } from "./log";

// Ten a second can come, and a thousand when a stream begins: paint fewer.
const PAINT_MILLISECONDS = 100;
const REFRESH_MILLISECONDS = 500;

/** One attempt of a job: what its events say of it. */
export interface Attempt {
  number: number;
  startedAt: string | null;
  steps: StepEvent[];
  /** Its last status event. */
  last: StatusEvent | null;
}

export interface JobEvents {
  attempts: Attempt[];
  progress: ProgressEvent | null;
  preview: PreviewEvent | null;
  log: Log;
  live: LiveState;
  /** The stream has ended with the job. */
  isComplete: boolean;
}

const NOTHING: JobEvents = {
  attempts: [], progress: null, preview: null, log: EMPTY_LOG, live: CONNECTED, isComplete: false,
};

/** Return what the events of a job say; a new attempt opens the stream again. */
export function useJobEvents(job: JobDetail | undefined): JobEvents {
  const queries = useQueryClient();
  const [events, setEvents] = useState(NOTHING);
  const id = job?.id;
  const attempt = job?.attempts;
  useEffect(() => {
    if (id === undefined || attempt === undefined) return undefined;
    const stream = new JobStream(id, attempt, queries, setEvents);
    return () => stream.close();
  }, [id, attempt, queries]);
  return events;
}

class JobStream {
  private state = NOTHING;
  private readonly source: LiveSource;
  private lastId = "";
  private isClosed = false;
  /** The steps, or the children of a batch, that have reported progress. */
  private readonly begun = new Set<number>();
  private readonly timers = new Map<string, ReturnType<typeof setTimeout>>();

  constructor(
    private readonly id: string,
    private readonly attempt: number,
    private readonly queries: QueryClient,
    private readonly paint: (state: JobEvents) => void,
  ) {
    this.source = new LiveSource({
      getAddress: () => {
        const after = this.lastId ? `&last_event_id=${encodeURIComponent(this.lastId)}` : "";
        return `/jobs/${encodeURIComponent(this.id)}/events?previews=true${after}`;
      },
      listeners: {
        ...Object.fromEntries(STATUSES.map((status) => [status, this.listen<StatusEvent>((data, id) => {
          this.log({ type: "status", data }, id);
          this.addStatus(data);
        })])),
        step: this.listen<StepEvent>((data, id) => {
          this.log({ type: "step", data }, id);
          this.addStep(data);
        }),
        progress: this.listen<ProgressEvent>((data, id) => {
          this.log({ type: "progress", data }, id);
          this.addProgress(data);
        }),
        preview: this.listen<PreviewEvent>((preview) => this.update({ preview })),
      },
      onState: (live) => this.update({ live }),
      onEnd: () => this.end(),
      isOver: () => {
        const known = this.queries.getQueryData<JobDetail>(["job", this.id]);
        return known !== undefined && !isOpen(known);
      },
    });
  }

  close() {
    this.isClosed = true;
    this.source.close();
    for (const timer of this.timers.values()) clearTimeout(timer);
  }

  private listen<E>(use: (event: E, id: string | null) => void) {
    return ({ data, lastEventId }: MessageEvent<string>) => {
      // An event without an id has that of the event before, if there was one in this stream.
      const id = lastEventId === "" || lastEventId === this.lastId ? null : lastEventId;
      if (id !== null) this.lastId = id;
      use(JSON.parse(data) as E, id);
    };
  }

  private log(event: LogEvent, id: string | null) {
    this.update({ log: addToLog(this.state.log, event, id) });
  }

  /** Nothing is kept of a job that has ended; one that was just open here has ended since. */
  private end() {
    this.update({ isComplete: true });
    this.refresh(this.attempt);
  }

  private addStatus(event: StatusEvent) {
    this.change(event.attempt, (attempt) => ({
      ...attempt, last: event, startedAt: event.started_at ?? attempt.startedAt,
    }));
    if (!isOpen(event)) {
      this.update({ progress: null, preview: null });
      // Without this the browser would connect once more, only to learn that nothing follows.
      if (event.attempt >= this.attempt) this.source.close();
    }
    this.refresh(event.attempt);
  }

  private addStep(event: StepEvent) {
    this.change(event.attempt, (attempt) => ({ ...attempt, steps: [...attempt.steps, event] }));
    this.refresh(event.attempt);
  }

  /** Without a step or a status, only the first progress of a child tells that it runs. */
  private addProgress(progress: ProgressEvent) {
    this.update({ progress });
    if (this.begun.has(progress.step)) return;
    this.begun.add(progress.step);
    this.refresh(this.attempt);
  }

  private change(number: number, update: (attempt: Attempt) => Attempt) {
    const attempts = [...this.state.attempts];
    let index = attempts.findIndex((attempt) => attempt.number === number);
    if (index < 0) index = attempts.push({ number, startedAt: null, steps: [], last: null }) - 1;
    attempts[index] = update(attempts[index]!);
    this.update({ attempts });
  }

  private update(change: Partial<JobEvents>) {
    this.state = { ...this.state, ...change };
    this.later("paint", PAINT_MILLISECONDS, () => this.paint(this.state));
  }

  /** Read the job again, unless the event is older than what is shown. */
  private refresh(attempt: number) {
    const known = this.queries.getQueryData<JobDetail>(["job", this.id]);
    if (known && !isOpen(known) && attempt <= known.attempts) return;
    this.later("refresh", REFRESH_MILLISECONDS, () => {
      void this.queries.invalidateQueries({ queryKey: ["job", this.id] });
    });
  }

  private later(name: string, milliseconds: number, act: () => void) {
    if (this.isClosed || this.timers.has(name)) return;
    this.timers.set(name, setTimeout(() => {
      this.timers.delete(name);
      act();
    }, milliseconds));
  }
}
