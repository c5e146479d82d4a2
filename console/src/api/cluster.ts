/** Reads what runs on the cluster, and follows it by server-sent events. */

import type { components } from "#api/gateway";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useEffect, useState } from "react";

import { body, gateway } from "./client";
import { renewSession } from "./session";

type Schemas = components["schemas"];
export type Cluster = Schemas["ClusterBody"];
export type ClusterNode = Schemas["NodeBody"];
export type Gpu = Schemas["GpuBody"];
export type Pool = Schemas["PoolBody"];
export type Problem = Schemas["ProblemBody"];
export type Renderer = Schemas["RendererBody"];
export type RendererState = Schemas["RendererState"];
export type BreakerState = Schemas["BreakerState"];

const KEY = ["cluster"] as const;
const REOPEN_MILLISECONDS = 3_000;

/** Return the newest state of the cluster, which follows the server's events while the page is open. */
export function useCluster(enabled = true) {
  const queries = useQueryClient();
  const [isReconnecting, setReconnecting] = useState(false);
  const query = useQuery({ queryKey: KEY, enabled, queryFn: () => body(gateway.GET("/cluster")) });
  useEffect(() => {
    if (!enabled) return undefined;
    const stream = new ClusterStream((cluster) => {
      // An answer that is still on its way is older.
      void queries.cancelQueries({ queryKey: KEY });
      queries.setQueryData(KEY, cluster);
    }, setReconnecting);
    return () => stream.close();
  }, [queries, enabled]);
  return { ...query, isReconnecting };
}

class ClusterStream {
  private source: EventSource | undefined;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private isClosed = false;

  constructor(
    private readonly show: (cluster: Cluster) => void,
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
    const source = new EventSource("/cluster/events");
    this.source = source;
    source.addEventListener("cluster", (message: MessageEvent<string>) => {
      this.setReconnecting(false);
      this.show(JSON.parse(message.data) as Cluster);
    });
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
