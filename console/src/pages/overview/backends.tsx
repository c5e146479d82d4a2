/** Shows the traffic of text by back end: health, calls, errors, speed. */

import { Badge, Group, Skeleton, Table, Text } from "@mantine/core";
import type { components } from "#api/models";
import type { UseQueryResult } from "@tanstack/react-query";

import { EmptyState } from "#/components/empty-state";
import { ErrorAlert } from "#/components/error-alert";
import { Panel } from "#/components/panel";
import { Words } from "#/components/words";
import { useFormat, useStrings } from "#/language";

import { strings } from "./strings";

type Backend = components["schemas"]["BackendBody"];
type List = components["schemas"]["BackendsBody"];

const STATUS_COLOURS: Record<Backend["status"], string> = { up: "green", down: "red", not_configured: "gray" };

export function Backends({ list, isOperator }: { list: UseQueryResult<List>; isOperator: boolean }) {
  const t = useStrings(strings).text;
  const backends = list.data?.backends;
  return (
    <Panel title={t.title} aside={isOperator && <Text size="xs" c="dimmed">{t.window}</Text>}>
      {list.isError && <ErrorAlert error={list.error} onRetry={() => void list.refetch()} />}
      {list.isPending && <Skeleton h={120} />}
      {backends?.length === 0 && <EmptyState title={t.none}><Words>{t.noneMore}</Words></EmptyState>}
      {backends !== undefined && backends.length > 0 && (
        <Table.ScrollContainer minWidth={isOperator ? 760 : 420} type="native" tabIndex={0}>
          <Table verticalSpacing="xs" aria-label={t.title}>
            <Table.Thead>
              <Table.Tr>
                <Table.Th>{t.backend}</Table.Th>
                <Table.Th>{t.state}</Table.Th>
                {isOperator && [t.calls, t.errors, t.inFlight, t.median, t.speed].map((name) => (
                  <Table.Th key={name} ta="right">{name}</Table.Th>
                ))}
                <Table.Th>{t.models}</Table.Th>
              </Table.Tr>
            </Table.Thead>
            <Table.Tbody>
              {backends.map((backend) => <Row key={backend.name} backend={backend} isOperator={isOperator} />)}
            </Table.Tbody>
          </Table>
        </Table.ScrollContainer>
      )}
    </Panel>
  );
}

function Row({ backend, isOperator }: { backend: Backend; isOperator: boolean }) {
  const t = useStrings(strings).text;
  const format = useFormat();
  const { recent } = backend;
  return (
    <Table.Tr>
      <Table.Th scope="row" fw={600}>{backend.name}</Table.Th>
      <Table.Td>
        <Group gap={4}>
          <Badge variant="light" tt="none" color={STATUS_COLOURS[backend.status]} size="sm" miw="max-content">
            {t.status[backend.status]}
          </Badge>
          {backend.breaker !== null && backend.breaker !== "closed" && (
            <Badge variant="light" tt="none" color="orange" size="sm">{t.breaker[backend.breaker]}</Badge>
          )}
        </Group>
        {backend.retry_after_seconds > 0 && (
          <Text size="xs" c="dimmed">{t.retry(format.seconds(backend.retry_after_seconds))}</Text>
        )}
      </Table.Td>
      {isOperator && (
        <>
          <Table.Td ta="right">{format.number(recent?.calls ?? 0)}</Table.Td>
          <Table.Td ta="right">
            <Text span size="sm" fw={recent?.errors ? 700 : undefined}>{format.number(recent?.errors ?? 0)}</Text>
          </Table.Td>
          <Table.Td ta="right"><Load load={backend.load} /></Table.Td>
          <Table.Td ta="right">{recent?.p50_seconds == null ? "–" : format.seconds(recent.p50_seconds)}</Table.Td>
          <Table.Td ta="right">
            {recent?.output_tokens_per_second == null ? "–" : format.number(recent.output_tokens_per_second)}
          </Table.Td>
        </>
      )}
      <Table.Td><Models backend={backend} /></Table.Td>
    </Table.Tr>
  );
}

function Load({ load }: { load: Backend["load"] }) {
  const t = useStrings(strings).text;
  const format = useFormat();
  if (load === null) return "–";
  return (
    <>
      {format.number(load.in_flight)} / {load.limit === null ? t.unlimited : format.number(load.limit)}
      {load.waiting > 0 && <Text size="xs" c="dimmed">{t.waiting(format.number(load.waiting))}</Text>}
    </>
  );
}

function Models({ backend }: { backend: Backend }) {
  const t = useStrings(strings).text;
  return (
    <Group gap={4}>
      {backend.models.map((model) => (
        <Badge
          key={model.name} size="sm" tt="none" fw={400}
          variant={model.state === "resident" ? "light" : "default"}
          title={model.state === "resident" ? t.resident(model.name) : undefined}
        >
          {model.name}
        </Badge>
      ))}
    </Group>
  );
}
