// `@saintno/comfyui-sdk`: render with progress, load an upload, interrupt. argv: url, folder, key.
import { readFileSync, writeFileSync } from "node:fs";
import { CallWrapper, ComfyApi, PromptBuilder } from "@saintno/comfyui-sdk";

const [url, folder, key] = process.argv.slice(2);
const graphs = JSON.parse(readFileSync(`${folder}/graphs.json`, "utf8"));
const api = new ComfyApi(url, "sdk", { credentials: { type: "bearer_token", token: key } });
await api.init().waitForReady();
const told = { stats: await api.getSystemStats(), progress: [], pending: [], failed: [] };

function run(graph, follow = (call) => call) {
  const builder = new PromptBuilder(graph, ["height"], ["images"])
    .setInputNode("height", "1.inputs.height")
    .setOutputNode("images", "2");
  return follow(
    new CallWrapper(api, builder)
      .onPending((id) => told.pending.push(id))
      .onProgress((info) => told.progress.push([info.node, info.value, info.max]))
      .onFailed((error) => told.failed.push(error.message)),
  ).run();
}

async function keep(result, name) {
  const blob = await api.getImage(result.images.images[0]);
  writeFileSync(`${folder}/${name}`, Buffer.from(await blob.arrayBuffer()));
}

await keep(await run(graphs.slow), "picture.png");
const upload = await api.uploadImage(readFileSync(`${folder}/picture.png`), "sdk.png");
graphs.inverted["1"].inputs.image = upload.info.filename;
await keep(await run(graphs.inverted), "inverted.png");
// What was rendered before, from the worker's memory.
told.again = (await run(graphs.slow)).images.images.length;
// An interrupt hits whatever runs: a render is told of before its job has ended.
while ((await api.getQueue()).queue_running.length) await new Promise((soon) => setTimeout(soon, 50));
const long = run(graphs.long);
await new Promise((running) => api.on("progress", running));
await api.interrupt();
told.long = await long;
told.queue = await api.getQueue();
console.log(JSON.stringify(told));
api.destroy();
process.exit(0);
