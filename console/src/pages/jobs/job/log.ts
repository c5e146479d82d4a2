/** Makes the lines of a job's log from its events. */

import { type ProgressEvent, type StatusEvent, type StepEvent } from "../types";

// A stream keeps a thousand events or somewhat more; these are the newest of them.
const MAX_LINES = 500;

export type LogEvent =
  | { type: "status"; data: StatusEvent }
  | { type: "progress"; data: ProgressEvent }
  | { type: "step"; data: StepEvent };

/** An event, or several of the progress of one node, of which `event` is the last. */
export interface LogLine {
  /** Counts the lines, from 0. */
  number: number;
  /** When the first of its events happened, in ISO 8601. */
  time: string;
  /** Null if the event that says so is no longer kept. */
  attempt: number | null;
  event: LogEvent;
}

/** The lines that the events make, of which the oldest may be missing. */
export interface Log {
  lines: LogLine[];
  isCut: boolean;
}

export const EMPTY_LOG: Log = { lines: [], isCut: false };

/** Return the log with an event, whose id begins with the time when it was published. */
export function addToLog({ lines, isCut }: Log, event: LogEvent, id: string | null): Log {
  const last = lines.at(-1);
  if (last && isSameProgress(last.event, event)) return { lines: [...lines.slice(0, -1), { ...last, event }], isCut };
  const line: LogLine = {
    number: last ? last.number + 1 : 0,
    time: id === null ? readEnd(event) : new Date(Number.parseInt(id, 10)).toISOString(),
    attempt: event.type === "progress" ? (last?.attempt ?? null) : event.data.attempt,
    event,
  };
  const isFirst = event.type === "status" && event.data.status === "queued" && event.data.attempt === 1;
  return {
    lines: [...lines, line].slice(-MAX_LINES),
    isCut: isCut || lines.length === MAX_LINES || (last === undefined && !isFirst),
  };
}

function isSameProgress(last: LogEvent, next: LogEvent): boolean {
  return last.type === "progress" && next.type === "progress" &&
    last.data.step === next.data.step && last.data.node === next.data.node;
}

/** Only a job's end may have no id: if the event was made from the job's row. */
function readEnd({ data }: LogEvent): string {
  return "finished_at" in data && data.finished_at ? data.finished_at : new Date().toISOString();
}
