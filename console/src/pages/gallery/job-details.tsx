/** What a picture was made from: its job's inputs and its graph. */

import { Anchor, Button, Code, Group, ScrollArea, Skeleton, Stack, Table, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { Link } from "wouter";

import { body, call, gateway } from "#/api/client";
import { hasScope, useCaller } from "#/api/session";
import { ErrorAlert } from "#/components/error-alert";
import { useFormat, useStrings } from "#/language";

import { strings } from "./strings";

function useJob(id: string) {
  return useQuery({
    queryKey: ["job", id],
    queryFn: () => body(gateway.GET("/jobs/{job_id}", { params: { path: { job_id: id } } })),
  });
}

type Job = NonNullable<ReturnType<typeof useJob>["data"]>;

/** The step, or the child of a batch, that made a file. */
function findStep(job: Job, file: string): number {
  const has = ({ artifacts }: { artifacts: { id: string }[] }) => artifacts.some(({ id }) => id === file);
  return job.children?.find(has)?.index ?? job.outputs.find(has)?.step ?? 0;
}

function listInputs(job: Job, step: number): [string, string][] {
  const submitted = job.submitted?.steps[job.children === null ? step : 0];
  const own = job.children?.find(({ index }) => index === step)?.inputs ?? {};
  const inputs = { ...submitted?.inputs };
  for (const [name, value] of Object.entries(own)) inputs[name.replace(/^inputs\./, "")] = value;
  return Object.entries(inputs).map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)]);
}

export function Inputs({ job: id, file }: { job: string; file: string }) {
  const { data: job, error } = useJob(id);
  const t = useStrings(strings);
  if (error) return <ErrorAlert error={error} />;
  if (!job) return <Skeleton h={80} />;
  const step = findStep(job, file);
  const template = job.submitted?.steps[job.children === null ? step : 0]?.template;
  const inputs = listInputs(job, step);
  if (!template && inputs.length === 0) return null;
  return (
    <Table layout="fixed" aria-label={t.inputs} verticalSpacing={4}>
      <Table.Tbody>
        {template && <InputRow name={t.template} value={template} />}
        {inputs.map(([name, value]) => <InputRow key={name} name={name} value={value} />)}
      </Table.Tbody>
    </Table>
  );
}

function InputRow({ name, value }: { name: string; value: string }) {
  return (
    <Table.Tr>
      <Table.Th w={110} c="dimmed" fw={400} style={{ overflowWrap: "anywhere", verticalAlign: "top" }}>{name}</Table.Th>
      <Table.Td style={{ overflowWrap: "anywhere" }}>{value}</Table.Td>
    </Table.Tr>
  );
}

export function JobDetails({ job: id, file }: { job: string; file: string }) {
  const t = useStrings(strings);
  const format = useFormat();
  const { data: caller } = useCaller();
  const { data: job } = useJob(id);
  return (
    <Stack gap="xs">
      <Group gap="xs">
        <Text size="sm" c="dimmed">{t.job}</Text>
        <Anchor component={Link} href={`/jobs/${id}`} size="sm">{id.slice(0, 8)}</Anchor>
        {job && job.cost_usd > 0 && <Text size="sm">{format.usd(job.cost_usd)}</Text>}
      </Group>
      <Inputs job={id} file={file} />
      {job && <GraphView job={id} step={findStep(job, file)} />}
      {caller && hasScope(caller, "jobs:write") && (
        <Button component={Link} href={`/render?job=${id}`} variant="default" size="xs" w="fit-content">{t.renderAgain}</Button>
      )}
    </Stack>
  );
}

/** The graph as text, read only when it is asked for: some are megabytes. */
function GraphView({ job, step }: { job: string; step: number }) {
  const t = useStrings(strings);
  const [isShown, setIsShown] = useState(false);
  const path = `/jobs/${encodeURIComponent(job)}/graph?step=${step}`;
  const graph = useQuery({
    queryKey: ["job", job, "graph", step],
    enabled: isShown,
    queryFn: async () => JSON.stringify(JSON.parse(await (await call(path)).text()), null, 2),
  });
  return (
    <Stack gap="xs">
      <Group gap="xs">
        <Button variant="default" size="xs" aria-expanded={isShown} onClick={() => setIsShown(!isShown)}>
          {isShown ? t.hideGraph : t.showGraph}
        </Button>
        <Button component="a" href={path} download={`${job}-${step}.json`} variant="subtle" size="xs">{t.downloadGraph}</Button>
      </Group>
      {isShown && graph.error && <ErrorAlert error={graph.error} />}
      {isShown && graph.data !== undefined && (
        <ScrollArea h={260} viewportProps={{ tabIndex: 0, "aria-label": t.graph, role: "region" }}><Code block>{graph.data}</Code></ScrollArea>
      )}
    </Stack>
  );
}
