/** Reads the pages of the gallery, and does what a person asks of its files. */

import {
  type InfiniteData, infiniteQueryOptions, type QueryClient, useInfiniteQuery, useMutation, useQueryClient,
} from "@tanstack/react-query";

import type { components } from "#api/gateway";
import { body, gateway } from "#/api/client";
import { ApiError } from "#/api/errors";
import { downloadArchive, saveLink } from "#/components/download";

import type { PictureFile } from "./thumbnail";

type Page = components["schemas"]["ArtifactPage"];
const LIMIT = 48;
// A page of rare matches may be empty although another follows; so many are read at once.
const MAX_EMPTY = 5;

export interface GalleryFilter {
  kind: "image" | "video" | "audio" | "all";
  project: string;
  template: string;
  user: string;
  after: string;
  before: string;
  favourite: boolean;
}

export function readFilter(search: URLSearchParams): GalleryFilter {
  const kind = search.get("kind");
  return {
    kind: kind === "video" || kind === "audio" || kind === "all" ? kind : "image",
    project: search.get("project") ?? "",
    template: search.get("template") ?? "",
    user: search.get("user") ?? "",
    after: readDate(search.get("after")),
    before: readDate(search.get("before")),
    favourite: search.get("favourite") === "true",
  };
}

/** Return a date as date fields have it, or nothing if an address has anything else. */
function readDate(value: string | null): string {
  return value !== null && /^\d{4}-\d\d-\d\d$/.test(value) && !Number.isNaN(Date.parse(value)) ? value : "";
}

export function isFiltered({ kind, ...rest }: GalleryFilter): boolean {
  return kind !== "image" || Object.values(rest).some(Boolean);
}

function buildQuery(filter: GalleryFilter) {
  const query: Record<string, string | number> = { limit: LIMIT };
  if (filter.kind !== "all") query.media_type = `${filter.kind}/*`;
  if (filter.project) query["metadata.project"] = filter.project;
  if (filter.template) query.template = filter.template;
  if (filter.user) query.user = filter.user;
  if (filter.favourite) query.favourite = "true";
  if (filter.after) query.created_after = startOfDay(filter.after, 0);
  // To the end of the day that was chosen.
  if (filter.before) query.created_before = startOfDay(filter.before, 1);
  return query;
}

/** Return the beginning of a local day, `days` later, as the API takes it. */
function startOfDay(date: string, days: number): string {
  const day = new Date(`${date}T00:00:00`);
  day.setDate(day.getDate() + days);
  return day.toISOString();
}

async function readPage(filter: GalleryFilter, cursor: string | null): Promise<Page> {
  let page: Page = { artifacts: [], next_cursor: cursor };
  for (let tries = 0; tries < MAX_EMPTY && page.artifacts.length === 0; tries += 1) {
    const query = { ...buildQuery(filter), ...(page.next_cursor === null ? {} : { cursor: page.next_cursor }) };
    page = await body(gateway.GET("/artifacts", { params: { query } }));
    if (page.next_cursor === null) break;
  }
  return page;
}

function buildGalleryQuery(filter: GalleryFilter) {
  return infiniteQueryOptions({
    queryKey: ["gallery", filter],
    initialPageParam: null as string | null,
    queryFn: ({ pageParam }) => readPage(filter, pageParam),
    getNextPageParam: (page) => page.next_cursor,
    // Reading all pages again whenever the window is looked at would grow with every page.
    refetchOnWindowFocus: false,
  });
}

export function useGallery(filter: GalleryFilter) {
  return useInfiniteQuery(buildGalleryQuery(filter));
}

/** Begin to read what the gallery shows without filters. */
export function prefetchGallery(queries: QueryClient): void {
  void queries.prefetchInfiniteQuery(buildGalleryQuery(readFilter(new URLSearchParams())));
}

/** Return a mutation that marks a file as a favourite or removes the mark, shown at once. */
export function useFavourite() {
  const queries = useQueryClient();
  return useMutation({
    mutationFn: async ({ id, favourite }: { id: string; favourite: boolean }) => {
      const options = { params: { path: { artifact_id: id } } };
      if (favourite) await gateway.PUT("/artifacts/{artifact_id}/favourite", options);
      else await gateway.DELETE("/artifacts/{artifact_id}/favourite", options);
    },
    onSuccess: (_done, { id, favourite }) => {
      queries.setQueriesData<InfiniteData<Page>>({ queryKey: ["gallery"] }, (data) => data && {
        ...data,
        pages: data.pages.map((page) => ({
          ...page,
          artifacts: page.artifacts.map((file) => (file.id === id ? { ...file, favourite } : file)),
        })),
      });
    },
  });
}

export function countDeletion(files: PictureFile[]) {
  return {
    uploads: files.filter((file) => file.job === null).map((file) => file.id),
    jobs: [...new Set(files.map((file) => file.job).filter((job) => job !== null))],
  };
}

/** Delete uploads one by one, and jobs with all their files. */
export async function deleteFiles(files: PictureFile[]): Promise<void> {
  const { uploads, jobs } = countDeletion(files);
  for (const id of uploads) await gateway.DELETE("/artifacts/{artifact_id}", { params: { path: { artifact_id: id } } }).catch(ignoreGone);
  for (const id of jobs) await gateway.DELETE("/jobs/{job_id}", { params: { path: { job_id: id } } }).catch(ignoreGone);
}

/** What an earlier try has deleted is gone. */
function ignoreGone(error: unknown): void {
  if (!(error instanceof ApiError && error.status === 404)) throw error;
}

/** Save one file as it is, and several as an archive. */
export async function downloadFiles(files: PictureFile[]): Promise<void> {
  const [only] = files;
  if (only && files.length === 1) saveLink(only.url, only.name);
  else await downloadArchive({ artifacts: files.map((file) => file.id) });
}
