// The Vercel AI SDK with four of its providers, which speak four of the gateway's protocols.
import assert from "node:assert/strict";
import {
  Output, embedMany, generateObject, generateText, stepCountIs, streamObject, streamText, tool,
} from "ai";
import { z } from "zod";
import { anthropic, compatible, openai } from "./page_aisdk.mjs";
import { PERSON, PNG, QUESTION, RESULT, SENTENCE, TEXT } from "./expected.mjs";

const weather = tool({
  description: "The weather of a city",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `sunny in ${city}`,
});
const tools = { weather };
const schema = z.object({ name: z.string(), age: z.number() });
const maxRetries = 0;
const results = (steps) => steps.flatMap((step) => step.toolResults.map((result) => result.output));

async function drain(stream) {
  let text = "";
  for await (const part of stream.fullStream) {
    if (part.type === "error") throw part.error;
    if (part.type === "text-delta") text += part.text;
  }
  return text;
}

function checksOf(name, model) {
  return {
    [`${name} generateText`]: async () => {
      const whole = await generateText({ model, system: "Be kind.", prompt: "Say hello.", maxRetries });
      assert.equal(whole.text, TEXT);
      assert.ok(whole.usage.inputTokens > 0 && whole.usage.outputTokens > 0);
    },
    [`${name} streamText`]: async () => {
      const stream = streamText({ model, prompt: "Say hello.", maxRetries, onError() {} });
      assert.equal(await drain(stream), TEXT);
      assert.ok((await stream.usage).outputTokens > 0);
      assert.equal(await stream.finishReason, "stop");
    },
    [`${name} tools`]: async () => {
      const question = { model, prompt: QUESTION, tools, stopWhen: stepCountIs(3), maxRetries };
      const agent = await generateText(question);
      assert.deepEqual(results(agent.steps), [RESULT]);
      assert.equal(agent.text, TEXT);
      const stream = streamText({ ...question, onError() {} });
      assert.ok((await drain(stream)).endsWith(TEXT));
      assert.deepEqual(results(await stream.steps), [RESULT]);
    },
    [`${name} objects`]: async () => {
      const question = { model, schema, prompt: SENTENCE, maxRetries };
      assert.deepEqual((await generateObject(question)).object, PERSON);
      const stream = streamObject({ ...question, onError() {} });
      for await (const _ of stream.partialObjectStream);
      assert.deepEqual(await stream.object, PERSON);
      const output = Output.object({ schema });
      const text = await generateText({ model, prompt: SENTENCE, output, maxRetries });
      assert.deepEqual(text.output, PERSON);
    },
    [`${name} a picture`]: async () => {
      const content = [
        { type: "text", text: "What is it?" },
        { type: "image", image: Buffer.from(PNG, "base64"), mediaType: "image/png" },
      ];
      const answer = await generateText({ model, messages: [{ role: "user", content }], maxRetries });
      assert.equal(answer.text, TEXT);
    },
    [`${name} an error`]: async () => {
      // The SDK shows the gateway's own words.
      const wrong = generateText({ model, prompt: "hi", topP: 9, maxRetries });
      await assert.rejects(wrong, (error) => error.statusCode === 400 && /top_p/.test(error.message));
    },
  };
}

export function checks({ model, vectors }) {
  return {
    ...checksOf("openai", openai(model)),
    ...checksOf("openai.chat", openai.chat(model)),
    ...checksOf("anthropic", anthropic(model)),
    ...checksOf("openai-compatible", compatible(model)),
    "openai continues a response": async () => {
      const first = await generateText({ model: openai(model), prompt: "Say hello.", maxRetries });
      const providerOptions = { openai: { previousResponseId: first.response.id } };
      const next = await generateText({ model: openai(model), prompt: "And now?", maxRetries, providerOptions });
      assert.equal(next.text, TEXT);
    },
    "openai.completion": async () => {
      const answer = await generateText({ model: openai.completion(model), prompt: "Say hello.", maxRetries });
      assert.ok(answer.text.includes(TEXT));
      const stream = streamText({ model: compatible.completionModel(model), prompt: "Say hello.", maxRetries });
      assert.ok((await drain(stream)).includes(TEXT));
    },
    "openai and openai-compatible embeddings": async () => {
      const values = ["a", "bcd"];
      for (const provider of [openai.textEmbeddingModel, compatible.textEmbeddingModel]) {
        const { embeddings } = await embedMany({ model: provider(vectors), values, maxRetries });
        assert.deepEqual(embeddings, [[1, 97], [3, 98]]);
      }
    },
  };
}
