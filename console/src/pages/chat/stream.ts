/** Reads a streamed answer of `POST /v1/chat/completions`. */

import { call } from "#/api/client";
import { ApiError } from "#/api/errors";

import type { AnswerTurn, Facts, ToolCall } from "./types";

// An answer beyond it is cut off, so that no model can fill the browser's memory.
const MAX_LINE = 16 * 1024 * 1024;
const COST = "x-moyin-cost-usd=";

interface Chunk {
  choices?: {
    delta?: {
      content?: string | null;
      reasoning_content?: string | null;
      reasoning?: string | null;
      tool_calls?: { index?: number; id?: string; function?: { name?: string; arguments?: string } }[];
    };
    finish_reason?: string | null;
  }[];
  usage?: { prompt_tokens?: number; completion_tokens?: number } | null;
  error?: { message?: string; code?: string; type?: string; request_id?: string };
}

/** Send a request and report the answer so far, at most once a frame, and once when it has ended. */
export async function streamAnswer(
  request: Record<string, unknown>,
  empty: AnswerTurn,
  signal: AbortSignal,
  report: (answer: AnswerTurn) => void,
): Promise<void> {
  const reader = new AnswerReader(empty);
  let frame = 0;
  const reportSoon = () => {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      report(reader.answer);
    });
  };
  try {
    const response = await call("/v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(request),
      signal,
    });
    reader.readHeaders(response.headers);
    reportSoon();
    for await (const line of readLines(response)) {
      reader.readLine(line);
      reportSoon();
    }
    reader.end("done");
  } catch (error) {
    reader.end(signal.aborted ? "stopped" : "failed", error as Error);
  } finally {
    cancelAnimationFrame(frame);
    report(reader.answer);
  }
}

async function* readLines(response: Response): AsyncGenerator<string> {
  if (response.body === null) return;
  const pieces = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await pieces.read();
      if (done) break;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop() ?? "";
      if (rest.length > MAX_LINE) throw new Error("an event of the stream is too large");
      yield* lines;
    }
    if (rest !== "") yield rest;
  } finally {
    await pieces.cancel();
  }
}

/** Collects the events of one stream in an answer. */
class AnswerReader {
  answer: AnswerTurn;
  readonly #startedAt = performance.now();
  #firstAt: number | undefined;

  constructor(empty: AnswerTurn) {
    this.answer = empty;
  }

  readHeaders(headers: Headers): void {
    const read = (name: string) => headers.get(name) ?? undefined;
    const cost = read("x-moyin-cost-usd");
    this.#note({
      backend: read("x-moyin-backend"),
      model: read("x-moyin-model"),
      route: read("x-moyin-route"),
      cache: read("x-moyin-cache"),
      requestId: read("x-request-id"),
      isEstimated: read("x-moyin-estimated") === "true",
      ...(cost === undefined ? {} : { costUsd: Number(cost) }),
    });
  }

  /** Read a line of the stream: an event's data, or the comment that says the cost. */
  readLine(line: string): void {
    if (line.startsWith(":")) {
      const comment = line.slice(1).trim();
      if (comment.startsWith(COST)) this.#note({ costUsd: Number(comment.slice(COST.length)) });
      return;
    }
    if (!line.startsWith("data:")) return;
    const data = line.slice(5).trim();
    if (data !== "[DONE]") this.#readChunk(JSON.parse(data) as Chunk);
  }

  end(state: AnswerTurn["state"], error?: Error): void {
    this.#note({ seconds: (performance.now() - this.#startedAt) / 1000 });
    this.answer = { ...this.answer, state, error: state === "failed" ? error : undefined };
  }

  #readChunk({ choices, usage, error }: Chunk): void {
    if (error !== undefined) {
      throw new ApiError(
        error.message ?? "", 200, error.code ?? error.type ?? "stream_error", undefined,
        error.request_id ?? this.answer.facts.requestId,
      );
    }
    if (usage) this.#note({ promptTokens: usage.prompt_tokens, outputTokens: usage.completion_tokens });
    const choice = choices?.[0];
    if (choice === undefined) return;
    const { content, reasoning_content, reasoning, tool_calls } = choice.delta ?? {};
    const thought = reasoning_content ?? reasoning ?? "";
    if (content || thought || tool_calls?.length) this.#noteFirst();
    this.answer = {
      ...this.answer,
      text: this.answer.text + (content ?? ""),
      thoughts: this.answer.thoughts + thought,
      calls: (tool_calls ?? []).reduce(addCallPiece, this.answer.calls),
    };
    if (choice.finish_reason) this.#note({ finish: choice.finish_reason });
  }

  #noteFirst(): void {
    if (this.#firstAt !== undefined) return;
    this.#firstAt = performance.now();
    this.#note({ firstTokenSeconds: (this.#firstAt - this.#startedAt) / 1000 });
  }

  #note(facts: Facts): void {
    this.answer = { ...this.answer, facts: { ...this.answer.facts, ...facts } };
  }
}

type CallPiece = NonNullable<NonNullable<NonNullable<Chunk["choices"]>[number]["delta"]>["tool_calls"]>[number];

function addCallPiece(calls: readonly ToolCall[], piece: CallPiece): readonly ToolCall[] {
  const place = piece.index ?? 0;
  const known = calls[place] ?? { id: piece.id ?? `call_${place}`, name: "", arguments: "" };
  const grown = {
    id: piece.id ?? known.id,
    name: known.name + (piece.function?.name ?? ""),
    arguments: known.arguments + (piece.function?.arguments ?? ""),
  };
  return place < calls.length ? calls.map((call, other) => (other === place ? grown : call)) : [...calls, grown];
}

/** Return the tokens a second after the first one; `undefined` if too few were counted. */
export function measureSpeed({ outputTokens, firstTokenSeconds, seconds }: Facts): number | undefined {
  if (outputTokens === undefined || firstTokenSeconds === undefined || seconds === undefined) return undefined;
  const writing = seconds - firstTokenSeconds;
  return outputTokens > 1 && writing > 0.01 ? (outputTokens - 1) / writing : undefined;
}
