/**
 * Reads and writes JSON without rounding integers beyond 2^53, as seeds may be.
 *
 * Browsers that cannot do this (before 2025) round them, as JSON.parse always did.
 */

type Context = { source?: string };
const raw = JSON as unknown as {
  rawJSON?: (text: string) => unknown;
  isRawJSON?: (value: unknown) => boolean;
};

export function parseExact(text: string): unknown {
  const revive = (_key: string, value: unknown, context?: Context) =>
    typeof value === "number" && !Number.isSafeInteger(value) && /^-?\d+$/.test(context?.source ?? "")
      && raw.rawJSON
      ? raw.rawJSON(context!.source!)
      : value;
  return JSON.parse(text, revive as (key: string, value: unknown) => unknown);
}

/** Return the JSON value of an integer's digits, or null if they are none or would be rounded. */
export function parseInteger(text: string): unknown {
  if (!/^-?\d{1,40}$/.test(text.trim())) return null;
  const value = Number(text);
  if (Number.isSafeInteger(value)) return value;
  return raw.rawJSON ? raw.rawJSON(text.trim()) : null;
}

/** Return a scalar as text, with all its digits. */
export function showScalar(value: unknown): string {
  return typeof value === "string" ? value : JSON.stringify(value) ?? "";
}

export function isScalar(value: unknown): boolean {
  return ["string", "number", "boolean"].includes(typeof value) || (raw.isRawJSON?.(value) ?? false);
}
