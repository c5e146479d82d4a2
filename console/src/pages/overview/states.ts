import type { RendererState } from "#/api/cluster";

export const STATE_COLOURS: Record<RendererState, string> = {
  placing: "gray", starting: "yellow", ready: "green", busy: "blue", draining: "grape", failed: "red",
};
