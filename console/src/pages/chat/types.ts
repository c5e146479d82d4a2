/** The parts of a conversation. */

/** What a model wants to be called. */
export interface ToolCall {
  id: string;
  name: string;
  arguments: string;
}

export interface UserTurn {
  role: "user";
  /** The same in all panes that got the prompt. */
  id: string;
  text: string;
  /** Data URLs. */
  pictures: readonly string[];
}

/** The results of the calls of the answer before. */
export interface ToolTurn {
  role: "tool";
  id: string;
  results: readonly { id: string; content: string }[];
}

/** Who answered, why, and what it took. */
export interface Facts {
  backend?: string;
  model?: string;
  route?: string;
  cache?: string;
  requestId?: string;
  isEstimated?: boolean;
  costUsd?: number;
  promptTokens?: number;
  outputTokens?: number;
  firstTokenSeconds?: number;
  seconds?: number;
  finish?: string;
}

export interface AnswerTurn {
  role: "assistant";
  id: string;
  state: "streaming" | "done" | "stopped" | "failed";
  text: string;
  thoughts: string;
  calls: readonly ToolCall[];
  facts: Facts;
  error?: Error;
}

export type Turn = UserTurn | ToolTurn | AnswerTurn;

/** One conversation with one model; two stand side by side. */
export interface Pane {
  id: string;
  model: string;
  turns: readonly Turn[];
}

/** What is sent with each prompt; texts are as they are typed. */
export interface Settings {
  system: string;
  temperature: number | null;
  maxTokens: number | null;
  tools: string;
  schema: string;
}

export const NO_SETTINGS: Settings = { system: "", temperature: null, maxTokens: 512, tools: "", schema: "" };
