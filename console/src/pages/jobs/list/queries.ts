/** Reads pages of jobs, and the templates that filters offer. */

import { keepPreviousData, useQuery } from "@tanstack/react-query";

import { body, gateway } from "#/api/client";
import { useNewestJobs } from "#/api/newest-jobs";

import type { Job, JobPage } from "../types";

const PAGE = 50;
// A page for a rare filter may be empty although older jobs match: read on, but not without end.
const MAX_READS = 5;

/** Return a page of jobs for the parameters of `GET /jobs`, which is followed while it is shown. */
export function useJobPage(query: Record<string, string>) {
  const queryKey = ["jobs", query];
  const live = useNewestJobs(queryKey, Object.keys(query).length === 0);
  const page = useQuery({
    queryKey,
    // Only the page that is shown is followed: one that is shown again may have missed events.
    staleTime: 0,
    queryFn: ({ signal }) => readPage(query, signal),
    placeholderData: keepPreviousData,
  });
  return { page, live };
}

async function readPage(query: Record<string, string>, signal: AbortSignal): Promise<JobPage> {
  const jobs: Job[] = [];
  let cursor: string | null | undefined = query.cursor;
  for (let reads = 0; reads < MAX_READS; reads += 1) {
    const parameters = { ...query, limit: PAGE - jobs.length, ...(cursor ? { cursor } : {}) };
    const page: JobPage = await body(gateway.GET("/jobs", { params: { query: parameters }, signal }));
    jobs.push(...page.jobs);
    cursor = page.next_cursor;
    if (!cursor || jobs.length >= PAGE) break;
  }
  return { jobs, next_cursor: cursor ?? null };
}

export function useTemplateNames(enabled: boolean): string[] {
  const { data } = useQuery({
    queryKey: ["template-names"],
    enabled,
    staleTime: 60_000,
    queryFn: () => body(gateway.GET("/templates")),
  });
  return data?.templates.map((template) => template.name) ?? [];
}
