/** Keeps what is shown of open jobs up to date by the events of the tenant's newest jobs. */

import type { components } from "#api/gateway";
import { type QueryKey, useQueryClient } from "@tanstack/react-query";
import { useRef } from "react";

import { useClusterEvents } from "./cluster";
import type { LiveState } from "./live-source";

type Schemas = components["schemas"];
type JobPage = Schemas["JobPage"];
type Newest = Schemas["NewestJobs"];

/** Return a function that says whether a job may have been submitted, begun or ended since it was asked last. */
function useHasChanged() {
  const last = useRef<string | null>(null);
  return (newest: Newest): boolean => {
    const mark = [newest.queued, newest.running, ...newest.jobs.map(({ id, status }) => `${id} ${status}`)].join(" ");
    const hasChanged = last.current !== mark;
    last.current = mark;
    return hasChanged;
  };
}

/**
 * Follow a page of jobs. The page of the newest jobs comes with the events; other pages take over the rows that are in
 * it, and are read again when a job was submitted, began or ended.
 */
export function useNewestJobs(key: QueryKey, isNewestPage: boolean): LiveState {
  const queries = useQueryClient();
  const hasChanged = useHasChanged();
  return useClusterEvents({
    jobs: (newest) => {
      if (newest === null) return;
      const mustRead = hasChanged(newest) && !isNewestPage;
      const jobs = new Map(newest.jobs.map((job) => [job.id, job]));
      // An answer that is still on its way is older.
      if (isNewestPage) void queries.cancelQueries({ queryKey: key, exact: true });
      queries.setQueryData<JobPage>(key, (page) => {
        if (isNewestPage) return { jobs: newest.jobs, next_cursor: newest.next_cursor };
        return page && { ...page, jobs: page.jobs.map((job) => jobs.get(job.id) ?? job) };
      });
      if (mustRead) void queries.invalidateQueries({ queryKey: key, exact: true });
    },
  }, true);
}

/** Keep the place and the estimates of a render up to date while it waits or runs: its own events have neither. */
export function useQueuePlace(job: Schemas["JobDetail"] | undefined): void {
  const queries = useQueryClient();
  const hasChanged = useHasChanged();
  const isWaiting = job?.status === "queued" && ["render", "pipeline"].includes(job.kind);
  // The end of a batch or of a pipeline is not estimated.
  const isRunning = job?.status === "running" && job.kind === "render" && job.steps === 1;
  useClusterEvents({
    jobs: (newest) => {
      if (newest === null || job === undefined) return;
      const key = ["job", job.id];
      const mustRead = hasChanged(newest);
      const found = newest.jobs.find(({ id }) => id === job.id);
      // Its status is told by its own events, which come at once.
      if (found?.status === job.status) {
        const { position, eta, queued_for } = found;
        queries.setQueryData<Schemas["JobDetail"]>(key, (known) => known && { ...known, position, eta, queued_for });
      } else if (found === undefined && mustRead) void queries.invalidateQueries({ queryKey: key }, { cancelRefetch: false });
    },
  }, isWaiting || isRunning);
}
