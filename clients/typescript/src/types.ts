/** Names the shapes of the API that the client uses. `openapi.ts` is generated and has all of them. */

import type { components, paths } from "./openapi.js";

type Schemas = components["schemas"];
type Query<Path extends keyof paths> = paths[Path] extends {
  get: { parameters: { query?: infer Parameters } };
}
  ? NonNullable<Parameters>
  : never;

/** A job to submit: a chat, a render (with a batch if you like), an HTTP call or a pipeline. */
export type JobRequest = Schemas["JobRequest"];
export type JobStatus = Schemas["JobStatus"];
export type Job = Schemas["JobBody"];
/** A job with its outputs, its children and what it was submitted with. */
export type JobDetail = Schemas["JobDetail"];
/** Conditions on jobs; a job must meet all of them. */
export type JobFilter = Partial<Schemas["JobFilterBody"]>;
export type Artifact = Schemas["ArtifactBody"];
/** A file in a list; `job` is the id of the job that made it. */
export type ListedArtifact = Schemas["ArtifactDetail"];
/** Conditions on files; a file must meet all of them. */
export type ArtifactFilter = Omit<Query<"/artifacts">, "cursor" | "limit">;
export type Link = Schemas["LinkBody"];
/** A token with which a page reads one job's events, previews and files; see `PageClient`. */
export type EventToken = Schemas["TokenBody"];
export type UsageQuery = Query<"/v1/usage">;
export type UsageReport = Schemas["UsageReport"];
export type ProgressEvent = Schemas["ProgressEvent"];
/** A new preview picture; `url` is relative to the gateway and serves the job's newest for a minute. */
export type PreviewEvent = Schemas["PreviewEvent"];
export type StepEvent = Schemas["StepEvent"];
export type StatusEvent = Schemas["StatusEvent"];

/**
 * An event of a job. Later versions of Moyin may send types that are not in this union.
 *
 * `id` is the cursor with which `events` resumes; it is null for an event without one, such
 * as a preview.
 */
export type JobEvent = {
  [Type in keyof Schemas["JobEvents"]]: {
    type: Type;
    data: Schemas["JobEvents"][Type];
    id: string | null;
  };
}[keyof Schemas["JobEvents"]];

/** The number of jobs that a request for many has matched, changed and left as they were. */
export interface BulkResult {
  matched: number;
  done: number;
  skipped: number;
}

/** A verified webhook; `id` is the same for each delivery of it. */
export interface Webhook {
  id: string;
  type: string;
  timestamp: string;
  job: StatusEvent;
}

const FINAL: ReadonlySet<string> = new Set(["succeeded", "failed", "cancelled"]);

/** Return true if the job has succeeded, failed or was cancelled. */
export function hasEnded(job: { status: string }): boolean {
  return FINAL.has(job.status);
}
