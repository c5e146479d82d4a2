/** Builds the body of `POST /v1/chat/completions`. */

import type { AnswerTurn, Settings, Turn } from "./types";

// Sent for calls that were passed over, since models expect a result for each call.
const NO_RESULT = "The user gave no result.";

type Message = Record<string, unknown>;

/** Return the value of a JSON text, `undefined` if it is empty. Raises SyntaxError. */
export function parseJson(text: string): unknown {
  return text.trim() === "" ? undefined : (JSON.parse(text) as unknown);
}

/** Return whether a text is a list of tools: objects, as OpenAI's clients send them. */
export function isToolList(value: unknown): value is readonly Message[] {
  return Array.isArray(value) && value.every(isObject);
}

export function isObject(value: unknown): value is Message {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

export function buildRequest(model: string, settings: Settings, turns: readonly Turn[]): Message {
  const tools = parseJson(settings.tools);
  const schema = parseJson(settings.schema);
  const system = settings.system.trim();
  return {
    model,
    messages: [...(system === "" ? [] : [{ role: "system", content: system }]), ...buildMessages(turns)],
    ...(settings.temperature === null ? {} : { temperature: settings.temperature }),
    ...(settings.maxTokens === null ? {} : { max_tokens: settings.maxTokens }),
    ...(isToolList(tools) && tools.length > 0 ? { tools: tools.map(wrapTool) } : {}),
    ...(isObject(schema)
      ? { response_format: { type: "json_schema", json_schema: { name: "answer", strict: true, schema } } }
      : {}),
    stream: true,
    stream_options: { include_usage: true },
  };
}

/** Return the tool in OpenAI's form; its name, description and parameters alone are enough. */
function wrapTool(tool: Message): Message {
  return "function" in tool ? { type: "function", ...tool } : { type: "function", function: tool };
}

function buildMessages(turns: readonly Turn[]): Message[] {
  // Prompts whose answers failed are not repeated with the next one.
  const kept = turns.filter((turn, place) => {
    const answer = turn.role === "assistant" ? turn : turns[place + 1];
    return answer?.role !== "assistant" || isUsable(answer);
  });
  return kept.flatMap((turn, place): Message[] => {
    if (turn.role === "assistant") {
      return [buildAnswer(turn), ...(kept[place + 1]?.role === "tool" ? [] : buildMissingResults(turn))];
    }
    if (turn.role === "tool") {
      return turn.results.map((result) => ({ role: "tool", tool_call_id: result.id, content: result.content }));
    }
    if (turn.pictures.length === 0) return [{ role: "user", content: turn.text }];
    const pictures = turn.pictures.map((url) => ({ type: "image_url", image_url: { url } }));
    return [{ role: "user", content: [{ type: "text", text: turn.text }, ...pictures] }];
  });
}

function isUsable(answer: AnswerTurn): boolean {
  return answer.text !== "" || answer.calls.length > 0;
}

function buildAnswer(answer: AnswerTurn): Message {
  const calls = answer.calls.map((call) => ({
    id: call.id, type: "function", function: { name: call.name, arguments: call.arguments },
  }));
  return { role: "assistant", content: answer.text || null, ...(calls.length > 0 ? { tool_calls: calls } : {}) };
}

function buildMissingResults(answer: AnswerTurn): Message[] {
  return answer.calls.map((call) => ({ role: "tool", tool_call_id: call.id, content: NO_RESULT }));
}
