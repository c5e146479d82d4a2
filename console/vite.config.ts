import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// The built files are committed: a user's machine has no Node.js.
export default defineConfig({
  base: "/console/",
  plugins: [react()],
  resolve: { alias: { "#": new URL("./src", import.meta.url).pathname } },
  build: {
    outDir: "../moyin/console/built",
    emptyOutDir: true,
    target: "es2022",
    // Inlined files would be data: URLs, which the page's policy allows for pictures only.
    assetsInlineLimit: 0,
    chunkSizeWarningLimit: 700,
    // One file of styles, and few of scripts: each costs a request, and a page that is opened waits for its last.
    cssCodeSplit: false,
    rollupOptions: { output: { experimentalMinChunkSize: 20_000 } },
  },
  // `npx vite --config console/vite.config.ts` with a running stack: pages change as they are edited.
  server: {
    proxy: Object.fromEntries(
      ["/jobs", "/artifacts", "/templates", "/cluster", "/v1", "/accounts", "/comfy", "/models", "/object_info"].map((path) => [
        // The gateway compares the origin of requests that carry cookies with the host that they name.
        path, { target: process.env.MOYIN_URL ?? "http://127.0.0.1:8000", changeOrigin: false },
      ]),
    ),
  },
});
