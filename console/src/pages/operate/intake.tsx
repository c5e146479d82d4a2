/** Shows the message queues whose messages become jobs. */

import { Alert, Badge, Table, Text } from "@mantine/core";
import type { components } from "#api/gateway";

import { EmptyState } from "#/components/empty-state";
import { Panel } from "#/components/panel";
import { Words } from "#/components/words";
import { useFormat, useStrings } from "#/language";

import { strings } from "./strings";

type Source = components["schemas"]["IntakeSourceBody"];

interface Props {
  /** `null` without the app `intake`, or while it does not respond. */
  sources: readonly Source[] | null;
  isDeployed: boolean;
}

export function Intake({ sources, isDeployed }: Props) {
  const t = useStrings(strings).intake;
  return (
    <Panel title={t.title} aside={sources !== null && <Text size="xs" c="dimmed">{t.view}</Text>}>
      {sources === null && isDeployed && <Alert color="yellow" role="status"><Words>{t.silent}</Words></Alert>}
      {sources === null && !isDeployed && <EmptyState title={t.none}><Words>{t.noneMore}</Words></EmptyState>}
      {sources !== null && (
        <Table.ScrollContainer minWidth={720} type="native" tabIndex={0}>
          <Table aria-label={t.title}>
            <Table.Thead>
              <Table.Tr>
                <Table.Th>{t.source}</Table.Th>
                <Table.Th>{t.state}</Table.Th>
                <Table.Th>{t.last}</Table.Th>
                {[t.accepted, t.refused, t.open].map((name) => <Table.Th key={name} ta="right">{name}</Table.Th>)}
              </Table.Tr>
            </Table.Thead>
            <Table.Tbody>
              {sources.map((source) => <Row key={`${source.owner} ${source.name}`} source={source} />)}
            </Table.Tbody>
          </Table>
        </Table.ScrollContainer>
      )}
    </Panel>
  );
}

function Row({ source }: { source: Source }) {
  const t = useStrings(strings).intake;
  const format = useFormat();
  const { last_message_at: last, counted_since: since } = source;
  return (
    <Table.Tr>
      <Table.Th scope="row" fw={600} style={{ overflowWrap: "anywhere" }}>
        {source.name}
        <Text size="xs" c="dimmed">
          {[t.kinds[source.kind] ?? source.kind, source.queue, source.address].filter(Boolean).join(" · ")}
        </Text>
        <Text size="xs" c="dimmed">{t.owner(source.owner)}</Text>
      </Table.Th>
      <Table.Td>
        <Badge variant="light" tt="none" color={source.is_connected ? "green" : "red"} size="sm" miw="max-content">
          {source.is_connected ? t.connected : t.disconnected}
        </Badge>
      </Table.Td>
      <Table.Td>
        {last === null ? t.never : <span title={format.time(last)}>{format.ago(last)}</span>}
        <Text size="xs" c="dimmed" title={format.time(since)}>{t.since(format.ago(since))}</Text>
      </Table.Td>
      {[source.accepted, source.refused, source.open].map((count, place) => (
        <Table.Td key={place} ta="right">{format.number(count)}</Table.Td>
      ))}
    </Table.Tr>
  );
}
