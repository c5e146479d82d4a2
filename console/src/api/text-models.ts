/** Reads the list of models and aliases, and the router's explanations. */

import { keepPreviousData, useInfiniteQuery, useQuery, useQueryClient } from "@tanstack/react-query";

import { body, call, models } from "./client";
import { useClusterEvents } from "./cluster";

export const ABILITIES = ["tools", "vision", "schema", "thinking", "embeddings"] as const;
export type Ability = (typeof ABILITIES)[number];

/** A back end of a model, which only operators see. */
export interface ModelBackend {
  name: string;
  model: string;
  status: ModelStatus;
  context: number;
  quality: number;
  usd_per_million_tokens: { input: string; output: string };
}

export type ModelStatus = "up" | "down" | "not_configured";

/** A model or an alias, as `GET /v1/models` lists it. */
export interface TextModel extends Record<Ability, boolean> {
  id: string;
  status: ModelStatus;
  max_input_tokens: number | null;
  /** The calls that it answers, such as `chat`; empty while nothing under the name is configured. */
  abilities: string[];
  backends?: ModelBackend[];
}

const KEY = ["text-models"] as const;
const PAGES_KEY = ["text-model-pages"] as const;
// Back ends such as Ollama hosts may have hundreds of models.
const PAGE = 100;

export function useTextModels() {
  return useQuery({
    queryKey: KEY,
    queryFn: async () => {
      const list = (await body(models.GET("/models"))) as { data: TextModel[] };
      return list.data;
    },
  });
}

interface ModelPage {
  data: TextModel[];
  has_more: boolean;
  last_id: string | null;
}

/** Return the pages of models whose names have the text, read anew after the cluster's events if `follows`. */
export function useTextModelPages(search: string, follows: boolean) {
  const queries = useQueryClient();
  const list = useInfiniteQuery({
    queryKey: [...PAGES_KEY, search],
    initialPageParam: undefined as string | undefined,
    placeholderData: keepPreviousData,
    queryFn: async ({ pageParam, signal }) => {
      const query = { search, limit: PAGE, after_id: pageParam };
      return (await body(models.GET("/models", { params: { query }, signal }))) as unknown as ModelPage;
    },
    getNextPageParam: (page) => (page.has_more ? page.last_id : undefined),
  });
  const live = useClusterEvents({ models: () => void queries.invalidateQueries({ queryKey: PAGES_KEY }) }, follows);
  return { ...list, live };
}

/** Return whether a chat can name the model; of those without a key only the name is known. */
export function answersChats(model: TextModel): boolean {
  return model.abilities.length === 0 || model.abilities.includes("chat");
}

interface Target {
  backend: string;
  model: string;
}

/** A reason as a code, with values that depend on the code. */
export type Reason = { code: string } & Record<string, unknown>;

export interface Explained {
  reason: string;
  reasons: Reason[];
}

/** A back end that could answer a request, with what the router expects of it. */
export interface Candidate extends Target, Explained {
  score_usd: number;
  loses_by_usd: number;
  state: string;
  quality: {
    p_good: number;
    p_good_low: number;
    p_good_high: number;
    signals: number;
    basis: string;
    risk_usd: number;
  } | null;
  expected: {
    cost_usd: string;
    prompt_tokens: number;
    cached_tokens: number;
    output_tokens: number;
    seconds: number;
    waiting_seconds: number;
    loading_seconds: number;
    first_token_seconds: number;
    writing_seconds: number;
  };
}

/** The answer of `POST /v1/route`. */
export interface Explanation {
  model: string;
  needs: { prompt_tokens: number; max_tokens: number | null } & Record<string, unknown>;
  usd_per_second: number;
  quality: {
    kind: string;
    language: string;
    difficulty: number;
    usd_per_bad_answer: number;
    floor: number | null;
  } | null;
  omitted: string[];
  route: string | null;
  chosen: Target | null;
  candidates: Candidate[];
  refused: (Target & Explained & { retry_after: number | null })[];
  error: { code: string; message: string } | null;
}

/** Return who would answer a request of `/v1/chat/completions`; no model is called. */
export async function explainRoute(
  request: Record<string, unknown>,
  headers: Record<string, string> = {},
): Promise<Explanation> {
  const response = await call("/v1/route", {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify(request),
  });
  return (await response.json()) as Explanation;
}
