import { Badge, Center, Group, Loader, Paper, Stack, Table, Text, Title } from "@mantine/core";
import type { components } from "#api/models";

import { useBackends } from "#/api/cluster";
import { hasScope, useCaller } from "#/api/session";
import { EmptyState } from "#/components/empty-state";
import { ErrorAlert } from "#/components/error-alert";
import { Reconnecting } from "#/components/reconnecting";
import { useFormat, useStrings } from "#/language";

import { StatusBadge } from "./status-badge";
import { strings } from "./strings";

type Backend = components["schemas"]["BackendBody"];
type BackendModel = components["schemas"]["BackendModelBody"];

const NO_WRAP = { whiteSpace: "nowrap" } as const;
const BREAKER_COLORS = { closed: "teal", half_open: "yellow", open: "red" } as const;

/** Shows the servers behind the models: health, load, speed and prices. */
export function Backends() {
  const t = useStrings(strings);
  const { data: caller } = useCaller();
  const { data, error, refetch, live } = useBackends(caller != null && hasScope(caller, "jobs:read"));
  if (data === undefined) {
    return error ? <ErrorAlert error={error} onRetry={() => void refetch()} /> : <Center h={200}><Loader /></Center>;
  }
  if (data.backends.length === 0) return <EmptyState title={t.noBackends}>{t.noModelsText}</EmptyState>;
  return (
    <Stack>
      <Reconnecting live={live} />
      <Text size="sm" c="dimmed">{t.perReplica}</Text>
      {data.backends.map((backend) => <BackendCard key={backend.name} backend={backend} />)}
    </Stack>
  );
}

function BackendCard({ backend }: { backend: Backend }) {
  const t = useStrings(strings);
  const { number, seconds } = useFormat();
  const { load, recent, breaker, retry_after_seconds: retryAfter } = backend;
  const running = load && number(load.in_flight);
  return (
    <Paper withBorder p="md" component="section" aria-label={backend.name}>
      <Group justify="space-between" mb="xs">
        <Group gap="xs">
          <Title order={3} size="h4">{backend.name}</Title>
          <StatusBadge status={backend.status} />
          {breaker && (
            <Badge variant="light" color={BREAKER_COLORS[breaker]} tt="none">
              {t.breaker}: {t.breakerState[breaker]}
              {retryAfter > 0 && `, ${t.retryAfter(seconds(retryAfter))}`}
            </Badge>
          )}
        </Group>
        <Text size="sm" c="dimmed">
          {[backend.kind, `${t.residency}: ${backend.residency}`].filter(Boolean).join(" · ")}
        </Text>
      </Group>
      {load && (
        <Text size="sm">
          {t.load}: {load.limit === null
            ? t.loadText(running ?? "", number(load.waiting))
            : t.loadLimit(running ?? "", number(load.limit), number(load.waiting))}
        </Text>
      )}
      {recent && (
        <Text size="sm">
          {t.recent(number((recent.seconds ?? 300) / 60))}: {[
            t.recentText(number(recent.calls), number(recent.errors)),
            recent.output_tokens_per_second !== null && t.speed(number(recent.output_tokens_per_second)),
            recent.p50_seconds !== null && recent.p90_seconds !== null
              && t.quantiles(seconds(recent.p50_seconds), seconds(recent.p90_seconds)),
          ].filter(Boolean).join(" · ")}
        </Text>
      )}
      <Models models={backend.models} name={backend.name} />
    </Paper>
  );
}

function Models({ models, name }: { models: BackendModel[]; name: string }) {
  const t = useStrings(strings);
  const { number, seconds } = useFormat();
  const hasPrices = models.some((model) => model.usd_per_million_tokens !== null);
  return (
    <Table.ScrollContainer minWidth={800} type="native" mah={420} mt="xs" tabIndex={0}>
      <Table aria-label={`${t.title}: ${name}`} fz="sm">
        <Table.Thead>
          <Table.Tr>
            <Table.Th>{t.model}</Table.Th>
            <Table.Th>{t.memory}</Table.Th>
            <Table.Th>{t.firstToken}</Table.Th>
            <Table.Th>{t.writing}</Table.Th>
            {hasPrices && <Table.Th>{t.priceTitle}</Table.Th>}
            <Table.Th>{t.qualityTitle}</Table.Th>
          </Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {models.map((model) => (
            <Table.Tr key={model.name}>
              <Table.Td miw={160} style={{ overflowWrap: "anywhere" }}>{model.name}</Table.Td>
              <Table.Td style={NO_WRAP}>{t.memoryState[model.state]}</Table.Td>
              <Table.Td style={NO_WRAP}>{model.first_token_seconds !== null && seconds(model.first_token_seconds)}</Table.Td>
              <Table.Td style={NO_WRAP}>
                {model.output_tokens_per_second !== null && t.speed(number(model.output_tokens_per_second))}
              </Table.Td>
              {hasPrices && (
                <Table.Td>
                  {model.usd_per_million_tokens
                    && `${model.usd_per_million_tokens.input} / ${model.usd_per_million_tokens.output}`}
                </Table.Td>
              )}
              <Table.Td>
                {t.tier(number(model.quality.tier))}
                {model.quality.mean !== null && ` · ${t.ability1} ${number(model.quality.mean)}`}
                <Text size="xs" c="dimmed">{model.quality.source}</Text>
              </Table.Td>
            </Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
    </Table.ScrollContainer>
  );
}
