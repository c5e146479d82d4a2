// The packages `openai` and `ollama` of npm as they are.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { ollama, openai } from "./page_node_sdks.mjs";
import { PERSON, PNG, QUESTION, SENTENCE, TEXT } from "./expected.mjs";

const parameters = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
const weather = { name: "weather", description: "The weather of a city", parameters };
const Person = z.object({ name: z.string(), age: z.number() });
const hello = [{ role: "user", content: "Say hello." }];

export function checks({ model, vectors }) {
  const tools = [{ type: "function", ...weather, strict: true }];
  return {
    "openai responses create and continue": async () => {
      const whole = await openai.responses.create({ model, instructions: "Be kind.", input: "Say hello." });
      assert.equal(whole.output_text, TEXT);
      const asked = await openai.responses.create({ model, input: QUESTION, tools, previous_response_id: whole.id });
      const [call] = asked.output.filter((item) => item.type === "function_call");
      assert.deepEqual(JSON.parse(call.arguments), { city: "Paris" });
      const input = [{ type: "function_call_output", call_id: call.call_id, output: "sunny" }];
      const answer = await openai.responses.create({ model, input, tools, previous_response_id: asked.id });
      assert.equal(answer.output_text, TEXT);
    },
    "openai responses stream": async () => {
      const stream = openai.responses.stream({ model, input: "Say hello." });
      let text = "";
      stream.on("response.output_text.delta", (event) => (text += event.delta));
      const final = await stream.finalResponse();
      assert.equal(text, TEXT);
      assert.equal(final.output_text, TEXT);
    },
    "openai responses parse": async () => {
      const text = { format: zodTextFormat(Person, "person") };
      assert.deepEqual((await openai.responses.parse({ model, input: SENTENCE, text })).output_parsed, PERSON);
    },
    "openai responses retrieve, input items and delete": async () => {
      const made = await openai.responses.create({ model, input: "Say hello." });
      assert.equal((await openai.responses.retrieve(made.id)).output_text, TEXT);
      const items = [];
      for await (const item of openai.responses.inputItems.list(made.id)) items.push(item.content[0].text);
      assert.deepEqual(items, ["Say hello."]);
      await openai.responses.delete(made.id);
      await assert.rejects(openai.responses.retrieve(made.id), OpenAI.NotFoundError);
    },
    "openai chat": async () => {
      const stream = openai.chat.completions.stream({ model, messages: hello });
      assert.equal(await stream.finalContent(), TEXT);
    },
    "openai embeddings": async () => {
      const { data } = await openai.embeddings.create({ model: vectors, input: ["a", "bcd"] });
      assert.deepEqual(data.map((row) => row.embedding), [[1, 97], [3, 98]]);
    },
    "openai models": async () => {
      const names = [];
      for await (const listed of openai.models.list()) names.push(listed.id);
      assert.ok(names.includes(model) && names.includes(vectors));
    },
    "ollama chat": async () => {
      assert.equal((await ollama.chat({ model, messages: hello })).message.content, TEXT);
      let text = "";
      for await (const part of await ollama.chat({ model, messages: hello, stream: true })) text += part.message.content;
      assert.equal(text, TEXT);
    },
    "ollama tools": async () => {
      const messages = [{ role: "user", content: QUESTION }];
      const tools = [{ type: "function", function: weather }];
      const { message } = await ollama.chat({ model, messages, tools });
      assert.deepEqual(message.tool_calls[0].function.arguments, { city: "Paris" });
      const result = { role: "tool", tool_name: "weather", content: "sunny" };
      const end = await ollama.chat({ model, messages: [...messages, message, result], tools });
      assert.equal(end.message.content, TEXT);
    },
    "ollama objects": async () => {
      const format = { type: "object", properties: { name: { type: "string" }, age: { type: "integer" } } };
      const { message } = await ollama.chat({ model, messages: [{ role: "user", content: SENTENCE }], format });
      assert.deepEqual(JSON.parse(message.content), PERSON);
    },
    "ollama generate": async () => {
      assert.equal((await ollama.generate({ model, prompt: "Say hello.", images: [PNG] })).response, TEXT);
    },
    "ollama embed and embeddings": async () => {
      assert.deepEqual((await ollama.embed({ model: vectors, input: ["a", "bcd"] })).embeddings, [[1, 97], [3, 98]]);
      assert.deepEqual((await ollama.embeddings({ model: vectors, prompt: "bcd" })).embedding, [3, 98]);
    },
    "ollama list, show, ps and version": async () => {
      const { models } = await ollama.list();
      assert.ok(models.some((listed) => listed.name.split(":")[0] === model));
      assert.ok((await ollama.show({ model })).capabilities.includes("tools"));
      await ollama.ps();
      assert.match((await ollama.version()).version, /^\d+\.\d+/);
    },
  };
}
