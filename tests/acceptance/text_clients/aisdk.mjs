// The Vercel AI SDK as it is by default, which speaks the Responses API. Prints what it got.
import { createOpenAI } from "@ai-sdk/openai";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const [baseURL, apiKey, name] = process.argv.slice(2);
const openai = createOpenAI({ baseURL, apiKey });
const model = openai(name);
const weather = tool({
  description: "The weather of a city",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `sunny in ${city}`,
});
const question = { model, prompt: "What is the weather in 'Paris'?", tools: { weather }, maxRetries: 0 };

const whole = await generateText({ model, system: "Be kind.", prompt: "Say hello.", maxRetries: 0 });
const stream = streamText({ model, prompt: "Say hello.", maxRetries: 0 });
let streamed = "";
for await (const text of stream.textStream) streamed += text;
const agent = await generateText({ ...question, stopWhen: stepCountIs(3) });
const streamedAgent = streamText({ ...question, stopWhen: stepCountIs(3) });
for await (const _ of streamedAgent.textStream);
const object = await generateObject({
  model,
  schema: z.object({ name: z.string(), age: z.number() }),
  prompt: "The person 'Ada' is 36 years old.",
  maxRetries: 0,
});
const continued = await generateText({
  model,
  prompt: "And now?",
  maxRetries: 0,
  providerOptions: { openai: { previousResponseId: whole.response.id } },
});
const calls = (steps) => steps.flatMap((step) => step.toolResults.map((result) => result.output));
console.log(
  JSON.stringify({
    whole: whole.text,
    tokens: whole.usage,
    continued: continued.text,
    streamed,
    streamedTokens: (await stream.usage).outputTokens,
    results: calls(agent.steps),
    answer: agent.text,
    streamedResults: calls(await streamedAgent.steps),
    object: object.object,
  }),
);
