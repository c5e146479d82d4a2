/** Reads what an earlier job was submitted with, to fill in the form. */

import { call } from "#/api/client";
import { isNotFound } from "#/api/errors";

import { parseExact } from "./exact-json";
import { convertGraph, type GraphFile } from "./graph";
import type { Options } from "./request";

export type Draft = { options: Partial<Options> } & (
  | { kind: "template"; template: string; inputs: Record<string, unknown> }
  | { kind: "graph"; file: GraphFile }
  | { kind: "none" }
  | { kind: "missing" }
);

interface Job {
  priority: number;
  metadata: Record<string, string>;
  submitted: {
    steps: { kind: string; template?: string | null; inputs?: Record<string, unknown> | null; pool?: string | null; cache?: boolean | null; graph?: string | null }[];
  } | null;
}

export async function readDraft(id: string): Promise<Draft> {
  let job: Job;
  try {
    job = (await readExact(`/jobs/${encodeURIComponent(id)}`)) as Job;
  } catch (error) {
    if (isNotFound(error)) return { kind: "missing", options: {} };
    throw error;
  }
  const index = job.submitted?.steps.findIndex((step) => step.kind === "render") ?? -1;
  const step = job.submitted?.steps[index];
  if (step === undefined) return { kind: "none", options: {} };
  const options = {
    priority: job.priority, project: job.metadata.project ?? "", pool: step.pool ?? "", cache: step.cache !== false,
  };
  if (step.template && step.inputs) return { kind: "template", template: step.template, inputs: step.inputs, options };
  const graph = await call(step.graph ?? `/jobs/${encodeURIComponent(id)}/graph?step=${index}`);
  return { kind: "graph", file: await convertGraph(id, await graph.text()), options };
}

/** Read a body whose integers may be beyond 2^53. */
async function readExact(path: string): Promise<unknown> {
  return parseExact(await (await call(path)).text());
}
