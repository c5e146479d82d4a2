/** Reads graphs from files, and finds what the farm lacks for them. */

import { body, gateway } from "#/api/client";

import { isScalar, parseExact, showScalar } from "./exact-json";
import { readPngText } from "./png";

const MAX_FILE = 64 * 1024 * 1024;
// Each is one small request; graphs have a few dozen kinds of nodes.
const MAX_CLASSES = 200;
const AT_ONCE = 6;
// Nodes of the editor that never reach a renderer.
const EDITOR_ONLY = new Set(["Note", "MarkdownNote", "Reroute", "PrimitiveNode"]);

export interface Node {
  class_type: string;
  inputs?: Record<string, unknown>;
  _meta?: { title?: string };
}
export type Graph = Record<string, Node>;

/** A graph that can be rendered (`api`), or one that the editor saved, which cannot. */
export interface GraphFile {
  name: string;
  format: "api" | "editor";
  /** Empty in the editor's format. */
  graph: Graph;
  classes: string[];
}

export type GraphProblem = "tooLarge" | "noGraphInPng" | "notJson" | "notAGraph";

/** Return the graph in a file, or why there is none. */
export async function readGraphFile(file: File): Promise<GraphFile | GraphProblem> {
  if (file.size > MAX_FILE) return "tooLarge";
  let text: string;
  if (file.type === "image/png" || file.name.toLowerCase().endsWith(".png")) {
    try {
      const found = (await readPngText(file, "prompt")) ?? (await readPngText(file, "workflow"));
      if (found === null) return "noGraphInPng";
      text = found;
    } catch {
      return "noGraphInPng";
    }
  } else {
    text = await file.text();
  }
  try {
    return toGraphFile(file.name, parseExact(text));
  } catch {
    return "notJson";
  }
}

export function toGraphFile(name: string, value: unknown): GraphFile | "notAGraph" {
  if (!isRecord(value)) return "notAGraph";
  // What `POST /prompt` and `POST /jobs` take has the graph as a member.
  for (const member of ["prompt", "workflow"]) {
    const inner = value[member];
    if (isRecord(inner) && !("class_type" in inner)) return toGraphFile(name, inner);
  }
  if (Array.isArray(value.nodes)) {
    const types = value.nodes.map((node: unknown) => (isRecord(node) ? node.type : null));
    return { name, format: "editor", graph: {}, classes: unique(types).filter((type) => !EDITOR_ONLY.has(type)) };
  }
  const nodes = Object.values(value);
  if (nodes.length === 0 || !nodes.every((node) => isRecord(node) && typeof node.class_type === "string")) {
    return "notAGraph";
  }
  const graph = value as Graph;
  return { name, format: "api", graph, classes: unique(Object.values(graph).map((node) => node.class_type)) };
}

export interface Missing {
  /** Kinds of nodes that no pool has, or that are not permitted. */
  classes: string[];
  /** Choices, such as names of models, that no pool has. */
  choices: { node: string; input: string; value: string }[];
  /** Kinds that were not looked at. */
  unchecked: number;
}

/** Ask the farm which nodes of a graph it knows, and which of the chosen files. */
export async function findMissing({ graph, classes }: GraphFile): Promise<Missing> {
  const known = new Map<string, Record<string, unknown>>();
  const waiting = classes.slice(0, MAX_CLASSES);
  const ask = async () => {
    for (let name = waiting.pop(); name !== undefined; name = waiting.pop()) {
      const found = await body(gateway.GET("/object_info/{node}", { params: { path: { node: name } } }));
      const info = (found as Record<string, unknown>)[name];
      if (isRecord(info)) known.set(name, info);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, ask));
  const asked = classes.slice(0, MAX_CLASSES);
  return {
    classes: asked.filter((name) => !known.has(name)).sort(),
    choices: Object.entries(graph).flatMap(([id, node]) => {
      const info = known.get(node.class_type);
      return info === undefined ? [] : findUnknownChoices(id, node, info);
    }),
    unchecked: classes.length - asked.length,
  };
}

function findUnknownChoices(id: string, node: Node, info: Record<string, unknown>): Missing["choices"] {
  const inputs = isRecord(info.input) ? info.input : {};
  const specs = { ...(inputs.optional as object), ...(inputs.required as object) } as Record<string, unknown>;
  return Object.entries(node.inputs ?? {}).flatMap(([input, value]) => {
    const spec = specs[input];
    if (typeof value !== "string" || !Array.isArray(spec)) return [];
    const options = isRecord(spec[1]) ? spec[1] : {};
    const choices: unknown = Array.isArray(spec[0]) ? spec[0] : options.options;
    // Pictures of the person are no choices of the farm.
    const isUpload = Object.keys(options).some((key) => key.endsWith("_upload"));
    if (!Array.isArray(choices) || isUpload || choices.includes(value)) return [];
    return [{ node: nameNode(id, node), input, value }];
  });
}

export function nameNode(id: string, node: Node): string {
  return `${node._meta?.title || node.class_type} (${id})`;
}

/** A value in a graph that a sweep can vary. */
export interface GraphInput {
  key: string;
  label: string;
  value: unknown;
}

export function listInputs(graph: Graph): GraphInput[] {
  return Object.entries(graph).flatMap(([id, node]) =>
    Object.entries(node.inputs ?? {})
      .filter(([, value]) => isScalar(value))
      .map(([name, value]) => ({
        key: `workflow.${id}.inputs.${name}`,
        label: `${nameNode(id, node)} · ${name}: ${showScalar(value).slice(0, 40)}`,
        value,
      })));
}

export function hasSeeds(graph: Graph): boolean {
  return Object.values(graph).some((node) =>
    ["seed", "noise_seed"].some((name) => {
      const value = node.inputs?.[name];
      return isScalar(value) && /^-?\d+$/.test(showScalar(value));
    }));
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function unique(values: unknown[]): string[] {
  return [...new Set(values.filter((value): value is string => typeof value === "string" && value !== ""))].sort();
}
