/** Finds the names of users and keys, whose ids tables hold. */

import { useQuery } from "@tanstack/react-query";
import { useMemo } from "react";

import { accounts, body } from "#/api/client";

// Names beyond these are shown as ids.
const MAX_PAGES = 5;

async function collect<T>(
  read: (cursor: string | undefined) => Promise<{ items: T[]; next: string | null | undefined }>,
): Promise<T[]> {
  const items: T[] = [];
  let cursor: string | undefined;
  for (let page = 0; page < MAX_PAGES; page++) {
    const { items: more, next } = await read(cursor);
    items.push(...more);
    if (!next) break;
    cursor = next;
  }
  return items;
}

/** Return the names of the users of an organisation; `null` asks for nothing. */
export function useNames(organisation: string | null) {
  const { data } = useQuery({
    queryKey: ["members", organisation, "names"],
    enabled: organisation !== null && organisation.startsWith("org_"),
    staleTime: 60_000,
    queryFn: ({ signal }) => collect(async (cursor) => {
      const page = await body(accounts.GET("/organisations/{organisation}/members", {
        params: { path: { organisation: organisation ?? "" }, query: { limit: 200, cursor } }, signal,
      }));
      return { items: page.members, next: page.next_cursor };
    }),
  });
  const names = useMemo(() => new Map(data?.map((user) => [user.id, user.name || user.email || user.id])), [data]);
  return { user: (id: string | null | undefined) => (id ? names.get(id) ?? id : undefined) };
}

/** Return the names of the keys of a tenant that the caller may see. */
export function useKeyNames(owner: string | null) {
  const { data } = useQuery({
    queryKey: ["keys", owner, "names"],
    enabled: owner !== null,
    staleTime: 60_000,
    queryFn: ({ signal }) => collect(async (cursor) => {
      const page = await body(accounts.GET("/keys", {
        params: { query: { limit: 200, cursor, owner: owner ?? undefined } }, signal,
      }));
      return { items: page.keys, next: page.next_cursor };
    }),
  });
  return useMemo(() => new Map(data?.map((key) => [key.id, key.name || key.id])), [data]);
}
