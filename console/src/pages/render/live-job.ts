/** Follows a job by its event stream while its contact sheet is shown. */

import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useEffect, useState } from "react";

import { body, gateway } from "#/api/client";

const ENDS = ["succeeded", "failed", "cancelled"];
const CHANGES = ["queued", "running", "progress", "step"];
// Events come faster than a person sees; each reading shows all that has happened before it.
const PAUSE_MILLISECONDS = 700;

export interface LiveJob {
  job: Awaited<ReturnType<typeof readJob>> | undefined;
  error: Error | null;
  /** The paths of the newest previews, by the step or child that is rendered. */
  previews: Record<number, string>;
  isReconnecting: boolean;
}

function readJob(id: string) {
  return body(gateway.GET("/jobs/{job_id}", { params: { path: { job_id: id } } }));
}

export function useLiveJob(id: string): LiveJob {
  const queries = useQueryClient();
  const { data: job, error } = useQuery({
    queryKey: ["job", id],
    queryFn: () => readJob(id),
    // A stream that was refused does not come back, and places have no events.
    refetchInterval: ({ state }) => (state.data && !ENDS.includes(state.data.status) ? 5_000 : false),
  });
  const [previews, setPreviews] = useState<Record<number, string>>({});
  const [isReconnecting, setIsReconnecting] = useState(false);
  const isKnown = job !== undefined;
  const hasEnded = isKnown && ENDS.includes(job.status);
  useEffect(() => {
    if (!isKnown || hasEnded) return undefined;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const read = () => {
      timer ??= setTimeout(() => {
        timer = undefined;
        void queries.invalidateQueries({ queryKey: ["job", id] });
      }, PAUSE_MILLISECONDS);
    };
    const events = new EventSource(`/jobs/${encodeURIComponent(id)}/events?previews=true`);
    events.onopen = () => setIsReconnecting(false);
    events.onerror = () => {
      // The browser connects again by itself unless it was refused, as a stream without more events is.
      setIsReconnecting(events.readyState === EventSource.CONNECTING);
      read();
    };
    for (const type of [...CHANGES, ...ENDS]) events.addEventListener(type, read);
    for (const type of ENDS) events.addEventListener(type, () => events.close());
    events.addEventListener("preview", (event: MessageEvent<string>) => {
      const { step = 0, url } = JSON.parse(event.data) as { step?: number; url: string };
      // The address is the same for every preview, so that the browser would show the first one.
      setPreviews((known) => ({ ...known, [step]: `${url}${url.includes("?") ? "&" : "?"}at=${Date.now()}` }));
    });
    return () => {
      clearTimeout(timer);
      events.close();
    };
  }, [id, isKnown, hasEnded, queries]);
  return { job, error, previews, isReconnecting: isReconnecting && !hasEnded };
}
