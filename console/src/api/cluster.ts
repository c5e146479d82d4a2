/** Reads what runs on the cluster, and follows it by server-sent events. */

import type { components } from "#api/gateway";
import type { components as modelsComponents } from "#api/models";
import { type QueryKey, useQuery, useQueryClient } from "@tanstack/react-query";
import { useCallback, useEffect, useLayoutEffect, useState } from "react";

import { body, gateway, models } from "./client";
import { renewSession } from "./session";

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

const KEY = ["cluster"] as const;
const BACKENDS_KEY = ["overview", "backends"] as const;
const USAGE_KEY = ["overview", "usage"] as const;
const REOPEN_MILLISECONDS = 3_000;

/** Return the newest state of the cluster, which follows the server's events while the page is open. */
export function useCluster(enabled = true) {
  const [isReconnecting, setReconnecting] = useState(false);
  const show = useShow<Cluster>(KEY);
  const query = useQuery({ queryKey: KEY, enabled, queryFn: () => body(gateway.GET("/cluster")) });
  useEffect(() => {
    if (!enabled) return undefined;
    const stream = new ClusterStream({ cluster: show }, setReconnecting);
    return () => stream.close();
  }, [show, enabled]);
  return { ...query, isReconnecting };
}

/**
 * Return what the overview shows. One stream brings all of it, from readings that all viewers share, so the
 * queries for the back ends and the usage run only to get the server's words while it cannot read them.
 */
export function useOverview(isOperator: boolean) {
  const [isReconnecting, setReconnecting] = useState(false);
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
  const showCluster = useShow<Cluster>(KEY);
  const showBackends = useShow<ModelsSchemas["BackendsBody"]>(BACKENDS_KEY, backends.refetch);
  const showUsage = useShow<Month>(USAGE_KEY, usage.refetch);
  // Before the first paint, which needs none of it.
  useLayoutEffect(() => {
    const stream = new ClusterStream(
      { cluster: showCluster, backends: showBackends, usage: showUsage }, setReconnecting,
    );
    return () => stream.close();
  }, [showCluster, showBackends, showUsage]);
  return { cluster, backends, usage, isReconnecting };
}

/** Return the day in UTC, by which usage is summed. */
export function getToday(): string {
  return new Date().toISOString().slice(0, 10);
}

/** Return a function that keeps an event's data; for `null` the server is asked for its words. */
function useShow<T>(key: QueryKey, refetch?: () => unknown) {
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

class ClusterStream {
  private source: EventSource | undefined;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private isClosed = false;

  constructor(
    private readonly shows: Record<string, (data: any) => void>,
    private readonly setReconnecting: (value: boolean) => void,
  ) {
    this.open();
  }

  close() {
    this.isClosed = true;
    clearTimeout(this.timer);
    this.source?.close();
  }

  private open() {
    const names = Object.keys(this.shows);
    const query = new URLSearchParams(names.filter((name) => name !== "cluster").map((name) => ["include", name]));
    const source = new EventSource(`/cluster/events?${query}`);
    this.source = source;
    for (const [name, show] of Object.entries(this.shows)) {
      source.addEventListener(name, (message: MessageEvent<string>) => {
        this.setReconnecting(false);
        show(JSON.parse(message.data));
      });
    }
    source.onopen = () => this.setReconnecting(false);
    source.onerror = () => {
      if (this.isClosed) return;
      this.setReconnecting(true);
      // A browser does not connect again after a refusal, such as of a session that is too old.
      if (source.readyState === EventSource.CLOSED) {
        this.timer = setTimeout(() => void renewSession().then(() => {
          if (!this.isClosed) this.open();
        }), REOPEN_MILLISECONDS);
      }
    };
  }
}
