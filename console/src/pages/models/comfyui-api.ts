/** Reads ComfyUI's models and nodes, of one render pool or of all. */

import { keepPreviousData, useInfiniteQuery, useQuery } from "@tanstack/react-query";

import { body, gateway } from "#/api/client";

/** What a list of nodes shows of one; the rest of ComfyUI's description is fetched when it is opened. */
export interface NodeSummary {
  name: string;
  title: string;
  category: string;
  description: string;
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
const PAGE = 50;

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

interface Page<T> {
  items: T[];
  /** How many match, on all pages. */
  count: number;
  next: string | undefined;
}

/** Return the pages of the files whose names have the words. */
export function useFiles(folder: string, pool: string | undefined, search: string) {
  return useInfiniteQuery({
    queryKey: ["models", "model-files", folder, pool, search],
    staleTime: MINUTES,
    initialPageParam: undefined as string | undefined,
    placeholderData: keepPreviousData,
    queryFn: async ({ pageParam, signal }) => {
      const query = { pool, search, limit: PAGE, after: pageParam };
      const { data, response } = await gateway.GET("/models/{folder}", { params: { path: { folder }, query }, signal });
      return toPage(data ?? [], (name) => name, response);
    },
    getNextPageParam: (page) => page.next,
  });
}

/** Return the pages of the nodes whose names or descriptions have the words, without their inputs. */
export function useNodes(pool: string | undefined, search: string) {
  return useInfiniteQuery({
    queryKey: ["models", "nodes", pool, search],
    staleTime: 5 * MINUTES,
    initialPageParam: undefined as string | undefined,
    placeholderData: keepPreviousData,
    queryFn: async ({ pageParam, signal }) => {
      const query = { pool, search, limit: PAGE, after: pageParam, summary: true };
      const { data, response } = await gateway.GET("/object_info", { params: { query }, signal });
      const nodes = Object.entries((data ?? {}) as Record<string, NodeDetails>).map(summarize);
      return toPage(nodes, (node) => node.name, response);
    },
    getNextPageParam: (page) => page.next,
  });
}

function toPage<T>(items: T[], nameOf: (item: T) => string, response: Response): Page<T> {
  return {
    items,
    count: Number(response.headers.get("x-total-count") ?? items.length),
    next: items.length < PAGE ? undefined : nameOf(items[items.length - 1]!),
  };
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
  const { display_name: title, category = "", description = "" } = node;
  return { name, title: title || name, category, description };
}
