/** Names the shapes of jobs, and what follows from a job's status. */

import type { components } from "#api/gateway";

type Schemas = components["schemas"];
export type JobDetail = Schemas["JobDetail"];
export type JobPage = Schemas["JobPage"];
export type Job = JobPage["jobs"][number];
export type JobStatus = Schemas["JobStatus"];
export type JobFilter = Schemas["JobFilterBody"];
export type Artifact = Schemas["ArtifactBody"];
export type Output = JobDetail["outputs"][number];
export type Child = Schemas["ChildBody"];
export type SubmittedStep = Schemas["SubmittedStep"];
export type StatusEvent = Schemas["StatusEvent"];
export type StepEvent = Schemas["StepEvent"];
export type ProgressEvent = Schemas["ProgressEvent"];
export type PreviewEvent = Schemas["PreviewEvent"];

/** The address of the list. A relative one would end in a slash, and count as another page. */
export const LIST = "~/console/jobs";

export const STATUSES = ["queued", "running", "succeeded", "failed", "cancelled"] as const satisfies JobStatus[];
export const KINDS = ["chat", "render", "http", "pipeline"] as const;
export type Kind = (typeof KINDS)[number];

export const STATUS_COLOURS: Record<JobStatus, string> = {
  queued: "gray", running: "blue", succeeded: "green", failed: "red", cancelled: "orange",
};

/** Red text with enough contrast on the page's ground, which Mantine's own red has not. */
export const ERROR_TEXT = "light-dark(var(--mantine-color-red-9), var(--mantine-color-red-4))";

export const isOpen = (job: { status: JobStatus }) => job.status === "queued" || job.status === "running";
/** The first characters of an id, which tell jobs apart for a reader. */
export const shortId = (id: string) => id.slice(0, 8);

/** Return the seconds from a job's start to its end, or until now. */
export function runSeconds(job: { started_at: string | null; finished_at: string | null }): number | null {
  if (job.started_at === null) return null;
  const end = job.finished_at === null ? Date.now() : Date.parse(job.finished_at);
  return Math.max(0, (end - Date.parse(job.started_at)) / 1000);
}
