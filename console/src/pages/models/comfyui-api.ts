/** Reads ComfyUI's models and nodes, of one render pool or of all. */

import { useQuery } from "@tanstack/react-query";

import { body, gateway } from "#/api/client";

/** What a list of nodes shows of one; the rest of ComfyUI's description is fetched when it is opened. */
export interface NodeSummary {
  name: string;
  title: string;
  category: string;
  description: string;
  /** In lower case, for the search. */
  words: string;
}

export interface NodeDetails {
  display_name?: string;
  description?: string;
  category?: string;
  input?: Record<string, Record<string, unknown>>;
  output?: unknown[];
  output_name?: string[];
  python_module?: string;
}

const MINUTES = 60_000;

/** Return the names of the pools that the caller may use. */
export function usePools() {
  return useQuery({
    queryKey: ["models", "pools"],
    staleTime: MINUTES,
    queryFn: async () => (await body(gateway.GET("/cluster"))).pools.map(({ name }) => name),
  });
}

export function useFolders(pool: string | undefined) {
  return useQuery({
    queryKey: ["models", "model-folders", pool],
    staleTime: MINUTES,
    queryFn: async () => [...(await body(gateway.GET("/models", { params: { query: { pool } } })))].sort(),
  });
}

export function useFiles(folder: string | null, pool: string | undefined) {
  return useQuery({
    queryKey: ["models", "model-files", folder, pool],
    staleTime: MINUTES,
    enabled: folder !== null,
    queryFn: async () => {
      const params = { path: { folder: folder ?? "" }, query: { pool } };
      return [...(await body(gateway.GET("/models/{folder}", { params })))].sort();
    },
  });
}

export function useNodes(pool: string | undefined) {
  return useQuery({
    queryKey: ["models", "nodes", pool],
    staleTime: 5 * MINUTES,
    queryFn: async () => {
      const nodes = await body(gateway.GET("/object_info", { params: { query: { pool } } }));
      // Megabytes with all choices of all inputs, of which only this is kept.
      return Object.entries(nodes as Record<string, NodeDetails>).map(summarize)
        .sort((a, b) => a.title.localeCompare(b.title));
    },
  });
}

export function useNode(name: string) {
  return useQuery({
    queryKey: ["models", "node", name],
    staleTime: MINUTES,
    queryFn: async () => {
      const nodes = await body(gateway.GET("/object_info/{node}", { params: { path: { node: name } } }));
      return (nodes as Record<string, NodeDetails>)[name] ?? null;
    },
  });
}

function summarize([name, node]: [string, NodeDetails]): NodeSummary {
  const title = node.display_name || name;
  const { category = "", description = "" } = node;
  return { name, title, category, description, words: `${name} ${title} ${category} ${description}`.toLowerCase() };
}
