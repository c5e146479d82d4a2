/** The error of a request: what the server said, its stable code, and the request's id. */
export class ApiError extends Error {
  override readonly name = "ApiError";
  constructor(
    message: string,
    readonly status: number,
    readonly code: string,
    readonly field: string | undefined,
    readonly requestId: string | undefined,
    /** All members of the answer, such as `node_errors`. */
    readonly details: Record<string, unknown> = {},
  ) {
    super(message);
  }
}

/** Return the error of a response that is no success, in any of the shapes of Moyin's protocols. */
export async function readError(response: Response): Promise<ApiError> {
  const text = await response.text();
  let body: Record<string, unknown> = {};
  try {
    const parsed: unknown = JSON.parse(text);
    if (typeof parsed === "object" && parsed !== null) body = parsed as Record<string, unknown>;
  } catch {
    // A proxy on the way answered in its own words.
  }
  const inner = (typeof body.error === "object" && body.error !== null ? body.error : body) as Record<string, unknown>;
  const pick = (...values: unknown[]) => values.find((value): value is string => typeof value === "string");
  return new ApiError(
    pick(inner.detail, inner.message, body.error, inner.title) ?? `${response.status} ${response.statusText}`,
    response.status,
    pick(inner.code, body.code, inner.type) ?? "http_error",
    pick(inner.field, inner.param),
    pick(inner.request_id, body.request_id) ?? response.headers.get("x-request-id") ?? undefined,
    body,
  );
}

/** Return whether a request was refused because what it names does not exist, or belongs to another tenant. */
export function isNotFound(error: unknown): boolean {
  return error instanceof ApiError && error.status === 404;
}
