/** Shows the render pools: how many renders wait, for how long, and who renders them. */

import { Badge, Group, Paper, SimpleGrid, Stack, Text, Title } from "@mantine/core";
import { Fragment } from "react";

import type { ClusterNode, Pool, Renderer } from "#/api/cluster";
import { EmptyState } from "#/components/empty-state";
import { type Fact, Facts, Panel } from "#/components/panel";
import { Words } from "#/components/words";
import { useFormat, useStrings } from "#/language";

import { STATE_COLOURS } from "./states";
import { strings } from "./strings";

export function Pools({ pools, nodes }: { pools: readonly Pool[]; nodes: readonly ClusterNode[] }) {
  const t = useStrings(strings).pools;
  const hosts = new Map(nodes.map((node) => [node.id, node.host]));
  return (
    <Panel title={t.title}>
      {pools.length === 0 && <EmptyState title={t.none}><Words>{t.noneMore}</Words></EmptyState>}
      <SimpleGrid cols={{ base: 1, lg: pools.length > 1 ? 2 : 1 }}>
        {pools.map((pool) => <PoolCard key={pool.name} pool={pool} hosts={hosts} />)}
      </SimpleGrid>
    </Panel>
  );
}

function PoolCard({ pool, hosts }: { pool: Pool; hosts: ReadonlyMap<string, string> }) {
  const t = useStrings(strings).pools;
  const format = useFormat();
  const count = (value: number | null | undefined) => format.number(value ?? 0);
  const facts: Fact[] = [
    [t.scale, pool.minimum === pool.maximum
      ? t.always(count(pool.maximum))
      : t.between(count(pool.minimum), count(pool.maximum))],
    [t.oldest, pool.oldest_waiting_since && format.ago(pool.oldest_waiting_since)],
    [t.wait, pool.wait_p50_seconds == null || pool.wait_p90_seconds == null
      ? t.noWait
      : t.waits(format.seconds(pool.wait_p50_seconds), format.seconds(pool.wait_p90_seconds))],
    [t.comfyui, pool.comfyui_version],
  ];
  return (
    <Paper withBorder p="sm" component="section" aria-label={pool.name}>
      <Group justify="space-between" mb="xs">
        <Title order={4} size="h6">{pool.name}</Title>
        {!pool.is_responding && <Badge variant="light" tt="none" color="red">{t.down}</Badge>}
      </Group>
      {pool.is_responding && (
        <Stack gap="sm">
          <SimpleGrid cols={3}>
            <Figure name={t.queued} value={count(pool.queued)} />
            <Figure name={t.running} value={count(pool.running)} />
            <Figure name={t.ready} value={count(pool.ready)} />
          </SimpleGrid>
          <Facts facts={facts} />
          {pool.renderers && <Renderers renderers={pool.renderers} hosts={hosts} />}
        </Stack>
      )}
    </Paper>
  );
}

function Figure({ name, value }: { name: string; value: string }) {
  return (
    <div>
      <Text size="xs" c="dimmed">{name}</Text>
      <Text fz="lg" fw={700} lh={1.3}>{value}</Text>
    </div>
  );
}

function Renderers({ renderers, hosts }: { renderers: readonly Renderer[]; hosts: ReadonlyMap<string, string> }) {
  const t = useStrings(strings).pools;
  if (renderers.length === 0) return <Text size="sm" c="dimmed">{t.noRenderers}</Text>;
  return (
    <Stack component="ul" gap="xs" m={0} p={0} aria-label={t.renderers} style={{ listStyle: "none" }}>
      {renderers.map((renderer) => (
        <RendererRow key={renderer.name} renderer={renderer} host={hosts.get(renderer.node ?? "")} />
      ))}
    </Stack>
  );
}

function RendererRow({ renderer, host }: { renderer: Renderer; host: string | undefined }) {
  const t = useStrings(strings).pools;
  const format = useFormat();
  const place = [
    host,
    renderer.gpus > 0 ? t.gpus(format.number(renderer.gpus)) : t.cpus(format.number(renderer.cpus)),
    ...renderer.models,
    renderer.losses > 0 && t.losses(format.number(renderer.losses)),
  ].filter((word): word is string => Boolean(word));
  return (
    <li>
      <Group gap="xs">
        <Badge variant="light" tt="none" color={STATE_COLOURS[renderer.state]} size="sm">{t.state[renderer.state]}</Badge>
        <Text size="sm" style={{ overflowWrap: "anywhere" }}>{renderer.name}</Text>
      </Group>
      <Text size="xs" c="dimmed" style={{ overflowWrap: "anywhere" }}>
        {place.map((word, index) => <Fragment key={word}>{index > 0 && " · "}{word}</Fragment>)}
      </Text>
      {renderer.error !== null && <Text size="xs" className="error-text" lang="en">{renderer.error}</Text>}
    </li>
  );
}
