/** Defines `MoyinError`, and builds it from error responses and events. */

export const CONNECTION_FAILED = "connection_failed";
// Members of problem details that are attributes of the error, or only repeat the request.
const KNOWN = new Set(
  "type title status detail instance code field param request_id message".split(" "),
);

type Members = Record<string, unknown>;

export interface ErrorOptions {
  status?: number | undefined;
  code?: string | undefined;
  field?: string | undefined;
  requestId?: string | undefined;
  retryAfter?: number | undefined;
  details?: Members;
  cause?: unknown;
}

/** A request, a stream or a webhook failed; the message says why. */
export class MoyinError extends Error {
  override readonly name = "MoyinError";
  /** The HTTP status; undefined if there was no response. */
  readonly status: number | undefined;
  /**
   * The stable code of docs/reference/errors.md. The client itself uses `connection_failed` (no whole
   * response arrived), `request_failed` (no request could be sent), `http_error` (the response is not
   * Moyin's), `malformed_response` and `invalid_webhook`.
   */
  readonly code: string;
  /** The member, parameter or header that is wrong, if one is. */
  readonly field: string | undefined;
  /** The id by which the operator finds the request. */
  readonly requestId: string | undefined;
  /** The seconds that the gateway asks the client to wait. */
  readonly retryAfter: number | undefined;
  /** Further members of the error, such as `node_errors`. */
  readonly details: Members;

  constructor(message: string, options: ErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.status = options.status;
    this.code = options.code ?? "http_error";
    this.field = options.field;
    this.requestId = options.requestId;
    this.retryAfter = options.retryAfter;
    this.details = options.details ?? {};
  }
}

/** Return the error of an HTTP response, in problem details or in OpenAI's format. */
export function buildError(status: number, headers: Headers, body: string): MoyinError {
  const parsed = parseMembers(body);
  const problem = isObject(parsed["error"]) ? parsed["error"] : parsed;
  const retryAfter = headers.get("retry-after");
  return new MoyinError(
    getText(problem, "detail", "message", "title") ?? `HTTP status ${status}`,
    {
      status,
      code: getText(problem, "code"),
      field: getText(problem, "field", "param"),
      requestId: getText(problem, "request_id") ?? headers.get("x-request-id") ?? undefined,
      retryAfter: retryAfter === null ? undefined : parseRetryAfter(retryAfter),
      details: getDetails(problem),
    },
  );
}

/** Return the error that a stream's event `error` reports. */
export function buildEventError(data: Members): MoyinError {
  return new MoyinError(getText(data, "message") ?? "the stream ended with an error", {
    code: getText(data, "code"),
    requestId: getText(data, "request_id"),
    details: getDetails(data),
  });
}

/** Return the seconds of a header `Retry-After`, which has seconds or a date; undefined if wrong. */
export function parseRetryAfter(value: string, now = Date.now()): number | undefined {
  const text = value.trim();
  if (/^\d+$/.test(text)) return Number(text);
  // Dates begin with the name of a day; `Date.parse` takes much else.
  const date = /^[A-Za-z]{3,9},? /.test(text) ? Date.parse(text) : NaN;
  return Number.isNaN(date) ? undefined : Math.max((date - now) / 1000, 0);
}

/** Parse JSON that must be an object with the named texts; throw MoyinError if it is not. */
export function parseObject(text: string, ...texts: string[]): Members {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    value = undefined;
  }
  if (!isObject(value)) throw newMalformed("it is not a JSON object");
  for (const name of texts)
    if (typeof value[name] !== "string") throw newMalformed(`${name} is not a string`);
  return value;
}

/** Return the error of a response or event that is not as documented. */
export function newMalformed(reason: string): MoyinError {
  return new MoyinError(`the response is malformed: ${reason}`, { code: "malformed_response" });
}

function parseMembers(text: string): Members {
  try {
    const value: unknown = JSON.parse(text);
    return isObject(value) ? value : {};
  } catch {
    return {};
  }
}

function isObject(value: unknown): value is Members {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function getText(members: Members, ...names: string[]): string | undefined {
  const found = names.map((name) => members[name]);
  return found.find((value): value is string => typeof value === "string" && value !== "");
}

function getDetails(members: Members): Members {
  return Object.fromEntries(Object.entries(members).filter(([name]) => !KNOWN.has(name)));
}
