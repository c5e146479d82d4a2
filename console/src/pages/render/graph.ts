/** Reads graphs from files, and has the farm convert them and find what it lacks for them. */

import type { components } from "#api/gateway";

import { call } from "#/api/client";

import { isScalar, parseExact, showScalar } from "./exact-json";
import { readPngText } from "./png";

const MAX_FILE = 64 * 1024 * 1024;

export interface Node {
  class_type: string;
  inputs?: Record<string, unknown>;
  _meta?: { title?: string };
}
export type Graph = Record<string, Node>;

export type Converted = components["schemas"]["ConvertedGraph"];

/** A graph that can be rendered, with what is missing for it and what was left out of it. */
export type GraphFile = Omit<Converted, "graph"> & { name: string; graph: Graph };

export type GraphProblem = "tooLarge" | "noGraphInPng" | "notJson" | "notAGraph";

/** Return the JSON of the graph in a file, or why there is none. */
export async function readGraphFile(file: File): Promise<{ json: string } | GraphProblem> {
  if (file.size > MAX_FILE) return "tooLarge";
  let json: string;
  if (file.type === "image/png" || file.name.toLowerCase().endsWith(".png")) {
    try {
      const found = (await readPngText(file, "prompt")) ?? (await readPngText(file, "workflow"));
      if (found === null) return "noGraphInPng";
      json = found;
    } catch {
      return "noGraphInPng";
    }
  } else {
    json = await file.text();
  }
  try {
    return isRecord(JSON.parse(json)) ? { json } : "notAGraph";
  } catch {
    return "notJson";
  }
}

/** Return a graph of the editor's format or the API format in the latter, checked by the farm. */
export async function convertGraph(name: string, json: string): Promise<GraphFile> {
  // The text is sent as it is, because JavaScript would round large seeds.
  const response = await call("/graphs/convert", {
    method: "POST", body: `{"graph":${json}}`, headers: { "content-type": "application/json" },
  });
  const { graph, ...rest } = parseExact(await response.text()) as Converted;
  return { ...rest, name, graph: graph as Graph };
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
