/** Calls the documented API of the three apps, with types from their OpenAPI documents. */

import type { paths as AccountsPaths } from "#api/accounts";
import type { paths as GatewayPaths } from "#api/gateway";
import type { paths as ModelsPaths } from "#api/models";
import createClient, { type Middleware } from "openapi-fetch";

import { ApiError, readError } from "./errors";
import { renewSession } from "./session";

/** Sends a request; one that is refused because its session is old is sent again with a new one. */
async function send(request: Request): Promise<Response> {
  const copy = request.clone();
  let response: Response;
  try {
    response = await fetch(request);
    // A wrong password is refused with 401, too; it must not count twice.
    if (
      response.status === 401 && (await readError(response.clone())).code !== "invalid_credentials" &&
      (await renewSession())
    ) response = await fetch(copy);
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError("The gateway cannot be reached.", 0, "connection_failed", undefined, undefined);
  }
  return response;
}

const raising: Middleware = {
  async onResponse({ response }) {
    if (!response.ok) throw await readError(response);
  },
};

const options = { baseUrl: location.origin, fetch: send, credentials: "same-origin" as const };
/** Jobs, files, templates, the cluster. Methods throw `ApiError`. */
export const gateway = createClient<GatewayPaths>(options);
/** People, keys, limits. The paths of its document begin after `/accounts`. */
export const accounts = createClient<AccountsPaths>({ ...options, baseUrl: `${location.origin}/accounts` });
/** Text: models, usage, the ledger. The paths of its document begin after `/v1`. */
export const models = createClient<ModelsPaths>({ ...options, baseUrl: `${location.origin}/v1` });
for (const client of [gateway, accounts, models]) client.use(raising);

/** Return the body of a response that `gateway`, `accounts` or `models` promises to have. */
export async function body<T>(call: Promise<{ data?: T }>): Promise<NonNullable<T>> {
  const { data } = await call;
  return data as NonNullable<T>;
}

/** Send a request that the documents do not describe, such as one in another protocol. */
export async function call(path: string, init: RequestInit = {}): Promise<Response> {
  const response = await send(new Request(new URL(path, location.origin), init));
  if (!response.ok) throw await readError(response);
  return response;
}
