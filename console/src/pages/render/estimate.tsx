/** Says how many renders a job will have, and what similar ones took and cost. */

import { Group, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";

import { body, gateway } from "#/api/client";
import { useFormat, useStrings } from "#/language";

import { strings } from "./strings";

const SAMPLE = 10;

/** `template` is null for a graph, of which the farm knows nothing before its first render. */
export function Estimate({ template, count }: { template: string | null; count: number }) {
  const t = useStrings(strings);
  const format = useFormat();
  const { data } = useQuery({
    queryKey: ["render", "estimate", template],
    enabled: template !== null,
    staleTime: 60_000,
    queryFn: () => measure(template!),
  });
  const parts = [t.estimate(count, format.number(count))];
  if (template === null) parts.push(t.noGraphEstimate);
  else if (data === null) parts.push(t.noEstimate);
  else if (data) {
    parts.push(t.estimateTime(format.seconds(data.seconds)));
    if (data.usd > 0) parts.push(t.estimateCost(format.usd(data.usd * count)));
    parts.push(t.estimateBasis(format.number(data.jobs)));
  }
  return <Group gap={6}><Text size="sm" c="dimmed" aria-live="polite">{parts.join(" · ")}</Text></Group>;
}

/** Return the median of a render's seconds and dollars in the newest jobs of a template. */
async function measure(template: string) {
  const query = { template, status: "succeeded", kind: "render" as const, limit: SAMPLE };
  const { jobs } = await body(gateway.GET("/jobs", { params: { query } }));
  // Renders of a batch run side by side, so their job says nothing of one; the cache answers at once.
  const single = jobs.filter((job) => job.steps === 1 && !job.cached && job.started_at !== null && job.finished_at !== null);
  if (single.length === 0) return null;
  const seconds = single.map((job) => (Date.parse(job.finished_at!) - Date.parse(job.started_at!)) / 1000);
  return { jobs: single.length, seconds: median(seconds), usd: median(single.map((job) => job.cost_usd)) };
}

function median(values: number[]): number {
  return values.sort((one, other) => one - other)[Math.floor(values.length / 2)] ?? 0;
}
