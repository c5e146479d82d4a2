/** Lists what the last configurations of the gateway changed. */

import { Code, Paper, Stack, Table, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import type { components } from "#api/gateway";

import { body, gateway } from "#/api/client";
import { EmptyState } from "#/components/empty-state";
import { ErrorAlert } from "#/components/error-alert";
import { Panel } from "#/components/panel";
import { useFormat, useStrings } from "#/language";

import { strings } from "./strings";

type Change = components["schemas"]["ConfigChangeBody"];

/** The changes up to the configuration in force, which is read anew when another is applied. */
export function Changes({ appliedAt }: { appliedAt: string | null }) {
  const t = useStrings(strings).changes;
  const changes = useQuery({
    queryKey: ["config-changes", appliedAt],
    queryFn: () => body(gateway.GET("/cluster/config-changes")),
  });
  return (
    <Panel title={t.title}>
      <Text size="sm" mb="sm">{t.about}</Text>
      {changes.isError && <ErrorAlert error={changes.error} onRetry={() => void changes.refetch()} />}
      {changes.data?.changes.length === 0 && <EmptyState title={t.none}>{t.noneMore}</EmptyState>}
      <Stack gap="sm">
        {changes.data?.changes.map((change) => <ChangeView key={change.applied_at} change={change} />)}
      </Stack>
    </Panel>
  );
}

function ChangeView({ change }: { change: Change }) {
  const t = useStrings(strings).changes;
  const format = useFormat();
  const time = format.time(change.applied_at);
  return (
    <Paper withBorder p="sm" component="section" aria-label={time}>
      <Text size="sm" fw={600} title={time}>{time} <Text span size="xs" c="dimmed">{format.ago(change.applied_at)}</Text></Text>
      <Table.ScrollContainer minWidth={420} type="native" tabIndex={0}>
        <Table aria-label={time}>
          <Table.Thead>
            <Table.Tr>{[t.value, t.before, t.after].map((name) => <Table.Th key={name}>{name}</Table.Th>)}</Table.Tr>
          </Table.Thead>
          <Table.Tbody>
            {change.differences.map(({ path, before, after }) => (
              <Table.Tr key={path}>
                <Table.Td><Code>{path}</Code></Table.Td>
                <Table.Td><Value value={before} /></Table.Td>
                <Table.Td><Value value={after} /></Table.Td>
              </Table.Tr>
            ))}
          </Table.Tbody>
        </Table>
      </Table.ScrollContainer>
      {change.more > 0 && <Text size="xs" c="dimmed">{t.more(format.number(change.more))}</Text>}
    </Paper>
  );
}

function Value({ value }: { value: unknown }) {
  const t = useStrings(strings).changes;
  if (value === null || value === undefined) return <Text size="sm" c="dimmed">{t.absent}</Text>;
  return <Text size="sm" style={{ overflowWrap: "anywhere" }} lineClamp={4}>{typeof value === "string" ? value : JSON.stringify(value)}</Text>;
}
