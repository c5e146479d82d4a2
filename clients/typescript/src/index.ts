/** The TypeScript client of Moyin's jobs, for Node.js and browsers. */

export type { ArtifactId, CallOptions, JobId } from "./calls.js";
export { Client, type ClientOptions } from "./client.js";
export { MoyinError } from "./errors.js";
export type { FollowOptions } from "./following.js";
export type { components, paths } from "./openapi.js";
export { PageClient, type PageClientOptions } from "./page.js";
export type { RetryPolicy } from "./retry.js";
export * from "./types.js";
export { verifyWebhook, type WebhookHeaders } from "./webhooks.js";
