/** The TypeScript client of Moyin's jobs, for Node.js and browsers. */

export { type ArtifactId, type CallOptions, Client, type ClientOptions, type JobId } from "./client.js";
export { MoyinError } from "./errors.js";
export type { components, paths } from "./openapi.js";
export type { RetryPolicy } from "./retry.js";
export * from "./types.js";
export { verifyWebhook, type WebhookHeaders } from "./webhooks.js";
