/** Shows the proxy's routes with the health and load of their upstreams. */

import { Badge, Code, Group, Paper, Stack, Table, Text, Title } from "@mantine/core";
import type { components } from "#api/gateway";

import { EmptyState } from "#/components/empty-state";
import { Panel } from "#/components/panel";
import { Words } from "#/components/words";
import { useFormat, useStrings } from "#/language";

import { strings } from "./strings";

type Route = components["schemas"]["RouteBody"];
type Upstream = components["schemas"]["UpstreamBody"];

export function Routes({ routes }: { routes: readonly Route[] }) {
  const t = useStrings(strings).routes;
  return (
    <Panel title={t.title} aside={<Text size="xs" c="dimmed">{t.view}</Text>}>
      {routes.length === 0 && <EmptyState title={t.none}><Words>{t.noneMore}</Words></EmptyState>}
      <Stack>{routes.map((route) => <RouteCard key={route.name} route={route} />)}</Stack>
    </Panel>
  );
}

function RouteCard({ route }: { route: Route }) {
  const t = useStrings(strings).routes;
  const format = useFormat();
  const matches = [...route.hosts, ...route.paths, ...(route.prefix === null ? [] : [route.prefix])];
  const limit = route.max_open_requests;
  return (
    <Paper withBorder p="sm" component="section" aria-label={route.name}>
      <Group justify="space-between" gap="xs" mb="xs">
        <Group gap="xs">
          <Title order={4} size="h6">{route.name}</Title>
          {matches.map((match) => <Code key={match}>{match}</Code>)}
        </Group>
        <Text size="xs" c="dimmed">
          {t.open(format.number(route.open_requests), limit === null ? null : format.number(limit))}
        </Text>
      </Group>
      <Table.ScrollContainer minWidth={420} type="native" tabIndex={0}>
        <Table aria-label={route.name}>
          <Table.Thead>
            <Table.Tr>
              <Table.Th>{t.upstream}</Table.Th>
              <Table.Th>{t.state}</Table.Th>
              <Table.Th ta="right">{t.weight}</Table.Th>
              <Table.Th ta="right">{t.requests}</Table.Th>
            </Table.Tr>
          </Table.Thead>
          <Table.Tbody>{route.upstreams.map((upstream) => <Row key={upstream.url} upstream={upstream} />)}</Table.Tbody>
        </Table>
      </Table.ScrollContainer>
    </Paper>
  );
}

function Row({ upstream }: { upstream: Upstream }) {
  const t = useStrings(strings).routes;
  const format = useFormat();
  return (
    <Table.Tr>
      <Table.Td style={{ overflowWrap: "anywhere" }}>{upstream.url}</Table.Td>
      <Table.Td>
        <Group gap={4}>
          <Badge variant="light" tt="none" color={upstream.is_up ? "green" : "red"} size="sm">{upstream.is_up ? t.up : t.down}</Badge>
          {upstream.breaker !== "closed" && (
            <Badge variant="light" tt="none" color="orange" size="sm">{t.breaker[upstream.breaker]}</Badge>
          )}
        </Group>
      </Table.Td>
      <Table.Td ta="right">{format.number(upstream.weight)}</Table.Td>
      <Table.Td ta="right">{format.number(upstream.open_requests)}</Table.Td>
    </Table.Tr>
  );
}
