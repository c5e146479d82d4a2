// Runs the checks of the clients for Node.js, and prints what became of each as JSON:
// "ok", or the error. Arguments: the gateway's address, a key, the model that obeys, one for vectors.
import { checks as aisdk } from "./aisdk.mjs";
import { checks as langchain } from "./langchain.mjs";
import { checks as sdks } from "./sdks.mjs";

const [url, key, model, vectors] = process.argv.slice(2);
const found = {};
for (const [suite, checks] of Object.entries({ aisdk, langchain, sdks })) {
  for (const [name, check] of Object.entries(checks({ url, key, model, vectors }))) {
    try {
      await check();
      found[`${suite}: ${name}`] = "ok";
    } catch (error) {
      found[`${suite}: ${name}`] = String(error?.stack ?? error).slice(0, 2000);
    }
  }
}
console.log(JSON.stringify(found));
