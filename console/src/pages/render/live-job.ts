/** Follows a job by its event stream while its contact sheet is shown. */

import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useEffect, useState } from "react";

import { body, gateway } from "#/api/client";
import { CONNECTED, LiveSource, type LiveState } from "#/api/live-source";
import { useQueuePlace } from "#/api/newest-jobs";

const ENDS = ["succeeded", "failed", "cancelled"];
const CHANGES = ["queued", "running", "progress", "step"];
// Events come faster than a person sees; each reading shows all that has happened before it.
const PAUSE_MILLISECONDS = 700;

export interface LiveJob {
  job: Awaited<ReturnType<typeof readJob>> | undefined;
  error: Error | null;
  /** The paths of the newest previews, by the step or child that is rendered. */
  previews: Record<number, string>;
  live: LiveState;
}

function readJob(id: string) {
  return body(gateway.GET("/jobs/{job_id}", { params: { path: { job_id: id } } }));
}

export function useLiveJob(id: string): LiveJob {
  const queries = useQueryClient();
  const { data: job, error } = useQuery({
    queryKey: ["job", id],
    queryFn: () => readJob(id),
  });
  useQueuePlace(job);
  const [previews, setPreviews] = useState<Record<number, string>>({});
  const [live, setLive] = useState(CONNECTED);
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
    const showPreview = (event: MessageEvent<string>) => {
      const { step = 0, url } = JSON.parse(event.data) as { step?: number; url: string };
      // The address is the same for every preview, so that the browser would show the first one.
      setPreviews((known) => ({ ...known, [step]: `${url}${url.includes("?") ? "&" : "?"}at=${Date.now()}` }));
    };
    const end = () => {
      events.close();
      read();
    };
    const events = new LiveSource({
      getAddress: () => `/jobs/${encodeURIComponent(id)}/events?previews=true`,
      listeners: {
        ...Object.fromEntries(CHANGES.map((type) => [type, read])),
        ...Object.fromEntries(ENDS.map((type) => [type, end])),
        preview: showPreview,
      },
      onState: setLive,
      onEnd: read,
    });
    return () => {
      clearTimeout(timer);
      events.close();
    };
  }, [id, isKnown, hasEnded, queries]);
  return { job, error, previews, live: hasEnded ? CONNECTED : live };
}
