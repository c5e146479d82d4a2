// The package `ollama` of npm before a real Ollama. Prints what it got.
import { Ollama } from "ollama";

const [host, key, model] = process.argv.slice(2);
const ollama = new Ollama({ host, headers: { authorization: `Bearer ${key}` } });
const options = { temperature: 0, num_predict: 4 };
const messages = [{ role: "user", content: "Say hello." }];

const chat = await ollama.chat({ model, messages, options, logprobs: true });
let streamed = "";
for await (const part of await ollama.chat({ model, messages, options, stream: true })) {
  streamed += part.message.content;
}
const generated = await ollama.generate({ model, prompt: "Say hello.", options });
const { embeddings } = await ollama.embed({ model, input: ["fox"] });
const { embedding } = await ollama.embeddings({ model, prompt: "fox" });
const shown = await ollama.show({ model });
const loaded = await ollama.ps();
const pulled = [];
for await (const part of await ollama.pull({ model, stream: true })) pulled.push(part.status);
const listed = (await ollama.list()).models.map((one) => one.name);
console.log(
  JSON.stringify({
    chat: chat.message.content,
    name: chat.model,
    logprobs: chat.logprobs.length,
    streamed,
    generated: generated.response,
    embeddings,
    embedding,
    capabilities: shown.capabilities,
    loaded: loaded.models.map((one) => one.name),
    pulled: pulled.at(-1),
    listed,
    version: (await ollama.version()).version,
  }),
);
