/** Signs in and out; cookies that scripts cannot read carry the session. */

import type { components } from "#api/accounts";
import { type QueryClient, queryOptions, skipToken, useQuery, useQueryClient } from "@tanstack/react-query";

import { ApiError, readError } from "./errors";

const SESSION = "/accounts/session";
const ENDED = ["session-ended"];
// Well before an access token ends, which is good for ten minutes.
const RENEW_MILLISECONDS = 4 * 60_000;

export interface SignIn {
  email?: string;
  password?: string;
  api_key?: string;
  refresh_token?: string;
}

export async function signIn(form: SignIn): Promise<void> {
  const response = await post(SESSION, form);
  if (!response.ok) throw await readError(response);
}

export async function signOut(): Promise<void> {
  const response = await post(`${SESSION}/end`);
  if (!response.ok) throw await readError(response);
}

let renewing: Promise<Response | undefined> | undefined;
let onRefusal: () => void = () => undefined;

/** Renew the session, and return whether that succeeded. Concurrent callers share one renewal. */
export async function renewSession(): Promise<boolean> {
  return (await renew())?.ok ?? false;
}

/** Return the answer to a renewal, or nothing if there was none. */
function renew(): Promise<Response | undefined> {
  renewing ??= post(`${SESSION}/renew`)
    .then((response) => {
      if (response.status === 401) onRefusal();
      return response;
    }, () => undefined)
    .finally(() => {
      renewing = undefined;
    });
  return renewing;
}

/** Who is signed in: a person (`account`), or a key. */
export interface Caller {
  name: string;
  owner: string;
  scopes: string[];
  keyId: string;
  account: components["schemas"]["UserBody"] | null;
}

/** Scopes that come with another scope, as the gateway decides. */
const INCLUDED_IN: Record<string, string> = { metrics: "operator" };

/** Return whether a caller has a scope, by which pages show or leave out what it may not do. */
export function hasScope(caller: Caller, scope: string): boolean {
  return ["*", scope, INCLUDED_IN[scope]].some((name) => name !== undefined && caller.scopes.includes(name));
}

/** Return who is signed in: `null` if nobody is. */
export function useCaller() {
  return useQuery(buildCallerQuery(useQueryClient()));
}

/** Ask who is signed in before anything is drawn, which takes as long. */
export function prefetchCaller(queries: QueryClient): void {
  void queries.prefetchQuery(buildCallerQuery(queries));
}

function buildCallerQuery(queries: QueryClient) {
  return queryOptions({
    queryKey: ["caller"],
    staleTime: 60_000,
    refetchInterval: RENEW_MILLISECONDS,
    queryFn: async () => {
      const caller = await readCaller();
      const last = queries.getQueryData<Caller | null>(["caller"]);
      if (last !== undefined && last?.keyId !== caller?.keyId) forgetAnswers(queries);
      if (caller !== null) queries.setQueryData(ENDED, false);
      else if (last) queries.setQueryData(ENDED, true);
      return caller;
    },
  });
}

/** Return whether the last session of this page ended by itself, and not because the person signed out. */
export function useHasSessionEnded(): boolean {
  return useQuery<boolean>({ queryKey: ENDED, queryFn: skipToken }).data ?? false;
}

/** Check who is signed in as soon as a renewal is refused; return a function that stops this. */
export function watchSession(queries: QueryClient): () => void {
  onRefusal = () => {
    // The check renews, too; a second check must not begin before the first has ended.
    if (queries.getQueryData(["caller"])) void queries.invalidateQueries({ queryKey: ["caller"] }, { cancelRefetch: false });
  };
  return () => {
    onRefusal = () => undefined;
  };
}

async function readCaller(): Promise<Caller | null> {
  let response = await fetch("/accounts/whoami");
  if (response.status === 401) {
    const renewed = await renew();
    if (renewed?.ok) response = await fetch("/accounts/whoami");
    // A session has not ended because it could not be renewed just now.
    else if (renewed === undefined) throw new ApiError("The gateway cannot be reached.", 0, "connection_failed", undefined, undefined);
    else if (renewed.status >= 500) throw await readError(renewed.clone());
  }
  if (response.status === 401) return null;
  if (!response.ok) throw await readError(response);
  const identity = (await response.json()) as components["schemas"]["WhoAmI"];
  let account: Caller["account"] = null;
  if (identity.user !== null) {
    const found = await fetch("/accounts/me");
    // A service account and a key whose user is gone have no account to show.
    if (found.ok) account = (await found.json()) as components["schemas"]["UserBody"];
    else if (found.status >= 500) throw await readError(found);
  }
  return {
    name: account?.name || account?.email || identity.owner,
    owner: identity.owner,
    scopes: identity.scopes,
    keyId: identity.key_id,
    account,
  };
}

/** Show the sign-in page, and keep nothing of what the last person saw. */
export function forgetCaller(queries: QueryClient): void {
  queries.setQueryData(ENDED, false);
  queries.setQueryData(["caller"], null);
  forgetAnswers(queries);
}

function forgetAnswers(queries: QueryClient): void {
  queries.removeQueries({ predicate: (query) => !["caller", ENDED[0]].includes(query.queryKey[0] as string) });
}

/** Renew the session while a page is open. */
export function keepSession(): () => void {
  const timer = setInterval(() => void renewSession(), RENEW_MILLISECONDS);
  return () => clearInterval(timer);
}

function post(path: string, body?: unknown): Promise<Response> {
  return fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body ?? {}),
  });
}
