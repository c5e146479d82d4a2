/** A model of a back end, as `GET /v1/backends` shows it. */
export interface BackendModel {
  name: string;
  state: "resident" | "loading" | "absent" | "unknown";
  first_token_seconds: number | null;
  output_tokens_per_second: number | null;
  quality: { tier: number; mean: number | null; source: string | null };
  usd_per_million_tokens: { input: string; output: string } | null;
}

export interface Backend {
  name: string;
  kind: string | null;
  residency: string;
  status: "up" | "down" | "not_configured";
  breaker: "closed" | "open" | "half_open" | null;
  retry_after_seconds: number;
  models: BackendModel[];
  load: { in_flight: number; waiting: number; limit: number | null } | null;
  recent: {
    seconds: number;
    calls: number;
    errors: number;
    p50_seconds: number | null;
    p90_seconds: number | null;
    output_tokens_per_second: number | null;
  } | null;
}
