/** Shows the graph of a render, as a drawing or as JSON. */

import { Group, NumberInput, SegmentedControl, Select, Skeleton, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";

import { body, gateway } from "#/api/client";
import { ErrorAlert } from "#/components/error-alert";
import { useStrings } from "#/language";

import { strings } from "../strings";
import type { JobDetail } from "../types";
import { GraphDrawing } from "./graph-drawing";
import { JsonBlock } from "./json-block";
import { Panel } from "#/components/panel";

const MAX_NODES = 400;

export function GraphPanel({ job, activeNode }: { job: JobDetail; activeNode: string | null }) {
  const t = useStrings(strings);
  const renders = (job.submitted?.steps ?? []).flatMap((step, index) => (step.kind === "render" ? [index] : []));
  const [step, setStep] = useState(renders[0] ?? 0);
  const [view, setView] = useState("drawing");
  if (renders.length === 0) return null;
  return (
    <Panel
      title={t.graph}
      aside={
        <Group gap="xs">
          {job.children !== null && (
            <NumberInput
              size="xs" w={90} min={1} max={job.children.length} value={step + 1} aria-label={t.graphOfChild}
              clampBehavior="strict" allowDecimal={false}
              onChange={(value) => typeof value === "number" && value >= 1 && setStep(value - 1)}
            />
          )}
          {job.children === null && renders.length > 1 && (
            <Select
              size="xs" w={130} value={String(step)} aria-label={t.step(step + 1)} allowDeselect={false}
              data={renders.map((index) => ({ value: String(index), label: t.step(index + 1) }))}
              onChange={(value) => setStep(Number(value))}
            />
          )}
          <SegmentedControl
            size="xs" value={view} onChange={setView} aria-label={t.graph}
            data={[{ value: "drawing", label: t.drawing }, { value: "json", label: t.json }]}
          />
        </Group>
      }
    >
      <Graph id={job.id} step={step} view={view} activeNode={activeNode} />
    </Panel>
  );
}

function Graph({ id, step, view, activeNode }: { id: string; step: number; view: string; activeNode: string | null }) {
  const t = useStrings(strings);
  const graph = useQuery({
    queryKey: ["job-graph", id, step],
    // A graph does not change.
    staleTime: Infinity,
    queryFn: ({ signal }) =>
      body(gateway.GET("/jobs/{job_id}/graph", { params: { path: { job_id: id }, query: { step } }, signal })),
  });
  if (graph.isPending) return <Skeleton h={200} />;
  if (graph.isError) return <ErrorAlert error={graph.error} onRetry={() => void graph.refetch()} />;
  if (view === "json") return <JsonBlock value={graph.data} label={t.graph} />;
  if (Object.keys(graph.data).length > MAX_NODES) return <Text size="sm">{t.graphTooLarge}</Text>;
  return <GraphDrawing graph={graph.data} activeNode={activeNode} />;
}
