/** Reads what runs on the cluster, and follows it by server-sent events. */

import type { components } from "#api/gateway";
import type { components as modelsComponents } from "#api/models";
import { type QueryKey, useQuery, useQueryClient } from "@tanstack/react-query";
import { useCallback, useLayoutEffect, useRef, useState } from "react";

import { body, gateway, models } from "./client";
import { CONNECTED, LiveSource, type LiveState } from "./live-source";

type Schemas = components["schemas"];
type ModelsSchemas = modelsComponents["schemas"];
export type Cluster = Schemas["ClusterBody"];
export type ClusterNode = Schemas["NodeBody"];
export type Gpu = Schemas["GpuBody"];
export type Pool = Schemas["PoolBody"];
export type Problem = Schemas["ProblemBody"];
export type Renderer = Schemas["RendererBody"];
export type RendererState = Schemas["RendererState"];
export type BreakerState = Schemas["BreakerState"];

type Month = Omit<ModelsSchemas["UsageReport"], "budgets">;

/** The data of the events by their names; `null` while a source does not respond. */
interface Parts {
  cluster: Cluster;
  backends: ModelsSchemas["BackendsBody"];
  usage: Month;
  models: { data: unknown[] };
  jobs: Schemas["NewestJobs"];
  routes: Schemas["RoutesBody"];
}
type Listeners = { [Name in keyof Parts]?: (data: Parts[Name] | null) => void };

const KEY = ["cluster"] as const;
const ROUTES_KEY = ["cluster-routes"] as const;
const BACKENDS_KEY = ["backends"] as const;
const USAGE_KEY = ["overview", "usage"] as const;

/** Follow the events that have listeners by one stream, whose readings all viewers with the same rights share. */
export function useClusterEvents(listeners: Listeners, enabled: boolean): LiveState {
  const [state, setState] = useState(CONNECTED);
  const current = useRef(listeners);
  useLayoutEffect(() => {
    current.current = listeners;
  });
  const names = Object.keys(listeners).join(" ");
  // Before the first paint, which needs none of it.
  useLayoutEffect(() => {
    if (!enabled) return undefined;
    const listened = names.split(" ");
    const query = new URLSearchParams(listened.filter((name) => name !== "cluster").map((name) => ["include", name]));
    if (!listened.includes("cluster")) query.set("cluster", "false");
    const source = new LiveSource({
      getAddress: () => `/cluster/events?${query}`,
      listeners: Object.fromEntries(listened.map((name) => [name, (message) => {
        const listen = current.current[name as keyof Parts] as ((data: unknown) => void) | undefined;
        listen?.(JSON.parse(message.data));
      }])),
      onState: setState,
    });
    return () => {
      source.close();
      setState(CONNECTED);
    };
  }, [names, enabled]);
  return state;
}

/** Return a function that keeps an event's data; for `null` the server is asked for its words. */
export function useShow<T>(key: QueryKey, refetch?: () => unknown) {
  const queries = useQueryClient();
  return useCallback((data: T | null) => {
    if (data === null) {
      refetch?.();
      return;
    }
    // An answer that is still on its way is older.
    void queries.cancelQueries({ queryKey: key });
    queries.setQueryData(key, data);
  }, [queries, key, refetch]);
}

/** Return what operators see of the cluster; without `follows` it is not followed, and has no pools. */
export function useOperations(follows: boolean) {
  const cluster = useQuery({ queryKey: KEY, enabled: follows, queryFn: () => body(gateway.GET("/cluster")) });
  const routes = useQuery({ queryKey: ROUTES_KEY, queryFn: () => body(gateway.GET("/cluster/routes")) });
  const live = useClusterEvents(
    { cluster: useShow<Cluster>(KEY), routes: useShow<Parts["routes"]>(ROUTES_KEY, routes.refetch) }, follows,
  );
  return { cluster, routes, live };
}

/** Return the back ends for text, followed if `follows`. */
export function useBackends(follows: boolean) {
  const backends = useQuery({ queryKey: BACKENDS_KEY, queryFn: () => body(models.GET("/backends")) });
  const live = useClusterEvents({ backends: useShow<Parts["backends"]>(BACKENDS_KEY, backends.refetch) }, follows);
  return { ...backends, live };
}

/**
 * Return what the overview shows. One stream brings all of it, from readings that all viewers share, so the
 * queries for the back ends and the usage run only to get the server's words while it cannot read them.
 */
export function useOverview(isOperator: boolean) {
  const cluster = useQuery({ queryKey: KEY, queryFn: () => body(gateway.GET("/cluster")) });
  const backends = useQuery({
    queryKey: BACKENDS_KEY, enabled: false, queryFn: () => body(models.GET("/backends")),
  });
  const usage = useQuery<Month>({
    queryKey: USAGE_KEY,
    enabled: false,
    queryFn: () => body(models.GET("/usage", {
      params: {
        query: { from: `${getToday().slice(0, 8)}01`, group_by: ["day"], ...(isOperator && { owner: "*" }) },
      },
    })),
  });
  const live = useClusterEvents({
    cluster: useShow<Cluster>(KEY),
    backends: useShow<Parts["backends"]>(BACKENDS_KEY, backends.refetch),
    usage: useShow<Month>(USAGE_KEY, usage.refetch),
  }, true);
  return { cluster, backends, usage, live };
}

/** Return the day in UTC, by which usage is summed. */
export function getToday(): string {
  return new Date().toISOString().slice(0, 10);
}
