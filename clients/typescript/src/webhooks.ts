/** Verifies webhooks, which are signed by Standard Webhooks. */

import { MoyinError, newMalformed, parseObject } from "./errors.js";
import type { StatusEvent, Webhook } from "./types.js";

export type WebhookHeaders = Headers | Record<string, string | readonly string[] | undefined>;

/**
 * Return the content of a webhook. Throw MoyinError with the code `invalid_webhook` if Moyin did not sign
 * it, or signed it too long ago, and TypeError if the secret is not one.
 *
 * @param secret what `webhookSecret` returns
 * @param headers the headers of the request, as `Headers` or as Node's `request.headers`
 * @param body the body as it arrived, not parsed and encoded again
 * @param tolerance the largest difference in seconds between the signed time and this machine's
 */
export async function verifyWebhook(
  secret: string, headers: WebhookHeaders, body: string | Uint8Array, tolerance = 300,
): Promise<Webhook> {
  const key = await importSecret(secret);
  const id = getHeader(headers, "webhook-id");
  const sent = getHeader(headers, "webhook-timestamp");
  if (!/^\d+$/.test(sent)) throw newInvalid("the header webhook-timestamp must be a time in Unix seconds");
  const content = typeof body === "string" ? encode(body) : body;
  const signed = concatenate(encode(`${id}.${sent}.`), content);
  if (!(await isSigned(key, getHeader(headers, "webhook-signature"), signed)))
    throw newInvalid("the signature is wrong");
  if (Math.abs(Date.now() / 1000 - Number(sent)) > tolerance)
    throw newInvalid("the webhook is too old, or this machine's clock is wrong");
  const { type, timestamp, data } = parseObject(new TextDecoder().decode(content), "type", "timestamp");
  if (typeof data !== "object" || data === null || Array.isArray(data))
    throw newMalformed("data is not an object");
  return { id, type: type as string, timestamp: timestamp as string, job: data as StatusEvent };
}

async function importSecret(secret: string): Promise<CryptoKey> {
  const bytes = decodeBase64(secret.replace(/^whsec_/, ""));
  if (!bytes?.length) throw new TypeError("the secret must be whsec_ and base64");
  return crypto.subtle.importKey("raw", bytes, { name: "HMAC", hash: "SHA-256" }, false, ["verify"]);
}

async function isSigned(
  key: CryptoKey, signatures: string, signed: Uint8Array<ArrayBuffer>,
): Promise<boolean> {
  for (const signature of signatures.split(" ")) {
    const bytes = signature.startsWith("v1,") ? decodeBase64(signature.slice(3)) : undefined;
    if (bytes && (await crypto.subtle.verify("HMAC", key, bytes, signed))) return true;
  }
  return false;
}

function getHeader(headers: WebhookHeaders, name: string): string {
  if (headers instanceof Headers) return headers.get(name) ?? "";
  const found = Object.entries(headers).find(([other]) => other.toLowerCase() === name)?.[1];
  return typeof found === "string" ? found : (found?.[0] ?? "");
}

function decodeBase64(text: string): Uint8Array<ArrayBuffer> | undefined {
  try {
    return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  } catch {
    return undefined;
  }
}

function encode(text: string): Uint8Array<ArrayBuffer> {
  return new Uint8Array(new TextEncoder().encode(text));
}

function concatenate(first: Uint8Array, second: Uint8Array): Uint8Array<ArrayBuffer> {
  const joined = new Uint8Array(first.length + second.length);
  joined.set(first);
  joined.set(second, first.length);
  return joined;
}

function newInvalid(message: string): MoyinError {
  return new MoyinError(message, { code: "invalid_webhook" });
}
