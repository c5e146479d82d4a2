import { Table, Text } from "@mantine/core";

import { useFormat, useStrings } from "#/language";

import { strings } from "../strings";
import type { JobDetail, Output } from "../types";
import { Panel } from "#/components/panel";

/** What the job has cost, and where: by back end, and in seconds of a GPU. Of a batch, the sums. */
export function Costs({ job }: { job: JobDetail }) {
  const t = useStrings(strings);
  const format = useFormat();
  const { outputs } = job;
  const hasParts = outputs.some((output) => output.backend !== null || output.gpu_seconds !== null);
  if (job.cost_usd === 0 && !hasParts) return null;
  const seconds = (value: number | null) => (value === null ? "–" : format.seconds(value));
  return (
    <Panel title={t.cost}>
      <Table fz="sm" withRowBorders={false} verticalSpacing={4} horizontalSpacing={0}>
        <Table.Tbody>
          {job.children === null && outputs.length > 1 && outputs.map((output) => (
            <Table.Tr key={output.step}>
              <Table.Th fw={400} c="dimmed">{t.step(output.step + 1)} {output.backend}</Table.Th>
              <Table.Td ta="right">{format.usd(output.cost_usd)}</Table.Td>
            </Table.Tr>
          ))}
          {outputs.length === 1 && outputs[0]!.backend !== null && (
            <Table.Tr>
              <Table.Th fw={400} c="dimmed">{t.backend}</Table.Th>
              <Table.Td ta="right">{outputs[0]!.backend}</Table.Td>
            </Table.Tr>
          )}
          {outputs.some((output) => output.gpu_seconds !== null) && (
            <>
              <Table.Tr>
                <Table.Th fw={400} c="dimmed">{t.gpuSeconds}</Table.Th>
                <Table.Td ta="right">{seconds(sum(outputs, "gpu_seconds"))}</Table.Td>
              </Table.Tr>
              <Table.Tr>
                <Table.Th fw={400} c="dimmed">{t.loadSeconds}</Table.Th>
                <Table.Td ta="right">{seconds(sum(outputs, "load_seconds"))}</Table.Td>
              </Table.Tr>
            </>
          )}
          <Table.Tr>
            <Table.Th>{t.total}</Table.Th>
            <Table.Td ta="right" fw={600}>{format.usd(job.cost_usd)}</Table.Td>
          </Table.Tr>
        </Table.Tbody>
      </Table>
      <Text size="xs" c="dimmed" mt={4}>{t.totalHint}</Text>
    </Panel>
  );
}

function sum(outputs: readonly Output[], member: "gpu_seconds" | "load_seconds"): number | null {
  const known = outputs.map((output) => output[member]).filter((value) => value !== null);
  return known.length === 0 ? null : known.reduce((total, value) => total + value, 0);
}
