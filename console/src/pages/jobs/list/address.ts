/** Reads the filters of the list from the page's address, whose query is that of `GET /jobs`. */

import type { JobFilter, JobStatus } from "../types";

const METADATA = "metadata.";
export const FILTERS = [
  "status", "kind", "pool", "template", "created_after", "created_before", "search",
] as const;
export type FilterName = (typeof FILTERS)[number];

/** Return the filters and the cursor of an address as parameters; anything else in it is ignored. */
export function toQuery(address: URLSearchParams): Record<string, string> {
  const query: Record<string, string> = {};
  for (const [name, value] of address) {
    const isKnown = name === "cursor" || FILTERS.includes(name as FilterName) || name.startsWith(METADATA);
    if (isKnown && value !== "") query[name] = value;
  }
  return query;
}

/** Return the same filters as the body of a bulk request has them. */
export function toFilter(address: URLSearchParams): JobFilter {
  const { cursor: _, status, ...query } = toQuery(address);
  const filter: Record<string, unknown> = {};
  const metadata: Record<string, string> = {};
  for (const [name, value] of Object.entries(query)) {
    if (name.startsWith(METADATA)) metadata[name.slice(METADATA.length)] = value;
    else filter[name] = value;
  }
  if (status) filter.status = status.split(",") as JobStatus[];
  if (Object.keys(metadata).length > 0) filter.metadata = metadata;
  return filter as JobFilter;
}

/** Return the address with a filter set, or without it; a new filter begins on the first page. */
export function withFilter(address: URLSearchParams, name: FilterName, value: string | null): URLSearchParams {
  const changed = new URLSearchParams(address);
  changed.delete("cursor");
  if (value) changed.set(name, value);
  else changed.delete(name);
  return changed;
}

/** Return the address with these members of the metadata, each `key=value`, and no others. */
export function withMetadata(address: URLSearchParams, pairs: readonly string[]): URLSearchParams {
  const changed = new URLSearchParams(address);
  for (const name of [...changed.keys()]) {
    if (name === "cursor" || name.startsWith(METADATA)) changed.delete(name);
  }
  for (const pair of pairs) {
    const at = pair.indexOf("=");
    changed.set(METADATA + pair.slice(0, at).trim(), pair.slice(at + 1).trim());
  }
  return changed;
}

export function readMetadata(address: URLSearchParams): string[] {
  return [...address]
    .filter(([name]) => name.startsWith(METADATA))
    .map(([name, value]) => `${name.slice(METADATA.length)}=${value}`);
}

/** Return a time as an `<input type="datetime-local">` has it, in the browser's time zone. */
export function toLocalTime(value: string | null): string {
  const time = value === null ? NaN : Date.parse(value);
  if (Number.isNaN(time)) return "";
  return new Date(time - new Date(time).getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
}

export function fromLocalTime(value: string): string | null {
  return value === "" ? null : new Date(value).toISOString();
}
