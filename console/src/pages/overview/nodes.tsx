/** Shows the nodes, and each GPU as a bar that is divided into the shares of its actors. */

import { Alert, Badge, Box, Group, Paper, Progress, Stack, Text, Title } from "@mantine/core";

import type { ClusterNode, Gpu } from "#/api/cluster";
import { EmptyState } from "#/components/empty-state";
import { Panel } from "#/components/panel";
import { usePercent } from "#/components/small-numbers";
import { Words } from "#/components/words";
import { useFormat, useStrings } from "#/language";

import { STATE_COLOURS } from "./states";
import { strings } from "./strings";

// Neighbours on a bar differ, and white text is readable on all; badges tell the states.
const SHARE_COLOURS = ["indigo-8", "teal-9", "grape-8", "cyan-9", "pink-8", "gray-7"];

export function Nodes({ nodes }: { nodes: readonly ClusterNode[] | null }) {
  const t = useStrings(strings).nodes;
  return (
    <Panel title={t.title}>
      {nodes === null && <Alert color="yellow" role="status">{t.unknown}</Alert>}
      {nodes?.length === 0 && <EmptyState title={t.none}><Words>{t.noneMore}</Words></EmptyState>}
      <Stack>{nodes?.map((node) => <NodeCard key={node.id} node={node} />)}</Stack>
    </Panel>
  );
}

function NodeCard({ node }: { node: ClusterNode }) {
  const t = useStrings(strings).nodes;
  const format = useFormat();
  // Ray's own labels, such as that of the node's id, say nothing more.
  const labels = Object.entries(node.labels).filter(([name]) => !name.startsWith("ray.io/"));
  return (
    <Paper withBorder p="sm" component="section" aria-label={node.host}>
      <Group justify="space-between" gap="xs" mb="xs">
        <Title order={4} size="h6">{node.host}</Title>
        <Text size="xs" c="dimmed">
          {t.cpus(format.number(node.cpus))} · {t.memory(format.bytes(node.memory_bytes))}
        </Text>
      </Group>
      {labels.length > 0 && (
        <Group gap={4} mb="xs">
          {labels.map(([name, value]) => (
            <Badge key={name} variant="default" tt="none" fw={400}>{name}: {value}</Badge>
          ))}
        </Group>
      )}
      {node.gpus.length === 0 && <Text size="sm" c="dimmed">{t.noGpus}</Text>}
      <Stack>{node.gpus.map((gpu) => <GpuBar key={gpu.index} gpu={gpu} />)}</Stack>
    </Paper>
  );
}

function GpuBar({ gpu }: { gpu: Gpu }) {
  const t = useStrings(strings).nodes;
  const format = useFormat();
  const percent = usePercent();
  const { memory_used_bytes: used, memory_total_bytes: total, temperature_celsius: celsius } = gpu;
  const measures = [
    used == null || total == null ? null : t.used(format.bytes(used), format.bytes(total)),
    celsius == null ? null : t.celsius(format.number(celsius)),
    t.free(percent(gpu.free)),
  ].filter((word) => word !== null);
  const shares = gpu.shares.map((share) => t.barShare(percent(share.fraction), share.actor));
  // Ray counts what it was told to, also where there is no card; renderers measure real ones.
  const hasCard = gpu.name != null;
  const name = hasCard ? t.gpu(gpu.index) : t.slot(gpu.index);
  return (
    <div>
      <Group justify="space-between" gap="xs" mb={4}>
        <Text size="sm" fw={600}>{name} · {hasCard ? gpu.name : t.noCard}</Text>
        <Text size="xs" c="dimmed">{measures.join(" · ")}</Text>
      </Group>
      <Progress.Root
        size={26} role="img" aria-label={t.bar(name, [...shares, t.free(percent(gpu.free))].join(", "))}
      >
        {gpu.shares.map((share, index) => (
          <Progress.Section
            key={share.actor} value={100 * share.fraction} withAria={false} color={getColour(index).replace("-", ".")}
            style={{ borderInlineEnd: "2px solid var(--mantine-color-body)" }}
          >
            <Progress.Label fz="xs" c="white">{share.pool ?? t.llama}</Progress.Label>
          </Progress.Section>
        ))}
      </Progress.Root>
      <Shares gpu={gpu} />
    </div>
  );
}

function Shares({ gpu }: { gpu: Gpu }) {
  const t = useStrings(strings).nodes;
  const states = useStrings(strings).pools.state;
  const percent = usePercent();
  return (
    <Stack component="ul" gap={4} mt="xs" mb={0} mx={0} p={0} style={{ listStyle: "none" }}>
      {gpu.shares.map((share, index) => (
        <Box component="li" key={share.actor}>
          <Group gap="xs" wrap="wrap">
            <span
              aria-hidden
              style={{ width: 10, height: 10, borderRadius: 3, background: `var(--mantine-color-${getColour(index)})` }}
            />
            <Text size="sm" style={{ overflowWrap: "anywhere" }}>{share.actor}</Text>
            <Badge variant="light" tt="none" color={STATE_COLOURS[share.state]} size="sm">{states[share.state]}</Badge>
            <Text size="xs" c="dimmed" style={{ overflowWrap: "anywhere" }}>
              {t.share(percent(share.fraction))} · {share.models.length > 0 ? share.models.join(", ") : t.noModels}
            </Text>
          </Group>
        </Box>
      ))}
    </Stack>
  );
}

function getColour(index: number): string {
  return SHARE_COLOURS[index % SHARE_COLOURS.length]!;
}
