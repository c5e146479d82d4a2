/** Makes the body of `POST /jobs` from the form, and counts its renders. */

import type { components } from "#api/gateway";

import { type Graph, hasSeeds, listInputs } from "./graph";
import { type InputSchema, isRequired, listSchemas, parseValue, type Problem, type Values } from "./schema";

export type Template = components["schemas"]["TemplateBody"];
export const MAX_CHILDREN = 256;

export type Work = { kind: "template"; template: Template; values: Values } | { kind: "graph"; graph: Graph };

/** How the renders of a job differ: not at all, by their seeds, or by every combination of values. */
export interface Variants {
  mode: "one" | "seeds" | "sweep";
  seeds: number;
  sweep: { key: string; values: string[] }[];
}

export interface Options {
  pool: string;
  priority: number;
  /** A local date and time, or nothing. */
  deadline: string;
  project: string;
  cache: boolean;
}

export type Problems = Record<string, Problem>;
export type Built = { body: Record<string, unknown> } | { problems: Problems };

/** An input that a sweep can vary. */
export interface Variable {
  key: string;
  label: string;
  schema: InputSchema;
}

export function listVariables(work: Work): Variable[] {
  if (work.kind === "template") {
    return listSchemas(work.template.inputs)
      .filter(([, schema]) => schema.format !== "image")
      .map(([name, schema]) => ({ key: `inputs.${name}`, label: schema.title ?? name, schema }));
  }
  return listInputs(work.graph).map(({ key, label, value }) => {
    const type = typeof value === "string" || typeof value === "boolean" ? typeof value : "number";
    return { key, label, schema: { type } as InputSchema };
  });
}

export function canVarySeeds(work: Work): boolean {
  return work.kind === "graph"
    ? hasSeeds(work.graph)
    : listSchemas(work.template.inputs).some(([name, { type }]) => name === "seed" && type === "integer");
}

export function countRenders({ mode, seeds, sweep }: Variants): number {
  if (mode === "one") return 1;
  return mode === "seeds" ? seeds : sweep.reduce((count, { values }) => count * values.length, 1);
}

export function buildJob(work: Work, variants: Variants, options: Options): Built {
  const problems: Problems = {};
  const body: Record<string, unknown> = { kind: "render", priority: options.priority };
  const varied = variants.mode === "sweep" ? variants.sweep.map(({ key }) => key) : [];
  if (work.kind === "graph") {
    body.workflow = work.graph;
  } else {
    body.template = work.template.name;
    body.inputs = buildInputs(work.template, work.values, varied, problems);
  }
  if (variants.mode === "seeds") body.batch = { seeds: variants.seeds };
  if (variants.mode === "sweep") body.batch = { sweep: buildSweep(listVariables(work), variants, problems) };
  if (options.pool) body.pool = options.pool;
  if (!options.cache) body.cache = false;
  if (options.project) body.metadata = { project: options.project };
  if (options.deadline) body.deadline = new Date(options.deadline).toISOString();
  return Object.keys(problems).length > 0 ? { problems } : { body };
}

function buildInputs(template: Template, values: Values, varied: string[], problems: Problems) {
  const inputs: Record<string, unknown> = {};
  for (const [name, schema] of listSchemas(template.inputs)) {
    const text = values[name] ?? "";
    // The sweep has the values of an input that it varies.
    if (text === "" && varied.includes(`inputs.${name}`)) continue;
    if (text === "") {
      if (isRequired(template.inputs, name)) problems[name] = { kind: "required" };
      // Left out, it would have its default.
      else if (schema.type === "string" && schema.default && !schema.enum) inputs[name] = "";
      continue;
    }
    const parsed = parseValue(schema, text);
    if ("problem" in parsed) problems[name] = parsed.problem;
    else inputs[name] = parsed.value;
  }
  return inputs;
}

function buildSweep(variables: Variable[], variants: Variants, problems: Problems) {
  const sweep: Record<string, unknown[]> = {};
  for (const { key, values } of variants.sweep) {
    const variable = variables.find((item) => item.key === key);
    if (variable === undefined || values.length === 0) {
      problems[key] = { kind: "required" };
      continue;
    }
    sweep[key] = values.flatMap((text) => {
      const parsed = parseValue(variable.schema, text);
      if ("problem" in parsed) problems[key] = parsed.problem;
      return "problem" in parsed ? [] : [parsed.value];
    });
  }
  return sweep;
}
