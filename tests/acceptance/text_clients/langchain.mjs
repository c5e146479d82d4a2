// LangChain.js: ChatOpenAI on both of OpenAI's APIs, ChatAnthropic and ChatOllama.
import assert from "node:assert/strict";
import { HumanMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { OllamaEmbeddings } from "@langchain/ollama";
import { OpenAI, OpenAIEmbeddings } from "@langchain/openai";
import { z } from "zod";
import * as page from "./page_langchain_js.mjs";
import { PERSON, QUESTION, RESULT, SENTENCE, TEXT } from "./expected.mjs";

const weather = tool(({ city }) => `sunny in ${city}`, {
  name: "weather",
  description: "The weather of a city",
  schema: z.object({ city: z.string() }),
});
const Person = z.object({ name: z.string(), age: z.number() });

function checksOf(name, chat) {
  return {
    [`${name} invoke`]: async () => {
      const answer = await chat.invoke([["system", "Be kind."], ["human", "Say hello."]]);
      assert.equal(answer.text, TEXT);
      assert.ok(answer.usage_metadata.input_tokens > 0);
    },
    [`${name} stream`]: async () => {
      let whole;
      for await (const chunk of await chat.stream("Say hello.")) whole = whole ? whole.concat(chunk) : chunk;
      assert.equal(whole.text, TEXT);
      assert.ok(whole.usage_metadata.input_tokens > 0 && whole.usage_metadata.output_tokens > 0);
    },
    [`${name} tools`]: async () => {
      const agent = chat.bindTools([weather]);
      const messages = [new HumanMessage(QUESTION)];
      const asked = await agent.invoke(messages);
      assert.deepEqual(asked.tool_calls.map((call) => call.args), [{ city: "Paris" }]);
      const made = await weather.invoke(asked.tool_calls[0]);
      assert.ok(made instanceof ToolMessage && made.content === RESULT);
      assert.equal((await agent.invoke([...messages, asked, made])).text, TEXT);
      let streamed;
      for await (const chunk of await agent.stream(messages)) {
        streamed = streamed ? streamed.concat(chunk) : chunk;
      }
      assert.deepEqual(streamed.tool_calls.map((call) => call.args), [{ city: "Paris" }]);
    },
    [`${name} objects`]: async () => {
      assert.deepEqual(await chat.withStructuredOutput(Person).invoke(SENTENCE), PERSON);
    },
  };
}

export function checks({ url, key, model, vectors }) {
  const configuration = { baseURL: `${url}/v1` };
  const openai = { model, apiKey: key, configuration, maxRetries: 0 };
  const ollama = { baseUrl: `${url}/v1/ollama`, headers: { authorization: `Bearer ${key}` }, maxRetries: 0 };
  return {
    ...checksOf("ChatOpenAI", page.chat),
    ...checksOf("ChatOpenAI useResponsesApi", page.responses),
    ...checksOf("ChatAnthropic", page.anthropic),
    ...checksOf("ChatOllama", page.ollama),
    "OpenAI completes": async () => {
      assert.ok((await new OpenAI(openai).invoke("Say hello.")).includes(TEXT));
    },
    "OpenAIEmbeddings and OllamaEmbeddings": async () => {
      for (const embeddings of [
        new OpenAIEmbeddings({ ...openai, model: vectors }), new OllamaEmbeddings({ model: vectors, ...ollama }),
      ]) {
        assert.deepEqual(await embeddings.embedDocuments(["a", "bcd"]), [[1, 97], [3, 98]]);
      }
    },
  };
}
